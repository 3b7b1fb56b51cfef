"""What a file is by its first bytes; a file's name decides nothing."""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path
from typing import IO, cast

from jaxmnist.errors import UsageError, one_line

GZIP, NPY, ZIP = b"\x1f\x8b", b"\x93NUMPY", b"PK\3\4"
HEAD = 512  # bytes that are looked at
PICTURE = "is a single picture; a folder with a folder of pictures for each class is needed"
CONVERT = "save its arrays with numpy.savez as x_train, y_train, x_test and y_test"
UNPACK = "unpack it and name what comes out of it"
# How files begin that are no data, or data in a form that is not read.
KNOWN = tuple(
    (re.compile(pattern, re.DOTALL), phrase)
    for pattern, phrase in (
        (rb"\Z", "is empty"),
        (rb"version https://git-lfs", "is a pointer of Git LFS, not the data: run git lfs pull"),
        (rb"(?i)\s*<(!doctype|html|\?xml|head|!--)", "is a web page, not data: download it again"),
        (rb"\x89HDF\r\n", f"is an HDF5 file (or MATLAB 7.3), which is not read: {CONVERT}"),
        (rb"\x80[\x02-\x05]", f"is a pickle, which can run code and is not read: {CONVERT}"),
        (rb"PAR1", f"is a Parquet file, which is not read: {CONVERT}"),
        (rb"ARROW1", f"is an Arrow file, which is not read: {CONVERT}"),
        (rb"\xfd7zXZ", f"is an xz archive: {UNPACK}"),
        (rb"BZh", f"is a bzip2 archive: {UNPACK}"),
        (rb"7z\xbc\xaf", f"is a 7-Zip archive: {UNPACK}"),
        (rb"Rar!", f"is a RAR archive: {UNPACK}"),
        (rb".{257}ustar", f"is a tar archive: {UNPACK}"),
        (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|BM.{4}\0{4}", PICTURE),
    )
)


def open_file(path: Path) -> IO[bytes]:
    """Open a file for reading, through gzip if it is gzipped; raises OSError."""
    if path.exists() and not path.is_file():  # a pipe would block
        raise OSError("is no regular file")
    with path.open("rb") as file:
        zipped = file.read(2) == GZIP
    return cast(IO[bytes], gzip.open(path, "rb")) if zipped else path.open("rb")


def head_of(path: Path) -> bytes:
    """Return the first bytes of a file, unpacked if it is gzipped; `UsageError` if it can't be."""
    try:
        with open_file(path) as file:
            return file.read(HEAD)
    except Exception as error:  # given damaged bytes, gzip raises more than OSError
        raise UsageError(f"{path}: can't be read: {reason(error)}") from None


def what_it_is(head: bytes) -> str | None:
    """Return a phrase for a file that begins so, if it is known and can't be read; else None."""
    return next((phrase for pattern, phrase in KNOWN if pattern.match(head)), None)


def reason(error: BaseException) -> str:
    """Return an exception's message as one line, without the path, which the caller names."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return one_line(error)

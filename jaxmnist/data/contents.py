"""What a file is by its first bytes, not by its name; and what a folder holds for a person."""

from __future__ import annotations

import errno
import gzip
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import SEEK_END, SEEK_SET
from pathlib import Path
from typing import IO, cast

from jaxmnist.errors import EnvironmentFailure, JaxmnistError, UsageError, disk_error, one_line
from jaxmnist.reading import PIECE, check_unpacked

GZIP, NPY, ZIP = b"\x1f\x8b", b"\x93NUMPY", b"PK\3\4"
ENVIRONMENT = (errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT)
HEAD = 512  # bytes that are looked at
UNPACK = "unpack it and name what comes out of it"
PICTURE = "is a single picture; a folder with a folder of pictures for each class is needed"
CONVERT = "save its arrays with numpy.savez as x_train, y_train, x_test and y_test"
# How files begin that are no data, or data in a form that is not read.
KNOWN = tuple(
    (re.compile(pattern, re.DOTALL), phrase)
    for pattern, phrase in (
        (rb"\Z", "is empty"),
        (rb"version https://git-lfs", "is a pointer of Git LFS, not the data: run git lfs pull"),
        (rb"(?i)\s*<(!doctype|html|\?xml|head|!--)", "is a web page, not data: download it again"),
        (rb"\x89HDF\r\n", f"is an HDF5 file (or MATLAB 7.3), which is not read: {CONVERT}"),
        (rb"\x80[\x02-\x05]", f"is a pickle, which can run code and is not read: {CONVERT}"),
        (rb"\xff\xfe|\xfe\xff", "is text in UTF-16: save it as UTF-8"),
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

# What systems put into folders, beside names that begin with a dot: Windows, macOS, Python, Linux,
# and network storage by Synology and QNAP.
SYSTEM = re.compile(
    r"thumbs\.db|desktop\.ini|\$recycle\.bin|system volume information|__macosx|icon\r|__pycache__"
    r"|lost\+found|@eadir|#recycle|#snapshot|@recycle|@recently-snapshot",
    re.IGNORECASE,
)


def is_hidden(name: str) -> bool:
    """Whether a person doesn't see a file or folder of this name as data."""
    return name.startswith(".") or SYSTEM.fullmatch(name) is not None


def visible(folder: Path, root: Path | None = None) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the files in a folder, sorted, without hidden ones.

    Args:
      folder: to be listed.
      root: the folder that a person named, which links must not lead out of; None if only names
        are wanted.

    Raises:
      UsageError: the folder can't be read, or a link leads out of `root`.
    """
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if root is not None:
                    check_link(Path(entry.path), root)
                # A link that leads nowhere, or in a circle, counts as a file that can't be read.
                (folders if os.path.isdir(entry.path) else files).append(entry.name)
    except OSError as error:
        raise unreadable(folder, error) from None
    return sorted(folders), sorted(files)


def files_below(folder: Path, root: Path, above: Sequence[str] = ()) -> list[Path]:
    """Return the files in a folder and in the folders in it, sorted, without hidden ones.

    Args:
      folder, root: as those of `visible`, which raises.
      above: the real paths of the folders above, into which links must not lead again.
    """
    real = os.path.realpath(folder)
    if real in above:
        return []
    inner, files = visible(folder, root)
    below = [file for name in inner for file in files_below(folder / name, root, (*above, real))]
    return sorted([folder / name for name in files] + below)


def check_link(path: Path, root: Path) -> None:
    """Raise `UsageError` if a path is a link that leads out of a folder.

    Data from somebody else must not make us read other files.
    """
    if not path.is_symlink() or not path.exists():
        return
    top = os.path.realpath(root)
    if os.path.commonpath([top, os.path.realpath(path)]) != top:
        raise UsageError(
            f"{path}: is a symbolic link to a place outside {root}; put a copy there instead"
        )


class _Gzip(gzip.GzipFile):
    """A gzip file for reading that may not unpack to far more than images do."""

    def _checked(self, content: bytes) -> bytes:
        check_unpacked(self.name, self.tell(), os.fstat(self.fileno()).st_size)
        return content

    def read(self, size: int | None = -1) -> bytes:
        return self._checked(super().read(size))

    def read1(self, size: int = -1) -> bytes:
        return self._checked(super().read1(size))

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        while whence == SEEK_END and self.read(PIECE):
            pass
        return super().seek(offset, whence)


@contextmanager
def open_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, through gzip if it is gzipped.

    Raises `UsageError` if it can't be opened, unpacks to too much, or if reading it raises
    anything inside the context: given damaged bytes, decoders do.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would block
            raise UsageError(f"{path}: is no regular file")
        with path.open("rb") as plain:
            zipped = plain.read(len(GZIP)) == GZIP
        with cast(IO[bytes], _Gzip(path)) if zipped else path.open("rb") as file:
            yield file
    except JaxmnistError:
        raise
    except Exception as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> JaxmnistError:
    """Return the error to raise for what reading a file has raised.

    Its bytes are to blame, or its permissions; or else the environment, which lacks memory, open
    files or room, or whose disk fails.
    """
    if isinstance(error, OSError) and error.errno in ENVIRONMENT:
        return disk_error(f"{path}: can't be read", error)
    if isinstance(error, MemoryError):
        return EnvironmentFailure(f"{path}: can't be read: there is not enough memory")
    return UsageError(f"{path}: can't be read: {reason(error)}")


def head_of(path: Path, size: int = HEAD) -> bytes:
    """Return the first bytes of a file, unpacked if it is gzipped; `UsageError` if it can't be."""
    with open_file(path) as file:
        return file.read(size)


def what_it_is(head: bytes) -> str | None:
    """Return a phrase for a file that begins so, if it is known and can't be read; else None."""
    return next((phrase for pattern, phrase in KNOWN if pattern.match(head)), None)


def reason(error: BaseException) -> str:
    """Return an exception's message as one line, without the path, which the caller names."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return one_line(error)

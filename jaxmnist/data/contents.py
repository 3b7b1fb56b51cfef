"""What a file or folder holds: its format by its first bytes, its part of a dataset by its name.

`x_train`, `train_images`, `X_test.npy`, `emnist-letters-train-labels-idx1-ubyte.gz` and
`kmnist-test-imgs.npz` all name a part and say whether they hold images or labels; what is left,
such as `emnist-letters`, is the dataset's name.
"""

from __future__ import annotations

import errno
import gzip
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import SEEK_END, SEEK_SET
from pathlib import Path
from typing import IO, NamedTuple, cast

from jaxmnist.errors import (
    EnvironmentFailure,
    JaxmnistError,
    SettingError,
    UsageError,
    disk_error,
    one_line,
)
from jaxmnist.files import PIECE, check_unpacked

# --- Names of arrays and files ---

PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing", "t10k"), "test"),
}
KINDS = {
    **dict.fromkeys(("x", "images", "image", "imgs", "img", "data", "features"), "images"),
    **dict.fromkeys(("y", "labels", "label", "target", "targets"), "labels"),
}
# Tokens that say how an array is stored.
STORAGE = re.compile(r"idx\d|ubyte|byte|short|int|float|double|gz|npy|npz")
WORDS = "train|test|val|valid|validation"
JOINED = re.compile(rf"(x|y)({WORDS})|({WORDS})(x|y)")
LABELS_OF = {"images": "labels", "image": "label", "imgs": "labels", "img": "label", "x": "y"}
LABELS_OF |= {"X": "y", "data": "target", "features": "labels", "idx3": "idx1"}
MOST_NAMES = 200  # characters of a list of names in an error


class Name(NamedTuple):
    """What a name says.

    dataset: the rest of the name; often empty.
    part: 'train', 'validation' or 'test'; None if it names no part.
    kind: 'images' or 'labels'.
    """

    dataset: str
    part: str | None
    kind: str


def parse(name: str) -> Name | None:
    """Return what the name of an array or file says; None if neither images nor labels.

    >>> parse("emnist-letters-train-images-idx3-ubyte.gz")
    Name(dataset='emnist-letters', part='train', kind='images')
    >>> parse("y_val"), parse("weights")
    (Name(dataset='', part='validation', kind='labels'), None)
    """
    part = kind = None
    rest = []
    for token in reversed(re.split(r"[-_. ]+", name)):
        lower = token.lower()
        if joined := JOINED.fullmatch(lower):
            first, second, third, fourth = joined.groups()
            part, kind = PARTS[second or third], KINDS[first or fourth]
        elif part is None and lower in PARTS:
            part = PARTS[lower]
        elif kind is None and lower in KINDS:
            kind = KINDS[lower]
        elif not STORAGE.fullmatch(lower):
            rest.append(token)
    return None if kind is None else Name("-".join(reversed(rest)), part, kind)


def choose(source: str, names: Iterable[str], what: str) -> dict[str, tuple[str, str]]:
    """Return the names of the images and the labels of each part; empty if there are none.

    Args:
      source: the file or folder, for errors.
      names: of the arrays or files in it. Of several names for the same array an uncompressed
        one is taken.
      what: 'array' or 'file', for errors.

    Returns:
      By 'train', 'validation' and 'test', as far as there is such a part: the names of its images
      and its labels. Data without parts are 'train'.

    Raises:
      UsageError: several datasets, or images without their labels.
    """
    datasets: dict[str, dict[tuple[str, str], str]] = {}
    for name in sorted(names, key=lambda name: (name.endswith(".gz"), name)):
        if found := parse(name):
            parts = datasets.setdefault(found.dataset, {})
            parts.setdefault((found.part or "all", found.kind), name)
    trained = {
        dataset: parts
        for dataset, parts in datasets.items()
        if ("train", "images") in parts or {("all", "images"), ("all", "labels")} <= set(parts)
    }
    if not trained:
        return {}
    if len(trained) > 1 and (what == "file" or "" not in trained):
        mend, one = "keep one of them in it", ""
        if what == "file":
            first = trained[min(trained)]
            one = min(trained) or first.get(("train", "images")) or first["all", "images"]
            mend = "name one, as in {data_dir} {source}/{one}"
        known = listed(dataset or "one without a name" for dataset in sorted(trained))
        raise SettingError(
            "{source}: holds {count} datasets, {known}: " + mend,
            source=source,
            count=len(trained),
            known=known,
            one=one,
        )
    parts = trained[""] if "" in trained else next(iter(trained.values()))
    chosen = {}
    for part in ("train", "validation", "test"):
        stored = "all" if part == "train" and ("train", "images") not in parts else part
        images, labels = (parts.get((stored, kind)) for kind in ("images", "labels"))
        if images and labels:
            chosen[part] = images, labels
        elif images or labels:
            needed = f"{_labels_of(images)}, the labels of {images}" if images else ""
            raise UsageError(
                f"{source}: has no {what} {needed or f'with the images of {labels}'}; it has"
                f" {listed(sorted(parts.values()))}"
            )
    return chosen


def listed(names: Iterable[str]) -> str:
    """Return names as text, cut off if long; 'none' if there are none."""
    text = ", ".join(names)
    return f"{text[:MOST_NAMES]}…" if len(text) > MOST_NAMES else text or "none"


def _labels_of(images: str) -> str:
    """Return the name that the labels would have beside these images."""
    tokens = re.split(r"([-_. ])", images.removesuffix(".gz"))
    return "".join(LABELS_OF.get(token, token) for token in tokens)


# --- What a file is by its first bytes, not by its name; and what a folder holds for a person ---

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

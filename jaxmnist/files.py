"""Reading and writing files: whole or not at all, with damage detected; records as JSON.

A file is written under a temporary name, flushed to disk and renamed, so that a reader finds the
old or the new one. JSON files contain the SHA-256 of their content. Reading never follows a link,
waits for a pipe or runs code from a file.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import json
import math
import os
import stat
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import Field, fields, is_dataclass
from functools import partial
from io import BufferedIOBase, BytesIO
from pathlib import Path
from types import UnionType
from typing import IO, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgspec
import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from jaxmnist.errors import UsageError, disk_error

# --- Reading files of unknown size and origin, with no more memory than a file has bytes ---

LARGEST_FILE = 8 * 2**30  # bytes, uncompressed; see `largest_file`
LARGEST_CODE_POINT = 0x10FFFF  # of Unicode
PIECE = 2**20  # bytes to read at a time where only a header states how many there are
# A packed file that unpacks to both more bytes than the first number, and more than the second for
# each of its bytes, is refused: that is how a small file takes all memory. zlib reaches 1030 for
# each byte. MNIST's images have 2, binary ones as float64 120, one-hot rows of 62 classes 280, a
# digit on an empty 256×256 canvas 260.
UNPACKED, TIMES = 64 * 2**20, 500
# 3.0 differs from 2.0 only in how it encodes names of fields, which are refused.
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,
}
LONGEST_HEADER = 10_000  # bytes, of a .npy file's; NumPy reads no longer ones either


def memory() -> int:
    """Return this machine's memory in bytes; `2 * LARGEST_FILE` if the system doesn't report it."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        found = -1
    return found if found > 0 else 2 * LARGEST_FILE


def largest_file() -> int:
    """Return how many bytes a file may unpack to: half of the memory, at most 8 GiB."""
    return min(LARGEST_FILE, memory() // 2)


def read_up_to(file: BufferedIOBase | IO[bytes], size: int) -> bytearray:
    """Read at most `size` bytes; memory is allocated only for bytes that exist."""
    content = bytearray()
    while len(content) < size and (piece := file.read(min(PIECE, size - len(content)))):
        content += piece
    return content


def read_stated(name: str, file: BufferedIOBase | IO[bytes], size: int) -> bytearray:
    """Read the rest of a file whose header states that it has `size` bytes.

    Raises:
      UsageError: it has fewer or more, or `size` is more than can be loaded.
    """
    if size > largest_file():
        raise UsageError(f"{name}: its header states more than can be loaded")
    content = read_up_to(file, size)
    if len(content) < size or file.read(1):
        found = f"only {len(content)}" if len(content) < size else "more"
        raise UsageError(f"{name}: its header states {size} bytes of data, but it has {found}")
    return content


def check_unpacked(name: str, unpacked: int, packed: int) -> None:
    """Raise `UsageError` if so many packed bytes unpack to far more than images do."""
    if unpacked > max(UNPACKED, TIMES * packed):
        raise UsageError(
            f"{name}: unpacks to over {TIMES} times its size, as images hardly do; if you trust"
            " it, store it without compression"
        )


def read_npy(name: str, file: BufferedIOBase | IO[bytes], *, text: bool = False) -> np.ndarray:
    """Read the array in a `.npy` file; its header is checked first.

    Only plain numbers are read, and with `text` plain text too, which can't run code. `name` is
    for errors.
    """
    shape, is_fortran, dtype = _npy_header(name, file)
    if dtype.kind not in ("biufSU" if text else "biuf"):
        what = {"O": "Python objects", "V": "records"}.get(dtype.kind, dtype.name)
        mend = "; save it with array.astype(str)" if text and dtype.kind == "O" else ""
        only = "only plain numbers and text are read" if text else "only plain numbers are read"
        raise UsageError(f"{name}: is an array of {what}; {only}{mend}")
    content = read_stated(name, file, math.prod(shape) * dtype.itemsize)
    if dtype.kind == "U" and content:
        points = np.frombuffer(content, np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        if points.max() > LARGEST_CODE_POINT:
            raise UsageError(f"{name}: is damaged: its text has characters that don't exist")
    try:
        array = np.frombuffer(content, dtype)
        return array.reshape(shape, order="F" if is_fortran else "C")
    except (ValueError, TypeError):  # negative, too many axes, or text of no characters
        raise UsageError(f"{name}: its header states a shape that no array has") from None


def _npy_header(
    name: str, file: BufferedIOBase | IO[bytes]
) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, order and dtype that a `.npy` file's header states; NumPy parses it.

    NumPy's own errors aren't repeated: they advise to trust the file.
    """
    try:
        version = np.lib.format.read_magic(file)
        parse = HEADERS[version]
        length = file.read(2 if version == (1, 0) else 4)
        size = min(int.from_bytes(length, "little"), LONGEST_HEADER)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that Python 2 wrote
            return parse(BytesIO(length + file.read(size)))
    except (UsageError, OSError, EOFError, zlib.error):  # it isn't the header
        raise
    except Exception:  # Python's parser raises anything, also RecursionError and MemoryError
        raise UsageError(
            f"{name}: its header isn't that of a NumPy array; save it again with numpy.save"
        ) from None


# --- Files that are written whole or not at all, and whose damage is detected ---

LARGEST_JSON = 2**26  # bytes; the files of a run have about a thousandth of that
R = TypeVar("R")  # the type of a record
LACKS = "lacks what this version of jaxmnist writes"
BFLOAT16 = "BF16"  # as safetensors names it
SEALED = "sealed"  # metadata key of the JSON with the SHA-256 of all that a safetensors file holds


class DamagedFile(UsageError):
    """A file of a run whose content is not what was written.

    path: the file.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self._problem = problem

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self._problem)


class MissingFile(DamagedFile):
    """A file of a run that does not exist."""


@contextmanager
def disk(path: Path, what: str = "can't be written") -> Iterator[None]:
    """Turn a file-system error into one whose single line names `path`."""
    try:
        yield
    except OSError as error:
        raise disk_error(f"{path}: {what}", error) from None


def unfinished(path: Path) -> Path:
    """Return the temporary name of a file being written; a killed process leaves that behind."""
    return path.with_name(f".{path.name}.tmp")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Its folder is created if missing, but not the parent of that: a run that vanished with its disk
    must not be created again.
    """
    with disk(path):
        path.parent.mkdir(exist_ok=True)
    write_together({path: content})


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write files whose folders exist so that an error leaves all as they were.

    All are on disk under temporary names before the first is renamed: only a process that is killed
    between two renames leaves some files new and others old.
    """
    begun: list[Path] = []
    try:
        for path, content in contents.items():
            with disk(path):
                if path.is_dir() and not path.is_symlink():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                unfinished(path).unlink(missing_ok=True)  # of a killed process, or a link elsewhere
                begun.append(path)
                with open(unfinished(path), "xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
        for path in contents:
            with disk(path):
                os.replace(unfinished(path), path)
    except BaseException:
        for path in begun:
            with disk(path):
                unfinished(path).unlink(missing_ok=True)
        raise
    for folder in {path.parent for path in contents}:
        flush_folder(folder)


def flush_folder(folder: Path) -> None:
    """Flush to disk which files a folder has: a file that is flushed may still lack its name."""
    with disk(folder):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def read_bytes(path: Path, largest: int | None = None) -> bytes:
    """Read the content of a file of a run.

    Args:
      path: a regular file; links are not followed.
      largest: bytes that it may have; None for `largest_file()`.

    Raises:
      MissingFile: the file does not exist.
      DamagedFile: it is not a regular file, or is too large to be a file of a run.
      UsageError, EnvironmentFailure: the file system denies access or fails, which does not mean
        that the file is damaged.
    """
    largest = largest_file() if largest is None else largest
    try:
        # With O_NONBLOCK, a pipe without a writer doesn't block.
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise MissingFile(path, "does not exist") from None
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV):
            raise DamagedFile(path, "is a link or not a file") from None
        raise disk_error(f"{path}: can't be read", error) from None
    try:
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode):
            raise DamagedFile(path, "is not a file")
        if status.st_size > largest:
            raise DamagedFile(path, f"has {status.st_size} bytes, more than a file of a run has")
        with disk(path, "can't be read"), open(opened, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(opened)


def sha256(content: bytes) -> str:
    """Return the SHA-256 of some bytes, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def content_sha256(content: Any) -> str:
    """Return the SHA-256 of a JSON value, which doesn't depend on layout or the order of keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256(text.encode())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with its SHA-256 under `sha256`."""
    write_bytes(path, json_bytes(content))


def json_bytes(content: dict[str, Any]) -> bytes:
    """Return a JSON object with its SHA-256 under `sha256`, as `read_json` reads it."""
    content = {**content, "sha256": content_sha256(content)}
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """Read the object that `write_json` wrote, without its `sha256`.

    Raises like `read_bytes`, and `DamagedFile` if the file isn't a JSON object or doesn't match its
    SHA-256.
    """
    return json_content(path, read_bytes(path, LARGEST_JSON))


def json_content(path: Path, found: bytes) -> dict[str, Any]:
    """Return what `read_json` reads from a file that has these bytes; raises like it."""
    try:
        content: dict[str, Any] = json.loads(found, parse_int=_whole)
        stated = content.pop("sha256", None)
        genuine = content_sha256(content) == stated
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise DamagedFile(path, "is not a JSON object") from None
    if not genuine:
        raise DamagedFile(path, "its content does not match its SHA-256")
    return content


def _whole(digits: str) -> int:
    """Return a whole number that fits into 64 bits; ValueError for a larger one."""
    number = int(digits)
    if abs(number) >= 2**63:
        raise ValueError("a number of more than 64 bits")
    return number


# --- Records: frozen dataclasses, stored as JSON objects ---


def stored(encode: Callable[[Any], Any], decode: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the metadata of a record's field that has a conversion to JSON of its own.

    encode: returns the JSON value. decode: its inverse; raises what `from_json` catches.
    """
    return {"stored": (encode, decode)}


# The metadata of a field that is not in the file, and of one that is in it unless it is None.
NOT_STORED: dict[str, Any] = {"stored": None}
OPTIONAL: dict[str, Any] = {"optional": True}


def as_json(value: Any) -> Any:
    """Return a record as a JSON object: its fields, and the properties that `DERIVED` names.

    Derived values are for other programs; `from_json` checks them. Lists, tuples and mappings may
    contain records.
    """
    if is_dataclass(value):
        kind: Any = type(value)
        content = {}
        for item, _ in _stored_fields(kind):
            part = getattr(value, item.name)
            if part is not None or "optional" not in item.metadata:
                encode, _ = item.metadata.get("stored", (as_json, None))
                content[item.name] = encode(part)
        return content | {name: as_json(getattr(value, name)) for name in _derived(kind)}
    if isinstance(value, Mapping):
        return {name: as_json(each) for name, each in value.items()}
    return [as_json(each) for each in value] if isinstance(value, list | tuple) else value


def from_json(kind: type[R], content: Any) -> R:
    """Return the record that `as_json` returned `content` for; ValueError if it isn't one.

    Every field must be present with a value of its type. A bool is no int, an int may stand for a
    float, and numbers are finite and have at most 64 bits. Other keys are ignored, as another
    version may have written them.

    kind: the class of the record, or a tuple, mapping or union of such classes.
    """
    try:
        _check_numbers(content)
        return cast(R, _decoded(kind, content))
    except (
        msgspec.ValidationError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as problem:
        raise ValueError(str(problem)) from None


def _decoded(hint: Any, value: Any) -> Any:
    """Convert a JSON value to a type; raises what `from_json` catches, or ValueError."""
    if is_dataclass(hint):
        return _record(hint, value)
    origin, members = get_origin(hint), get_args(hint)
    if not _has_record(hint):
        return msgspec.convert(value, hint, dec_hook=_custom)
    if origin is tuple and isinstance(value, list):
        return tuple(_decoded(members[0], each) for each in value)
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {name: _decoded(members[1], each) for name, each in value.items()}
    for member in members if origin in (Union, UnionType) else ():
        with suppress(msgspec.ValidationError, ValueError, KeyError, TypeError):
            return _decoded(member, value)
    raise ValueError(f"not of type {hint}")


def _record(kind: Any, content: Any) -> Any:
    """Convert a JSON object to a record; raises like `_decoded`."""
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    values = {}
    for item, hint in _stored_fields(kind):
        if "optional" in item.metadata:
            if item.name not in content:
                continue
            if content[item.name] is None:
                raise ValueError(f"{item.name} is null")
        _, decode = item.metadata.get("stored", (None, partial(_decoded, hint)))
        values[item.name] = decode(content[item.name])
    record = kind(**values)
    for name in _derived(kind):
        if content[name] != as_json(getattr(record, name)):
            raise ValueError(f"{name} doesn't match the rest")
    return record


def read_record(path: Path, kind: type[R]) -> R:
    """Read the record of a JSON file, as `Store.write` writes it; raises like `read_json`."""
    return record_of(path, read_json(path), kind)


def record_of(path: Path, content: Any, kind: type[R], problem: str = LACKS) -> R:
    """Return the record that a file contains; `DamagedFile` if its content isn't one."""
    try:
        return from_json(kind, content)
    except ValueError:
        raise DamagedFile(path, problem) from None


@functools.cache
def _stored_fields(kind: Any) -> tuple[tuple[Field[Any], Any], ...]:
    """Return the stored fields of a record, each with its type."""
    hints = get_type_hints(kind)
    found = [item for item in fields(kind) if item.metadata.get("stored", ()) is not None]
    return tuple((item, hints[item.name]) for item in found if item.init)


def _derived(kind: Any) -> tuple[str, ...]:
    found: tuple[str, ...] = getattr(kind, "DERIVED", ())
    return found


@functools.cache
def _has_record(hint: Any) -> bool:
    """Return whether values of a type may contain records."""
    return is_dataclass(hint) or any(map(_has_record, get_args(hint)))


def _check_numbers(content: Any) -> None:
    """Raise ValueError if a JSON value has a number that is not finite or has over 64 bits."""
    if isinstance(content, int | float):
        if not abs(content) < (2**63 if isinstance(content, int) else math.inf):
            raise ValueError("a number that is not finite, or has over 64 bits")
        return
    inside = content.values() if isinstance(content, dict) else content
    for each in inside if isinstance(content, dict | list) else ():
        _check_numbers(each)


def _custom(kind: Any, content: Any) -> Any:
    """Convert a JSON object to a class of mappings, such as `Hyperparameters`."""
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return kind(content)


def array_bytes(array: np.ndarray) -> bytes:
    """Return an array as a `.npy` file, without pickles, which could run code."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def read_array(path: Path, expected: str) -> np.ndarray:
    """Read a file of `array_bytes`; raise `DamagedFile` if its SHA-256 isn't `expected`."""
    content = read_bytes(path)
    if sha256(content) != expected:
        raise DamagedFile(path, f"its SHA-256 is {sha256(content)}, not {expected}")
    try:
        return read_npy(str(path), io.BytesIO(content))
    except Exception:  # given damaged bytes, decoders raise anything
        raise DamagedFile(path, "is not an array of numbers") from None


def read_tensors(
    path: Path, key: str, expected: str | None = None
) -> tuple[dict[str, np.ndarray], Any]:
    """Read the arrays of a safetensors file, and the JSON in its metadata under `key`.

    Raises like `read_bytes`, and `DamagedFile` if it isn't such a file, or if `expected` is given
    and isn't its SHA-256.
    """
    content = read_bytes(path)
    if expected is not None and sha256(content) != expected:
        raise DamagedFile(path, f"its SHA-256 is {sha256(content)}, not {expected}")
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = json.loads(header["__metadata__"][key])
        return _load_tensors(content, header), metadata
    except Exception:  # given damaged bytes, decoders raise anything
        raise DamagedFile(path, "is not a safetensors file of jaxmnist") from None


def _load_tensors(content: bytes, header: dict[str, Any]) -> dict[str, np.ndarray]:
    """Load a safetensors file, also with bfloat16, which its library saves from NumPy alone."""
    brain = [name for name, found in header.items() if found.get("dtype") == BFLOAT16]
    if not brain:
        return load_tensors(content)
    import ml_dtypes  # of JAX

    for name in brain:
        header[name]["dtype"] = "U16"
    start = 8 + int.from_bytes(content[:8], "little")
    text = json.dumps(header).encode()
    arrays = load_tensors(len(text).to_bytes(8, "little") + text + content[start:])
    return {
        name: array.view(ml_dtypes.bfloat16) if name in brain else array
        for name, array in arrays.items()
    }


def sealed_bytes(tensors: dict[str, np.ndarray], content: dict[str, Any]) -> bytes:
    """Return a safetensors file of arrays and a JSON object, with the SHA-256 of both."""
    content = {**content, "tensors_sha256": tensors_sha256(tensors)}
    content["sha256"] = content_sha256(content)
    return save_tensors(tensors, {SEALED: json.dumps(content, allow_nan=False)})


def read_sealed(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a file of `sealed_bytes`: arrays and object without hashes; raises like `read_json`."""
    tensors, content = read_tensors(path, SEALED)
    try:
        stated = content.pop("sha256")
        genuine = content_sha256(content) == stated
        genuine &= content.pop("tensors_sha256") == tensors_sha256(tensors)
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
        genuine = False
    if not genuine:
        raise DamagedFile(path, "its content does not match its SHA-256")
    return tensors, content


def tensors_sha256(tensors: dict[str, np.ndarray]) -> str:
    """Return the SHA-256 of named arrays, their shapes and dtypes."""
    digest = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()

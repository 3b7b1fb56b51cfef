"""Datasets by name: downloaded against registered checksums, or from tensorflow-datasets (tfds).

Fashion-MNIST and KMNIST are published as four IDX files like MNIST's, which are kept in the user's
cache folder. Other names need the extra `[tfds]`. tfds prepares almost every dataset with
TensorFlow, which is large and not needed for anything else here: what tfds has prepared on disk is
read without it. That directory is tfds' own: `TFDS_DATA_DIR`, or `~/tensorflow_datasets`.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import importlib.util
import io
import logging
import math
import os
import re
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import platformdirs

from jaxmnist.data.array_files import IDX_NAMES, read_idx
from jaxmnist.data.arrays import Arrays, Found, Part, check, check_arrays
from jaxmnist.errors import EnvironmentFailure, JaxmnistError, UsageError, one_line, printable
from jaxmnist.files import largest_file

CONNECT_SECONDS = 5.0  # for each address of a host
READ_SECONDS = 30.0  # without data from a connected host

logger = logging.getLogger("jaxmnist")


def load_named(name: str) -> Arrays:
    """Load the parts train, validation and test of a dataset by its name, as `emnist/letters`.

    Args:
      name: in `PUBLISHED`; or as tfds lists it, in lower case, `name/config` for a configuration.

    Returns:
      images uint8[N, H, W, C], labels int64[N] and the names of the classes. Without a test part
      one is set aside. IDX files keep their published order; tfds
      shuffles the datasets that it prepares, always in the same way.

    Raises:
      UsageError: there is no such dataset, it lacks images of one size, labels or the part
        train, or its files are damaged or can't be written.
      EnvironmentFailure: it can't be downloaded or prepared here.
    """
    if published := PUBLISHED.get(name):
        return _load_published(name, published)
    with _tamed_tfds(name) as tfds:
        builder = _find_builder(tfds, name, _data_dir(tfds))
        _check_features(tfds, name, builder.info.features)
        if not builder.is_prepared():
            _prepare(tfds, name, builder)
        arrays = _read_prepared(tfds, name, builder)
        names = getattr(builder.info.features["label"], "names", None) or ()
        return arrays._replace(names={k: printable(str(name)) for k, name in enumerate(names)})


def check_downloaded(name: str | None) -> None:
    """Raise `UsageError` unless a dataset can be loaded by its name without the network.

    No connection is opened, and no folder made. `name`: None for mnist, which is in the package.
    """
    if name in (None, "mnist"):
        return
    if published := PUBLISHED.get(name or ""):
        folder = downloads()
        try:
            there = all(
                path.is_file() and _sha256(path) == published.sha256[key]
                for key, path in published.paths(folder / str(name)).items()
            )
        except OSError:  # they can't be read
            there = False
    else:
        with _tamed_tfds(str(name)) as tfds:
            folder = _data_dir(tfds)
            there = _find_builder(tfds, str(name), folder).is_prepared()
    if not there:
        raise UsageError(
            f"{name} is not on this machine (looked in {folder}); to download it, run: jaxmnist"
            f" search --dataset {name} --dry-run"
        )


# --- Datasets that are published as IDX files ---


@dataclass(frozen=True)
class Published:
    """A dataset of four gzipped IDX files.

    url: of the folder that they are in, with a slash at its end.
    sha256: of each file, by the name of its array, as tensorflow-datasets 4.9.10 registers it.
    names: of the classes 0, 1, ….
    """

    url: str
    sha256: dict[str, str]
    names: tuple[str, ...]

    def paths(self, folder: Path) -> dict[str, Path]:
        """Where the files are kept in a folder, by the names of their arrays."""
        return {key: folder / f"{file}.gz" for key, file in IDX_NAMES.items()}


PUBLISHED = {
    "fashion_mnist": Published(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "x_train": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "y_train": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "x_test": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "y_test": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
    "kmnist": Published(
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        {
            "x_train": "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
            "y_train": "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            "x_test": "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            "y_test": "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
        },
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    ),
}


def downloads() -> Path:
    """The folder that has a folder for each downloaded dataset."""
    return Path(platformdirs.user_cache_dir("jaxmnist", appauthor=False)) / "datasets"


def _sha256(path: Path) -> str:
    import pooch  # imported here, as below: few searches download anything

    found: str = pooch.file_hash(str(path))
    return found


def _load_published(name: str, published: Published) -> Arrays:
    """Read four IDX files, each downloaded unless it is kept with the right checksum."""
    import pooch

    folder = downloads() / name
    quiet, before = pooch.get_logger(), pooch.get_logger().level
    quiet.setLevel(logging.ERROR)
    # As a stream it would leave the connection open where the server refuses.
    once = pooch.HTTPDownloader(
        chunk_size=2**20, stream=False, timeout=(CONNECT_SECONDS, READ_SECONDS)
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for key, path in published.paths(folder).items():
            if not (kept := path.exists()):
                logger.info(f"downloading {path.name} of {name} …")
            pooch.retrieve(
                published.url + path.name,
                f"sha256:{published.sha256[key]}",
                path.name,
                folder,
                downloader=once,
            )
            if not kept:
                path.chmod(0o644)  # pooch lets its owner alone read it
    except Exception as error:  # of pooch, requests or the file system
        files = ", ".join(f"{file}.gz" for file in IDX_NAMES.values())
        advice = f"put {files} into a folder and name it with --data-dir, in Python data_dir"
        what = f"{name} can't be downloaded"
        raise _explain(what, error, folder, "XDG_CACHE_HOME", advice) from None
    finally:
        quiet.setLevel(before)
    found = {key: read_idx(path) for key, path in published.paths(folder).items()}
    return check_arrays(name, **found)._replace(names=dict(enumerate(published.names)))


# --- Datasets of tensorflow-datasets ---


def _data_dir(tfds: Any) -> Path:
    return Path(tfds.core.constants.get_default_data_dir()).expanduser()


@contextlib.contextmanager
def _tamed_tfds(name: str) -> Iterator[Any]:
    """Yield the module tensorflow_datasets, quiet and with short time-outs; restore it on exit.

    name: of the dataset that needs it.
    """
    try:
        import tensorflow_datasets as tfds  # the extra [tfds]
        from absl import logging
        from tensorflow_datasets.core.download import downloader
        from tensorflow_datasets.core.utils import tqdm_utils
    except ImportError as error:
        near = difflib.get_close_matches(name.lower(), ["mnist", *PUBLISHED])
        mean = f"did you mean {near[0]}? " if near else ""
        raise EnvironmentFailure(
            f"dataset {printable(name[:100])!r}: {mean}names other than mnist,"
            f" {', '.join(PUBLISHED)} need tensorflow-datasets ({one_line(error)}):"
            " python -m pip install tensorflow-datasets importlib_resources"
        ) from None
    before = downloader.MAX_RETRIES, downloader._open_url, tqdm_utils._active
    verbosity = logging.get_verbosity()
    # Without a network, ten retries with growing pauses take 204 s. tfds sets no time-outs, but
    # its `_open_url` passes its keyword arguments on to `requests`.
    downloader.MAX_RETRIES = 0
    downloader._open_url = functools.partial(before[1], timeout=(CONNECT_SECONDS, READ_SECONDS))
    tqdm_utils._active = before[2] and sys.stderr.isatty()
    # It would look on Google's storage for a description of what isn't prepared, and leaves an
    # empty folder among the temporary files each time.
    info = tfds.core.DatasetInfo
    described = info.initialize_from_bucket
    info.initialize_from_bucket = lambda self: None
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # hides its banners
            yield tfds
    finally:
        downloader.MAX_RETRIES, downloader._open_url, tqdm_utils._active = before
        info.initialize_from_bucket = described
        logging.set_verbosity(verbosity)


def _find_builder(tfds: Any, name: str, data_dir: Path) -> Any:
    """Return the tfds builder of `name`; raise `UsageError` with near matches if there is none."""
    known = tfds.list_builders(with_community_datasets=False)
    dataset, _, config = name.partition("/")
    # tfds accepts more in a name: versions, arguments, other sites' catalogues.
    if re.fullmatch(r"[a-z]\w*(/\w[\w.\-]*)?", name, re.ASCII):
        try:
            return tfds.builder(name, data_dir=data_dir)
        except ImportError as error:
            reason = f"needs a package that isn't installed: {one_line(error)}"
            raise EnvironmentFailure(f"{name} {reason}") from None
        except Exception as error:  # a dataset's code may raise anything
            if dataset in known and not config:
                raise UsageError(f"{name} can't be opened: {one_line(error)}") from None
    if config and dataset in known:
        choices = list(tfds.builder_cls(dataset).builder_configs)
        near = difflib.get_close_matches(config, choices) or choices[:3]
        what = f"configuration {config!r} of {dataset}"
        near = [f"{dataset}/{choice}" for choice in near]
    else:
        near = difflib.get_close_matches(dataset.lower(), known)
        what = f"dataset {name[:100]!r}"
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    if not config and importlib.util.find_spec("tensorflow") is None:
        hint += " (some datasets exist only where TensorFlow is installed)"
    raise UsageError(f"tensorflow-datasets has no {what}{hint}")


def _check_features(tfds: Any, name: str, features: Any) -> None:
    """Raise `UsageError` unless examples have uint8 images of one size and integer labels."""
    found = dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = found.get("image"), found.get("label")
    if not isinstance(image, tfds.features.Image):
        raise UsageError(f"{name}: has no feature 'image' that is an image")
    if len(image.shape) != 3 or None in image.shape:
        sizes = "×".join("?" if side is None else str(side) for side in image.shape)
        raise UsageError(f"{name}: its images have varying sizes ({sizes}), not a fixed one")
    if image.np_dtype != np.uint8:
        raise UsageError(f"{name}: its images are {np.dtype(image.np_dtype)}, not uint8")
    scalar = isinstance(label, tfds.features.Tensor) and label.shape == ()
    if label is None or not scalar or not np.issubdtype(label.np_dtype, np.integer):
        raise UsageError(f"{name}: has no feature 'label' that is a class or a whole number")


def _prepare(tfds: Any, name: str, builder: Any) -> None:
    """Download and prepare a dataset with TensorFlow, where that is installed."""
    root = builder.data_dir_root
    if importlib.util.find_spec("tensorflow") is None:
        raise EnvironmentFailure(
            f"{name} isn't prepared in {root}, and preparing it needs TensorFlow:"
            " pip install tensorflow"
        )
    # Not from Google's cloud storage: TensorFlow waits there for minutes if there is no network.
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        builder.download_and_prepare(download_config=config)
    except Exception as error:  # a dataset's code may raise anything
        advice = (
            "name a folder of IDX files or an .npz file with --data-dir, in Python data_dir,"
            " instead"
        )
        what = f"{name} can't be prepared"
        raise _explain(what, error, Path(root), "TFDS_DATA_DIR", advice) from None


def _read_prepared(tfds: Any, name: str, builder: Any) -> Arrays:
    """Decode a prepared dataset; TensorFlow isn't needed, and doesn't change the arrays."""
    parts: dict[str, Part] = {}
    shape = builder.info.features["image"].shape
    if "train" not in builder.info.splits:
        has = ", ".join(builder.info.splits) or "none"
        raise UsageError(f"{name}: has no part 'train'; it has {has}")
    for part in ("train", "validation", "test"):
        if part not in builder.info.splits:
            continue
        size = builder.info.splits[part].num_examples
        if size * math.prod(shape) > largest_file():
            raise UsageError(f"{name}: its {part} part is too large for this machine's memory")
        images, labels = np.empty((size, *shape), np.uint8), np.empty(size, np.int64)
        count = 0
        try:
            for count, example in enumerate(_examples(tfds, builder, part), 1):
                if example["image"].shape != shape:
                    raise ValueError(f"an image is {example['image'].shape}, not {shape}")
                images[count - 1], labels[count - 1] = example["image"], example["label"]
            if count != size:
                raise ValueError(f"{count} of {size} {part} examples are there")
        except Exception as error:  # damage shows in any of the decoders
            raise UsageError(f"{builder.data_path}: can't be read: {one_line(error)}") from None
        parts[part] = images, labels
    return check(name, Found.of(parts))


def _examples(tfds: Any, builder: Any, part: str) -> Iterator[Any]:
    """Yield examples as dicts with image uint8[H, W, C] and label, in the order on disk."""
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        yield from builder.as_data_source(part)
        return
    # tfds reads this format with TensorFlow, though its own decoder of the records needs none.
    for path in builder.info.splits[part].filepaths:
        with open(path, "rb") as file:
            while head := file.read(12):  # a record's length and the length's checksum
                (length,) = struct.unpack_from("<Q", head)
                record = file.read(min(length, largest_file()) + 4)[:-4]  # a checksum follows
                yield builder.info.features.deserialize_example_np(record)


def _explain(
    what: str, error: Exception, folder: Path, variable: str, advice: str
) -> JaxmnistError:
    """Return the error to raise for an error of pooch, tfds, requests or the file system.

    variable: of the environment, which names another folder.
    """
    import requests  # comes with pooch

    if isinstance(error, (requests.exceptions.ConnectionError, requests.exceptions.Timeout)):
        host = urlsplit(getattr(error.request, "url", None) or "").hostname or "its host"
        kind = type(error).__name__  # ProxyError, SSLError and ConnectTimeout tell more
        more = "" if kind == "ConnectionError" else f", {kind}"
        return EnvironmentFailure(f"{what} (no connection to {host}{more}): {advice}")
    if isinstance(error, PermissionError):  # pooch raises it again without its number
        error.errno = errno.EACCES
    if isinstance(error, OSError) and error.errno is not None:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return (EnvironmentFailure if full else UsageError)(
            f"{what} into {folder}: {os.strerror(error.errno)}; {variable} names another folder; or"
            f" {advice}"
        )
    # pooch's own error names the temporary file, which nobody knows.
    line = "a file has a wrong checksum" if "hash of downloaded" in str(error) else one_line(error)
    return EnvironmentFailure(f"{what} ({line}): {advice}")

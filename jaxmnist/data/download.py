"""Datasets by name, through tensorflow-datasets (tfds).

tfds prepares almost every dataset with TensorFlow, which is large and not needed for anything
else here. Datasets that are published as four IDX files like MNIST's (mnist, fashion_mnist,
kmnist) are therefore downloaded and verified by tfds and read by `array_files`. Any other
is read, without TensorFlow, from the files that tfds has prepared on disk; TensorFlow is needed
only where these are missing. The directory is tfds' own: `TFDS_DATA_DIR`, or
`~/tensorflow_datasets`.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import importlib.util
import io
import math
import os
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import numpy as np

from jaxmnist.data.array_files import IDX_NAMES, read_idx
from jaxmnist.data.arrays import Arrays, Found, Part, check, check_arrays
from jaxmnist.errors import EnvironmentFailure, JaxmnistError, UsageError, one_line, printable
from jaxmnist.files import largest_file

CONNECT_SECONDS = 5.0  # for each address of a host
READ_SECONDS = 30.0  # without data from a connected host


def load_named(name: str) -> Arrays:
    """Load the parts train, validation and test of the tfds dataset `name`, as `emnist/letters`.

    Args:
      name: as tfds lists it, in lower case; `name/config` for a configuration.

    Returns:
      images uint8[N, H, W, C], labels int64[N] and the names of the classes. Without a test part
      one is set aside. IDX files keep their published order; tfds
      shuffles the datasets that it prepares, always in the same way.

    Raises:
      UsageError: there is no such dataset, it lacks images of one size, labels or the part
        train, or its files are damaged or can't be written.
      EnvironmentFailure: it can't be downloaded or prepared here.
    """
    with _tamed_tfds() as tfds:
        data_dir = _data_dir(tfds)
        builder = _find_builder(tfds, name, data_dir)
        urls = _idx_urls(builder)
        if urls:
            arrays = _load_idx(tfds, name, urls, builder.url_infos, data_dir / "downloads")
        else:
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
    with _tamed_tfds() as tfds:
        data_dir = _data_dir(tfds)
        builder = _find_builder(tfds, name, data_dir)
        urls = _idx_urls(builder)
        if urls is None:
            there = builder.is_prepared()
        else:
            infos = builder.url_infos
            files = [(url, infos[url].checksum, infos[url].filename) for url in urls.values()]
            there = all(_is_kept(tfds, name, data_dir / "downloads", *file) for file in files)
    if not there:
        raise UsageError(
            f"{name} is not on this machine (looked in {data_dir}); to download it, run: jaxmnist"
            f" search --dataset {name} --dry-run"
        )


def _is_kept(
    tfds: Any, name: str, downloads: Path, url: str, checksum: str, filename: str | None
) -> bool:
    """Whether a file that tfds downloads is where its `DownloadManager` looks for it."""
    resource = tfds.core.download.resource
    if filename and (downloads / "manual" / filename).exists():
        return True
    kept = resource.get_dl_fname(url, checksum)
    return any(
        resource.is_locally_cached(folder / kept) for folder in (downloads / name, downloads)
    )


def _data_dir(tfds: Any) -> Path:
    return Path(tfds.core.constants.get_default_data_dir()).expanduser()


@contextlib.contextmanager
def _tamed_tfds() -> Iterator[Any]:
    """Yield the module tensorflow_datasets, quiet and with short time-outs; restore it on exit."""
    try:
        # Only datasets by name need it; a search on other data works without it.
        import tensorflow_datasets as tfds
        from absl import logging
        from tensorflow_datasets.core.download import downloader
        from tensorflow_datasets.core.utils import tqdm_utils
    except ImportError as error:
        raise EnvironmentFailure(
            f"datasets by name need tensorflow-datasets, which can't be imported here ({error}):"
            " pip install tensorflow-datasets importlib_resources pillow"
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


def _idx_urls(builder: Any) -> dict[str, str] | None:
    """Return the URLs of the four IDX files, if the dataset is published as such."""
    base = getattr(builder, "URL", None)
    if not isinstance(base, str):
        return None
    urls = {key: urljoin(base, f"{file}.gz") for key, file in IDX_NAMES.items()}
    return urls if all(url in builder.url_infos for url in urls.values()) else None


def _load_idx(
    tfds: Any, name: str, urls: dict[str, str], url_infos: Any, downloads: Path
) -> Arrays:
    """Read the arrays of four IDX files, downloaded unless they are in `downloads` already."""
    try:
        manager = tfds.download.DownloadManager(
            download_dir=downloads,
            manual_dir=downloads / "manual",
            dataset_name=name,
            url_infos=url_infos,
            force_checksums_validation=True,
        )
        # One after the other, so that no thread keeps trying when the first has failed.
        paths = {key: Path(manager.download(url)) for key, url in urls.items()}
    except Exception as error:  # of tfds, requests or the file system
        files = ", ".join(f"{file}.gz" for file in IDX_NAMES.values())
        advice = f"put {files} into a folder and name it with --data-dir, in Python data_dir"
        raise _explain(f"{name} can't be downloaded", error, downloads, advice) from None
    try:
        found = {key: read_idx(path) for key, path in paths.items()}
    except UsageError as error:
        raise UsageError(f"{error}; delete it to download it again") from None
    return check_arrays(name, **found)


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
        raise _explain(f"{name} can't be prepared", error, Path(root), advice) from None


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


def _explain(what: str, error: Exception, folder: Path, advice: str) -> JaxmnistError:
    """Return the error to raise for an error of tfds, requests or the file system."""
    # Both come with tensorflow-datasets, which only datasets by name need.
    import requests
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    if isinstance(error, (requests.exceptions.ConnectionError, requests.exceptions.Timeout)):
        host = urlsplit(getattr(error.request, "url", None) or "").hostname or "its host"
        kind = type(error).__name__  # ProxyError, SSLError and ConnectTimeout tell more
        more = "" if kind == "ConnectionError" else f", {kind}"
        return EnvironmentFailure(f"{what} (no connection to {host}{more}): {advice}")
    if isinstance(error, NonMatchingChecksumError):
        return EnvironmentFailure(f"{what} (a file has a wrong checksum): {advice}")
    if isinstance(error, OSError) and error.errno is not None:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return (EnvironmentFailure if full else UsageError)(
            f"{what} into {folder}: {os.strerror(error.errno)}; TFDS_DATA_DIR names another folder"
        )
    return EnvironmentFailure(f"{what} ({one_line(error)}): {advice}")

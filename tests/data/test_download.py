"""Datasets by name: a real server on this machine, real files, tfds' own builders."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import importlib.abc
import importlib.util
import io
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import command

from jaxmnist.data import download
from jaxmnist.data.array_files import IDX_NAMES
from jaxmnist.data.download import Published, check_downloaded, load_named
from jaxmnist.errors import EnvironmentFailure, UsageError
from jaxmnist.files import read_json, write_json

SHAPES = {"x_train": (6, 4, 5), "y_train": (6,), "x_test": (3, 4, 5), "y_test": (3,)}


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    """tfds' directory of this test, its own cache, and no proxy between it and its server."""
    folder = tmp_path / "tfds"
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    return folder


@pytest.fixture
def arrays():
    """Four arrays of bytes, of the shapes that IDX files give."""
    random = np.random.default_rng(0)
    return {key: random.integers(0, 256, shape, np.uint8) for key, shape in SHAPES.items()}


@pytest.fixture
def files(arrays):
    """The content of four gzipped IDX files, by name."""
    content = {}
    for key, name in IDX_NAMES.items():
        head = struct.pack(f">BBBB{arrays[key].ndim}I", 0, 0, 8, arrays[key].ndim, *SHAPES[key])
        content[f"{name}.gz"] = gzip.compress(head + arrays[key].tobytes())
    return content


@pytest.fixture
def server(files):
    """A web server of `files`; `.url` is its address and `.asked` what was asked of it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition("/")[2]
            self.server.asked.append(name)
            self.send_response(self.server.status)
            self.send_header("Content-Length", str(len(files[name])))
            self.end_headers()
            self.wfile.write(files[name])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.asked, running.status = [], 200
        running.url = f"http://127.0.0.1:{running.server_port}/data/"
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def publish(files, monkeypatch):
    """Makes an address the place where Fashion-MNIST is published, with the right checksums."""
    known = download.PUBLISHED["fashion_mnist"]
    sums = {k: hashlib.sha256(files[f"{name}.gz"]).hexdigest() for k, name in IDX_NAMES.items()}

    def at(url):
        monkeypatch.setitem(download.PUBLISHED, "fashion_mnist", Published(url, sums, known.names))

    return at


@pytest.fixture
def kept(tmp_path):
    """The folder that Fashion-MNIST's files are kept in."""
    return tmp_path / "cache" / "jaxmnist" / "datasets" / "fashion_mnist"


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check_advice(error, *words):
    """One line that says what to do without a network."""
    line = str(error.value)
    assert "\n" not in line
    for word in ("fashion_mnist", "train-images-idx3-ubyte.gz", "--data-dir", *words):
        assert word in line


def test_published_datasets_are_downloaded_once(server, publish, arrays, files, kept, capfd):
    publish(server.url)
    first = load_named("fashion_mnist")
    assert sorted(server.asked) == sorted(files)
    second = load_named("fashion_mnist")
    assert len(server.asked) == 4
    for found in (first, second):
        np.testing.assert_array_equal(found.x_train, arrays["x_train"][..., None], strict=True)
        np.testing.assert_array_equal(found.x_test, arrays["x_test"][..., None], strict=True)
        np.testing.assert_array_equal(
            found.y_train, arrays["y_train"].astype(np.int64), strict=True
        )
        np.testing.assert_array_equal(found.y_test, arrays["y_test"].astype(np.int64), strict=True)
        assert found.names[9] == "Ankle boot"
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == files
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def offline(monkeypatch):
    """What was asked of the network since; it doesn't answer."""
    asked = []

    def refuse(*address, **_):
        asked.append(address)
        raise OSError("no network")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked


def test_what_is_on_this_machine(server, publish, kept):
    """Where it would be loaded without the network; of four files not with three."""
    check_downloaded(None)
    check_downloaded("mnist")
    publish(server.url)
    load_named("fashion_mnist")
    check_downloaded("fashion_mnist")
    (kept / "t10k-labels-idx1-ubyte.gz").unlink()
    wanted = r"fashion_mnist is not on this machine \(looked in .*datasets\); "
    with pytest.raises(UsageError, match=wanted):
        check_downloaded("fashion_mnist")
    load_named("fashion_mnist")
    assert len(server.asked) == 5


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist", "emnist/letters", "cifar10"])
def test_what_is_not_on_this_machine(offline, tmp_path, monkeypatch, name):
    """The line names the command that downloads it; no connection is tried and no folder made."""
    monkeypatch.setenv("HOME", str(home := tmp_path / "home"))
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    home.mkdir()
    with pytest.raises(UsageError) as error:
        check_downloaded(name)
    assert str(error.value).startswith(f"{name} is not on this machine (looked in ")
    assert str(error.value).endswith(f", run: jaxmnist search --dataset {name} --dry-run")
    assert offline == []
    assert list(tmp_path.rglob("*")) == [home]


def test_a_prepared_dataset_is_on_this_machine(offline, prepare):
    prepare()
    check_downloaded("tiny_pictures")
    assert offline == []


def test_a_run_downloads_nothing(offline, finished, tmp_path, monkeypatch):
    """Its data set isn't here: its page has a note, and other commands a line."""
    monkeypatch.setenv("HOME", str(home := tmp_path / "home"))
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME")
    home.mkdir()
    shutil.copytree(finished.store.path, run := tmp_path / "run")
    content = read_json(run / "search.json")
    settings = {**content["settings"], "data_dir": None, "dataset": "fashion_mnist"}
    write_json(run / "search.json", {**content, "settings": settings})
    ends = {name: command(name, run) for name in ("report", "evaluate", "svm")}
    assert ends.pop("report").returncode == 0
    wanted = "fashion_mnist is not on this machine"
    assert wanted in (run / "report.html").read_text()
    for done in ends.values():
        assert done.returncode == 2
        assert done.stderr.startswith(f"jaxmnist: {wanted}")
        assert done.stderr.count("\n") == 1
    assert offline == []
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist"])
def test_what_is_registered_is_what_tfds_registers(name):
    import tensorflow_datasets as tfds

    builder, ours = tfds.builder_cls(name), download.PUBLISHED[name]
    assert ours.url == builder.URL.rstrip("/") + "/"
    theirs = {url.rpartition("/")[2]: info.checksum for url, info in builder.url_infos.items()}
    assert {f"{IDX_NAMES[key]}.gz": sha256 for key, sha256 in ours.sha256.items()} == theirs
    assert list(ours.names) == tfds.builder(name).info.features["label"].names


def test_a_wrong_byte_is_refused(server, publish, files):
    publish(server.url)
    name = "t10k-labels-idx1-ubyte.gz"
    files[name] = files[name][:-9] + bytes([files[name][-9] ^ 1]) + files[name][-8:]
    with pytest.raises(EnvironmentFailure) as error:
        load_named("fashion_mnist")
    check_advice(error, "wrong checksum")


def test_a_kept_file_that_was_damaged_is_downloaded_again(server, publish, kept, files):
    publish(server.url)
    load_named("fashion_mnist")
    path = kept / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UsageError, match="is not on this machine"):
        check_downloaded("fashion_mnist")
    load_named("fashion_mnist")
    assert len(server.asked) == 5
    assert path.read_bytes() == files[path.name]


@pytest.mark.parametrize("status", [404, 503])
def test_a_refusing_server_is_reported(server, publish, status):
    publish(server.url)
    server.status = status
    with pytest.raises(EnvironmentFailure) as error:
        load_named("fashion_mnist")
    check_advice(error, str(status))


def test_no_connection_is_found_in_seconds(publish, free_port):
    publish(f"http://127.0.0.1:{free_port}/")
    start = time.monotonic()
    with pytest.raises(EnvironmentFailure) as error:
        load_named("fashion_mnist")
    assert time.monotonic() - start < 5
    check_advice(error, "no connection to 127.0.0.1")


def test_a_host_that_does_not_exist(publish):
    publish("http://no-such-host.invalid/")
    with pytest.raises(EnvironmentFailure) as error:
        load_named("fashion_mnist")
    check_advice(error, "no connection to no-such-host.invalid")


def test_a_silent_host_is_given_up(publish, monkeypatch):
    monkeypatch.setattr(download, "READ_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and never answers
        publish(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        with pytest.raises(EnvironmentFailure) as error:
            load_named("fashion_mnist")
    check_advice(error, "no connection to 127.0.0.1, ReadTimeout)")


def test_a_host_that_swallows_connections_is_given_up(publish, monkeypatch):
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        others = [socket.socket() for _ in range(4)]  # a full queue drops the next connection
        try:
            for other in others:
                other.setblocking(False)
                other.connect_ex(address)
            publish(f"http://127.0.0.1:{address[1]}/")
            with pytest.raises(EnvironmentFailure) as error:
                load_named("fashion_mnist")
        finally:
            for other in others:
                other.close()
    check_advice(error, "no connection to 127.0.0.1, ConnectTimeout")


def test_a_folder_that_cannot_be_written(server, publish, tmp_path):
    publish(server.url)
    (cache := tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(
        UsageError, match=r"Not a directory; XDG_CACHE_HOME names another folder; or"
    ) as error:
        load_named("fashion_mnist")
    assert "\n" not in str(error.value)
    assert str(cache) in str(error.value)
    assert server.asked == []


def test_a_full_disk(server, publish, tmp_path, files):
    publish(server.url)
    # Larger than the disk, so its checksum, which is wrong, is never checked.
    files["train-images-idx3-ubyte.gz"] = bytes(2**20)
    (cache := tmp_path / "cache").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(cache)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        assert "CI" not in os.environ, "no tmpfs can be mounted, and CI must see this test"
        pytest.skip("no tmpfs can be mounted here")
    try:
        with pytest.raises(EnvironmentFailure, match=r"No space left on device") as error:
            load_named("fashion_mnist")
    finally:
        subprocess.run(["umount", "-l", str(cache)], check=True)
    assert "\n" not in str(error.value)
    assert str(cache) in str(error.value)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("fashion_mnits", "did you mean fashion_mnist?"),
        ("Fashion_MNIST", "did you mean fashion_mnist"),
        ("mnist:3.0.1", "did you mean"),
        ("emnist/leters", "did you mean emnist/letters?"),
        ("emnist/..", "did you mean emnist/"),
        ("mnist/batch=1", "has no configuration"),
    ],
)
def test_an_unknown_name_is_answered_with_near_ones(name, near):
    with pytest.raises(UsageError) as error:
        load_named(name)
    assert near in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("no_tensorflow")
def test_an_unknown_name_may_be_one_that_needs_tensorflow():
    with pytest.raises(UsageError, match="exist only where TensorFlow is installed"):
        load_named("moving_mnits")


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "/",
        "..",
        "../mnist",
        "/etc/passwd",
        "x\0y",
        "x\ny",
        "huggingface:mnist",
        "é" * 9,
        "a" * 5000,
        "gs://bucket/mnist",
        "a,b",
        "no_such/config",
        "*",
        "-",
    ],
)
def test_a_strange_name_is_no_dataset(name):
    with pytest.raises(UsageError, match="tensorflow-datasets has no dataset") as error:
        load_named(name)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_without_tensorflow_datasets(server, publish, monkeypatch):
    """The published datasets need it not; the message for other names gives the extra."""
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    publish(server.url)
    assert len(load_named("fashion_mnist").x_train) == 6
    for name, near in (("fashion_mnits", "did you mean fashion_mnist? "), ("cifar10", "")):
        for ask in (load_named, check_downloaded):
            with pytest.raises(EnvironmentFailure) as error:
                ask(name)
            line = str(error.value)
            assert line.startswith(f"dataset {name!r}: {near}names other than mnist, fashion_mnist")
            assert line.endswith("python -m pip install tensorflow-datasets importlib_resources")


def png(image):
    content = io.BytesIO()
    Image.fromarray(image[..., 0]).save(content, "PNG")
    content.seek(0)
    return content


def picture(i):
    """Image number i, uint8[4, 5, 1], of the tiny dataset."""
    return (np.arange(20, dtype=np.uint8) + 7 * i).reshape(4, 5, 1).astype(np.uint8)


@pytest.fixture
def prepare(data_dir):
    """Prepares the tiny dataset `tiny_pictures` in tfds' directory, by tfds, without TensorFlow."""
    import tensorflow_datasets as tfds

    def prepared(file_format="array_record", parts=("train", "test"), label=None, **image):
        features = {"image": tfds.features.Image(**({"shape": (4, 5, 1)} | image))}
        features["label"] = label or tfds.features.ClassLabel(num_classes=3)
        sizes = {"train": range(10), "test": range(10, 14)}

        with tfds.core.registered.skip_registration():

            class TinyPictures(tfds.core.GeneratorBasedBuilder):
                VERSION = tfds.core.Version("1.0.0")

                def _info(self):
                    return tfds.core.DatasetInfo(
                        builder=self, features=tfds.features.FeaturesDict(features)
                    )

                def _split_generators(self, manager):
                    return {part: self._generate_examples(sizes[part]) for part in parts}

                def _generate_examples(self, numbers):
                    for i in numbers:
                        value = i % 3
                        if label is not None:
                            value = i % 2 if hasattr(label, "names") else i / 2
                        yield i, {"image": png(picture(i)), "label": value}

        builder = TinyPictures(data_dir=data_dir, file_format=file_format)
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
        return builder

    return prepared


def check_tiny_pictures(found):
    """`found` is the tiny dataset, in whatever order."""
    for images, labels, numbers in (
        (found.x_train, found.y_train, range(10)),
        (found.x_test, found.y_test, range(10, 14)),
    ):
        assert images.dtype == np.uint8
        assert labels.dtype == np.int64
        expected = {picture(i).tobytes(): i % 3 for i in numbers}
        assert {
            image.tobytes(): label for image, label in zip(images, labels, strict=True)
        } == expected
        assert images.shape == (len(numbers), 4, 5, 1)


@pytest.fixture
def no_tensorflow(monkeypatch):
    """TensorFlow can't be found or imported, whether it is installed or not."""

    class Blocker(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name == "tensorflow":
                raise ModuleNotFoundError("No module named 'tensorflow'", name=name)

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorflow" else find_spec(name)
    )
    monkeypatch.setattr(sys, "meta_path", [Blocker(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)


@pytest.mark.usefixtures("no_tensorflow")
def test_prepared_array_records_are_read_without_tensorflow(prepare, capfd):
    prepare()
    capfd.readouterr()
    check_tiny_pictures(load_named("tiny_pictures"))
    assert capfd.readouterr() == ("", "")


def write_tfrecords(builder):
    """Turns a prepared dataset into TFRecord files: length, checksum, record, checksum."""
    import tensorflow_datasets as tfds

    folder = Path(builder.data_path)
    for part in builder.info.splits:
        source = builder.as_data_source(
            part, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        records = [bytes(record) for record in source]
        framed = [struct.pack("<QI", len(r), 0) + r + struct.pack("<I", 0) for r in records]
        old = folder / f"tiny_pictures-{part}.array_record-00000-of-00001"
        old.with_name(old.name.replace("array_record", "tfrecord")).write_bytes(b"".join(framed))
        old.unlink()
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    return folder


@pytest.mark.usefixtures("no_tensorflow")
def test_prepared_tfrecords_are_read_without_tensorflow(prepare):
    write_tfrecords(prepare())
    check_tiny_pictures(load_named("tiny_pictures"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-30],
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content + content,
        lambda content: b"\xff" * len(content),
        lambda content: content.replace(b"IHDR", b"IHDX", 1),
        lambda content: content.replace(b"PNG", b"GNP", 1),
    ],
)
def test_damaged_records_are_one_line(prepare, damage):
    path = next(write_tfrecords(prepare()).glob("*train*"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UsageError, match="can't be read: ") as error:
        load_named("tiny_pictures")
    assert "\n" not in str(error.value)
    assert str(path.parent) in str(error.value)


def test_without_a_test_part_one_is_set_aside(prepare):
    import tensorflow_datasets as tfds

    prepare(parts=("train",), label=tfds.features.ClassLabel(names=["ink", "paper"]))
    found = load_named("tiny_pictures")
    assert len(found.x_train) + len(found.x_test) == 10
    assert set(found.y_test) == {0, 1}
    assert found.names == {0: "ink", 1: "paper"}


def test_a_lacking_part_is_named(prepare):
    prepare(parts=("test",))
    with pytest.raises(UsageError, match=r"^tiny_pictures: has no part 'train'; it has test$"):
        load_named("tiny_pictures")


def test_images_of_varying_sizes_are_refused(prepare):
    prepare(shape=(None, None, 1))
    with pytest.raises(UsageError, match=r"^tiny_pictures: its images have varying sizes \(\?×"):
        load_named("tiny_pictures")


def test_a_label_that_is_no_class_is_refused(prepare):
    import tensorflow_datasets as tfds

    prepare(label=tfds.features.Scalar(np.float32))
    with pytest.raises(UsageError, match=r"^tiny_pictures: has no feature 'label'"):
        load_named("tiny_pictures")


def test_a_dataset_of_no_images_is_refused():
    with pytest.raises(UsageError, match=r"^ag_news_subset: has no feature 'image'"):
        load_named("ag_news_subset")


@pytest.mark.usefixtures("no_tensorflow")
@pytest.mark.parametrize("name", ["cifar10", "emnist/letters"])
def test_what_must_be_prepared_asks_for_tensorflow(name, data_dir, caplog):
    with pytest.raises(EnvironmentFailure, match="pip install tensorflow") as error:
        load_named(name)
    assert str(error.value).startswith(name)
    assert str(data_dir) in str(error.value)
    assert not caplog.records  # tfds warns that it found nothing prepared


def test_importing_the_module_does_not_import_tfds():
    code = "import sys, jaxmnist.data.download; print('tensorflow_datasets' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"

"""Data as the model gets it: the real file formats, the fixed split, the order, both ways of resizing, and no
network.
"""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import pickle
import socket
import struct
import tarfile
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torchvision.datasets as tv
from PIL import Image

from initscope.config import catalog
from initscope.config.run_config import RunConfig
from initscope.data import datasets, loading
from initscope.data.datasets import RawData, Split, stratified_split
from initscope.errors import ConfigError, DataUnavailable


def config(**changes) -> RunConfig:
    return RunConfig(**{"image_size": 32, "batch_size": 16, **changes})


def everything(loaded: loading.Data, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*loaded.epoch(epoch), strict=True)
    return torch.cat(images), torch.cat(labels)


# ---------------------------------------------------------------- digits


def test_digits_are_scikit_learns_split_once_and_for_all():
    from sklearn.datasets import load_digits

    theirs = load_digits()
    raw = datasets.read("digits", 32)
    entry = catalog.DATA["digits"]
    assert (len(raw.train), len(raw.validation), raw.classes) == (
        entry.train,
        entry.validation,
        entry.classes,
    )
    assert raw.train.images.shape[1:] == (entry.channels, 8, 8) and raw.white == theirs.images.max()

    both = [
        (part.images.reshape(-1, 64).numpy(), part.labels.numpy()) for part in (raw.train, raw.validation)
    ]
    have = sorted(
        [
            *map(
                bytes,
                np.column_stack(
                    [np.vstack([both[0][0], both[1][0]]), np.concatenate([both[0][1], both[1][1]])]
                ).astype("u1"),
            )
        ]
    )
    assert have == sorted(map(bytes, np.column_stack([theirs.data, theirs.target]).astype("u1"))), (
        "every digit once, with its label"
    )

    shares = torch.bincount(raw.validation.labels) / torch.bincount(
        torch.cat([raw.train.labels, raw.validation.labels])
    )
    assert ((shares - 0.2).abs() < 0.005).all(), "each class gives a fifth to validation"
    # The split of this day is the split of every other day.
    assert hashlib.sha256(raw.validation.labels.numpy().tobytes()).hexdigest()[:16] == "bd124ff3e0c77ef1"
    assert not (raw.train.labels[:50].diff() >= 0).all(), "shuffled: a first part is a fair sample"


def test_a_split_of_few_samples():
    images, labels = torch.zeros(7, 1, 2, 2), torch.tensor([0, 0, 0, 0, 0, 1, 1])
    train, validation = stratified_split(images, labels)
    assert sorted(train.labels.tolist()) == [0, 0, 0, 0, 1] and sorted(validation.labels.tolist()) == [0, 1]
    with pytest.raises(DataUnavailable, match="at least two samples"):
        stratified_split(images[:2], torch.tensor([0, 1]))


# ---------------------------------------------------------------- batches


def test_the_order_depends_on_data_seed_and_epoch_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = loading.load(config(data_seed=3, init_seed=1))
    batches = list(first.epoch(0))
    torch.rand(7)
    for again in (
        loading.load(config(data_seed=3, init_seed=2, init="zeros", dropout=0.5, learning_rate=1)),
        first,
    ):
        assert all(
            torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
            for a, b in zip(batches, again.epoch(0), strict=True)
        )
    assert len(batches) == first.steps_per_epoch == 90 and [len(y) for _, y in batches[-2:]] == [
        16,
        1438 % 16,
    ]
    for other in (loading.load(config(data_seed=4)).epoch(0), first.epoch(1)):
        assert not torch.equal(next(other)[1], batches[0][1])
    torch.set_rng_state(before)
    list(first.epoch(2))
    assert torch.equal(torch.get_rng_state(), before), "the order drew from the global random state"

    # From the middle on, as a resumed run goes.
    rest = list(first.epoch(0, first_batch=88))
    assert (
        len(rest) == 2 and torch.equal(rest[0][0], batches[88][0]) and torch.equal(rest[1][1], batches[89][1])
    )
    assert list(first.epoch(0, first_batch=90)) == []
    # Each epoch holds every sample once.
    assert torch.equal(everything(first, 7)[1].bincount(), first.train.labels.bincount())


@pytest.mark.parametrize("normalize", ["unit", "standardize"])
@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_batch_by_batch_gives_the_batches_held_resized(monkeypatch, channels, normalize):
    asked = config(in_channels=channels, normalize=normalize, train_samples=100, image_size=64)
    held = loading.load(asked)
    monkeypatch.setattr(loading, "HOLD_RESIZED_BYTES", 0)
    resized = loading.load(asked)
    assert (
        held.train_ready
        and held.validation_ready
        and not resized.train_ready
        and not resized.validation_ready
    )
    assert resized.train.images.shape[-1] == 8 and held.train.images.shape[-1] == 64
    for one, other in ((held.epoch(1), resized.epoch(1)), (held.validate(), resized.validate())):
        for (x, y), (x2, y2) in zip(one, other, strict=True):
            assert x.shape[1:] == (channels, 64, 64) and x.dtype == torch.float32
            assert torch.equal(x, x2) and torch.equal(y, y2)
    assert held.chance == resized.chance


def test_input_scale():
    unit, _ = everything(loading.load(config()))
    assert unit.min() == 0 and 0.9 < unit.max() <= 1
    loaded = loading.load(config(normalize="standardize"))
    raw = datasets.read("digits", 32)
    pixels = (raw.train.images - raw.train.images.mean()) / raw.train.images.std(correction=0)
    prepared = loaded.prepare(raw.train.images[:5])
    torch.testing.assert_close(
        prepared, torch.nn.functional.interpolate(pixels[:5], size=(32, 32), mode="bilinear", antialias=True)
    )


def test_a_last_batch_of_one_sample_is_left_out_only_for_batch_norm():
    plain, normed = (loading.load(config(train_samples=33, batch_norm=bn)) for bn in (False, True))
    assert [len(y) for _, y in plain.epoch(0)] == [16, 16, 1] and plain.steps_per_epoch == 3
    assert [len(y) for _, y in normed.epoch(0)] == [16, 16] and normed.steps_per_epoch == 2
    # One sample in all is still a batch: there is nothing else.
    assert [len(y) for _, y in loading.load(config(train_samples=1, batch_norm=True)).epoch(0)] == [1]
    assert [len(y) for _, y in loading.load(config(train_samples=10**9)).epoch(0)] == [16] * 89 + [14]


def test_chance_is_the_better_of_the_two_ways_to_guess():
    images = torch.zeros(10, 1, 8, 8)
    raw = RawData(
        Split(images, torch.arange(10) % 2), Split(images, torch.tensor([0] * 9 + [1])), classes=2, white=1.0
    )
    assert loading.Data(raw, config()).chance == pytest.approx(0.9)
    assert loading.load(config()).chance == pytest.approx(
        max(datasets.read("digits", 32).validation.labels.bincount()) / 359
    )


def test_channels_and_classes():
    grey = torch.rand(2, 1, 4, 4)
    assert torch.equal(loading.adapt_channels(grey, 3), grey.repeat(1, 3, 1, 1))
    colour = torch.rand(2, 3, 4, 4)
    luminance = 0.299 * colour[:, 0] + 0.587 * colour[:, 1] + 0.114 * colour[:, 2]
    torch.testing.assert_close(loading.adapt_channels(colour, 1)[:, 0], luminance)
    with pytest.raises(ConfigError, match="in_channels 2 does not fit"):
        loading.adapt_channels(colour, 2)
    loaded = loading.load(config(in_channels=3, num_classes=50))
    assert (loaded.channels, loaded.classes) == (3, 50) and next(loaded.epoch(0))[0].shape == (16, 3, 32, 32)


# ---------------------------------------------------------------- torchvision's file formats, made by hand


@pytest.fixture(autouse=True)
def _no_package(request, monkeypatch):
    """A data set that Debian's package has installed is this machine's: only the tests of it look there."""
    if "real_package" not in request.keywords:
        monkeypatch.setattr(datasets, "PACKAGES", {})


PACKAGE, FOLDER = datasets.PACKAGES["fashion_mnist"]


@pytest.mark.real_package
@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{PACKAGE} is not installed")
def test_the_files_of_debians_package_are_found():
    """The story's own data, as Zalando published it: 60,000 and 10,000 images, ten classes of the same
    size.
    """
    raw = datasets.read("fashion_mnist", 28)
    assert raw.train.images.shape == (60_000, 1, 28, 28) and raw.validation.images.shape == (
        10_000,
        1,
        28,
        28,
    )
    assert (
        raw.train.labels.bincount().tolist() == [6_000] * 10
        and raw.validation.labels.bincount().tolist() == [1_000] * 10
    )
    assert raw.train.labels[:5].tolist() == [9, 0, 0, 3, 0] and raw.train.images[
        0
    ].float().mean().item() == pytest.approx(97.25, abs=0.01)


def test_missing_data_names_debians_package(monkeypatch, unreachable, tmp_path):
    monkeypatch.setattr(datasets, "PACKAGES", {"fashion_mnist": ("dataset-fashion-mnist", tmp_path / "none")})
    with pytest.raises(DataUnavailable, match="install Debian's package dataset-fashion-mnist") as caught:
        datasets.read("fashion_mnist", 32)
    assert len(str(caught.value).splitlines()) == 1


def test_a_damaged_file_is_named(unreachable):
    folder = datasets.data_root() / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    files, _ = mnist_files()
    for name, content in {
        **files,
        "t10k-images-idx3-ubyte.gz": files["t10k-images-idx3-ubyte.gz"][:200],
    }.items():
        (folder / name).write_bytes(content)
    with pytest.raises(DataUnavailable, match="cannot be read") as caught:
        datasets.read("fashion_mnist", 32)
    assert str(folder) in str(caught.value) and "--data digits" in str(caught.value)


def idx(array: np.ndarray) -> bytes:
    """The IDX format of http://yann.lecun.com/exdb/mnist: two zeros, type 8 (unsigned byte), dimensions,
    sizes, bytes.
    """
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype("u1").tobytes()


def mnist_files(
    samples: tuple[int, int] = (60, 20),
) -> tuple[dict[str, bytes], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """({file name: gzipped IDX}, {"train" and "t10k": (images, labels)})."""
    random, files, arrays = np.random.default_rng(0), {}, {}
    for part, count in zip(("train", "t10k"), samples, strict=True):
        images, labels = random.integers(0, 256, (count, 28, 28)), np.arange(count) % 10
        arrays[part] = images, labels
        files[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(idx(images))
        files[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(idx(labels))
    return files, arrays


def expect(monkeypatch, kind: type, files: dict[str, bytes]) -> None:
    """Let torchvision expect the checksums of our small files."""
    monkeypatch.setattr(
        kind, "resources", [(name, hashlib.md5(files[name]).hexdigest()) for name, _ in kind.resources]
    )


def assert_holds(loaded: loading.Data, arrays: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    for split, (images, labels) in zip((loaded.train, loaded.validation), arrays.values(), strict=True):
        assert torch.equal(split.labels, torch.from_numpy(labels))
        padded = torch.from_numpy(images / 255).float().unsqueeze(1)
        torch.testing.assert_close(
            split.images,
            padded if loaded.image_size == 28 else loaded.prepare(torch.from_numpy(images).unsqueeze(1)),
        )


@pytest.mark.parametrize(("name", "kind"), [("fashion_mnist", tv.FashionMNIST), ("mnist", tv.MNIST)])
@pytest.mark.parametrize("how", ["gzipped by hand", "unpacked by hand", "downloaded"])
def test_idx_files(name, kind, how, monkeypatch, capfd):
    files, arrays = mnist_files()
    if how == "downloaded":
        expect(monkeypatch, kind, files)
    folder = datasets.data_root() / kind.__name__ / "raw"
    monkeypatch.setattr(kind, "mirrors", ["http://127.0.0.1:9/"])
    if how == "downloaded":
        with serving(files) as url:
            monkeypatch.setattr(kind, "mirrors", [url])
            loaded = loading.load(config(data=name))
        assert "100%" in capfd.readouterr().err, "a progress bar while downloading"
        monkeypatch.setattr(kind, "mirrors", ["http://127.0.0.1:9/"])
        loading.load(config(data=name))  # now it is on disk
    else:
        folder.mkdir(parents=True)
        for file, content in files.items():
            if how.startswith("unpacked"):
                (folder / file.removesuffix(".gz")).write_bytes(gzip.decompress(content))
            else:
                (folder / file).write_bytes(content)
        loaded = loading.load(config(data=name))
    assert (loaded.channels, loaded.classes, len(loaded.train), len(loaded.validation)) == (1, 10, 60, 20)
    assert_holds(loaded, arrays)


class Python2Pickler(pickle._Pickler):
    """Bytes as Python 2 pickled its strings, which is how the CIFAR files were made."""

    dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes

    @classmethod
    def dumps(cls, value: object) -> bytes:
        cls(buffer := io.BytesIO(), protocol=2).dump(value)
        return buffer.getvalue()


def cifar_files() -> tuple[dict[str, bytes], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The python version of https://www.cs.toronto.edu/~kriz/cifar.html: pickled dicts of rows of 3072 bytes,
    red first.
    """
    random, files = np.random.default_rng(1), {}
    parts: dict[str, list] = {"train": [], "test": []}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        rows, labels = random.integers(0, 256, (10, 3072), dtype=np.uint8), random.permutation(10).tolist()
        names = [f"{name}_{i}.png".encode() for i in range(10)]
        files[name] = Python2Pickler.dumps(
            {b"batch_label": name.encode(), b"labels": labels, b"data": rows, b"filenames": names}
        )
        parts["test" if name == "test_batch" else "train"].append((rows.reshape(-1, 3, 32, 32), labels))
    files["batches.meta"] = Python2Pickler.dumps(
        {b"label_names": [b"airplane", b"automobile"], b"num_vis": 3072}
    )
    return files, {
        k: (np.concatenate([x for x, _ in v]), np.concatenate([y for _, y in v])) for k, v in parts.items()
    }


@pytest.mark.parametrize("how", ["by hand", "downloaded"])
def test_cifar_files(how, monkeypatch, tmp_path):
    files, arrays = cifar_files()
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(tv.CIFAR10, "train_list", [[name, md5[name]] for name, _ in tv.CIFAR10.train_list])
    monkeypatch.setattr(tv.CIFAR10, "test_list", [[name, md5[name]] for name, _ in tv.CIFAR10.test_list])
    monkeypatch.setattr(tv.CIFAR10, "meta", {**tv.CIFAR10.meta, "md5": md5["batches.meta"]})
    folder = (datasets.data_root() if how == "by hand" else tmp_path) / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    monkeypatch.setattr(tv.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    if how == "downloaded":
        with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as archive:
            archive.add(folder, folder.name)
        packed = (tmp_path / "cifar.tar.gz").read_bytes()
        monkeypatch.setattr(tv.CIFAR10, "tgz_md5", hashlib.md5(packed).hexdigest())
        with serving({"cifar-10-python.tar.gz": packed}) as url:
            monkeypatch.setattr(tv.CIFAR10, "url", url + "cifar-10-python.tar.gz")
            loaded = loading.load(config(data="cifar10"))
    else:
        loaded = loading.load(config(data="cifar10"))
    assert (loaded.channels, loaded.classes, len(loaded.train), len(loaded.validation)) == (3, 10, 50, 10)
    for split, (images, labels) in zip((loaded.train, loaded.validation), arrays.values(), strict=True):
        assert torch.equal(split.labels, torch.from_numpy(labels))
        torch.testing.assert_close(split.images, torch.from_numpy(images / 255).float())
    grey = loading.load(config(data="cifar10", in_channels=1))
    torch.testing.assert_close(
        grey.train.images, loading.adapt_channels(loaded.train.images, 1), atol=1e-5, rtol=1e-5
    )


# ---------------------------------------------------------------- without a network


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("fashion_mnist", "FashionMNIST/raw"),
        ("mnist", "MNIST/raw"),
        ("cifar10", "."),
        ("cifar10", "cifar-10-batches-py"),
    ],
)
def test_offline_names_the_folder_and_a_way_out(name, folder, unreachable):
    with pytest.raises(DataUnavailable) as caught:
        datasets.read(name, 32)
    said = str(caught.value)
    assert str((datasets.data_root() / folder).resolve()) in said or folder in said
    assert "--data digits" in said and len(said.splitlines()) == 1
    assert ("train-images-idx3-ubyte" if "mnist" in name else "data_batch_1") in said


@pytest.mark.timeout(60)
def test_a_server_that_never_answers_is_given_up_on(monkeypatch):
    """A connection that opens and stays silent, as behind a firewall that drops packets."""
    monkeypatch.setattr(datasets, "DOWNLOAD_TIMEOUT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(tv.FashionMNIST, "mirrors", [url])
        monkeypatch.setattr(tv.CIFAR10, "url", url + "cifar-10-python.tar.gz")
        for name in ("fashion_mnist", "cifar10"):
            with pytest.raises(DataUnavailable, match="--data digits"):
                datasets.read(name, 32)
    assert socket.getdefaulttimeout() is None


def test_files_that_are_something_else_are_unavailable_too(monkeypatch, unreachable):
    """A web page saved under the data's name, and a file cut short."""
    folder = datasets.data_root() / "MNIST" / "raw"
    folder.mkdir(parents=True)
    files = {name.removesuffix(".gz"): gzip.decompress(content) for name, content in mnist_files()[0].items()}
    for bad in (b"<html>404</html>", b"", files["train-images-idx3-ubyte"][:500]):
        for name, content in {**files, "train-images-idx3-ubyte": bad}.items():
            (folder / name).write_bytes(content)
        with pytest.raises(DataUnavailable, match="MNIST") as caught:
            datasets.read("mnist", 32)
        assert len(str(caught.value).splitlines()) == 1


@pytest.fixture
def unreachable(monkeypatch):
    """Every address of the data sets refuses the connection at once, whatever network the test machine
    has.
    """
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    for kind in (tv.MNIST, tv.FashionMNIST):
        monkeypatch.setattr(kind, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(tv.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")


class serving:
    """A web server of some files on this machine; gives its address."""

    def __init__(self, files: dict[str, bytes]):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                content = files.get(self.path.lstrip("/"))
                self.send_response(200 if content else 404)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/"

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


# ---------------------------------------------------------------- a folder of images


def image_folder(
    folder: Path, classes: dict[str, int], size: tuple[int, int] = (40, 24), colour: bool = True
) -> dict[str, int]:
    """Real PNG files; each image is of one colour, which tells its class."""
    for level, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB" if colour else "L", size, (40 * level, i, 255) if colour else 40 * level).save(
                folder / name / f"{i} ö.png"
            )
    return {name: 40 * level for level, name in enumerate(classes)}


def test_image_folder(tmp_path):
    folder = tmp_path / "my pictures, é=1"
    image_folder(folder, {"cats": 10, "dogs": 5, "emus": 2})
    loaded = loading.load(config(data=f"image_folder:{folder}"))
    assert (loaded.channels, loaded.classes, len(loaded.train), len(loaded.validation)) == (3, 3, 13, 4)
    for split in (loaded.train, loaded.validation):
        assert torch.equal((split.images[:, 0, 5, 5] * 255 / 40).round().long(), split.labels), (
            "each image kept its label"
        )
    assert split.images.shape[1:] == (3, 32, 32) and torch.equal(
        split.images[:, 2], torch.ones_like(split.images[:, 2])
    )

    again = loading.load(config(data=f"image_folder:{folder}", data_seed=7))
    assert torch.equal(again.validation.images, loaded.validation.images), "the split is fixed"
    assert loading.load(config(data=f"image_folder:{folder}", in_channels=1)).train.images.shape[1] == 1


def test_image_folders_that_cannot_be(tmp_path):
    def said(folder: Path) -> str:
        with pytest.raises(DataUnavailable) as caught:
            loading.load(config(data=f"image_folder:{folder}"))
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    assert "one sub-folder of images for each class" in said(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "cannot be read as an image folder" in said(tmp_path / "empty")
    image_folder(tmp_path / "one", {"cats": 3})
    assert "at least two" in said(tmp_path / "one")
    image_folder(tmp_path / "single", {"cats": 1, "dogs": 1})
    assert "at least two samples" in said(tmp_path / "single")
    image_folder(tmp_path / "broken", {"cats": 3, "dogs": 3})
    (tmp_path / "broken" / "cats" / "x.png").write_bytes(b"no picture")
    assert "x.png" in said(tmp_path / "broken")
    whole = (tmp_path / "broken" / "dogs" / "0 ö.png").read_bytes()
    (tmp_path / "broken" / "cats" / "x.png").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in said(tmp_path / "broken")
    (tmp_path / "broken" / "cats" / "x.png").unlink()
    (tmp_path / "broken" / "empty class").mkdir()
    assert "empty class" in said(tmp_path / "broken")

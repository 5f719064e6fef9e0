"""Data sets by name: every reader on small files in the published format, and the registry."""

from __future__ import annotations

import codecs
import gzip
import io
import pickle
import re
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from trajmatch.config import DataConfig
from trajmatch.data import ImageDataset, load_data
from trajmatch.data.sources import SOURCES
from trajmatch.data.sources.source import ROOT_VARIABLE, Request
from trajmatch.errors import DataError, SettingError

CIFAR10 = [
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
]  # fmt: skip
FINE = [f"fine_{i}" for i in range(100)]


@pytest.fixture(autouse=True)
def _no_root(monkeypatch):
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)


def load(name, root) -> ImageDataset:
    """What the reader gives, before any validation split is cut."""
    return SOURCES[name].load(Request(root=root))


def images(count, shape, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def refused(name, root, *said):
    """The reader refuses with one line that holds all of `said`."""
    with pytest.raises(DataError) as caught:
        load(name, root)
    line = str(caught.value)
    assert "\n" not in line
    for part in said:
        assert str(part) in line
    return line


# -- CIFAR ---------------------------------------------------------------------------------------


def python2(value):
    """A value as Python 2's cPickle writes it in protocol 2, without the frame."""
    if isinstance(value, dict):
        return b"}(" + b"".join(python2(v) for pair in value.items() for v in pair) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(python2, value)) + b"e"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    dtype = b"cnumpy\ndtype\n" + python2("u1") + b"K\x00K\x01\x87R(K\x03" + python2("|")
    dtype += b"NNN" + python2(-1) * 2 + b"K\x00tb"
    shape = b"(" + b"".join(map(python2, value.shape)) + b"t"
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + python2("b")
    return made + b"\x87R(K\x01" + shape + dtype + b"\x89" + python2(value.tobytes()) + b"tb"


def of_python2(value):
    return b"\x80\x02" + python2(value) + b"."


def again_by_python3(protocol):
    """As above, after Python 3 has read it with encoding="bytes" and written it again."""

    def dump(value):
        plain = {
            key.encode(): [v.encode() if isinstance(v, str) else v for v in held]
            if isinstance(held, list)
            else held
            for key, held in value.items()
        }
        return pickle.dumps(plain, protocol=protocol)

    return dump


def content(per_class=1):
    """Images and labels of CIFAR-10's six files, and of CIFAR-100's two."""
    ten = [(images(10 * per_class, (3, 32, 32), i), np.arange(10 * per_class) % 10)
           for i in range(6)]  # fmt: skip
    hundred = [(images(200, (3, 32, 32), 10 + i), np.arange(200)[::-1] % 100) for i in range(2)]
    return ten, hundred


def cifar(root, name, version, dump=of_python2):
    """Write a data set as unpacked; give the images and labels of its files, test last."""
    ten, hundred = content()
    if name == "cifar10":
        stems = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
        folder = root / f"cifar-10-batches-{'py' if version == 'python' else 'bin'}"
        if version == "python":
            for stem, (pixels, labels) in zip(stems, ten, strict=True):
                batch = {"batch_label": "one", "labels": labels.tolist(),
                         "data": pixels.reshape(len(labels), -1), "filenames": ["a"]}  # fmt: skip
                write(folder / stem, dump(batch))
            # Theirs is of protocol 0.
            names = b"".join(b"S'%s'\na" % n.encode() for n in CIFAR10)
            meta = b"(dp1\nS'num_cases_per_batch'\np2\nI10000\nsS'label_names'\np3\n(lp4\n"
            write(folder / "batches.meta", meta + names + b"s.")
        else:
            for stem, (pixels, labels) in zip(stems, ten, strict=True):
                rows = np.hstack(
                    [labels[:, None].astype(np.uint8), pixels.reshape(len(labels), -1)]
                )
                write(folder / f"{stem}.bin", rows.tobytes())
            write(folder / "batches.meta.txt", ("\n".join(CIFAR10) + "\n\n").encode())
        return ten
    folder = root / f"cifar-100-{version}"
    for stem, (pixels, labels) in zip(("train", "test"), hundred, strict=True):
        flat = pixels.reshape(len(labels), -1)
        if version == "python":
            batch = {"fine_labels": labels.tolist(), "coarse_labels": [3] * 200, "data": flat}
            write(folder / stem, dump(batch))
        else:
            both = np.stack([np.full(200, 3), labels], axis=1).astype(np.uint8)
            write(folder / f"{stem}.bin", np.hstack([both, flat]).tobytes())
    if version == "python":
        coarse = [f"coarse_{i}" for i in range(20)]
        write(folder / "meta", dump({"fine_label_names": FINE, "coarse_label_names": coarse}))
    else:
        write(folder / "fine_label_names.txt", ("\n".join(FINE) + "\n").encode())
    return hundred


def is_what_was_written(data, files, classes):
    *train, (test_images, test_labels) = files
    assert data.val is None
    assert data.classes == tuple(classes)
    assert data.train.images.dtype == torch.uint8
    assert np.array_equal(data.train.images, np.concatenate([pixels for pixels, _ in train]))
    assert np.array_equal(data.train.labels, np.concatenate([labels for _, labels in train]))
    assert np.array_equal(data.test.images, test_images)
    assert np.array_equal(data.test.labels, test_labels)


@pytest.mark.parametrize("version", ["python", "binary"])
@pytest.mark.parametrize(("name", "classes"), [("cifar10", CIFAR10), ("cifar100", FINE)])
def test_cifar_unpacked(tmp_path, name, classes, version):
    files = cifar(tmp_path, name, version)
    data = load(name, tmp_path)
    assert data.name == name
    is_what_was_written(data, files, classes)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(("name", "classes"), [("cifar10", CIFAR10), ("cifar100", FINE)])
def test_cifar_written_again_by_python_3(tmp_path, name, classes, protocol):
    files = cifar(tmp_path, name, "python", again_by_python3(protocol))
    is_what_was_written(load(name, tmp_path), files, classes)


def test_an_array_in_column_order_is_put_right(tmp_path):
    files = cifar(tmp_path, "cifar100", "python")
    pixels, labels = files[1]
    batch = {"fine_labels": labels.tolist(), "data": np.asfortranarray(pixels.reshape(200, -1))}
    write(tmp_path / "cifar-100-python" / "test", pickle.dumps(batch))
    is_what_was_written(load("cifar100", tmp_path), files, FINE)


def archived(folder, path, prefix=""):
    """The folder as a .tar.gz, and nothing else left of it."""
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, f"{prefix}{folder.name}")
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


@pytest.mark.parametrize("prefix", ["", "./"])
@pytest.mark.parametrize(
    ("name", "version", "folder", "classes"),
    [
        ("cifar10", "python", "cifar-10-batches-py", CIFAR10),
        ("cifar10", "binary", "cifar-10-batches-bin", CIFAR10),
        ("cifar100", "python", "cifar-100-python", FINE),
        ("cifar100", "binary", "cifar-100-binary", FINE),
    ],
)
def test_cifar_from_its_archive_unpacks_nothing(tmp_path, name, version, folder, classes, prefix):
    files = cifar(tmp_path, name, version)
    stem = "cifar-10" if name == "cifar10" else "cifar-100"
    write(tmp_path / folder / "readme.html", b"not read")
    archived(tmp_path / folder, tmp_path / f"{stem}-{version}.tar.gz", prefix)
    is_what_was_written(load(name, tmp_path), files, classes)
    assert [path.name for path in tmp_path.iterdir()] == [f"{stem}-{version}.tar.gz"]


@pytest.mark.parametrize("place", ["cifar10", "cifar-10"])
def test_cifar_in_a_folder_of_its_name(tmp_path, place):
    files = cifar(tmp_path / place, "cifar10", "python")
    is_what_was_written(load("cifar10", tmp_path), files, CIFAR10)


class _Bomb:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def hostile(marker):
    """Pickles that would write `marker`, if anything in them ran."""
    touch = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    line = b"S" + repr(touch).encode() + b"\n"
    return {
        "reduce": b"cbuiltins\neval\n(" + line + b"tR.",
        "python 2's name": b"c__builtin__\neval\n(" + line + b"tR.",
        "inst": b"(" + line + b"ibuiltins\neval\n.",
        "obj": b"(cbuiltins\neval\n" + line + b"o.",
        "stack global": pickle.dumps({"data": _Bomb(eval, touch)}, protocol=4),
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x10os.system.__call\x93.",
        "numpy's own": b"cnumpy.testing._private.utils\nrunstring\n(S'1'\n}tR.",
        "persistent": b"Pposix.system\n.",
    }


@pytest.mark.parametrize("kind", list(hostile("")))
@pytest.mark.parametrize("file", ["data_batch_3", "batches.meta"])
def test_a_hostile_pickle_does_not_run(tmp_path, kind, file):
    cifar(tmp_path, "cifar10", "python")
    path = tmp_path / "cifar-10-batches-py" / file
    marker = tmp_path / "ran"
    payload = hostile(marker)[kind]
    path.write_bytes(payload)
    refused("cifar10", tmp_path, path)
    assert not marker.exists()


def test_the_hostile_pickles_are_real(tmp_path):
    """They do run when nothing holds them."""
    for kind in ("reduce", "python 2's name", "inst", "obj", "stack global"):
        marker = tmp_path / kind.split()[0]
        pickle.loads(hostile(marker)[kind])
        assert marker.exists()


def object_array():
    return pickle.dumps({"data": np.array([[print]], dtype=object), "labels": [0]})


@pytest.mark.parametrize(
    ("bytes_", "said"),
    [
        (b"", "Ran out of input"),
        (b"\x89PNG\r\n\x1a\n", "download it again"),
        (of_python2({"data": images(9, (3072,), 0), "labels": [0] * 9})[:-900], "truncated"),
        (of_python2([1, 2]), "holds a list and no dictionary"),
        (of_python2({"labels": [0]}), "no 'data' and 'labels' but labels"),
        (of_python2({"data": images(10, (3071,), 0), "labels": [0] * 10}), "shape (10, 3071)"),
        (of_python2({"data": images(10, (3072,), 0), "labels": [0] * 9}), "10 images and 9 labels"),
        (of_python2({"data": images(2, (3072,), 0), "labels": [0, 10]}), "labels from 0 to 10"),
        (of_python2({"data": images(2, (3072,), 0), "labels": ["a", "b"]}), "not whole numbers"),
        (of_python2({"data": images(2, (3072,), 0), "labels": [[0], [0, 1]]}), "not whole numbers"),
        (of_python2({"data": images(0, (3072,), 0), "labels": []}), "holds no images"),
        (pickle.dumps({"data": np.zeros((1, 3072)), "labels": [0]}), "'f8' instead of 'u1'"),
        (object_array(), "cannot read"),
        (pickle.dumps(_Bomb(codecs.encode, "a", "rot13"), protocol=2), "encoded as 'rot13'"),
    ],
)  # fmt: skip
def test_a_broken_batch_is_told_in_a_line(tmp_path, bytes_, said):
    cifar(tmp_path, "cifar10", "python")
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(bytes_)
    refused("cifar10", tmp_path, path, said)


def test_a_broken_binary_version_is_told(tmp_path):
    cifar(tmp_path, "cifar10", "binary")
    folder = tmp_path / "cifar-10-batches-bin"
    path = folder / "test_batch.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    refused("cifar10", tmp_path, path, "no multiple of the 3073")
    path.write_bytes(b"\xff" + whole[1:])
    refused("cifar10", tmp_path, path, "labels from 1 to 255")
    path.write_bytes(whole)
    (folder / "batches.meta.txt").write_text("cat\ndog\n")
    refused("cifar10", tmp_path, folder / "batches.meta.txt", "2 class names instead of 10")
    (folder / "data_batch_4.bin").unlink()
    refused("cifar10", tmp_path, "data_batch_4.bin")


def test_a_broken_archive_is_told(tmp_path):
    cifar(tmp_path, "cifar10", "python")
    folder, path = tmp_path / "cifar-10-batches-py", tmp_path / "cifar-10-python.tar.gz"
    (folder / "data_batch_5").unlink()
    archived(folder, path)
    refused("cifar10", tmp_path, path, "holds no cifar-10-batches-py/data_batch_5")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused("cifar10", tmp_path, path)
    path.write_bytes(b"<html>not found</html>")
    refused("cifar10", tmp_path, path, "not a gzip file")


def test_an_archive_that_claims_gigabytes_is_not_unpacked(tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
    member.size = 1 << 40
    path.write_bytes(gzip.compress(member.tobuf() + bytes(1024)))
    refused("cifar10", tmp_path, path, "unpacks to 1,099,512 MB")


# -- SVHN ----------------------------------------------------------------------------------------


def svhn(root, compressed=True):
    """Twenty images of each split, as MATLAB saves them: [32, 32, 3, n], the zero as 10."""
    root.mkdir(parents=True, exist_ok=True)
    files = []
    for seed, role in enumerate(("train", "test")):
        pixels, labels = images(20, (3, 32, 32), seed), np.arange(20) % 10
        theirs = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        held = {"X": pixels.transpose(2, 3, 1, 0), "y": theirs}
        savemat(root / f"{role}_32x32.mat", held, do_compression=compressed)
        files.append((pixels, labels))
    return files


@pytest.mark.parametrize("place", ["", "svhn", "SVHN"])
@pytest.mark.parametrize("compressed", [True, False])
def test_svhn(tmp_path, place, compressed):
    files = svhn(tmp_path / place, compressed)
    is_what_was_written(load("svhn", tmp_path), files, "0123456789")


def test_a_broken_svhn_is_told(tmp_path):
    svhn(tmp_path)
    path = tmp_path / "test_32x32.mat"
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:100], b"", b"<html>" * 100):
        path.write_bytes(data)
        refused("svhn", tmp_path, path, "download it again")
    shape = (32, 32, 3, 2)
    for held, said in (
        ({"X": np.zeros(shape)}, "'y'"),
        ({"X": np.zeros(shape), "y": np.ones((2, 1), np.uint8)}, "X is float64"),
        ({"X": np.zeros((2, 3, 32, 32), np.uint8), "y": np.ones((2, 1))}, "shape (2, 3, 32, 32)"),
        ({"X": np.zeros(shape, np.uint8), "y": np.ones((1, 2), np.uint8)}, "y is uint8 of shape"),
        ({"X": np.zeros(shape, np.uint8), "y": np.full((2, 1), 11, np.uint8)}, "labels from 11"),
        ({"X": np.zeros(shape, np.uint8), "y": np.ones((3, 1), np.uint8)}, "2 images and 3 labels"),
    ):  # fmt: skip
        savemat(path, held)
        refused("svhn", tmp_path, path, said)
    path.unlink()
    refused("svhn", tmp_path, path)


# -- MNIST and Fashion-MNIST ---------------------------------------------------------------------

FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker",
           "Bag", "Ankle boot"]  # fmt: skip


def idx(array):
    array = np.asarray(array, np.uint8)
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def mnist(folder, seed=0, dot=False, packed=False):
    files = []
    for role in ("train", "t10k"):
        pixels, labels = images(20, (28, 28), seed), np.arange(20) % 10
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            name = f"{role}-{kind}-ubyte".replace("-idx", ".idx" if dot else "-idx")
            data = idx(array)
            write(
                folder / f"{name}{'.gz' if packed else ''}", gzip.compress(data) if packed else data
            )
        files.append((pixels[:, None], labels))
        seed += 1
    return files


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize("place", ["MNIST/raw", "mnist"])
def test_mnist(tmp_path, place, dot, packed):
    files = mnist(tmp_path / place, 0, dot, packed)
    data = load("mnist", tmp_path)
    assert (data.name, data.channels, data.size) == ("mnist", 1, 28)
    is_what_was_written(data, files, "0123456789")


@pytest.mark.parametrize("place", ["FashionMNIST/raw", "fashion-mnist"])
def test_fashion_mnist(tmp_path, place):
    files = mnist(tmp_path / place, packed=True)
    is_what_was_written(load("fashion-mnist", tmp_path), files, FASHION)


def test_the_two_are_never_taken_for_each_other(tmp_path):
    digits, clothes = tmp_path / "a", tmp_path / "b"
    mnist(digits / "mnist")
    mnist(digits / "MNIST" / "raw")
    refused("fashion-mnist", digits, "no files of fashion-mnist")
    mnist(clothes / "fashion-mnist")
    mnist(clothes / "FashionMNIST" / "raw")
    refused("mnist", clothes, "no files of mnist")
    # In a folder without a name they could be either.
    mnist(tmp_path / "c")
    for name in ("mnist", "fashion-mnist"):
        refused(name, tmp_path / "c", "no files of")
    # Beside each other, each is found.
    both = tmp_path / "both"
    first, second = mnist(both / "mnist", 1), mnist(both / "fashion-mnist", 2)
    is_what_was_written(load("mnist", both), first, "0123456789")
    is_what_was_written(load("fashion-mnist", both), second, FASHION)


@pytest.mark.parametrize(
    ("file", "data", "said"),
    [
        ("train-images-idx3-ubyte", b"", "begins with nothing"),
        ("train-images-idx3-ubyte", idx(np.zeros(20)), "begins with 00 00 08 01"),
        ("train-images-idx3-ubyte", b"\x1f\x8b\x08\x00" + bytes(40), "begins with 1f 8b 08 00"),
        ("train-images-idx3-ubyte", b"\x00\x00\x08\x03\x00", "no idx file"),
        ("train-images-idx3-ubyte", idx(images(20, (28, 28), 0))[:-1],
         "should hold 20 x 28 x 28 values and holds 15679"),
        ("t10k-images-idx3-ubyte", idx(images(20, (28, 28), 0)) + b"a", "holds 15681"),
        ("t10k-images-idx3-ubyte", idx(images(20, (8, 8), 0)), "of 8x8 instead of 28x28"),
        ("t10k-images-idx3-ubyte", struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 28, 28),
         "should hold 4294967295 x 28 x 28"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(19)), "20 images and 19 labels"),
        ("t10k-labels-idx1-ubyte", idx(np.arange(20)), "labels from 0 to 19"),
    ],
)  # fmt: skip
def test_a_broken_idx_file_is_told(tmp_path, file, data, said):
    mnist(tmp_path / "mnist")
    path = tmp_path / "mnist" / file
    path.write_bytes(data)
    refused("mnist", tmp_path, path, said)


def test_a_broken_gz_file_is_told(tmp_path):
    mnist(tmp_path / "mnist", packed=True)
    path = tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz"
    whole = path.read_bytes()
    altered = bytearray(whole)
    altered[-6] ^= 1  # its checksum
    for data in (whole[:-10], b"plain", bytes(altered), whole[:10] + b"\xff" * 20):
        path.write_bytes(data)
        refused("mnist", tmp_path, path, "download it again")
    path.unlink()
    refused("mnist", tmp_path, tmp_path / "mnist", "holds no t10k-labels-idx1-ubyte")


# -- the front door ------------------------------------------------------------------------------


def test_every_name_is_registered_and_told():
    ours = ["digits", "cifar10", "cifar100", "svhn", "mnist", "fashion-mnist"]
    assert set(ours) < set(SOURCES)
    for name, source in SOURCES.items():
        assert source.about
        assert "\n" not in source.about
        assert name == name.lower()


def test_the_registry_has_what_the_readers_of_imagenet_have():
    from trajmatch.data.sources.imagenet import IMAGENET

    others = {"digits", "cifar10", "cifar100", "svhn", "mnist", "fashion-mnist", "tiny-imagenet"}
    assert set(SOURCES) == IMAGENET.keys() | others


FASTAI, ILSVRC = "https://github.com/fastai/imagenette", "https://image-net.org"
PAGES = [
    ("cifar10", "https://www.cs.toronto.edu/~kriz/cifar.html"),
    ("cifar100", "https://www.cs.toronto.edu/~kriz/cifar.html"),
    ("svhn", "http://ufldl.stanford.edu/housenumbers/"),
    ("mnist", "https://yann.lecun.com/exdb/mnist/"),
    ("fashion-mnist", "https://github.com/zalandoresearch/fashion-mnist"),
    ("tiny-imagenet", "http://cs231n.stanford.edu/tiny-imagenet-200.zip"),
    *((name, ILSVRC) for name in ("imagenet", "imagefruit", "imageyellow", "imagemeow")),
    ("imagesquawk", ILSVRC),
    # Few have all of ImageNet, and of these two a folder of the ten classes can be had.
    *((name, page) for name in ("imagenette", "imagewoof") for page in (ILSVRC, FASTAI)),
    *((name, FASTAI) for name in ("imagenette2", "imagewoof2")),
]


def test_every_name_has_a_page():
    assert {name for name, _ in PAGES} == SOURCES.keys() - {"digits"}


@pytest.mark.parametrize(("name", "page"), PAGES)
def test_absent_files_are_told_with_the_page_to_get_them_from(tmp_path, name, page, monkeypatch):
    with pytest.raises(DataError, match=f"{name} needs its files.*data_root= or TRAJMATCH_DATA"):
        load_data(name)
    assert page in refused(name, tmp_path, f"no files of {name} under {tmp_path}")
    refused(name, tmp_path / "gone", f"there is no folder {tmp_path / 'gone'}")
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "lost"))
    refused(name, None, f"there is no folder {tmp_path / 'lost'}")


def test_data_root_wins_over_the_variable(tmp_path, monkeypatch):
    one, other = tmp_path / "one", tmp_path / "other"
    mnist(one / "mnist", 1)
    mnist(other / "mnist", 5)
    monkeypatch.setenv(ROOT_VARIABLE, str(one))
    first = load_data("mnist", val_fraction=0.5)
    assert [len(split) for split in (first.train, first.val, first.test)] == [10, 10, 20]
    second = load_data("mnist", val_fraction=0.5, data_root=str(other))
    assert second.fingerprint != first.fingerprint
    assert second.fingerprint == load_data("mnist", val_fraction=0.5, data_root=other).fingerprint
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_data("mnist", val_fraction=0.5, data_root="~/one").fingerprint == first.fingerprint


def test_a_size_can_be_asked_for(tmp_path):
    mnist(tmp_path / "mnist")
    assert load_data("mnist", size=32, val_fraction=0.5, data_root=tmp_path).size == 32


def test_only_some_classes(tmp_path):
    files = cifar(tmp_path, "cifar10", "python")
    some = load_data("cifar10", data_root=tmp_path, val_fraction=0.4, classes="dog, cat")
    assert some.classes == ("dog", "cat")
    for split, count in ((some.train, 3), (some.val, 2), (some.test, 1)):
        assert split.labels.bincount().tolist() == [count, count]
    pixels, _ = files[-1]
    assert np.array_equal(some.test.images[some.test.labels == 0][0], pixels[5])
    assert np.array_equal(some.test.images[some.test.labels == 1][0], pixels[3])
    listed = load_data("cifar10", data_root=tmp_path, val_fraction=0.4, classes=["dog", "cat"])
    assert listed.fingerprint == some.fingerprint
    whole = load_data("digits", classes=[str(i) for i in range(10)])
    assert whole.fingerprint == load_data("digits").fingerprint


@pytest.mark.parametrize(
    ("classes", "kind", "said"),
    [
        ("1,,2", SettingError, "commas"),
        ("", SettingError, "commas"),
        ([], SettingError, "commas"),
        ("1,1", DataError, "'1' is chosen twice"),
        ("1,eleven", DataError, "digits has no class 'eleven'"),
    ],
)
def test_classes_that_are_not_there(classes, kind, said):
    with pytest.raises(kind, match=said):
        load_data("digits", classes=classes)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("cifar-10", "cifar10"), ("CIFAR100", "cifar100"), ("fashion_mnist", "fashion-mnist")],
)
def test_a_name_that_is_nearly_right(typed, meant):
    with pytest.raises(DataError, match=rf"unknown data '{typed}'; did you mean '{meant}'\?.*hf:"):
        load_data(typed)


def test_a_name_wins_over_a_folder_and_a_path_over_a_name(tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_data("digits").size == 8
    for path in ("./digits", Path("digits")):
        with pytest.raises(DataError, match="holds no folders"):
            load_data(path)


def test_a_folder_is_restricted_before_it_is_read(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setenv("TRAJMATCH_CACHE", str(tmp_path / "cache"))
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    for role in ("train", "test"):
        for name in ("cat", "dog"):
            for i in range(2):
                write(tmp_path / "pets" / role / name / f"{i}.png", picture.getvalue())
        write(tmp_path / "pets" / role / "broken" / "0.png", b"no picture")
    data = load_data(tmp_path / "pets", classes="dog,cat")
    assert data.classes == ("dog", "cat")
    assert len(data.test) == 4


def test_the_hub_is_asked_for_what_begins_with_hf(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "trajmatch.data.sources.load_hub",
        lambda name, request: asked.append((name, request)) or load_data("digits"),
    )
    assert load_data("hf:me/scans", size=16, classes="1,2").size == 16
    assert asked == [("hf:me/scans", Request(size=16, classes=("1", "2")))]


def test_a_config_hands_on_all_it_holds(tmp_path):
    from trajmatch import pipeline

    cifar(tmp_path, "cifar10", "python")
    config = DataConfig(
        data="cifar10", data_root=str(tmp_path), classes="truck,bird", size=16, val_fraction=0.4
    )
    data = pipeline.load(config)
    assert (data.name, data.classes, data.size, len(data.val)) == (
        "cifar10",
        ("truck", "bird"),
        16,
        4,
    )


def test_the_commands_have_the_flags():
    from trajmatch.cli import experts
    from trajmatch.cli.flags import option_names

    assert {"--data", "--data-root", "--classes"} <= set(option_names(experts.Flags))


def test_the_help_of_data_names_all_there_are(capsys):
    from trajmatch import cli

    assert cli.main(["experts", "--help"]) == 0
    words = set(re.findall(r"[a-z0-9-]+", capsys.readouterr().out))
    assert SOURCES.keys() <= words

"""Where splits and classes lie in a folder: what is read, and what is refused with the mend."""

from __future__ import annotations

import os
import re
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from trajmatch.data import load_data
from trajmatch.data.sources.tree import archive_stem, role_within, split_role
from trajmatch.errors import DataError, SettingError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAJMATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # waiting for the disk takes long


def write(root: Path, *places: str, count: int = 3, ending: str = ".png") -> Path:
    """`count` pictures in each of `places`; picture i of place p has level 10p + i."""
    for number, place in enumerate(places):
        folder = root / place
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.full((8, 8, 3), 10 * number + i, np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}{ending}")
    return root


def splits(train: str, test: str, val: str | None = None) -> list[str]:
    names = [train, test, *([val] if val else [])]
    return [f"{name}/{label}" for name in names for label in ("cat", "dog")]


def levels(split) -> list[int]:
    return sorted(int(image.min()) for image in split.images)


TRAIN, SECOND, THIRD = [0, 1, 2, 10, 11, 12], [20, 21, 22, 30, 31, 32], [40, 41, 42, 50, 51, 52]


def refused(path, message, **options):
    with pytest.raises(DataError, match=message) as caught:
        load_data(path, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["valid", "validation", "dev", "Val", "VALIDATION", "val_set"])
def test_every_name_of_validation_is_the_validation_split(tmp_path, name):
    data = load_data(write(tmp_path / "pets", *splits("train", "test", name)))
    assert (levels(data.train), levels(data.test), levels(data.val)) == (TRAIN, SECOND, THIRD)


@pytest.mark.parametrize(
    ("train", "test"),
    [("Training", "Testing"), ("TRAIN", "TEST"), ("training_set", "test_set"), ("trainset", "dev")],
)
def test_splits_have_several_names_in_any_case(tmp_path, train, test):
    data = load_data(write(tmp_path / "pets", *splits(train, test)))
    assert sorted(levels(data.train) + levels(data.val)) == TRAIN
    assert levels(data.test) == SECOND
    assert data.note.startswith("val/ is the test split") == (test == "dev")


def test_two_folders_of_one_split_are_refused(tmp_path):
    path = write(tmp_path / "pets", *splits("train", "val", "dev"))
    refused(path, r"holds dev/ and val/, which both are names of the val split; rename one")


def test_words_in_names_of_folders():
    assert [split_role(n) for n in ("Train", "test-set", "Train_png", "vale")] == [
        "train", "test", None, None,
    ]  # fmt: skip
    assert [role_within(n) for n in ("Train_png", "TestImages", "seg_train", "a train/test")] == [
        "train", "test", "train", None,
    ]  # fmt: skip


def test_a_word_in_a_folders_name_is_a_split_where_nothing_else_can_be_meant(tmp_path):
    letters = [f"{split}_png/{letter}" for split in ("Train", "Test") for letter in "ABC"]
    data = load_data(write(tmp_path / "letters", *letters))
    assert (data.classes, len(data.train) + len(data.val), len(data.test)) == (
        ("A", "B", "C"), 9, 9,
    )  # fmt: skip
    assert min(levels(data.test)) == 30
    data = load_data(write(tmp_path / "wrapped", *(f"archive/{letter}" for letter in letters)))
    assert data.classes == ("A", "B", "C")


def test_class_names_with_such_words_stay_classes(tmp_path):
    data = load_data(write(tmp_path / "pets", "train_station", "test_tube"))
    assert data.classes == ("test_tube", "train_station")
    # Other classes in the test images, or a further folder: not so clear that it can be taken.
    for number, further in enumerate((["Test_png/C"], ["fonts/serif", "fonts/sans"])):
        path = write(tmp_path / str(number), "Train_png/A", "Train_png/B", "Test_png/A", *further)
        refused(
            path, r"Test_png/ of .* holds no pictures but folders|holds no pictures but folders"
        )


def test_folders_of_folders_are_refused_with_what_is_likely_meant(tmp_path):
    intel = [f"seg_{s}/seg_{s}/{c}" for s in ("train", "test") for c in ("sea", "street")]
    path = write(tmp_path / "intel", *intel)
    refused(
        path,
        rf"class folder seg_test/ of .* holds no pictures but folders \(seg_test/\); did you mean "
        rf"{re.escape(str(path))}/seg_train/seg_train\? or move seg_train/seg_train/ to train/ and "
        r"seg_test/seg_test/ to test/",
    )
    assert load_data(path / "seg_train").classes == ("sea", "street")
    path = write(tmp_path / "masked", *(f"{k}/{c}" for k in ("masks", "images") for c in "ab"))
    refused(path, rf"like pictures and their masks .*; did you mean {path}/images\?")
    refused(
        write(tmp_path / "flat", "masks", "images"), r"masks .*; put the pictures of each class"
    )
    covid = [f"{c}/{k}" for c in ("covid", "normal") for k in ("images", "masks")]
    refused(
        write(tmp_path / "covid", *covid),
        r"class folder covid/ of .* no pictures but folders \(images/, masks/\); put the pictures "
        r"of each class directly into <class>/",
    )
    refused(
        write(tmp_path / "deep", "archive/pets/cat", "archive/pets/dog"),
        rf"one class folder, 'pets'; .*; did you mean {tmp_path}/deep/archive/pets\?",
    )


def test_deeper_pictures_of_named_classes_are_read(tmp_path):
    """As of old, where a person says which folders are classes."""
    path = write(tmp_path / "pets", "cat/a", "cat/b", "dog/a", "dog/b")
    refused(path, "holds no pictures but folders .*name the classes")
    assert load_data(path, classes="cat,dog").train.labels.bincount().tolist() == [4, 4]


def test_a_class_called_train_is_told_from_the_split(tmp_path):
    path = write(tmp_path / "vehicles", "train", "bus", "car")
    refused(
        path,
        r"no class folders in train/, but pictures, as bus, car beside it has; if it is a class "
        r"like these, put all class folders into one called train/ \(train/train/, train/bus/\)",
    )
    path = write(tmp_path / "moved", "train/train", "train/bus", "train/car")
    assert load_data(path).classes == ("bus", "car", "train")


# What is a picture


def test_every_format_that_pillow_opens_is_read(tmp_path):
    endings = [".jfif", ".png", ".bmp", ".tga", ".webp", ".gif", ".jpg", ".PCX"]
    for ending in endings:
        write(tmp_path / "pets", "cat", "dog", count=1, ending=ending.lower())
    first = tmp_path / "pets" / "cat"
    (first / "0.pcx").rename(first / "0.PCX")
    avif = ".avif" in Image.registered_extensions()
    if avif:
        Image.new("RGB", (8, 8)).save(first / "0.avif")
    data = load_data(tmp_path / "pets")
    count = sum(len(s) for s in (data.train, data.val, data.test))
    assert (count, data.remarks[:-1]) == (2 * len(endings) + avif, ())


def test_what_is_no_picture_is_counted(tmp_path):
    path = write(tmp_path / "pets", *splits("train", "test"))
    for name in ("train/cat/a.txt", "train/dog/b.TXT", "test/cat/c.mp4", "train/cat/.hidden.txt",
                 "readme.md", "train/notes.txt", "test/dog/scan.pdf"):  # fmt: skip
        (path / name).write_bytes(b"x")
    assert load_data(path, cache=False).remarks == (
        "passed over 4 files that are no pictures (.txt, .mp4, .pdf)",
    )
    (path / "train/cat/a.txt").unlink()
    assert load_data(path, cache=False, classes="dog,cat").remarks[0].startswith("passed over 3")


# Broken and special files


def test_broken_pictures_can_be_passed_over(tmp_path):
    path = write(tmp_path / "pets", *splits("train", "test"))
    (path / "train/cat/0.png").write_bytes(b"no picture")
    (path / "test/dog/2.png").write_bytes((path / "test/dog/1.png").read_bytes()[:40])
    refused(path, r"cannot decode train/cat/0\.png")
    for _ in range(2):  # decoded, then cached
        data = load_data(path, on_bad_image="skip")
        assert sorted(levels(data.train) + levels(data.val)) == [1, 2, 10, 11, 12]
        assert (levels(data.test), data.test.labels.tolist()) == (
            [20, 21, 22, 30, 31], [0, 0, 0, 1, 1],
        )  # fmt: skip
        assert data.note == (
            "passed over 2 of 12 pictures that cannot be decoded, such as train/cat/0.png"
        )
        assert data.summary()["note"] == data.note
    refused(path, r"cannot decode train/cat/0\.png")  # the cache of the other setting is not taken
    for file in path.rglob("*.png"):
        file.write_bytes(b"")
    refused(path, r"none of 12 pictures can be decoded", on_bad_image="skip")


def test_the_same_pictures_give_the_same_fingerprint_however_they_were_passed_over(tmp_path):
    path = write(tmp_path / "pets", *splits("train", "test"))
    (path / "train/cat/0.png").write_bytes(b"no picture")
    skipped = load_data(path, on_bad_image="skip")
    (path / "train/cat/0.png").unlink()
    assert load_data(path).fingerprint == skipped.fingerprint


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    path = write(tmp_path / "pets", *splits("train", "test"))
    os.mkfifo(path / "train/cat/pipe.png")
    refused(path, r"pipe\.png \(it is a pipe, not a regular file\); remove it")
    assert "passed over 1 of 13" in load_data(path, on_bad_image="skip").note
    os.mkfifo(tmp_path / "pets.zip")
    refused(tmp_path / "pets.zip", r"pets\.zip is not read; give a folder or archive")
    os.mkfifo(tmp_path / "imagenette.zip")
    with pytest.raises(DataError, match="no files of imagenette"):
        load_data("imagenette", data_root=tmp_path)
    for name, place in (
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
        ("mnist", "MNIST/raw/train-labels-idx1-ubyte"),
        ("svhn", "test_32x32.mat"),
    ):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(tmp_path / place)
        images = np.zeros((1, 28, 28), np.uint8).tobytes()
        header = bytes((0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 28, 0, 0, 0, 28))
        (tmp_path / place).with_name("train-images-idx3-ubyte").write_bytes(header + images)
        savemat(tmp_path / "train_32x32.mat", {"X": np.zeros((32, 32, 3, 9), np.uint8),
                                               "y": np.ones((9, 1), np.uint8)})  # fmt: skip
        with pytest.raises(DataError, match=rf"{place} \(it is a pipe, not a regular file\)"):
            load_data(name, data_root=tmp_path)


def test_a_link_to_a_device_is_refused(tmp_path):
    path = write(tmp_path / "pets", *splits("train", "test"))
    (path / "train/cat/zero.png").symlink_to("/dev/zero")
    refused(path, r"zero\.png \(it is a device, not a regular file\)")


@pytest.mark.skipif(sys.platform == "win32", reason="memory is unknown there")
def test_a_size_beyond_memory_is_refused_before_anything_is_decoded(tmp_path, monkeypatch):
    path = write(tmp_path / "pets", *splits("train", "test"))
    monkeypatch.setattr("trajmatch.data.sources.decode._picture", None)
    monkeypatch.setattr("trajmatch.data.pixels.free_bytes", lambda device: 10**9)
    need = r"12 pictures of 16,384x16,384 need about 19\.3 GB of memory and 1\.0 GB are free; "
    refused(path, need + "choose fewer classes", size=16_384)
    refused("digits", r"images of 16,384x16,384 need about .* GB of memory", size=16_384)
    with pytest.raises(SettingError, match="size is 100000; it must be at least 1 and at most"):
        load_data(path, size=100_000)


# Archives


def packed(path: Path, source: Path, mode: str, prefix: str = "./") -> Path:
    with tarfile.open(path, mode) as tar:
        tar.add(source, arcname=prefix)
    return path


@pytest.mark.parametrize(
    ("name", "mode"),
    [("p.tar", "w"), ("p.tar.gz", "w:gz"), ("p.tgz", "w:gz"), ("p.tar.xz", "w:xz")],
)
def test_a_tar_is_read_like_its_folder(tmp_path, name, mode):
    source = write(tmp_path / "pets", *splits("train", "test"))
    expected = load_data(source, cache=False)
    path = packed(tmp_path / name, source, mode)
    for cache in (True, True, False):
        data = load_data(path, cache=cache)
        assert (data.fingerprint, data.name) == (expected.fingerprint, "p")
    wrapped = packed(tmp_path / f"w{name}", source, mode, prefix="pets")
    assert load_data(wrapped).fingerprint == expected.fingerprint
    assert {p.name for p in tmp_path.iterdir()} == {"pets", "cache", name, f"w{name}"}


def test_links_and_names_that_climb_in_a_tar_are_never_followed(tmp_path):
    source = write(tmp_path / "pets", *splits("train", "test"))
    path = packed(tmp_path / "p.tar", source, "w")
    with tarfile.open(path, "a") as tar:
        for name in ("../evil/cat/0.png", "/abs/cat/0.png", "train/../../up/0.png"):
            tar.addfile(tarfile.TarInfo(name))
    assert load_data(path).classes == ("cat", "dog")
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("train/cat/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    refused(path, r"train/cat/link\.png in .* \(it is a link or a special file")


def test_what_is_no_archive_is_refused(tmp_path):
    source = write(tmp_path / "pets", *splits("train", "test"))
    whole = packed(tmp_path / "a.tar.gz", source, "w:gz").read_bytes()
    path = tmp_path / "b.tar.gz"
    for data in (b"", b"no tar at all", whole[: len(whole) // 2]):
        path.write_bytes(data)
        refused(path, r"b\.tar\.gz is not a readable tar \(.*; give a folder, or an archive")
    assert [archive_stem(Path(n)) for n in ("a.tar.gz", "b.tgz", "c.d.zip", "e")] == [
        "a", "b", "c.d", "e",
    ]  # fmt: skip


def test_a_zip_with_dots_before_its_names(tmp_path):
    source = write(tmp_path / "pets", *splits("train", "test"))
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as file:
        for picture in sorted(source.rglob("*.png")):
            file.write(picture, f"./{picture.relative_to(source)}")
    assert load_data(tmp_path / "p.zip").fingerprint == load_data(source).fingerprint


# Words that name nothing


def test_an_empty_word_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path / "pets", *splits("train", "test")))
    for word in ("", "  "):
        refused(
            word, r"data is .*; give a name \(digits, .*\), hf:NAME, or the path of a folder or"
        )
    with pytest.raises(ValueError, match="data_root is empty"):
        load_data("cifar10", data_root="")
    assert load_data(".").classes == ("cat", "dog")

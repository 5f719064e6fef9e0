"""Folders and zips of class folders: layout rules, decoding of every mode, cache, mistakes."""

from __future__ import annotations

import io
import os
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trajmatch.data import load_data
from trajmatch.data.cache import cache_path
from trajmatch.errors import DataError

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10-jpeg.zip"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("TRAJMATCH_CACHE", str(folder))
    return folder


def picture(level, size=(8, 8), mode="RGB"):
    """A random picture whose mean tells which one it is."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    random = np.random.default_rng(level)
    pixels = random.integers(level, level + 5, (size[1], size[0], bands), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(), mode=None)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def files(splits=("train", "test"), classes=("cat", "dog"), count=3, **options):
    """{"train/cat/0.png": bytes, ...}; picture i of class c of split s has level 100s + 20c + i."""
    return {
        f"{split}/{name}/{i}.png": encoded(picture(100 * s + 20 * c + i, **options))
        for s, split in enumerate(splits)
        for c, name in enumerate(classes)
        for i in range(count)
    }


def folder(root, contents):
    for name, data in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def zipped(path, contents):
    with zipfile.ZipFile(path, "w") as file:
        for name, data in contents.items():
            file.writestr(name, data)
    return path


def levels(split):
    """What `files` numbered the pictures by."""
    return [int(image.min()) for image in split.images]


@pytest.fixture(params=["folder", "zip", "zip with a folder", "folder in a folder"])
def place(request, tmp_path):
    """Writes `files` in one of the ways they may lie, and says where."""

    def write(contents):
        if request.param.endswith("a folder"):
            contents = {f"pets/{name}": data for name, data in contents.items()}
        if request.param.startswith("zip"):
            return zipped(tmp_path / "pets.zip", contents)
        return folder(tmp_path / "pets", contents)

    return write


def test_train_and_test(place):
    data = load_data(place(files()), val_fraction=0.34)
    assert (data.name, data.classes, data.size, data.channels) == ("pets", ("cat", "dog"), 8, 3)
    assert sorted(levels(data.train) + levels(data.val)) == [0, 1, 2, 20, 21, 22]
    assert data.val.labels.tolist() == [0, 1]
    assert levels(data.test) == [100, 101, 102, 120, 121, 122]
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert "note" not in data.summary()


def test_train_val_and_test_are_what_they_say(place):
    data = load_data(place(files(("train", "val", "test"), count=1)))
    assert [levels(s) for s in (data.train, data.val, data.test)] == [
        [0, 20],
        [100, 120],
        [200, 220],
    ]
    assert "note" not in data.summary()


def test_val_alone_is_the_test_split(place):
    data = load_data(place(files(("train", "val"))), val_fraction=0.34)
    assert levels(data.test) == [100, 101, 102, 120, 121, 122]
    assert len(data.val) == 2
    assert data.summary()["note"].startswith("val/ is the test split")


def flat(classes=("cat", "dog"), count=10):
    """{"cat/0.png": bytes, ...}: class folders that no train/ or test/ holds."""
    return {
        name.removeprefix("train/"): data
        for name, data in files(("train",), classes, count).items()
    }


def test_plain_class_folders_give_a_fifth_to_test(place):
    data = load_data(place(flat()), val_fraction=0.25)
    assert (data.name, data.classes) == ("pets", ("cat", "dog"))
    parts = [data.train, data.val, data.test]
    assert [part.labels.bincount().tolist() for part in parts] == [[6, 6], [2, 2], [2, 2]]
    everything = sorted(level for part in parts for level in levels(part))
    assert everything == [*range(10), *range(20, 30)]
    assert [level // 20 for level in levels(data.test)] == data.test.labels.tolist()
    assert data.summary()["note"] == (
        "no test/ folder: a fifth of the images of each class set aside as test images, always "
        "the same ones"
    )


def test_the_cut_is_drawn_and_always_the_same(tmp_path):
    data = load_data(folder(tmp_path / "a", flat(count=20)))
    again = load_data(zipped(tmp_path / "b.zip", flat(count=20)), val_fraction=0.3)
    assert levels(again.test) == levels(data.test)
    assert levels(data.test) != [0, 1, 2, 3, 20, 21, 22, 23]  # by chance, not by name
    cached = load_data(tmp_path / "a")
    assert (cached.fingerprint, cached.summary()) == (data.fingerprint, data.summary())


def test_train_alone_is_cut_like_plain_class_folders(tmp_path):
    whole = load_data(folder(tmp_path / "a", flat()))
    train = load_data(folder(tmp_path / "b", files(("train",), count=10)))
    assert (train.fingerprint, train.note) == (whole.fingerprint, whole.note)


def test_the_fingerprint_tells_the_cut_from_folders(tmp_path):
    """The same pictures, some of them as a test/ that someone chose."""
    contents = files(("train",), count=10)
    cut = load_data(folder(tmp_path / "cut", contents))
    chosen = {
        name.replace("train/", "test/") if name[-5] in "01" else name: data
        for name, data in contents.items()
    }
    assert len(load_data(folder(tmp_path / "chosen", chosen)).test) == len(cut.test)
    assert load_data(tmp_path / "chosen").fingerprint != cut.fingerprint


def test_of_plain_class_folders_some_can_be_chosen(tmp_path):
    path = folder(tmp_path / "pets", flat(("cat", "dog", "emu")) | {"empty/readme.txt": b""})
    data = load_data(path, classes="emu,cat")
    assert data.classes == ("emu", "cat")
    assert {level // 20 for level in levels(data.test)} == {0, 2}
    assert (len(data.test), data.test.labels.tolist()) == (4, [0, 0, 1, 1])


def test_three_images_a_class_are_enough(tmp_path):
    data = load_data(folder(tmp_path / "pets", flat(count=3)))
    assert [len(part) for part in (data.train, data.val, data.test)] == [2, 2, 2]
    refused(
        folder(tmp_path / "few", flat(count=3) | {"emu/0.png": b"", "emu/1.png": b""}),
        r"class 'emu' has 2 images, and without a test/ folder .* at least 3 .*; add images or",
    )


def test_folders_with_pictures_beside_the_splits_are_refused(tmp_path):
    """They may be what was meant to be tested on, or a class."""
    for splits, mend in (
        (("train",), r"; rename it val or test if it is that split, or move it away if"),
        (("train", "test"), r"; rename it val if it is that split, or move it away if"),
        (("train", "val", "test"), r"; move it away if it is no part of the data set"),
    ):
        contents = files(splits, count=1) | {"seg_pred/cat/0.png": encoded(picture(90))}
        path = folder(tmp_path / "-".join(splits), contents)
        there = ", ".join(f"{split}/" for split in splits)
        refused(path, rf"has {there} and pictures in seg_pred/ beside{mend}")
    # What is no picture is nobody's test image.
    contents = files(("train",)) | {"annotations/cat.xml": b"", "readme.txt": b""}
    path = folder(tmp_path / "notes", contents)
    assert load_data(path).note.startswith("no test/ folder")


def test_pixels_survive_as_they_are(place):
    contents = files()
    data = load_data(place(contents))
    expected = np.asarray(Image.open(io.BytesIO(contents["test/dog/1.png"]))).transpose(2, 0, 1)
    assert torch.equal(data.test.images[4], torch.from_numpy(expected.copy()))


def test_folder_and_zip_give_the_same_data(tmp_path):
    contents = files()
    one = load_data(folder(tmp_path / "a", contents))
    # Neither the order in the archive nor the upper folder matters.
    backwards = {f"x/{name}": contents[name] for name in reversed(contents)}
    other = load_data(str(zipped(tmp_path / "b.zip", backwards)))
    assert one.fingerprint == other.fingerprint


def test_what_is_no_picture_is_passed_over(place):
    litter = {
        "README.md": b"", "train/cat/notes.txt": b"", "train/.DS_Store": b"", "labels.csv": b"",
        "train/cat/._0.png": b"x", "train/.ipynb_checkpoints/a.png": b"x", "train/README": b"",
    }  # fmt: skip
    assert len(load_data(place(litter | files())).test) == 6


def test_a_zip_made_on_a_mac(tmp_path):
    litter = {"__MACOSX/train/cat/._0.png": b"x", "__MACOSX/._pets": b"x"}
    inner = {f"pets/{name}": data for name, data in files().items()}
    assert len(load_data(zipped(tmp_path / "pets.zip", litter | inner)).test) == 6


def test_deeper_folders_belong_to_their_class(place):
    # Tiny ImageNet lies so: train/<class>/images/<picture>
    deep = {}
    for name, data in files().items():
        split, label, file = name.split("/")
        deep[f"{split}/{label}/images/{file.upper()}"] = data
    assert levels(load_data(place(deep)).test) == [100, 101, 102, 120, 121, 122]


def test_links_to_class_folders_are_followed(tmp_path):
    there = folder(tmp_path / "there", files())
    here = tmp_path / "here"
    for name in ("train", "test"):
        (here / name).mkdir(parents=True)
        for label in ("cat", "dog"):
            (here / name / label).symlink_to(there / name / label)
    (here / "train" / "cat" / "loop").symlink_to(here)
    assert load_data(here).classes == ("cat", "dog")


def test_names_that_climb_are_never_written(tmp_path):
    evil = {"../../evil.png": b"x", "/tmp/train/cat/evil.png": b"x", "../train/evil/x.png": b"x"}
    before = sorted(tmp_path.rglob("*"))
    data = load_data(zipped(tmp_path / "pets.zip", evil | files()), cache=False)
    assert data.classes == ("cat", "dog")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "pets.zip"])


def test_a_size_resizes_the_shorter_side_and_crops_the_middle(tmp_path):
    wide = Image.new("RGB", (60, 20), (0, 0, 255))
    wide.paste((250, 0, 0), (20, 0, 40, 20))
    tall = wide.rotate(90, expand=True)
    for kind in ("PNG", "JPEG"):
        contents = {
            f"{split}/{label}/{i}.png": encoded((wide, tall)[i], kind)
            for split in ("train", "test") for label in "ab" for i in range(2)
        }  # fmt: skip
        data = load_data(folder(tmp_path / kind, contents), size=10)
        assert data.size == 10
        pixels = torch.cat([data.train.images, data.val.images, data.test.images])
        assert pixels[:, 0, 2:-2, 2:-2].min() > 235  # red inside
    # Antialiased: fine stripes become gray, not one of the two.
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    gray_files = encoded(Image.fromarray(stripes))
    contents = dict.fromkeys((f"{s}/{c}/{i}.png" for s in ("train", "test") for c in "ab"
                              for i in range(2)), gray_files)  # fmt: skip
    gray = load_data(folder(tmp_path / "stripes", contents), size=8).test.images.float()
    assert (gray - 127).abs().max() < 12


def test_gray_and_color_together_are_color(tmp_path):
    contents = files() | files(("val",), mode="L")
    data = load_data(folder(tmp_path / "mixed", contents))
    assert data.channels == 3
    assert torch.equal(data.val.images[:, 0], data.val.images[:, 2])
    assert load_data(folder(tmp_path / "gray", files(mode="L"))).channels == 1


# The cache


def kept(cache):
    return sorted(cache.glob("*.safetensors")) if cache.exists() else []


def forbid_decoding(monkeypatch):
    def never(*_):
        raise AssertionError("decoded, though it should have come from the cache")

    monkeypatch.setattr("trajmatch.data.sources.folder.decode_images", never)


def test_the_second_time_nothing_is_decoded(place, cache, monkeypatch):
    path = place(files(("train", "val")))
    first = load_data(path)
    assert len(kept(cache)) == 1
    forbid_decoding(monkeypatch)
    second = load_data(path)
    assert second.fingerprint == first.fingerprint
    assert second.summary() == first.summary()


def test_another_size_or_a_changed_file_is_decoded_anew(place, cache, tmp_path):
    path = place(files())
    first = load_data(path)
    load_data(path, size=4)
    assert len(kept(cache)) == 2
    changed = next(path.rglob("0.png")) if path.is_dir() else path
    before = changed.stat().st_mtime_ns
    if path.is_dir():
        changed.write_bytes(encoded(picture(200)))
    else:
        with zipfile.ZipFile(path) as file:
            base = file.namelist()[0].split("train")[0]
        with zipfile.ZipFile(path, "a") as file:
            file.writestr(f"{base}train/cat/9.png", encoded(picture(200)))
    os.utime(changed, ns=(before, before + 1_000_000))
    assert load_data(path).fingerprint != first.fingerprint
    assert len(kept(cache)) == 3


def test_a_new_file_is_noticed(tmp_path):
    path = folder(tmp_path / "pets", files())
    assert len(load_data(path).test) == 6
    folder(path, {"test/cat/new.png": encoded(picture(90))})
    assert len(load_data(path).test) == 7


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "foreign", "folder"])
def test_a_broken_cache_file_is_made_again(tmp_path, cache, damage):
    path = folder(tmp_path / "pets", files())
    first = load_data(path)
    (file,) = kept(cache)
    good = file.read_bytes()
    if damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        flipped = bytearray(good)
        flipped[-5] ^= 1
        broken = {"empty": b"", "truncated": good[:-9], "flipped": bytes(flipped), "foreign": b"x"}
        file.write_bytes(broken[damage])
    assert load_data(path).fingerprint == first.fingerprint
    assert damage == "folder" or file.read_bytes() == good
    assert not list(cache.glob("*.partial"))


def test_no_place_for_a_cache_is_no_mistake(tmp_path, cache, monkeypatch):
    path = folder(tmp_path / "pets", files())
    cache.write_text("a file where the folder should be")
    first = load_data(path)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as without a home folder
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for place in ("~/cache", None):
        if place is None:
            monkeypatch.delenv("TRAJMATCH_CACHE")
        else:
            monkeypatch.setenv("TRAJMATCH_CACHE", place)
        assert cache_path("pets", 1) is None
        assert load_data(path).fingerprint == first.fingerprint


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems, other folders")
def test_the_cache_lies_where_the_system_keeps_caches(tmp_path, monkeypatch):
    monkeypatch.delenv("TRAJMATCH_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    former = cache_path("pets", 1)
    assert former.parent == tmp_path / "home" / ".cache" / "trajmatch"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    path = cache_path("pets", 1)
    assert path == tmp_path / "xdg" / "trajmatch" / former.name
    # What version 0.1 decoded is not decoded again.
    former.parent.mkdir(parents=True)
    former.touch()
    assert cache_path("pets", 1) == former
    assert cache_path("pets", 2).parent == path.parent
    path.parent.mkdir(parents=True)
    path.touch()
    assert cache_path("pets", 1) == path
    monkeypatch.setenv("TRAJMATCH_CACHE", str(tmp_path / "chosen"))
    assert cache_path("pets", 1) == tmp_path / "chosen" / former.name


def test_the_cache_can_be_left_alone(tmp_path, cache):
    load_data(folder(tmp_path / "pets", files()), cache=False)
    assert not cache.exists()


def test_progress_ends_at_all(tmp_path):
    path, seen = folder(tmp_path / "pets", files(count=40)), []
    load_data(path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (160, 160)
    assert seen == sorted(seen)
    assert len(seen) > 2


# Mistakes


def refused(path, message, **options):
    with pytest.raises(DataError, match=message) as caught:
        load_data(path, **options)
    assert "\n" not in str(caught.value)


def without(contents, start):
    return {name: data for name, data in contents.items() if not name.startswith(start)}


def test_wrong_layouts_are_refused(tmp_path):
    good = files()
    for i, (contents, message) in enumerate(
        (
            ({"a.txt": b""}, r"holds no folders; put pictures into <class>/"),
            ({"testing/cat/0.png": b"", "x/y": b""}, r"holds testing/ and no train/;"),
            (without(good, "train"), r"holds test/ and no train/; name .* if test/ is a class"),
            ({"Dev/cat/0.png": b"", "Val/cat/0.png": b""}, r"holds Dev/, Val/ and no train/"),
            ({f"pets/test/{n}": b"" for n in ("a.png", "b.png")}, r"holds pets/test/ and no tr"),
            ({"pets/0.png": b""}, r"one class folder, 'pets'; .*at least two"),
            ({"pets/cat/0.png": b"", "pets/cat/1.png": b""}, r"one class folder, 'cat'"),
            (flat() | {"emu/a.txt": b""}, r"class folder emu/ in .* holds no pictures"),
            (flat() | {"stray.png": b""}, r"stray\.png in .* in no class folder; .* to <class>/"),
            ({f"{a}/{n}": d for a in "ab" for n, d in good.items()}, r"several data sets: a, b"),
            (without(good, "train") | {"train/x.txt": b""}, r"no class folders in train/"),
            (without(good, "train/dog"), r"test/ of .* class 'dog' that train/ has not"),
            (
                without(good, "test/cat") | {"test/cats/0.png": b""},
                r"class 'cats' that train/ has not; did you mean 'cat'",
            ),
            (without(good, "train/cat") | {"train/cat/a.txt": b""}, r"train/cat/ .* no pictures"),
            (without(good, "test") | {"test/a.txt": b""}, r"test/ .* holds no class folders"),
            (good | {"test/stray.png": b""}, r"test/stray\.png .* in no class folder"),
        )
    ):
        refused(folder(tmp_path / f"f{i}", contents), message)
        refused(zipped(tmp_path / f"z{i}.zip", contents), message)
    for split in ("train", "test"):
        (tmp_path / "f0" / split / "cat").mkdir(parents=True)
    refused(tmp_path / "f0", r"class folder train/cat/ .* holds no pictures")


def test_what_is_no_zip_is_refused(tmp_path):
    path = tmp_path / "pets.zip"
    for data in (b"", b"not a zip", zipped(path, files()).read_bytes()[:-40]):
        path.write_bytes(data)
        refused(path, r"pets\.zip is not a readable zip")
    with zipfile.ZipFile(path, "w"):
        pass
    refused(path, "holds no folders")
    refused(tmp_path / "absent.zip", "no such file or folder")


def test_a_file_that_cannot_be_decoded_is_named(place):
    whole = encoded(picture(100, size=(64, 64)))
    for broken in (b"", b"no picture", whole[: len(whole) // 2], whole[:60]):
        refused(place(files(size=(64, 64)) | {"test/cat/1.png": broken}), r"test/cat/1\.png")


def test_mixed_sizes_are_listed_with_the_mend(place):
    contents = files() | files(("val",), size=(8, 9), count=5) | {
        "test/cat/0.png": encoded(picture(1, size=(30, 20)))
    }  # fmt: skip
    path = place(contents)
    refused(path, r"3 sizes, width x height: 8x8 \(11\), 8x9 \(10\), 30x20 \(1\); .*size=64")
    assert load_data(path, size=8).size == 8


def test_a_zip_member_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("trajmatch.data.sources.tree._LARGEST_FILE", 1000)
    contents = files() | {"test/dog/7.png": bytes(1001)}
    refused(zipped(tmp_path / "bomb.zip", contents), r"test/dog/7\.png .* unpacks to")


def test_an_altered_or_locked_zip_member_is_named(tmp_path):
    path = zipped(tmp_path / "pets.zip", files())
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        entry = file.getinfo("train/dog/1.png")
    data[entry.header_offset + 30 + len(entry.filename) + 50] ^= 1
    path.write_bytes(data)
    refused(path, r"train/dog/1\.png in .* \(Bad CRC-32")
    data = bytearray(zipped(path, files()).read_bytes())
    at = data.rindex(b"PK\x01\x02")  # the last member's entry in the directory
    data[at + 8] |= 1  # says it is encrypted
    local = data.rindex(b"PK\x03\x04")
    data[local + 6] |= 1
    path.write_bytes(data)
    refused(path, r"test/dog/2\.png in .*(password|encrypted).*unpack it")


def test_an_unreadable_folder_is_refused(tmp_path, monkeypatch):
    path = folder(tmp_path / "pets", files())

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", denied)
    refused(path, r"cannot read .*pets \(.*Permission denied")


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.exists(), reason="needs ../shared/data/cifar10-jpeg.zip")
def test_cifar10_loads_in_a_minute_of_processor_time_and_again_in_a_moment():
    began = time.process_time()
    data = load_data(CIFAR)
    first = time.process_time() - began
    began = time.process_time()
    again = load_data(CIFAR)
    second = time.process_time() - began
    assert (len(data.train), len(data.val), len(data.test)) == (45_000, 5_000, 10_000)
    assert (data.size, data.channels, data.classes[3]) == (32, 3, "cat")
    assert again.fingerprint == data.fingerprint
    assert (first < 60, second < 6) == (True, True), (first, second)

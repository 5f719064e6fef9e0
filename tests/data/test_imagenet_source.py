"""ImageNet's parts, fast.ai's folders, Tiny ImageNet and chosen classes, on folders made here."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from trajmatch.data import load_data
from trajmatch.data.sources.folder import load_folder as read_folder
from trajmatch.data.sources.imagenet import _CLASSES, _SUBSETS, IMAGENET
from trajmatch.data.sources.source import Request
from trajmatch.data.sources.tiny_imagenet import load_tiny_imagenet
from trajmatch.errors import DataError

NETTE = (
    "n01440764", "n02102040", "n02979186", "n03000684", "n03028079",
    "n03394916", "n03417042", "n03425413", "n03445777", "n03888257",
)  # fmt: skip


def load_folder(path, **request):
    classes = request.pop("classes", None)
    chosen = None if classes is None else tuple(classes)
    return read_folder(path, Request(classes=chosen, **request))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAJMATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TRAJMATCH_DATA", raising=False)
    return tmp_path / "cache"


def jpeg(level, width=12, height=8, mode="RGB"):
    """A plain picture, whose level tells which one it is (to within what JPEG loses)."""
    buffer = io.BytesIO()
    Image.new(mode, (width, height), (level,) * 3 if mode == "RGB" else level).save(buffer, "JPEG")
    return buffer.getvalue()


def write(root, contents):
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
    return [round(float(image.float().mean()) / 10) * 10 for image in split.images]


def pictures(wnids, train="train/{w}/{w}_{i}.JPEG", val="val/{w}/ILSVRC2012_val_{w}.JPEG"):
    """Two training pictures of each class, of level 10 * (its place + 1), and one of validation."""
    contents = {}
    for place, w in enumerate(wnids):
        for i in range(2):
            contents[train.format(w=w, i=i)] = jpeg(10 * (place + 1))
        contents[val.format(w=w)] = jpeg(10 * (place + 1))
    return contents


def load(name, root, **options):
    return IMAGENET[name].load(Request(root=root, **options))


def refused(message, function, *words, **options):
    with pytest.raises(DataError, match=message) as caught:
        function(*words, **options)
    assert "\n" not in str(caught.value)


def test_the_table_of_classes_is_sorted_as_imagenet_numbers_them():
    # The number of a class is the place of its folder when all are sorted: a slip in either the
    # number or the folder would almost always break the order.
    numbers = list(_CLASSES)
    folders = [folder for folder, _ in _CLASSES.values()]
    assert numbers == sorted(numbers)
    assert folders == sorted(set(folders))
    assert {number for subset in _SUBSETS.values() for number in subset} == set(numbers)
    assert len({name for _, name in _CLASSES.values()}) == len(numbers)
    for subset in _SUBSETS.values():
        assert len(set(subset)) == 10
    assert tuple(_CLASSES[number][0] for number in _SUBSETS["imagenette"]) == NETTE
    # fast.ai's Imagewoof, sorted as its folders are.
    assert sorted(_CLASSES[number][0] for number in _SUBSETS["imagewoof"]) == [
        "n02086240", "n02087394", "n02088364", "n02089973", "n02093754",
        "n02096294", "n02099601", "n02105641", "n02111889", "n02115641",
    ]  # fmt: skip


@pytest.mark.parametrize("name", list(_SUBSETS))
def test_a_part_has_its_classes_in_the_published_order(tmp_path, name):
    wnids = sorted(folder for folder, _ in _CLASSES.values())
    # Level 4 * place: all 57 differ by more than JPEG loses.
    contents = {}
    for place, w in enumerate(wnids):
        contents[f"train/{w}/{w}_1.JPEG"] = contents[f"val/{w}/ILSVRC2012_val_1.JPEG"] = jpeg(
            4 * place
        )
    data = load(name, write(tmp_path / "imagenet", contents).parent, size=8)
    published = [_CLASSES[number] for number in _SUBSETS[name]]
    assert data.name == name
    assert data.classes == tuple(word for _, word in published)
    places = [round(float(image.float().mean()) / 4) for image in data.train.images]
    assert places == [wnids.index(folder) for folder, _ in published]
    assert data.train.labels.tolist() == data.test.labels.tolist() == list(range(10))
    assert torch.equal(data.train.images, data.test.images)
    assert data.val is None
    assert data.note.startswith("val/ is the test split")


@pytest.mark.parametrize(
    "place", ["imagenet", "ILSVRC/Data/CLS-LOC", "imagenet/ILSVRC/Data/CLS-LOC", ""]
)
def test_imagenet_lies_in_one_of_its_usual_ways(tmp_path, place):
    contents = pictures(NETTE) | {"test/ILSVRC2012_test_00000001.JPEG": jpeg(1)}  # no labels
    write(tmp_path / place, contents | {"train/n09999999/no picture.JPEG": b"never decoded"})
    data = load("imagenette", tmp_path, size=8)
    assert levels(data.train) == [10 * (i // 2 + 1) for i in range(20)]
    assert levels(data.test) == [10 * (i + 1) for i in range(10)]
    assert data.classes[:3] == ("tench", "English springer", "cassette player")
    assert "fast.ai" not in data.note


def test_128_pixels_unless_asked_otherwise(tmp_path):
    write(tmp_path / "imagenet", pictures(NETTE))
    assert load("imagenette", tmp_path).size == 128
    assert load("imagenette", tmp_path, size=64).size == 64


def test_pictures_of_any_shape_and_gray_ones_become_squares_of_color(tmp_path):
    contents = pictures(NETTE) | {
        "train/n01440764/n01440764_0.JPEG": jpeg(10, 30, 70),
        "train/n01440764/n01440764_1.JPEG": jpeg(10, 500, 375, mode="L"),
    }
    data = load("imagenette", write(tmp_path / "imagenet", contents).parent, size=16)
    assert data.train.images.shape == (20, 3, 16, 16)
    assert levels(data.train)[:3] == [10, 10, 20]


def test_kaggles_flat_validation_pictures_with_their_table(tmp_path):
    flat = pictures(NETTE, val="val/ILSVRC2012_val_{w}.JPEG")
    root = write(tmp_path / "ILSVRC" / "Data" / "CLS-LOC", flat)
    refused("no class folders; .*LOC_val_solution.csv", load, "imagenette", tmp_path, size=8)
    rows = [f"ILSVRC2012_val_{w},{w} 85 1 499 272 {w} 3 4 5 6 " for w in reversed(NETTE)]
    rows.append("ILSVRC2012_val_other,n09999999 1 2 3 4 ")
    table = "\n".join(["ImageId,PredictionString", *rows])
    (tmp_path / "LOC_val_solution.csv").write_text(table)
    data = load("imagenette", tmp_path, size=8)
    assert levels(data.test) == [10 * (i + 1) for i in range(10)]
    assert data.test.labels.tolist() == list(range(10))
    (tmp_path / "LOC_val_solution.csv").write_text(table.replace(NETTE[3], "n09999999"))
    refused("no pictures of class n03000684", load, "imagenette", root, size=8)


@pytest.mark.parametrize("place", ["imagenette", "imagenette2", "imagenette2-160"])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_folder_or_zip_of_the_ten_classes_will_do(tmp_path, place, kind):
    contents = pictures(NETTE)
    if kind == "zip":
        inside = {f"{place}/{name}": data for name, data in contents.items()}
        zipped(tmp_path / f"{place}.zip", inside)
    else:
        write(tmp_path / place, contents)
    data = load("imagenette", tmp_path, size=8)
    assert (data.name, len(data.train), len(data.test)) == ("imagenette", 20, 10)
    assert data.classes[9] == "parachute"


def test_the_whole_imagenet_wins_over_fastais_folder_for_the_published_part(tmp_path):
    write(tmp_path / "imagenet", pictures(NETTE))
    fastai = pictures(NETTE, train="train/{w}/ILSVRC2012_val_{i}.JPEG")
    write(tmp_path / "imagenette2-320", fastai | {"train/n01440764/n01440764_9.JPEG": jpeg(200)})
    published, own = load("imagenette", tmp_path, size=8), load("imagenette2", tmp_path, size=8)
    assert (len(published.train), len(own.train)) == (20, 21)
    assert ("fast.ai" in published.note, "fast.ai" in own.note) == (False, True)
    assert own.classes == published.classes
    assert own.name == "imagenette2"


def test_imagewoof2_keeps_the_published_order_too(tmp_path):
    woof = [_CLASSES[number][0] for number in _SUBSETS["imagewoof"]]
    write(tmp_path / "imagewoof2", pictures(woof))
    data = load("imagewoof2", tmp_path, size=8)
    assert levels(data.test) == [10 * (i + 1) for i in range(10)]
    assert data.classes[0] == "Australian terrier"


def test_any_classes_of_imagenet_by_folder(tmp_path):
    wnids = [f"n{i:08}" for i in range(5)]
    write(tmp_path / "imagenet", pictures(wnids))
    assert load("imagenet", tmp_path, size=8).classes == tuple(wnids)
    data = load("imagenet", tmp_path, size=8, classes=(wnids[3], wnids[1]))
    assert data.classes == (wnids[3], wnids[1])
    assert (levels(data.train), data.train.labels.tolist()) == ([40, 40, 20, 20], [0, 0, 1, 1])
    assert (levels(data.test), data.test.labels.tolist()) == ([40, 20], [0, 1])
    write(tmp_path / "other", pictures(NETTE[:3]))
    data = load("imagenet", tmp_path / "other", size=8, classes=(NETTE[2], NETTE[0]))
    assert data.classes == ("cassette player", "tench")


def test_classes_by_number_where_all_1000_are(tmp_path):
    root = tmp_path / "imagenet"
    wnids = [f"n{i:08}" for i in range(1000)]
    for w in wnids:
        (root / "train" / w).mkdir(parents=True)
        (root / "val" / w).mkdir(parents=True)
    write(root, pictures([wnids[7], wnids[999]]))
    data = load("imagenet", tmp_path, size=8, classes=("999", wnids[7]))
    assert (data.classes, levels(data.test)) == ((wnids[999], wnids[7]), [20, 10])
    refused("no class 1000 .*0..999", load, "imagenet", tmp_path, classes=("1000",))
    refused("'n00000007' is chosen twice", load, "imagenet", tmp_path, classes=("7", wnids[7]))
    refused(
        "has no class 'n0000007'; did you mean",
        load,
        "imagenet",
        tmp_path,
        classes=("n0000007",),
    )
    (root / "train" / wnids[500]).rmdir()
    refused("class 7 is a number, .* has 999", load, "imagenet", tmp_path, classes=("7",))


def test_what_is_missing_is_said(tmp_path):
    refused("imagenette needs its files .*data_root=", IMAGENET["imagenette"].load, Request())
    refused("no files of imagefruit .*imagenet/train.*ILSVRC 2012", load, "imagefruit", tmp_path)
    refused("no files of imagewoof2 .*fastai", load, "imagewoof2", tmp_path)
    write(tmp_path / "imagenet", pictures(NETTE))
    refused("train/ of .* has no class 'n0", load, "imagewoof", tmp_path)
    refused("has its own ten classes", load, "imagenette", tmp_path, classes=("tench",))
    (tmp_path / "imagenet" / "val" / NETTE[4]).rename(tmp_path / "away")
    refused("val/ of .* no class folder 'n03028079'", load, "imagenette", tmp_path)
    (tmp_path / "imagenet" / "val").rename(tmp_path / "gone")
    refused("no val/ to test on", load, "imagenette", tmp_path)


def test_only_chosen_classes_are_looked_into(tmp_path, monkeypatch):
    write(tmp_path / "imagenet", pictures((*NETTE, "n09999999")))
    opened = []
    from trajmatch.data.sources import tree

    read, walk = tree._Folder.read, tree.os.walk
    monkeypatch.setattr(
        tree._Folder, "read", lambda self, name: opened.append(name) or read(self, name)
    )
    monkeypatch.setattr(
        tree.os, "walk", lambda path, **how: opened.append(str(path)) or walk(path, **how)
    )
    load("imagenette", tmp_path, size=8)
    assert any("n01440764" in name for name in opened)
    assert not any("n09999999" in name for name in opened)


# Tiny ImageNet

WORDS = "n00000001\tcat, true cat\nn00000002\tcrane\nn00000003\tcrane, bird\nn99999999\tentity\n"
TINY = ("n00000001", "n00000002", "n00000003", "n00000004")


def tiny(val="val/images/val_{w}.JPEG"):
    contents = pictures(TINY, train="train/{w}/images/{w}_{i}.JPEG", val=val)
    contents = {
        name: jpeg(10 * (TINY.index(next(w for w in TINY if w in name)) + 1), 8, 8)
        for name in contents
    }
    contents["train/n00000001/n00000001_boxes.txt"] = b"n00000001_0.JPEG\t0\t0\t62\t62\n"
    rows = [f"val_{w}.JPEG\t{w}\t0\t32\t44\t62\n" for w in reversed(TINY)]
    contents["val/val_annotations.txt"] = "".join(rows).encode()
    contents["test/images/test_0.JPEG"] = b"without label, never decoded"
    contents["wnids.txt"] = "\n".join(reversed(TINY)).encode()
    contents["words.txt"] = WORDS.encode()
    return contents


LAYOUTS = ["val/images/val_{w}.JPEG", "val/{w}/images/val_{w}.JPEG", "val/{w}/val_{w}.JPEG"]


@pytest.mark.parametrize("kind", ["tiny-imagenet-200", "root", "zip"])
@pytest.mark.parametrize("val", LAYOUTS)
def test_tiny_imagenet_as_distributed_and_rearranged(tmp_path, kind, val):
    contents = tiny(val)
    if kind == "zip":
        inside = {f"tiny-imagenet-200/{name}": data for name, data in contents.items()}
        zipped(tmp_path / "tiny-imagenet-200.zip", inside)
    else:
        write(tmp_path / ("" if kind == "root" else kind), contents)
    data = load_tiny_imagenet(Request(root=tmp_path))
    assert (data.name, data.size, data.val) == ("tiny-imagenet", 8, None)
    # Two are called crane, and one has no name.
    assert data.classes == ("cat", "n00000002", "n00000003", "n00000004")
    assert levels(data.train) == [10, 10, 20, 20, 30, 30, 40, 40]
    assert (levels(data.test), data.test.labels.tolist()) == ([10, 20, 30, 40], [0, 1, 2, 3])
    assert data.note.startswith("val/ is the test split")


def test_tiny_imagenets_gray_pictures_become_color(tmp_path):
    contents = tiny() | {"train/n00000001/images/n00000001_0.JPEG": jpeg(10, 8, 8, mode="L")}
    data = load_tiny_imagenet(Request(root=write(tmp_path, contents)))
    assert data.train.images.shape == (8, 3, 8, 8)
    assert levels(data.train)[:2] == [10, 10]


@pytest.mark.parametrize("val", LAYOUTS)
def test_classes_of_tiny_imagenet_by_folder_or_name(tmp_path, val):
    write(tmp_path, tiny(val))
    data = load_tiny_imagenet(Request(root=tmp_path, classes=("n00000003", "cat"), size=4))
    assert (data.classes, data.size) == (("n00000003", "cat"), 4)
    assert (levels(data.train), levels(data.test)) == ([30, 30, 10, 10], [30, 10])
    refused("no class 'cats'", load_tiny_imagenet, Request(root=tmp_path, classes=("cats",)))


def test_tiny_imagenet_without_its_tables(tmp_path):
    write(tmp_path, tiny())
    (tmp_path / "words.txt").unlink()
    assert load_tiny_imagenet(Request(root=tmp_path)).classes == TINY
    table = tmp_path / "val" / "val_annotations.txt"
    table.write_text(table.read_text().replace("n00000002\t", "n00000001\t"))
    refused("no pictures of class n00000002", load_tiny_imagenet, Request(root=tmp_path))
    table.unlink()
    refused("cannot read .*val_annotations", load_tiny_imagenet, Request(root=tmp_path))
    inside = {n: d for n, d in tiny().items() if "annotations" not in n}
    (tmp_path / "z").mkdir()
    zipped(tmp_path / "z" / "tiny-imagenet-200.zip", inside)
    refused("val_annotations.txt in .*no such", load_tiny_imagenet, Request(root=tmp_path / "z"))
    refused(
        "no files of tiny-imagenet .*cs231n", load_tiny_imagenet, Request(root=tmp_path / "val")
    )


# Chosen classes of an ordinary folder


@pytest.fixture(params=["folder", "zip"])
def pets(request, tmp_path):
    contents = {
        f"pets/{split}/{name}/{i}.png": jpeg(10 * (place + 1))
        for split in ("train", "test")
        for place, name in enumerate(("ant", "bee", "cat"))
        for i in range(2)
    }
    if request.param == "zip":
        return zipped(tmp_path / "pets.zip", contents)
    return write(tmp_path, contents) / "pets"


def test_classes_of_a_folder_in_the_order_given(pets):
    data = load_folder(pets, classes=("cat", "ant"))
    assert data.classes == ("cat", "ant")
    assert (levels(data.train), data.train.labels.tolist()) == ([30, 30, 10, 10], [0, 0, 1, 1])
    assert (levels(data.test), data.test.labels.tolist()) == ([30, 30, 10, 10], [0, 0, 1, 1])
    assert load_folder(pets).classes == ("ant", "bee", "cat")


def test_the_cache_keeps_choices_apart(pets, cache):
    choices = [None, ("ant", "bee"), ("bee", "ant"), ("cat", "bee")]
    fresh = [load_folder(pets, classes=choice, cache=False).fingerprint for choice in choices]
    assert not cache.exists()
    for _ in range(2):
        assert [load_folder(pets, classes=c).fingerprint for c in choices] == fresh
    assert len(list(cache.iterdir())) == 4
    assert len(set(fresh)) == 4


def test_only_chosen_pictures_are_decoded(tmp_path):
    contents = {f"{s}/{c}/0.png": jpeg(9) for s in ("train", "test") for c in "ab"}
    contents |= {"train/c/0.png": b"no picture", "test/d/0.png": b"", "train/stray.png": b""}
    root = write(tmp_path / "pets", contents)
    seen = []
    load_folder(root, classes=["b", "a"], progress=lambda *numbers: seen.append(numbers))
    assert seen[-1] == (4, 4)
    refused(r"train/stray\.png", load_folder, root)
    refused("test/ of .* no class folder 'c'", load_folder, root, classes=["a", "c"])


def test_unknown_classes_are_refused_with_what_is_meant(pets):
    refused(r"no class 'bees'; did you mean 'bee'", load_folder, pets, classes=["ant", "bees"])
    refused(r"no class 'x'; \(known: ant, bee, cat\)", load_folder, pets, classes=["x"])
    refused("'ant' is chosen twice", load_folder, pets, classes=["ant", "bee", "ant"])
    refused("list of classes is empty", load_folder, pets, classes=[])


def test_all_of_them_through_the_front_door(tmp_path, pets):
    write(tmp_path / "imagenet", pictures(NETTE))
    data = load_data("imagenette", data_root=tmp_path, size=8, val_fraction=0.5)
    assert (len(data.train), len(data.val), len(data.test), data.size) == (10, 10, 10, 8)
    chosen = load_data("imagenet", data_root=tmp_path, size=8, classes=f"{NETTE[2]},{NETTE[1]}")
    assert chosen.classes == ("cassette player", "English springer")
    write(tmp_path / "tiny-imagenet-200", tiny())
    assert load_data("tiny-imagenet", data_root=tmp_path).classes[0] == "cat"
    assert load_data(pets, classes="cat,ant").classes == ("cat", "ant")


def test_more_than_memory_holds_is_refused(pets, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", full)
        refused(r"12 pictures of 12x8 need about 0\.0 GB .*size=", load_folder, pets, cache=False)

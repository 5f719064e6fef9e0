"""Data sets given as objects: torch Datasets, arrays, Hugging Face tables."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, Subset

from trajmatch.data import ImageDataset, load_data
from trajmatch.data.sources import Source
from trajmatch.errors import DataError, SettingError


class Pictures(torch.utils.data.Dataset):
    """As torchvision's data sets: `classes`, `targets`, items through a transform."""

    classes = ("cat", "dog", "emu")

    def __init__(self, count=30, side=8, mode="RGB", transform=None, first=0):
        self.targets = [i % 3 for i in range(count)]
        self.side, self.mode, self.transform, self.first = side, mode, transform, first
        self.read = []

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        self.read.append(index)
        level = self.first + index
        shape = (self.side, self.side, 3) if self.mode == "RGB" else (self.side, self.side)
        image = Image.fromarray(np.full(shape, level, dtype=np.uint8))
        return (self.transform(image) if self.transform else image), self.targets[index]


def to_tensor(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def levels(split):
    return sorted(int(image.max()) for image in split.images)


def arrays(count, classes=3, first=0):
    images = np.zeros((count, 8, 8, 3), np.uint8) + np.arange(first, first + count)[
        :, None, None, None
    ].astype(np.uint8)
    return images, np.arange(count) % classes


def test_a_torchvision_data_set_with_its_test_set():
    seen = []
    data = load_data(
        Pictures(),
        test=Pictures(6, first=100),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (data.name, data.classes, data.channels, data.size) == (
        "Pictures", ("cat", "dog", "emu"), 3, 8,
    )  # fmt: skip
    assert (len(data.train), len(data.val), levels(data.test)) == (27, 3, list(range(100, 106)))
    assert sorted(levels(data.train) + levels(data.val)) == list(range(30))
    assert data.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.note == ""
    assert seen == [(30, 30), (6, 6)]


@pytest.mark.parametrize(
    "transform",
    [
        to_tensor,
        lambda image: (to_tensor(image) * 255).to(torch.uint8),
        np.asarray,
        lambda image: np.asarray(image) / 255,
    ],
    ids=["float tensor", "uint8 tensor", "uint8 array", "float array"],
)
def test_items_of_every_kind_are_the_same_images(transform):
    expected = load_data(Pictures(), test=Pictures(6))
    given = load_data(Pictures(transform=transform), test=Pictures(6, transform=transform))
    assert given.fingerprint == expected.fingerprint


def test_gray_items_have_one_channel_and_a_mixture_three():
    assert load_data(Pictures(mode="L")).channels == 1
    mixed = [(Image.new("L" if i % 2 else "RGB", (8, 8)), i % 3 % 2) for i in range(20)]
    assert load_data(mixed).channels == 3


def test_missing_splits_are_cut_as_for_folders(tmp_path):
    data = load_data(Pictures(), val_fraction=0.25)
    assert data.note.startswith("no test images were given")
    counts = [split.labels.bincount().tolist() for split in (data.train, data.val, data.test)]
    assert counts == [[6, 6, 6], [2, 2, 2], [2, 2, 2]]
    folder = tmp_path / "pets"
    for index in np.argsort(Pictures().targets, kind="stable"):
        image, label = Pictures()[int(index)]
        (folder / Pictures.classes[label]).mkdir(parents=True, exist_ok=True)
        image.save(folder / Pictures.classes[label] / f"{index:02}.png")
    by_class = Subset(Pictures(), np.argsort(Pictures().targets, kind="stable").tolist())
    same = load_data(by_class, val_fraction=0.25)
    assert same.fingerprint == load_data(folder, cache=False, val_fraction=0.25).fingerprint


def test_a_dict_of_splits():
    three = {"train": arrays(30), "validation": arrays(6, first=50), "test": arrays(9, first=90)}
    data = load_data(three)
    assert (levels(data.val), levels(data.test), data.note) == (
        list(range(50, 56)), list(range(90, 99)), "",
    )  # fmt: skip
    data = load_data({"train": arrays(30), "val": Pictures(6, first=50)})
    assert data.note.startswith("val is the test split")
    assert (levels(data.test), len(data.val), data.classes) == (
        list(range(50, 56)), 3, ("cat", "dog", "emu"),
    )  # fmt: skip


def test_arrays_and_tensors():
    images, labels = arrays(30)
    data = load_data((images, labels), test=arrays(9), size=4)
    expected = ImageDataset.from_arrays(images, labels, *arrays(9)).resized(4).with_validation(0.1)
    assert (data.name, data.fingerprint) == ("arrays", expected.fingerprint)
    tensors = torch.from_numpy(images), torch.from_numpy(labels)
    assert load_data(tensors, test=arrays(9), size=4).fingerprint == data.fingerprint


def test_a_subset_has_the_class_names_of_its_data_set():
    assert load_data(Subset(Pictures(), range(12))).classes == Pictures.classes


def test_only_some_classes_are_decoded():
    train = Pictures()
    data = load_data(train, test=Pictures(6, first=100), classes="emu,cat")
    assert data.classes == ("emu", "cat")
    assert (levels(data.test), data.test.labels.tolist()) == ([100, 102, 103, 105], [1, 0, 1, 0])
    assert {train.targets[index] for index in train.read} == {0, 2}
    # Labels that a transform changes are known only after reading.
    renamed = Pictures()
    renamed.target_transform = lambda label: label
    assert len(load_data(renamed, classes="emu,cat").classes) == 2
    assert len(renamed.read) == 30
    assert load_data(arrays(30), classes="1,0").classes == ("1", "0")


def test_items_may_be_labeled_by_name():
    items = [(Image.new("L", (8, 8), i), Pictures.classes[i % 3]) for i in range(30)]
    data = load_data(items)
    expected = load_data([(image, i % 3) for i, (image, _) in enumerate(items)])
    assert (data.classes, data.test.labels.tolist()) == (
        Pictures.classes, expected.test.labels.tolist(),
    )  # fmt: skip
    named = Pictures()
    named.targets = [Pictures.classes[i % 3] for i in range(30)]
    assert load_data(named).fingerprint == load_data(Pictures()).fingerprint
    assert load_data(named, classes="emu,cat").fingerprint == (
        load_data(Pictures(), classes="emu,cat").fingerprint
    )


def test_classes_of_the_same_name_are_told_apart_by_their_code():
    """torchvision's ImageNet has two cranes."""
    birds = Pictures()
    birds.classes, birds.wnids = [("crane",), ("dog", "cur"), ("crane",)], ["n1", "n2", "n3"]
    assert load_data(birds).classes == ("crane (n1)", "dog / cur", "crane (n3)")


class Broken(Pictures):
    """Item 4 is a picture whose file is truncated, item 9 one whose file is missing."""

    def __getitem__(self, index):
        if index == 9:
            raise FileNotFoundError("no file 9.png")
        image, label = super().__getitem__(index)
        if index == 4:
            whole = io.BytesIO()
            Image.effect_noise((64, 64), 50).save(whole, "PNG")
            image = Image.open(io.BytesIO(whole.getvalue()[:200]))
        return image, label


def test_broken_items_can_be_passed_over():
    with pytest.raises(DataError, match=r"train item 4 cannot be read \(.*on_bad_image='skip'"):
        load_data(Broken())
    data = load_data(Broken(), test=Pictures(6, first=100), on_bad_image="skip")
    assert sorted(levels(data.train) + levels(data.val)) == [
        i for i in range(30) if i not in (4, 9)
    ]
    assert data.note == "passed over 2 items that cannot be read, such as train item 4"


def test_mixed_sizes_need_a_size():
    mixed = [(Image.new("RGB", (8 + i % 2, 8)), i % 2 if i < 15 else 1) for i in range(40)]
    with pytest.raises(
        DataError, match=r"several sizes.*: 8x8, and 8x9 in train item 1; .*size=64"
    ):
        load_data(mixed)
    assert load_data(mixed, size=4).size == 4
    tensors = [(torch.zeros(3, 8 + i % 2, 8, dtype=torch.uint8), i // 2 % 2) for i in range(40)]
    assert load_data(tensors, size=4).size == 4


def test_our_own_objects():
    digits = load_data("digits")
    assert load_data(digits) is digits
    assert load_data(digits, classes="1,7").classes == ("1", "7")
    source = Source(lambda request: ImageDataset.from_arrays(*arrays(30), *arrays(9)), "levels")
    assert load_data(source, classes="2,1").classes == ("2", "1")


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(3, 8, 8), 0


IMAGES, LABELS = arrays(12)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Endless(), r"type Endless, which has no length and items; give a torch Dataset"),
        (DataLoader(Pictures()), r"type DataLoader, which has no length"),
        (iter([(1, 2)]), r"type list_iterator, which has no length"),
        (3, r"type int, which has no length"),
        ([], r"train images are an empty data set"),
        (IMAGES, r"without labels; give a pair \(images, labels\)"),
        ([1, 2, 3], r"train item 0 is of type int; give pairs \(image, label\)"),
        ([("a.png", 0)] * 4, r"train images \(item 0\) are of type str; give PIL images"),
        ([(IMAGES[0], None)] * 4, r"label of train item 0 is None, no class index"),
        ([(IMAGES[0], "cat"), (IMAGES[0], 0)] * 4, r"train labels are names .* but for 0 at 1"),
        ([(IMAGES[0], 1.0)] * 4, r"label of train item 0 is 1\.0, no class index"),
        ([(IMAGES[0], True)] * 4, r"label of train item 0 is True, no class index"),
        ([(IMAGES[0] * 2.0 - 1, 0)] * 4, r"train images \(item 0\) are floats from -1 .*\[0, 1\]"),
        ((IMAGES, LABELS.astype(float)), r"train labels have shape \(12,\) and float64"),
        ((IMAGES / 100 - 1, LABELS), r"train images are floats from -1 "),
        ((IMAGES, LABELS - 1), r"train labels reach from -1 to 1"),
        ((IMAGES, LABELS * 0), r"all labels are 0, a single class"),
        ([(IMAGES[0], 0)] * 9, r"all labels are 0, a single class"),
        ((IMAGES[:0], LABELS[:0]), r"there are no train images"),
        ((IMAGES[:5], LABELS[:5]), r"class '2' has 1 images, and without test images each class"),
        ({"test": (IMAGES, LABELS)}, r"dict of splits has test; give train"),
        ({"train": (IMAGES, LABELS), "more": (IMAGES, LABELS)}, r"has train, more; give train"),
        (dict.fromkeys(("train", "dev", "val"), (IMAGES, LABELS)), r"two of which are names of"),
        ({}, r"dict of splits has nothing"),
    ],
)
def test_what_is_refused_is_one_line(data, message):
    with pytest.raises(DataError, match=message) as caught:
        load_data(data)
    assert "\n" not in str(caught.value)


def test_what_does_not_go_together_is_refused():
    for data in ("digits", load_data("digits")):
        with pytest.raises(SettingError, match=r"test= belongs to data given as objects"):
            load_data(data, test=arrays(9))
    with pytest.raises(DataError, match=r"put test into the dict"):
        load_data({"train": arrays(12)}, test=arrays(9))
    other = Pictures(6)
    other.classes = ("ant", "bee", "cow")
    with pytest.raises(DataError, match=r"test images have other classes than the train images"):
        load_data(Pictures(), test=other)
    with pytest.raises(DataError, match=r"test labels reach from 0 to 3 and there are 3 classes"):
        load_data(Pictures(), test=arrays(8, classes=4))
    with pytest.raises(DataError, match="the data set has no class 'eel'"):
        load_data(Pictures(), classes="eel,cat")


# -- Hugging Face --------------------------------------------------------------------------------


def cell(level):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (level,) * 3).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture
def table():
    """Rows whose levels begin with `first`, as a `datasets.Dataset`."""
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    names = list(Pictures.classes)
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}

    def build(count, first=0):
        columns = {
            "image": [cell(first + i) for i in range(count)],
            "label": [i % 3 for i in range(count)],
        }
        return datasets.Dataset.from_dict(columns, datasets.Features(features))

    return build


def test_a_hugging_face_data_set(table, tmp_path, monkeypatch):
    monkeypatch.setenv("TRAJMATCH_CACHE", str(tmp_path))
    whole = table(30)
    data = load_data(whole, test=table(6, first=100))
    assert (data.classes, levels(data.test)) == (Pictures.classes, list(range(100, 106)))
    assert sorted(levels(data.train) + levels(data.val)) == list(range(30))
    cut = load_data(whole)
    assert (len(cut.test), cut.note.startswith("no test images were given")) == (6, True)
    part = load_data(whole.select(range(15, 30)).with_format("torch"), classes="dog,cat")
    assert part.classes == ("dog", "cat")
    assert min(levels(part.train)) >= 15
    assert list(tmp_path.iterdir()) == []  # the rows of an object are not those of its files


def test_a_hugging_face_dict(table):
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    splits = {"train": table(30), "validation": table(6, first=50), "test": table(6, first=100)}
    data = load_data(datasets.DatasetDict(splits))
    assert (levels(data.val), levels(data.test)) == (list(range(50, 56)), list(range(100, 106)))
    del splits["test"]
    data = load_data(splits)
    assert levels(data.test) == list(range(50, 56))
    assert data.note.startswith("validation is the test split")
    with pytest.raises(DataError, match="dict of splits has test, other; give train"):
        load_data({"test": table(6)} | {"other": table(6)})


def test_a_hugging_face_stream_or_a_single_class_is_refused(table):
    with pytest.raises(DataError, match="type IterableDataset, which has no length"):
        load_data(table(30).to_iterable_dataset())
    with pytest.raises(DataError, match="one class is chosen, 'dog'"):
        load_data(table(30), classes="dog")

"""Image data sets: arrays in, stratified cuts, fingerprints, the digits."""

from __future__ import annotations

import dataclasses
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trajmatch.data import ImageDataset, Split, load_data
from trajmatch.errors import DataError, SettingError

N = 60


def arrays(n=N, classes=3, shape=(1, 8, 8), seed=0):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (n, *shape), dtype=np.uint8)
    return images, np.arange(n) % classes


def dataset(**options):
    return ImageDataset.from_arrays(*arrays(), *arrays(30, seed=1), **options)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def test_digits_are_the_known_scans(digits):
    assert (len(digits.train), len(digits.val), len(digits.test)) == (1295, 143, 359)
    assert (digits.name, digits.channels, digits.size, digits.num_classes) == ("digits", 1, 8, 10)
    everything = torch.cat([s.images for s in (digits.train, digits.val, digits.test)])
    assert (everything.min(), everything.max()) == (0, 255)
    assert len(everything.unique()) == 17  # gray levels
    # Every scan lies in exactly one split.
    from sklearn.datasets import load_digits

    scans = sorted(map(bytes, np.round(load_digits().images * 255 / 16).astype(np.uint8)))
    assert sorted(map(bytes, everything.numpy())) == scans


def test_digits_are_cut_by_class_and_always_alike(digits):
    splits = {0.2: digits.test, 0.08: digits.val, 0.72: digits.train}
    counts = {share: split.labels.bincount() for share, split in splits.items()}
    for share, count in counts.items():
        assert (count - share * sum(counts.values())).abs().max() < 1
    assert digits.fingerprint == load_data("digits").fingerprint == "c443ad479c909ed6"


def test_digits_at_another_size():
    grown = load_data("digits", size=16)
    assert grown.size == 16
    plain = load_data("digits", size=8)
    shrunk = grown.resized(8)
    pixels = torch.stack([shrunk.train.images.flatten(), plain.train.images.flatten()])
    assert pixels.double().corrcoef()[0, 1] > 0.98  # and 0.5 when one is shifted by a pixel
    assert plain.resized(8) is plain


def test_resizing_keeps_the_middle_of_oblong_images():
    images = torch.zeros(2, 1, 8, 24, dtype=torch.uint8)
    images[..., 8:16] = 200
    wide = Split(images, torch.tensor([0, 1]))
    square = ImageDataset("wide", wide, wide, wide, ("a", "b")).resized(8)
    assert square.size == 8
    for split in (square.train, square.test, square.val):
        assert split.images[0, 0, :, 2:6].min() >= 190
    assert ImageDataset("wide", wide, wide, None, ("a", "b")).size == (8, 24)


def test_layouts_and_dtypes_give_the_same_data():
    images, labels = arrays(shape=(3, 8, 6))
    expected = ImageDataset.from_arrays(images, labels, images, labels)
    for other in (
        torch.from_numpy(images),
        images.transpose(0, 2, 3, 1),
        images.astype(np.float32) / 255,
        torch.from_numpy(images).double() / 255,
        (images.transpose(0, 2, 3, 1) / 255).tolist(),
    ):
        given = ImageDataset.from_arrays(other, torch.from_numpy(labels), other, labels[:, None])
        assert given.fingerprint == expected.fingerprint
        assert torch.equal(given.train.images, torch.from_numpy(images))
    gray, labels = arrays()
    expected = ImageDataset.from_arrays(gray, labels, gray, labels)
    for other in (gray[:, 0], gray.transpose(0, 2, 3, 1)):
        given = ImageDataset.from_arrays(other, labels.astype(np.uint8), other, labels)
        assert given.fingerprint == expected.fingerprint


def test_the_arrays_are_copied():
    images, labels = arrays()
    data = ImageDataset.from_arrays(images, labels, images, labels)
    images[:], labels[:] = 0, 0
    assert data.train.images.float().mean() > 100
    assert data.train.labels.max() == 2


def test_fingerprint_changes_with_anything_that_matters():
    prints = {dataset().fingerprint}
    for change in (
        dataset(classes=("a", "b", "c")),
        dataset(val_images=arrays(3)[0], val_labels=arrays(3)[1]),
        ImageDataset.from_arrays(*arrays(seed=2), *arrays(30, seed=1)),
        ImageDataset.from_arrays(*arrays(), *arrays(29, seed=1)),
        ImageDataset.from_arrays(arrays()[0], arrays()[1][::-1].copy(), *arrays(30, seed=1)),
        ImageDataset.from_arrays(*arrays(shape=(1, 4, 16)), *arrays(30, shape=(1, 4, 16), seed=1)),
    ):
        assert len(change.fingerprint) == 16
        prints.add(change.fingerprint)
    assert len(prints) == 7
    assert dataset(name="other").fingerprint in prints  # a name is no data


def test_summary_is_json():
    summary = dataset(classes=("a", "b", "c"), name="mine").with_validation(0.1).summary()
    assert json.loads(json.dumps(summary)) == {
        "name": "mine", "train": 54, "val": 6, "test": 30, "channels": 1, "size": 8,
        "classes": ["a", "b", "c"], "fingerprint": summary["fingerprint"],
    }  # fmt: skip


def test_validation_is_a_fixed_share_of_every_class():
    data = dataset()
    cut = data.with_validation(0.25, seed=3)
    assert cut.train.labels.bincount().tolist() == [15, 15, 15]
    assert cut.val.labels.bincount().tolist() == [5, 5, 5]
    assert torch.equal(cut.test.images, data.test.images)
    together = sorted(map(bytes, torch.cat([cut.train.images, cut.val.images]).numpy()))
    assert together == sorted(map(bytes, data.train.images.numpy()))
    assert cut.fingerprint == data.with_validation(0.25, seed=3).fingerprint
    assert cut.fingerprint != data.with_validation(0.25, seed=4).fingerprint
    assert cut.with_validation(0.5) is cut


@pytest.mark.parametrize("fraction", [1e-6, 1 - 1e-6])
def test_validation_leaves_an_image_of_each_class_on_both_sides(fraction):
    cut = dataset().with_validation(fraction)
    assert min(cut.train.labels.bincount().min(), cut.val.labels.bincount().min()) == 1


def test_it_is_shown_in_a_line():
    shown = repr(dataset(name="mine").with_validation(0.1))
    assert shown == "ImageDataset('mine': 54 train, 30 test, 6 val; 1x8x8, 3 classes)"
    assert repr(dataset().train) == "Split(60 images, 1x8x8)"


def test_take_and_per_class():
    split = dataset().train
    where = split.per_class(4)
    assert [len(indices) for indices in where] == [20, 20, 20, 0]
    assert split.take(where[1]).labels.unique().tolist() == [1]
    taken = split.take(torch.tensor([5, 0]))
    assert torch.equal(taken.images[1], split.images[0])
    taken.images[:] = 0
    assert split.images[0].any()


IMAGES, LABELS = arrays(12)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.astype(np.float32), LABELS, r"floats from 0 to 255; .*divide by 255"),
        (IMAGES / 255 - 0.1, LABELS, r"floats from -0\.1 to 0\.9"),
        (np.full((12, 8, 8), np.nan), LABELS, r"floats from nan to nan"),
        (IMAGES.astype(np.int64), LABELS, r"images are int64; give uint8"),
        (IMAGES[:, 0, 0], LABELS, r"shape \(12, 8\)"),
        (np.zeros((12, 8, 8, 4), np.uint8), LABELS, r"neither of axes 1 and 3"),
        (np.zeros((12, 3, 8, 3), np.uint8), LABELS, r"either of axes 1 and 3"),
        (IMAGES[:11], LABELS, r"11 images have 12 labels"),
        (IMAGES, LABELS.astype(np.float64), r"labels have shape \(12,\) and float64"),
        (IMAGES, np.eye(12), r"labels have shape \(12, 12\)"),
        (IMAGES, LABELS - 1, r"labels reach from -1 to 1 and there are 3 classes.*0\.\.2"),
        (IMAGES, LABELS * 2, r"2 of 5 classes have no training images: 1, 3;"),
        (np.array(["a"] * 12), LABELS, r"not a numeric array"),
        (IMAGES[:0], LABELS[:0], r"the train split of 'arrays' holds no images"),
        (np.zeros((12, 3, 8, 8), np.uint8), LABELS, r"test images are 1x8x8 .* train images 3x8x8"),
    ],
)
def test_bad_arrays_are_refused(images, labels, message):
    with pytest.raises(DataError, match=message):
        ImageDataset.from_arrays(images, labels, IMAGES, LABELS)


def test_bad_settings_are_refused():
    for fraction in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(SettingError, match="val_fraction"):
            dataset().with_validation(fraction)
        with pytest.raises(SettingError, match="val_fraction"):
            load_data("digits", val_fraction=fraction)
    with pytest.raises(SettingError, match="size is 0"):
        load_data("digits", size=0)
    with pytest.raises(DataError, match="both or neither"):
        dataset(val_labels=[1])
    with pytest.raises(DataError, match=r"class '0' has 1 training image"):
        ImageDataset.from_arrays(*arrays(3), *arrays(3)).with_validation(0.1)
    with pytest.raises(DataError, match=r"labels reach from 0 to 2 and there are 2 classes"):
        dataset(classes=("a", "b"))


# Names of classes


@dataclasses.dataclass
class Categorical:
    """As much of pandas.Categorical as is used; a Series has one at `.cat`."""

    categories: list
    codes: np.ndarray


@pytest.mark.parametrize(
    "classes",
    [
        [1, 2, 3], np.array([1, 2, 3]), ("1", "2", "3"), np.array(["1", "2", "3"]),
        [b"1", "2", np.int64(3)], Categorical([1, 2, 3], np.array([0])),
    ],
    ids=["ints", "array", "texts", "array of texts", "mixed", "categories"],
)  # fmt: skip
def test_names_of_classes_are_taken_as_text(classes):
    data = dataset(classes=classes)
    assert data.classes == ("1", "2", "3")
    assert json.loads(json.dumps(data.summary()))["classes"] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["a", "b", "a"], r"'a' is the name of class 0 and of class 2; give every class a name"),
        ([1, "b", "1"], r"'1' is the name of class 0 and of class 2"),
        (["a", "", "c"], r"the name of class 1 is empty"),
        (["a", " ", "c"], r"the name of class 1 is empty"),
        ("abc", r"classes is 'abc'; give a list of names"),
        (3, r"classes is 3; give a list of names"),
    ],
)
def test_names_that_tell_no_classes_apart_are_refused_at_construction(classes, message):
    with pytest.raises(DataError, match=message):
        dataset(classes=classes)


def test_names_are_checked_at_construction():
    split = dataset().train
    with pytest.raises(DataError, match="'a' is the name of class 0 and of class 2"):
        ImageDataset("a", split, split, None, ("a", "b", "a"))
    text = np.str_("b")
    named = ImageDataset("a", split, split, None, ("a", text, "c"))
    assert type(named.classes[1]) is str


def test_a_single_class_is_refused():
    one = Split(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(DataError, match=r"'one' has a single class; give images of at least two"):
        ImageDataset("one", one, one, None, ("cat",))
    with pytest.raises(DataError, match=r"one class is chosen, '3', .*; choose at least two"):
        load_data("digits", classes="3")
    with pytest.raises(DataError, match=r"class '3' is chosen twice"):
        load_data("digits", classes="3,1,3")


WORDS = ["dog", "cat", "emu"] * 20


@pytest.mark.parametrize(
    "labels",
    [
        WORDS, tuple(WORDS), np.array(WORDS), np.array(WORDS, dtype=object),
        np.array(WORDS)[:, None], np.array(WORDS, dtype=bytes),
    ],
    ids=["list", "tuple", "texts", "objects", "column", "bytes"],
)  # fmt: skip
def test_labels_may_be_names(labels):
    images = arrays()[0]
    data = ImageDataset.from_arrays(images, labels, images[:3], ["emu", "dog", "cat"])
    assert data.classes == ("cat", "dog", "emu")
    assert data.train.labels.tolist() == [1, 0, 2] * 20
    assert data.test.labels.tolist() == [2, 1, 0]
    given = ImageDataset.from_arrays(images, labels, images, labels, classes=["emu", "dog", "cat"])
    assert given.train.labels.tolist() == [1, 2, 0] * 20
    pair = load_data((images, labels), test=(images[:3], ["emu", "dog", "cat"]))
    assert (pair.classes, pair.test.labels.tolist()) == (("cat", "dog", "emu"), [2, 1, 0])


def test_categories_have_an_order_of_their_own():
    images = arrays()[0]
    labels = Categorical(["large", "none", "small", 5], np.array([2, 0, 3] * 20))
    data = ImageDataset.from_arrays(images, labels, images[:2], ["5", "small"])
    assert (data.classes, data.train.labels[:3].tolist(), data.test.labels.tolist()) == (
        ("large", "small", "5"), [1, 0, 2], [2, 1],
    )  # fmt: skip
    series = SimpleNamespace(cat=labels)
    assert ImageDataset.from_arrays(images, series, images, series).fingerprint == (
        ImageDataset.from_arrays(images, labels, images, labels).fingerprint
    )
    labels.codes[7] = -1
    with pytest.raises(DataError, match="train labels lack a value at 7"):
        ImageDataset.from_arrays(images, labels, images, labels)


def test_names_that_are_no_class_and_mixtures_are_refused():
    images, numbers = arrays()
    for train, test, message in (
        (WORDS, ["emu", "cats"], r"a test label is 'cats', which is no class; did you mean 'cat'"),
        (WORDS, numbers, r"the train labels are names and the test labels numbers; give names"),
        (["cat", None] * 30, WORDS, r"train labels are names of classes but for None at 1"),
        (["cat", 3] * 30, WORDS, r"train labels are names of classes but for 3 at 1"),
        (["cat", ""] * 30, WORDS, r"train labels are names of classes but for '' at 1"),
    ):
        with pytest.raises(DataError, match=message):
            ImageDataset.from_arrays(images, train, images[: len(test)], test)
    with pytest.raises(DataError, match=r"a train label is 'dog', which is no class"):
        ImageDataset.from_arrays(images, WORDS, images, WORDS, classes=["cat", "emu", "eel"])


def test_arrays_can_have_their_validation_cut():
    given = dataset()
    assert given.val is None
    cut = dataset(val_fraction=0.25)
    assert cut.fingerprint == given.with_validation(0.25).fingerprint
    with pytest.raises(SettingError, match=r"val_fraction is 0\.1 and val_images are given"):
        dataset(val_fraction=0.1, val_images=arrays(3)[0], val_labels=arrays(3)[1])
    with pytest.raises(SettingError, match=r"val_fraction is 1\.5; it must be above 0 and below 1"):
        dataset(val_fraction=1.5)


@pytest.mark.skipif(sys.platform == "win32", reason="memory is unknown there")
def test_sizes_beyond_memory_are_refused_before_they_are_allocated():
    with pytest.raises(DataError, match=r"90 images of 50,000x50,000 need about .* GB of memory"):
        dataset().resized(50_000)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(DataError, match=r"unknown data 'digts'; did you mean 'digits'\?"):
        load_data("digts")
    with pytest.raises(DataError, match=r"no such file or folder '/no/such\.zip'"):
        load_data("/no/such.zip")

"""Hugging Face data sets: columns, splits and labels over a stand-in and, if there, the library."""

from __future__ import annotations

import io
import socket
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from trajmatch.data.sources.hub import load_hub
from trajmatch.data.sources.source import Request
from trajmatch.errors import DataError, MissingExtraError


def png(level, side=6, mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, (side, side), (level,) * 3 if mode == "RGB" else level).save(buffer, "PNG")
    return buffer.getvalue()


class FakeImage:
    dtype = "PIL.Image.Image"

    def __init__(self, decode=True):
        self.decode = decode


class FakeClassLabel:
    dtype = "int64"

    def __init__(self, names):
        self.names = names


class FakeRows:
    """As much of datasets.Dataset as is used. A picture that is to be decoded cannot be read."""

    cache_files = ()

    def __init__(self, columns, features):
        self.columns, self.features = columns, features

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        for kind in self.features.values():
            assert not (isinstance(kind, FakeImage) and kind.decode)
        return {name: values[key] for name, values in self.columns.items()}

    def select_columns(self, names):
        return FakeRows(
            {name: self.columns[name] for name in names},
            {name: self.features[name] for name in names},
        )

    def cast_column(self, name, kind):
        return FakeRows(self.columns, {**self.features, name: kind})


FakeImage.__name__, FakeClassLabel.__name__ = "Image", "ClassLabel"


def fake_library():
    library = ModuleType("datasets")
    library.Image, library.ClassLabel = FakeImage, FakeClassLabel
    library.Value = lambda dtype: SimpleNamespace(dtype=dtype)
    return library


class Library:
    """`datasets`, but load_dataset gives what was last served; `asked` keeps how it was called."""

    def __init__(self, module, rows, monkeypatch):
        self.module, self.rows, self.asked, self.served = module, rows, [], {}
        self.Image, self.ClassLabel, self.Value = module.Image, module.ClassLabel, module.Value
        monkeypatch.setitem(sys.modules, "datasets", module)
        monkeypatch.setattr(module, "load_dataset", self.load_dataset, raising=False)

    def load_dataset(self, *words):
        self.asked.append(words)
        return dict(self.served)

    def serve(self, columns, **features):
        self.served = {
            split: self.rows(dict(zip(features, values, strict=True)), features)
            for split, values in columns.items()
        }


@pytest.fixture(params=["stand-in", "library"])
def library(request, monkeypatch):
    if request.param == "stand-in":
        return Library(fake_library(), FakeRows, monkeypatch)
    datasets = pytest.importorskip("datasets")

    def rows(columns, features):
        return datasets.Dataset.from_dict(columns, datasets.Features(features))

    return Library(datasets, rows, monkeypatch)


def cells(*levels, **options):
    return [{"bytes": png(level, **options), "path": None} for level in levels]


def levels(split):
    return [int(image.max()) for image in split.images]


TWO = {
    "train": (cells(10, 20, 30, 40), [1, 0, 1, 0]),
    "test": (cells(50, 60), [0, 1]),
}


def test_pictures_labels_and_names_in_the_order_of_the_rows(library):
    library.serve(TWO, img=library.Image(), label=library.ClassLabel(names=["cat", "dog"]))
    seen = []
    request = Request(progress=lambda done, total: seen.append((done, total)))
    data = load_hub("hf:someone/pets", request)
    assert (data.name, data.classes, data.size) == ("hf:someone/pets", ("cat", "dog"), 6)
    assert (levels(data.train), data.train.labels.tolist()) == ([10, 20, 30, 40], [1, 0, 1, 0])
    assert (levels(data.test), data.test.labels.tolist()) == ([50, 60], [0, 1])
    assert (data.val, data.note) == (None, "")
    assert library.asked == [("someone/pets", None)]
    assert seen[-1] == (6, 6)


def test_a_config_follows_a_colon(library):
    library.serve(TWO, image=library.Image(), label=library.ClassLabel(names=["cat", "dog"]))
    load_hub("hf:someone/pets:small", Request())
    assert library.asked == [("someone/pets", "small")]


def test_a_size_is_brought_about(library):
    mixed = {"train": (cells(1, side=9) + cells(2, side=5), [0, 1]), "test": (cells(3), [0])}
    library.serve(mixed, image=library.Image(), label=library.ClassLabel(names=["cat", "dog"]))
    assert load_hub("hf:pets", Request(size=4)).train.images.shape == (2, 3, 4, 4)
    with pytest.raises(DataError, match="pictures are of 3 sizes"):
        load_hub("hf:pets", Request())


def test_the_fine_labels_of_several(library):
    columns = {
        split: (images, [0] * len(labels), labels) for split, (images, labels) in TWO.items()
    }
    library.serve(
        columns,
        img=library.Image(),
        coarse_label=library.ClassLabel(names=["pet"]),
        fine_label=library.ClassLabel(names=["cat", "dog"]),
    )
    data = load_hub("hf:pets", Request())
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [1, 0, 1, 0]


def test_whole_numbers_and_words_are_labels_by_their_column_name(library):
    numbers = {"train": (cells(1, 2, 3), [30, 4, 30]), "test": (cells(4, 5), [4, 30])}
    library.serve(numbers, image=library.Image(), labels=library.Value("int64"))
    data = load_hub("hf:pets", Request())
    assert data.classes == ("4", "30")  # by value, not as words
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([1, 0, 1], [0, 1])
    words = {"train": (cells(1, 2, 3), ["b", "a", "b"]), "test": (cells(4), ["a"])}
    library.serve(words, image=library.Image(), label=library.Value("string"))
    assert load_hub("hf:pets", Request()).classes == ("a", "b")
    words["test"] = (cells(4), ["c"])
    library.serve(words, image=library.Image(), label=library.Value("string"))
    with pytest.raises(
        DataError, match="test of 'hf:pets' has a label 'c' that train does not have"
    ):
        load_hub("hf:pets", Request())


@pytest.mark.parametrize("name", ["validation", "valid"])
def test_validation_is_for_choosing_beside_a_test_split_and_the_test_without(library, name):
    features = {"image": library.Image(), "label": library.ClassLabel(names=["cat", "dog"])}
    three = {**TWO, name: (cells(70, 80), [1, 0])}
    library.serve(three, **features)
    data = load_hub("hf:pets", Request())
    assert (levels(data.val), levels(data.test), data.note) == ([70, 80], [50, 60], "")
    library.serve({split: three[split] for split in ("train", name)}, **features)
    data = load_hub("hf:pets", Request())
    assert (levels(data.test), data.val) == ([70, 80], None)
    assert data.note.startswith(f"{name} is the test split")
    # A test split as contests give it, without labels, is none.
    library.serve({**three, "test": (cells(50, 60), [-1, -1])}, **features)
    assert levels(load_hub("hf:pets", Request()).test) == [70, 80]


def test_train_alone_gives_a_fifth_to_test(library):
    columns = {"train": (cells(*range(10)), [0, 1] * 5), "extra": (cells(99), [0])}
    library.serve(columns, image=library.Image(), label=library.ClassLabel(names=["cat", "dog"]))
    data = load_hub("hf:pets", Request())
    assert (len(data.train), sorted(data.test.labels.tolist())) == (8, [0, 1])
    assert sorted(levels(data.train) + levels(data.test)) == list(range(10))
    assert data.note.startswith("no test images were given: a fifth of each class")
    assert data.remarks == ("passed over the splits extra",)


@pytest.mark.parametrize("labels", [[], [None, None]])
def test_train_without_a_label_is_refused(library, labels):
    for label in (library.ClassLabel(names=["cat", "dog"]), library.Value("string")):
        columns = {"train": (cells(*range(len(labels))), labels)}
        library.serve(columns, image=library.Image(), label=label)
        with pytest.raises(DataError, match="no row of train of 'hf:pets' has a label"):
            load_hub("hf:pets", Request())


def test_several_labels_an_image_are_refused_by_their_column(library):
    label = library.ClassLabel(names=["cat", "dog"])
    for kind in ([label], SimpleNamespace(feature=label)):
        features = {"image": library.Image(), "tags": kind}
        library.served = {"train": FakeRows({"image": cells(1), "tags": [[0, 1]]}, features)}
        with pytest.raises(DataError, match=r"'tags' of 'hf:pets' has a list of labels for each"):
            load_hub("hf:pets", Request())


def test_classes_can_be_chosen_in_an_order_of_ones_own(library):
    three = {"train": (cells(1, 2, 3, 4), [0, 1, 2, 2]), "test": (cells(5, 6), [2, 0])}
    features = {"image": library.Image(), "label": library.ClassLabel(names=["ant", "bee", "cat"])}
    library.serve(three, **features)
    data = load_hub("hf:pets", Request(classes=("cat", "ant")))
    assert data.classes == ("cat", "ant")
    assert (levels(data.train), data.train.labels.tolist()) == ([1, 3, 4], [1, 0, 0])
    assert (levels(data.test), data.test.labels.tolist()) == ([5, 6], [0, 1])
    with pytest.raises(DataError, match=r"'hf:pets' has no class 'bees'; did you mean 'bee'"):
        load_hub("hf:pets", Request(classes=("cat", "bees")))


def test_what_cannot_be_understood_is_refused_in_one_line(library):
    image, label = library.Image(), library.ClassLabel(names=["cat", "dog"])
    number = library.Value("int64")
    both = {s: (p, p, n) for s, (p, n) in TWO.items()}
    numbers = {s: (p, n, n) for s, (p, n) in TWO.items()}
    for columns, features, message in (
        ({"test": TWO["test"]}, {"image": image, "label": label}, r"no train split \(it has test"),
        (both, {"a": image, "b": image, "label": label}, r"2 columns of type Image among a, b"),
        (numbers, {"image": image, "a": label, "b": label}, r"2 columns of type ClassLabel"),
        (TWO, {"image": image, "kind": number}, r"no columns of type ClassLabel among image, kind"),
        (
            TWO,
            {"image": image, "label": library.Value("float32")},
            r"no columns of type ClassLabel",
        ),
    ):
        library.serve(columns, **features)
        with pytest.raises(DataError, match=message) as caught:
            load_hub("hf:pets", Request())
        assert "\n" not in str(caught.value)


def test_a_row_without_a_picture_is_named(library):
    missing = {"train": (cells(1, 2), [0, 1]), "test": ([*cells(3), None], [0, 1])}
    library.serve(missing, image=library.Image(), label=library.ClassLabel(names=["cat", "dog"]))
    with pytest.raises(DataError, match="no picture in test/1 of 'hf:pets'"):
        load_hub("hf:pets", Request())
    broken = {"train": TWO["train"], "test": ([{"bytes": b"no", "path": None}], [0])}
    library.serve(broken, image=library.Image(), label=library.ClassLabel(names=["cat", "dog"]))
    with pytest.raises(DataError, match="cannot decode test/0"):
        load_hub("hf:pets", Request())


def test_a_failure_of_the_hub_is_one_line(library, monkeypatch):
    def fail(*_):
        raise ConnectionError("cannot reach\n  the hub")

    monkeypatch.setattr(library.module, "load_dataset", fail)
    with pytest.raises(DataError, match=r"'pets' .*\(ConnectionError: cannot reach the hub\)"):
        load_hub("hf:pets", Request())
    with pytest.raises(DataError, match=r"no folder absent"):
        load_hub("hf:./absent", Request())
    with pytest.raises(DataError, match=r"'hf:' names no data set; give hf:NAME"):
        load_hub("hf:", Request())


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"'hf:pets' .*trajmatch\[hub\]"):
        load_hub("hf:pets", Request())
    # A folder of that name where one works can be imported, and is not the library.
    monkeypatch.setitem(sys.modules, "datasets", ModuleType("datasets"))
    with pytest.raises(MissingExtraError):
        load_hub("hf:pets", Request())


# Folders of parquet files, by the library itself


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    """A folder as the hub's own: data/train-00000-of-00001.parquet, data/test-..."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")

    def offline(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", offline)
    monkeypatch.setenv("TRAJMATCH_CACHE", str(tmp_path / "cache"))
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    folder = tmp_path / "pets"

    def write(columns):
        (folder / "data").mkdir(parents=True, exist_ok=True)
        for split, (images, labels) in columns.items():
            rows = datasets.Dataset.from_dict({"img": images, "label": labels}, features)
            rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
        return folder

    return write


def test_a_folder_of_parquet_files_is_read_without_network(parquet, tmp_path, monkeypatch):
    many = {
        "train": (cells(*range(1, 101)), [i % 2 for i in range(100)]),
        "test": (cells(201, 202), [0, 1]),
    }
    folder = parquet(many)
    data = load_hub(f"hf:{folder}", Request())
    assert levels(data.train) == list(range(1, 101))  # threads read many rows at once
    assert data.train.labels.tolist() == [0, 1] * 50
    assert (levels(data.test), data.classes) == ([201, 202], ("cat", "dog"))
    monkeypatch.chdir(tmp_path)
    assert load_hub("hf:./pets", Request()).fingerprint == data.fingerprint


def test_decoded_pictures_are_kept_until_the_files_change(parquet, tmp_path, monkeypatch):
    folder = parquet(TWO)
    first = load_hub(f"hf:{folder}", Request())
    assert len(list((tmp_path / "cache").iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr("trajmatch.data.sources.folder.decode_images", None)
        assert load_hub(f"hf:{folder}", Request()).fingerprint == first.fingerprint
    parquet({"test": (cells(90, 91), [0, 1])})
    assert levels(load_hub(f"hf:{folder}", Request()).test) == [90, 91]
    load_hub(f"hf:{folder}", Request(size=3, cache=False))
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert not np.array_equal(first.test.images, load_hub(f"hf:{folder}", Request()).test.images)


def test_a_folder_without_data_is_refused(parquet, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot load"):
        load_hub(f"hf:{Path(tmp_path / 'empty')}", Request())

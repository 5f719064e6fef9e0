"""Arrays in .npz files, and pictures with a table of their labels."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from trajmatch.data import load_data
from trajmatch.errors import DataError, MissingExtraError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAJMATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # waiting for the disk takes long


def refused(path, message, **options):
    with pytest.raises(DataError, match=message) as caught:
        load_data(path, **options)
    assert "\n" not in str(caught.value)


def levels(split):
    return sorted(int(image.max()) for image in split.images)


# .npz


def arrays(count, first=0, shape=(8, 8)):
    images = (
        np.zeros((count, *shape), np.uint8)
        + np.arange(first, first + count, dtype=np.uint8)[(slice(None), *[None] * len(shape))]
    )
    return images, np.arange(count) % 3


def npz(path, **columns):
    np.savez_compressed(path, **columns)
    return path


def test_the_keys_of_medmnist(tmp_path):
    parts = {}
    for role, count, first in (("train", 30, 0), ("val", 6, 50), ("test", 9, 90)):
        images, labels = arrays(count, first)
        parts |= {f"{role}_images": images, f"{role}_labels": labels[:, None]}
    data = load_data(npz(tmp_path / "bloodmnist.npz", **parts))
    assert (data.name, data.classes, data.note) == ("bloodmnist", ("0", "1", "2"), "")
    assert [levels(s) for s in (data.train, data.val, data.test)] == [
        [*range(30)], [*range(50, 56)], [*range(90, 99)],
    ]  # fmt: skip
    assert data.test.labels.tolist() == [0, 1, 2] * 3
    assert load_data(str(tmp_path / "bloodmnist.npz"), size=4, classes="2,0").size == 4


def test_the_keys_of_keras_and_of_one_split(tmp_path):
    (x, y), (xt, yt) = arrays(30, shape=(8, 8, 3)), arrays(6, 50, shape=(8, 8, 3))
    data = load_data(npz(tmp_path / "k.npz", x_train=x, y_train=y, x_test=xt, y_test=yt, epoch=1))
    assert (len(data.train), len(data.val), levels(data.test)) == (27, 3, list(range(50, 56)))
    names = np.array(["cat", "dog", "emu"])[y]
    data = load_data(npz(tmp_path / "one.npz", images=x, labels=names))
    assert (data.classes, len(data.test)) == (("cat", "dog", "emu"), 6)
    assert data.note.startswith("no test images were given")


def test_what_is_no_such_npz_is_refused_with_what_would_be_read(tmp_path):
    images, labels = arrays(9)
    need = r"it needs train_images and train_labels, or x_train and y_train"
    refused(npz(tmp_path / "a.npz", arr_0=images, arr_1=labels), rf"holds arr_0, arr_1; {need}")
    refused(
        npz(tmp_path / "b.npz", train_images=images, train_labels=labels, test_images=images),
        r"has test_images and no labels for them",
    )
    objects = np.array([{}, None], dtype=object)
    refused(npz(tmp_path / "c.npz", train_images=objects, train_labels=labels), need)
    for data in (b"", b"no zip", (tmp_path / "a.npz").read_bytes()[:60]):
        (tmp_path / "d.npz").write_bytes(data)
        refused(tmp_path / "d.npz", rf"cannot read .*d\.npz as an \.npz of arrays .*; {need}")
    many = np.zeros((9, 14), np.int64)
    refused(
        npz(tmp_path / "e.npz", train_images=images, train_labels=many),
        r"train labels have shape \(9, 14\) and int64; give one whole number per image",
    )


def test_other_files_are_refused_with_what_would_be_read(tmp_path):
    path = tmp_path / "photos.rar"
    path.write_bytes(b"x")
    refused(
        path,
        r"photos\.rar is not read; give a folder or archive \(\.zip, \.tar, \.tar\.gz\) of class "
        r"folders or of pictures with a table of labels \(\.csv, \.parquet\), such a table, or an "
        r"\.npz of arrays",
    )


# Tables of labels


def picture(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(path)


def write(root: Path, table: str, count: int = 12, folder: str = "images", **tables: str) -> Path:
    for i in range(count):
        picture(root / folder / f"{i}.png", i)
    for name, text in {"labels.csv": table, **tables}.items():
        if text:
            (root / name).write_text(text)
    return root


def rows(*columns, header="filename,label", names="{}.png", count=12):
    kinds = ("cat", "dog")
    body = [
        ",".join([names.format(i), kinds[i % 2], *(c[i] for c in columns)]) for i in range(count)
    ]
    return "\n".join([*([header] if header else []), *body]) + "\n"


@pytest.mark.parametrize(
    "table",
    [
        rows(),
        rows(names="images/{}.png"),
        rows(names="./images\\{}.png"),
        rows(names="/home/me/photos/images/{}.png"),
        rows(names="{}", header="id,breed"),
        rows(header=None),
        rows().replace(",", ";"),
        "\ufeff" + rows(),
        "label,file\n" + "".join(f"{('cat', 'dog')[i % 2]},{i}.png\n" for i in range(12)),
        rows(["5"] * 12, header="filename,label,age"),
        rows([f"images/{i}.png" for i in range(12)], header="filename,label,path"),
        "row,file,kind\n"
        + "".join(f"{11 - i},{i}.png,{('cat', 'dog')[i % 2]}\n" for i in range(12)),
    ],
    ids=["names", "paths", "backslashes", "foreign", "ids", "headless", "semicolons", "bom",
         "order", "further column", "two names", "row numbers"],
)  # fmt: skip
def test_pictures_with_a_table(tmp_path, table):
    path = write(tmp_path / "pets", table)
    data = load_data(path, val_fraction=0.25)
    assert (data.name, data.classes) == ("pets", ("cat", "dog"))
    parts = (data.train, data.val, data.test)
    assert sorted(level for part in parts for level in levels(part)) == list(range(12))
    for part in parts:
        assert [int(i.max()) % 2 for i in part.images] == part.labels.tolist()
    assert data.note.startswith("no test/ folder")
    assert load_data(path / "labels.csv", val_fraction=0.25).fingerprint == data.fingerprint


def test_an_archive_with_a_table_and_pictures_of_no_label(tmp_path):
    source = write(tmp_path / "pets", rows(), count=14)
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as file:
        for found in sorted(source.rglob("*.*")):
            file.write(found, found.relative_to(tmp_path))
    data = load_data(tmp_path / "pets.zip")
    assert data.fingerprint == load_data(source).fingerprint
    assert data.remarks[0] == "passed over 2 pictures that no table of labels names"
    assert load_data(source, classes="dog,cat").classes == ("dog", "cat")


def test_a_column_of_splits(tmp_path):
    split = ["train"] * 6 + ["Validation"] * 2 + ["TEST"] * 4
    data = load_data(write(tmp_path / "pets", rows(split, header="file,label,subset")))
    assert [levels(s) for s in (data.train, data.val, data.test)] == [
        [*range(6)], [6, 7], [*range(8, 12)],
    ]  # fmt: skip
    assert data.note == ""


def test_a_table_for_each_split(tmp_path):
    """As contests have it: equal names in train/ and test/, and tables without labels."""
    root = tmp_path / "pets"
    for split, first in (("train", 0), ("test", 100)):
        for i in range(6):
            picture(root / split / f"{i}.png", first + i)
        (root / f"{split}.csv").write_text(rows(count=6))
    (root / "sample_submission.csv").write_text(rows(count=6))
    data = load_data(root)
    assert sorted(levels(data.train) + levels(data.val)) == list(range(6))
    assert levels(data.test) == list(range(100, 106))
    (root / "test.csv").write_text("id\n" + "".join(f"{i}\n" for i in range(6)))
    data = load_data(root)
    assert max(levels(data.test)) < 6
    assert "passed over test.csv, which has no labels" in data.remarks


def test_the_metadata_of_hugging_face_folders(tmp_path):
    root = tmp_path / "pets"
    for split, first in (("train", 0), ("test", 100)):
        for i in range(6):
            picture(root / split / f"{i}.png", first + i)
        (root / split / "metadata.csv").write_text(rows(header="file_name,label", count=6))
    assert levels(load_data(root).test) == list(range(100, 106))


def test_numbers_are_sorted_as_numbers(tmp_path):
    table = "id,class\n" + "".join(f"{i}.png,{(2, 10)[i % 2]}\n" for i in range(12))
    assert load_data(write(tmp_path / "pets", table)).classes == ("2", "10")


def test_class_folders_win_over_a_table(tmp_path):
    for i in range(12):
        picture(tmp_path / "pets" / "ab"[i % 2] / f"{i}.png", i)
    (tmp_path / "pets" / "labels.csv").write_text(rows())
    data = load_data(tmp_path / "pets")
    assert data.classes == ("a", "b")
    table = tmp_path / "pets" / "labels.csv"
    assert data.remarks[0] == (
        f"labels.csv is not read, as there are class folders; give {table} to take labels from it"
    )
    assert load_data(table).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            rows().replace("3.png", "33.png"),
            r"row 4 of labels\.csv .* names '33\.png', and there is",
        ),
        (rows().replace("3.png,dog", "3.png,"), r"row 4 of labels\.csv has no label"),
        (rows() + "3.png,cat\n", r"gives images/3\.png two labels, 'dog' and 'cat'; one label"),
        (rows() + "3.png\n", r"line 14 of labels\.csv has 1 cells and line 1 has 2"),
        (
            rows(["1"] * 12, ["0"] * 12, header="image,a,b,c"),
            r"labels\.csv has the columns a, b, c beside that of pictures; call the one .* 'label'",
        ),
        ("name,label\nx,p\ny,q\n", r"one class folder, 'images'"),
    ],
    ids=["absent", "empty", "two labels", "ragged", "several columns", "no pictures"],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, table, message):
    refused(write(tmp_path / "pets", table), message)


def test_tables_given_by_path_and_several_of_them(tmp_path):
    path = write(tmp_path / "pets", rows(), **{"other.csv": rows().replace("cat", "ant")})
    refused(path, r"several tables of labels: labels\.csv, other\.csv; give one of them, such as ")
    assert load_data(path / "other.csv").classes == ("ant", "dog")
    (path / "third.csv").write_text("a,b\n1,2\n")
    refused(path / "third.csv", r"no column of .*third\.csv names pictures below")
    (path / "third.csv").write_bytes(b"\xff\xfe\x00")
    refused(path / "third.csv", r"cannot read third\.csv .*; save it as UTF-8")


def test_a_parquet_table_by_pyarrow(tmp_path, monkeypatch):
    path = write(tmp_path / "pets", "")
    (path / "labels.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"reading labels\.parquet .*trajmatch\[hub\]"):
        load_data(path)
    columns = {"name": [f"{i}.png" for i in range(12)], "label": [i % 2 for i in range(12)]}
    columns["extra"] = [None] * 12
    module = ModuleType("pyarrow")
    module.parquet = ModuleType("pyarrow.parquet")
    module.parquet.read_table = lambda file: SimpleNamespace(to_pydict=lambda: columns)
    monkeypatch.setitem(sys.modules, "pyarrow", module)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", module.parquet)
    data = load_data(path)
    assert (data.classes, data.test.labels.tolist()) == (("0", "1"), [0, 1])

    def fail(file):
        raise OSError("no footer\nhere")

    module.parquet.read_table = fail
    refused(path, r"cannot read labels\.parquet \(no footer here\)")

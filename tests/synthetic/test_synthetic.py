"""The distilled set: what it gives, and that no damaged or mixed folder is ever taken for one."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import re
import shutil

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

import trajmatch
from trajmatch.data.dataset import Split
from trajmatch.data.whiten import fit_whitening, to_float
from trajmatch.errors import DataError, FileFormatError
from trajmatch.synthetic import SyntheticSet
from trajmatch.synthetic import set as synthetic
from trajmatch.synthetic.pictures import folder_names

CLASSES = ("cat", "dog/wolf", "CON")
PIXELS = torch.randint(0, 256, (6, 3, 4, 5), generator=torch.manual_seed(0), dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
WHITENINGS = {name: fit_whitening(name, Split(PIXELS, LABELS)) for name in ("normalize", "zca")}


def a_set(whitening="normalize", soft=False, step_size=0.0123456789, scale=1.0, **changes):
    labels = torch.eye(3)[LABELS] * 0.7 + 0.1 if soft else LABELS
    white = WHITENINGS[whitening]
    parts = {
        "images": white.apply(to_float(PIXELS)) * scale,
        "labels": labels,
        "classes": CLASSES,
        "whitening": white,
        "step_size": step_size,
        "info": {"method": "mtt", "seed": 0, "recipe": {"lr_img": 10.0}},
    }
    return SyntheticSet(**{**parts, **changes})


def same(a, b):
    return (
        torch.equal(a.images, b.images)
        and a.labels.dtype == b.labels.dtype
        and torch.equal(a.labels, b.labels)
        and a.step_size == b.step_size
        and a.classes == b.classes
        and a.info == b.info
        and a.whitening.checksum == b.whitening.checksum
    )


@pytest.mark.parametrize("whitening", ["normalize", "zca"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("step_size", [None, 0.0123456789])
def test_a_saved_set_comes_back_to_the_bit(tmp_path, whitening, soft, step_size):
    before = a_set(whitening, soft, step_size)
    before.save(tmp_path / "set")
    after = SyntheticSet.load(tmp_path / "set")
    assert same(before, after)
    assert torch.equal(after.pixels(), before.pixels())
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == [
        "distilled.json", "distilled.safetensors", "images", "whitening.safetensors",
    ]  # fmt: skip


def test_the_document_says_what_the_set_is(tmp_path):
    a_set().save(tmp_path)
    body = json.loads((tmp_path / "distilled.json").read_text())
    assert body["version"] == 1
    assert body["classes"] == list(CLASSES)
    assert body["ipc"] == 2
    assert body["step_size"] == 0.0123456789
    assert body["whitening"]["name"] == "normalize"
    assert body["info"]["recipe"] == {"lr_img": 10.0}
    assert set(body["versions"]) == {"trajmatch", "torch", "python"}


def test_it_is_a_dataset():
    distilled = a_set(soft=True)
    assert len(distilled) == 6
    image, label = distilled[4]
    assert torch.equal(image, distilled.images[4])
    assert torch.equal(label, distilled.labels[4])
    batches = list(DataLoader(distilled, batch_size=4))
    assert torch.equal(torch.cat([x for x, _ in batches]), distilled.images)
    assert torch.equal(torch.cat([y for _, y in batches]), distilled.labels)
    assert len(list(distilled)) == 6  # iteration ends


def test_the_fingerprint_is_of_what_networks_see(tmp_path):
    distilled = a_set()
    distilled.save(tmp_path / "set")
    known = distilled.fingerprint
    assert SyntheticSet.load(tmp_path / "set").fingerprint == known
    assert a_set(step_size=0.5, info={"seed": 7}).fingerprint == known
    image = distilled.images.clone()
    image[0, 0, 0, 0] += 1
    other = {
        "image": dataclasses.replace(distilled, images=image),
        "labels": dataclasses.replace(distilled, labels=distilled.labels.flip(0)),
        "soft": a_set(soft=True),
        "whitening": dataclasses.replace(distilled, whitening=WHITENINGS["zca"]),
        "shape": dataclasses.replace(distilled, images=distilled.images.reshape(6, 3, 5, 4)),
    }
    found = {name: one.fingerprint for name, one in other.items()}
    assert len({known, *found.values()}) == 1 + len(other), found


def test_labels_in_both_forms():
    hard, soft = a_set(), a_set(soft=True)
    assert (hard.is_soft, soft.is_soft) == (False, True)
    assert torch.equal(hard.hard_labels, LABELS)
    assert torch.equal(soft.hard_labels, LABELS)
    assert hard.ipc == soft.ipc == 2


@pytest.mark.parametrize("whitening", ["normalize", "zca"])
def test_pixels_undo_the_whitening_and_clip(whitening):
    assert torch.equal(a_set(whitening).pixels(), PIXELS)
    bright = a_set(whitening, scale=100.0)
    assert bright.plain().min() == 0
    assert bright.plain().max() == 1
    assert set(bright.pixels().unique().tolist()) >= {0, 255}


def test_pictures_lie_by_class_in_plain_colors(tmp_path):
    a_set().save(tmp_path)
    found = sorted(str(p.relative_to(tmp_path / "images")) for p in tmp_path.glob("images/*/*"))
    names = ("CON-2", "cat", "dog_wolf")
    assert found == [f"{name}/{i:05d}.png" for name in names for i in range(2)]
    picture = np.array(Image.open(tmp_path / "images" / "dog_wolf" / "00001.png"))
    assert np.array_equal(picture, PIXELS[4].permute(1, 2, 0).numpy())


def test_gray_pictures(tmp_path):
    gray = PIXELS[:, :1]
    white = fit_whitening("normalize", Split(gray, LABELS))
    dataclasses.replace(a_set(), images=white.apply(to_float(gray)), whitening=white).save(tmp_path)
    picture = Image.open(tmp_path / "images" / "cat" / "00001.png")
    assert picture.mode == "L"
    assert np.array_equal(np.array(picture), gray[3, 0].numpy())


def test_folder_names_are_safe():
    names = ("a", "A", "../up", "", "..", "nul", "x" * 300, "größe", "com1.txt", "tail. ")
    assert folder_names(names) == (
        "a", "A-1", "_up", "3", "4", "nul-5", "x" * 60, "größe", "com1.txt-8", "tail",
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@example(["-.1", "-.1"])
@given(st.lists(st.text("aAß ./\\-_1\0é:", max_size=4), max_size=6))
def test_folder_names_differ_on_any_file_system(names):
    safe = folder_names(tuple(names))
    assert len({name.casefold() for name in safe}) == len(names)
    for name in safe:
        assert name.strip(" .") == name != ""
        assert not set(name) & set('/\\:*?"<>|\0\n')


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"labels": LABELS[:5]}, "6 images with 5 labels"),
        ({"labels": torch.zeros(6, 2)}, "2 columns for 3 classes"),
        ({"labels": LABELS + 1}, "from 1 to 3 for 3 classes"),
        ({"labels": LABELS - 1}, "from -1 to 1"),
        ({"images": torch.full((6, 3, 4, 5), torch.nan)}, "NaN or infinity"),
        ({"labels": torch.full((6, 3), torch.inf)}, "NaN or infinity"),
        ({"step_size": -0.1}, "step_size is -0.1"),
        ({"step_size": float("nan")}, "step_size is nan"),
        ({"images": torch.zeros(0, 3, 4, 5), "labels": LABELS[:0]}, "0 images"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, reason):
    with pytest.raises(DataError, match=reason):
        a_set(**changes)


# What load refuses.

FILES = ("distilled.json", "distilled.safetensors", "whitening.safetensors")


@pytest.fixture
def saved(tmp_path):
    a_set().save(tmp_path / "set")
    return tmp_path / "set"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_truncated_files_are_refused(saved, name, keep):
    data = (saved / name).read_bytes()
    (saved / name).write_bytes(data[: int(keep * len(data))])
    with pytest.raises(FileFormatError, match=r"; \w+"):
        SyntheticSet.load(saved)


@pytest.mark.parametrize("name", FILES)
def test_missing_files_are_refused(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileFormatError, match=r"; \w+"):
        SyntheticSet.load(saved)


@pytest.mark.parametrize("name", FILES)
def test_no_flipped_bit_changes_a_set(saved, name):
    """Every 7th byte, one bit each: refused, or without meaning (the case of an exponent's e)."""
    data, original, refused = (saved / name).read_bytes(), SyntheticSet.load(saved), 0
    places = range(0, len(data), 7)
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << (place // 7 % 8)
        (saved / name).write_bytes(bytes(flipped))
        try:
            assert same(SyntheticSet.load(saved), original), f"byte {place} changed the set"
        except FileFormatError:
            refused += 1
    assert refused >= 0.99 * len(places)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", ["images", "step_size", "info", "whitening"])
def test_files_of_two_sets_never_load_as_one(saved, tmp_path, name, change):
    changes = {
        "images": {"scale": 2.0},
        "step_size": {"step_size": 0.5},
        "info": {"info": {"method": "random"}},
        "whitening": {"whitening": "zca"},
    }[change]
    other = a_set(**changes)
    other.save(tmp_path / "other")
    if (tmp_path / "other" / name).read_bytes() == (saved / name).read_bytes():
        return  # such as the whitening, where both sets have the same
    shutil.copy(tmp_path / "other" / name, saved / name)
    with pytest.raises(FileFormatError, match="belong"):
        SyntheticSet.load(saved)


@pytest.fixture
def _as_installed():
    """Without the checks of annotations, which come first in tests alone."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("_as_installed")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"images": PIXELS},
            r"images are torch.uint8 of shape \[6, 3, 4, 5\]; give floats \[n, ch",
        ),
        ({"images": torch.zeros(6, 60)}, r"float32 of shape \[6, 60\]; give floats"),
        ({"images": torch.zeros(6, 3, 4, 5).to_sparse()}, r"images are torch.float32 of shape"),
        ({"labels": LABELS.double()}, r"labels are torch.float64 of shape \[6\]; give whole numb"),
        ({"labels": LABELS > 0}, "labels are torch.bool"),
        ({"labels": LABELS[:, None]}, r"int64 of shape \[6, 1\]; give whole numbers \[n\], or fl"),
    ],
)
def test_tensors_of_another_kind_are_refused(changes, reason):
    with pytest.raises(DataError, match=reason):
        a_set(**changes)


@pytest.mark.usefixtures("_as_installed")
def test_other_precisions_are_converted():
    exact = a_set(soft=True)
    wide = a_set(images=exact.images.double(), labels=exact.labels.double())
    assert same(wide, exact)
    assert wide.images.dtype == wide.labels.dtype == torch.float32
    assert a_set(labels=LABELS.to(torch.uint8)).labels.dtype == torch.int64


def test_the_representation_is_short_and_names_no_tensor():
    text = repr(a_set())
    assert "tensor" not in text
    assert len(text) < 150
    assert text.startswith(f"SyntheticSet({len(a_set())} images of ")
    without = dataclasses.replace(a_set(), step_size=None)
    assert ("step size" in text, "step size" in repr(without)) == (True, False)


def test_notebooks_show_its_pictures_by_class():
    names = ("<b>", "dog & wolf", "CON")
    shown = a_set(classes=names)._repr_html_()
    assert "&lt;b&gt;</th>" in shown
    assert "dog &amp; wolf</th>" in shown
    assert "<b>" not in shown
    assert shown.startswith("<div>SyntheticSet(6 images of 3x4x5, 3 classes, ipc 2, mtt, step")
    addresses = re.findall(r'<img src="data:image/png;base64,([^"]+)" height="48"', shown)
    pixels = a_set().pixels()
    assert len(addresses) == 6
    for place, address in zip((0, 3, 1, 4, 2, 5), addresses, strict=True):  # a row for each class
        picture = np.array(Image.open(io.BytesIO(base64.b64decode(address))))
        assert np.array_equal(picture, pixels[place].permute(1, 2, 0).numpy())


def test_a_large_set_is_shown_in_part():
    many = a_set(
        images=torch.zeros(60, 3, 4, 5),
        labels=torch.cat([torch.zeros(30), torch.arange(30)]).long(),
        classes=tuple(map(str, range(30))),
    )
    shown = many._repr_html_()
    assert shown.count("<img") == 10 + 19
    assert " and 21 more</td>" in shown
    assert "and 10 more classes" in shown
    assert "ipc 1 to 31" in shown


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "VERSION", 2)
        a_set().save(tmp_path)
    with pytest.raises(FileFormatError, match=r"newer trajmatch \(format 2.*upgrade"):
        SyntheticSet.load(tmp_path)


def test_foreign_documents_are_refused(saved):
    (saved / "distilled.json").write_text('{"kind": "poem"}')
    with pytest.raises(FileFormatError, match="does not describe a distilled set"):
        SyntheticSet.load(saved)


def test_the_public_name_loads_a_set(saved):
    assert same(trajmatch.load_distilled(str(saved)), a_set())


def test_a_run_folder_points_to_the_set_in_it(tmp_path):
    with pytest.raises(FileFormatError, match="is not a distilled set"):
        SyntheticSet.load(tmp_path)
    a_set().save(tmp_path / "best")
    with pytest.raises(FileFormatError, match=rf"give {tmp_path / 'best'}$"):
        SyntheticSet.load(tmp_path)


# Saving over a set.


def test_saving_again_replaces_the_set_and_keeps_other_files(saved):
    (saved / "notes.txt").write_text("mine")
    (saved / "images" / "cat" / "00007.png").write_bytes(b"stale")
    new = a_set(scale=0.5, classes=("one", "two", "three"))
    new.save(saved)
    assert same(SyntheticSet.load(saved), new)
    assert (saved / "notes.txt").read_text() == "mine"
    assert sorted(p.name for p in (saved / "images").iterdir()) == ["one", "three", "two"]
    assert list(saved.parent.iterdir()) == [saved]


def test_a_set_may_join_other_files(tmp_path):
    (tmp_path / "log.jsonl").write_text("{}\n")
    a_set().save(tmp_path)
    assert same(SyntheticSet.load(tmp_path), a_set())
    assert (tmp_path / "log.jsonl").exists()


def test_it_takes_nobodys_place(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "holiday.png").write_bytes(b"")
    with pytest.raises(DataError, match="another folder"):
        a_set().save(tmp_path)
    with pytest.raises(DataError, match="is a file"):
        a_set().save(tmp_path / "images" / "holiday.png")
    assert [p.name for p in tmp_path.rglob("*")] == ["images", "holiday.png"]


def test_through_a_link(saved, tmp_path):
    (tmp_path / "link").symlink_to(saved)
    a_set(scale=0.5).save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert same(SyntheticSet.load(saved), a_set(scale=0.5))


class Killed(BaseException):
    pass


def kill_at(patch, step):
    """Die at the `step`-th change to the file system, and run nothing of ours after that."""
    count = 0

    def counted(function):
        def dies(*args, **kwargs):
            nonlocal count
            count += 1
            if count > step:
                raise Killed
            return function(*args, **kwargs)

        return dies

    for name in ("rename", "link", "replace"):
        patch.setattr(os, name, counted(getattr(os, name)))
    remove = shutil.rmtree
    dies = counted(remove)
    patch.setattr(
        shutil,
        "rmtree",
        # The clean-up after an exception would not run in a real kill.
        lambda path, ignore_errors=False: None if ignore_errors else dies(path),
    )


@pytest.mark.parametrize("joins", [False, True])
def test_a_kill_at_any_moment_leaves_the_old_set_or_the_new(tmp_path, monkeypatch, joins):
    old, new = a_set(), a_set(scale=0.5, step_size=0.5)
    for step in range(100):
        folder = tmp_path / str(step) / "set"
        folder.mkdir(parents=True)
        (folder / "notes.txt").write_text("mine")
        if not joins:
            old.save(folder)
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            try:
                new.save(folder)
                finished = True
            except Killed:
                finished = False
        if finished:
            break
        try:
            found = SyntheticSet.load(folder)
            assert same(found, old) or same(found, new)
        except FileFormatError:
            assert joins  # there was no set to keep
        new.save(folder)
        assert same(SyntheticSet.load(folder), new)
        assert (folder / "notes.txt").read_text() == "mine"
        left = [p.name for p in folder.parent.iterdir() if not p.name.endswith(".partial")]
        assert left == ["set"]
    assert finished
    assert step >= 4  # the moments in between were met


def test_an_equal_whitening_is_kept_once_on_disk(tmp_path):
    file = tmp_path / "set" / "whitening.safetensors"
    a_set("zca").save(tmp_path / "set")
    first = file.stat().st_ino
    a_set("zca", scale=0.5).save(tmp_path / "set")
    assert file.stat().st_ino == first
    a_set("normalize").save(tmp_path / "set")
    assert file.stat().st_ino != first
    assert same(SyntheticSet.load(tmp_path / "set"), a_set("normalize"))


def test_a_damaged_whitening_is_not_kept(tmp_path):
    file = tmp_path / "whitening.safetensors"
    a_set().save(tmp_path)
    file.write_bytes(file.read_bytes()[:-1])
    a_set().save(tmp_path)
    assert same(SyntheticSet.load(tmp_path), a_set())


def test_a_disk_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("not supported")

    a_set().save(tmp_path)
    monkeypatch.setattr(os, "link", refuse)
    a_set(scale=0.5).save(tmp_path)
    assert same(SyntheticSet.load(tmp_path), a_set(scale=0.5))

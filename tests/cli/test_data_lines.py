"""The first lines of a run, which say what the data are, and `trajmatch cache`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trajmatch import cli
from trajmatch.cli import shown
from trajmatch.cli.inspect import flip_words
from trajmatch.config import DataConfig
from trajmatch.data import ImageDataset, load_data
from trajmatch.data.cache import entries
from trajmatch.data.sources import folder
from trajmatch.pipeline.flipping import FlipComparison


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRAJMATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # waiting for the disk takes long
    return tmp_path / "cache"


def photos(root: Path, cats: int = 4, dogs: int = 4) -> Path:
    for split in ("train", "test"):
        for label, count in (("cat", cats), ("dog", dogs)):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((8, 8, 3), i, np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")
    return root


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_the_first_lines_name_classes_counts_and_what_was_passed_over(tmp_path, capsys) -> None:
    path = photos(tmp_path / "photos", dogs=5)
    (path / "train/cat/notes.txt").write_text("x")
    shown.load(DataConfig(data=str(path), val_fraction=0.25))
    assert lines(capsys) == [
        "photos: 7 training, 2 validation, 9 test images of 8 pixels, 2 classes",
        "  cat: 3/1/4, dog: 4/1/5 (training/validation/test)",
        "  passed over 1 file that is no picture (.txt)",
        f"  cached the decoded images (0.0035 MB) in {tmp_path}/cache; `trajmatch cache` lists and "
        "clears it",
    ]
    shown.load(DataConfig(data=str(path), val_fraction=0.25))
    assert len(lines(capsys)) == 3  # what is cached already is not told again


def test_equal_counts_are_said_once_and_long_lists_cut() -> None:
    images = np.zeros((48, 8, 8), np.uint8)
    labels, names = np.arange(48) % 12, [f"c{i}" for i in range(11)] + ["x" * 40]
    data = ImageDataset.from_arrays(images, labels, images, labels, classes=names)
    assert shown.class_counts(data, 2) == "c0, c1, ... (10 more): 4/4 each (training/test)"
    assert shown.class_counts(data, 12).endswith(f"c10, {'x' * 27}...: 4/4 each (training/test)")


def test_broken_pictures_are_skipped_by_a_flag(tmp_path, capsys) -> None:
    path = photos(tmp_path / "photos")
    (path / "train/cat/3.png").write_bytes(b"no picture")
    words = f"--data {path} --out {tmp_path / 'out'} --experts 1 --epochs 1 --width 4 --device cpu"
    assert cli.main(f"experts {words}".split()) == 2
    said = capsys.readouterr().err
    assert "cannot decode train/cat/3.png" in said
    assert cli.main(f"experts {words} --on-bad-image sometimes".split()) == 2
    assert "'sometimes'" in capsys.readouterr().err
    shown.load(DataConfig(data=str(path), on_bad_image="skip"))
    assert (
        "  passed over 1 of 16 pictures that cannot be decoded, such as train/cat/3.png"
    ) in lines(capsys)


def test_a_dry_run_reads_the_cache_and_writes_nothing(tmp_path, capsys, monkeypatch) -> None:
    path = photos(tmp_path / "photos")
    config = DataConfig(data=str(path))
    data = shown.load(config, cache="read")
    assert (data.uncached, entries()) == (16 * 3 * 64, [])
    assert lines(capsys)[-1] == (
        f"  a run will write 0.0031 MB of decoded images to the cache in {tmp_path}/cache"
    )
    written = shown.load(config)
    assert (written.uncached, len(entries())) == (0, 1)
    monkeypatch.setattr(folder, "decode_images", None)
    assert shown.load(config, cache="read").fingerprint == data.fingerprint


# trajmatch cache


def test_the_cache_is_listed_and_cleared(tmp_path, cache, capsys) -> None:
    path = photos(tmp_path / "photos")
    load_data(path)
    load_data(path, size=4)
    (cache / "notes-000000000000000000000000.txt").write_text("not ours")
    (cache / "mine.safetensors").write_text("not ours")
    assert cli.main(["cache"]) == 0
    rows = lines(capsys)
    assert rows[0].split() == ["size", "used", "images", "source"]
    assert [row.split()[-2:] for row in rows[1:3]] == [["16", str(path)]] * 2
    assert rows[3].startswith("2 files, 0.")
    assert rows[3].endswith(f" of at most 4 GB, in {cache}")
    assert cli.main(["cache", "--clear"]) == 0
    assert lines(capsys)[0].startswith("removed 2 files, 0.")
    assert sorted(p.name for p in cache.iterdir()) == [
        "mine.safetensors", "notes-000000000000000000000000.txt",
    ]  # fmt: skip
    assert cli.main(["cache"]) == 0
    assert lines(capsys) == [f"0 files, 0 MB of at most 4 GB, in {cache}"]


def test_the_cache_is_bounded_and_the_oldest_goes(tmp_path, monkeypatch) -> None:
    path = photos(tmp_path / "photos")
    for size in (8, 16, 24):
        load_data(path, size=size)
    by_size = {load_data(path, size=size).size: None for size in (8, 16, 24)}
    assert len(entries()) == len(by_size) == 3
    files = sorted(entries(), key=lambda entry: entry.bytes)
    for age, entry in enumerate((files[1], files[2], files[0])):  # 16 is the oldest, then 24
        os.utime(entry.path, (1e9 + age, 1e9 + age))
    load_data(path, size=16)  # used now
    monkeypatch.setenv("TRAJMATCH_CACHE_SIZE", f"{sum(f.bytes for f in files) / 1e3:.3f} kB")
    load_data(path, size=4)
    assert [files[2].path in [e.path for e in entries()], len(entries())] == [False, 3]


def test_half_written_files_of_killed_runs_are_swept(tmp_path, cache, capsys) -> None:
    path = photos(tmp_path / "photos")
    load_data(path)
    partial = cache / f"{entries()[0].path.name}.123-0a1b2c3d.partial"
    partial.write_bytes(b"x")
    load_data(path, size=4)
    assert partial.exists()  # it may be another process's
    os.utime(partial, (1e9, 1e9))
    load_data(path, size=5)
    assert not partial.exists()
    partial.write_bytes(b"x")
    assert cli.main(["cache", "--clear"]) == 0
    assert list(cache.iterdir()) == []


def test_a_file_larger_than_the_cache_is_not_written(tmp_path, monkeypatch) -> None:
    path = photos(tmp_path / "photos")
    monkeypatch.setenv("TRAJMATCH_CACHE_SIZE", "1kB")
    assert load_data(path).remarks == ()
    monkeypatch.setenv("TRAJMATCH_CACHE_SIZE", "0")
    assert (load_data(path).remarks, entries()) == ((), [])
    monkeypatch.setenv("TRAJMATCH_CACHE_SIZE", "plenty")
    with pytest.raises(ValueError, match=r"TRAJMATCH_CACHE_SIZE is 'plenty'; give a size such as"):
        load_data(path)


def test_inspect_says_what_data_hold(tmp_path, capsys) -> None:
    path = photos(tmp_path / "photos", dogs=5)
    assert cli.main(["inspect", "--data", str(path), "--val-fraction", "0.25"]) == 0
    assert lines(capsys)[:2] == [
        "photos: 7 training, 2 validation, 9 test images of 8 pixels, 2 classes",
        "  cat: 3/1/4, dog: 4/1/5 (training/validation/test)",
    ]
    assert not entries()


def test_inspect_compares_flipping(tmp_path, capsys, monkeypatch) -> None:
    found = FlipComparison([61.0, 65.0, 63.0], [80.0, 80.0, 80.0])
    monkeypatch.setattr("trajmatch.pipeline.compare_flipping", lambda data, **settings: found)
    assert cli.main(["inspect", "--data", str(photos(tmp_path / "photos")), "--flip"]) == 0
    assert lines(capsys)[-2:] == [
        "validation accuracy with flip 63.0 +- 2.0 %, without 80.0 +- 0.0 % (n=3 small networks "
        "each)",
        "flip harms: leave it out everywhere, as in --augment color_crop_cutout_scale_rotate",
    ]


@pytest.mark.parametrize(
    ("flipped", "unflipped", "words"),
    [
        ([60.0, 70.0], [66.0, 66.0], "the difference is within the spread and says nothing"),
        ([80.0, 82.0], [60.0, 61.0], "flip helps: leave it in --augment"),
        ([80.0], [60.0], "flip helps"),
    ],
)
def test_what_follows_from_a_comparison_of_flipping(flipped, unflipped, words) -> None:
    assert flip_words(FlipComparison(flipped, unflipped))[1].startswith(words)


def test_inspect_takes_a_folder_or_data(tmp_path, capsys) -> None:
    assert cli.main(["inspect", str(tmp_path), "--flip"]) == 2
    assert "give images as --data alone, or the folder alone" in capsys.readouterr().err

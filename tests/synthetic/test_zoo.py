"""Sets that ship: every one of them whole, small and honestly described."""

from __future__ import annotations

import collections
import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
import trajmatch
from trajmatch import cli, pipeline
from trajmatch.cli import zoo as zoo_command
from trajmatch.cli.frame import Command, dispatch
from trajmatch.data import ImageDataset, Split
from trajmatch.errors import DataError, FileFormatError
from trajmatch.methods import coresets
from trajmatch.rng import stream
from trajmatch.storage import read_result
from trajmatch.synthetic import SyntheticSet, zoo
from trajmatch.synthetic.pictures import folder_names

COMMANDS = {"zoo": Command(zoo_command.Flags, zoo_command.run, "")}
CARD: dict[str, Any] = {
    "data": "digits",
    "network": "ConvNet-D2 width 4 instance",
    "ipc": 1,
    "accuracy": {"mean": 93.46, "sd": 0.912, "n": 5},
    "protocol": "500 epochs, DSA",
    "made": "trajmatch demo",
    "date": "2025-01-31",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of two sets, and folders that are none."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "zoo")
    for name in ("digits-ipc1", "digits-ipc2"):
        distilled = coresets.select_coreset(
            "random", tiny.digits(), int(name[-1]), whitening=tiny.library().whitening
        )
        distilled.save(tmp_path / "zoo" / name)
        (tmp_path / "zoo" / name / "card.json").write_text(json.dumps(CARD))
    (tmp_path / "zoo" / "__pycache__").mkdir()
    return tmp_path / "zoo"


# -- what ships ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.names())
def test_every_set_that_ships_is_whole(name: str) -> None:
    distilled, card = SyntheticSet.load(zoo.find(name)), zoo.card(name)
    assert distilled.ipc == card["ipc"]
    assert len(distilled) == card["ipc"] * len(distilled.classes)
    assert card["accuracy"]["n"] >= 1
    assert 0 < card["accuracy"]["mean"] <= 100
    assert (card["accuracy"]["sd"] is None) == (card["accuracy"]["n"] == 1)
    datetime.date.fromisoformat(card["date"])
    assert all(card[entry].strip() for entry in ("data", "network", "protocol", "made"))
    # Pictures and tensors are of the same images, up to the rounding of another machine.
    pictures = sorted((zoo.find(name) / "images").glob("*/*.png"))
    assert len(pictures) == len(distilled)
    drawn = collections.defaultdict(list)
    for pixels, label in zip(distilled.pixels(), distilled.hard_labels.tolist(), strict=True):
        drawn[folder_names(distilled.classes)[label]].append(pixels.int())
    for path in pictures:
        with Image.open(path) as picture:
            shown = torch.from_numpy(np.atleast_3d(np.array(picture))).int().permute(2, 0, 1)
        assert (shown - drawn[path.parent.name][int(path.stem)]).abs().max() <= 1


def test_the_zoo_is_small_and_complete() -> None:
    size = sum(path.stat().st_size for path in zoo.FOLDER.rglob("*") if path.is_file())
    assert size < 1_000_000
    folders = [p.name for p in zoo.FOLDER.iterdir() if p.is_dir() and p.name != "__pycache__"]
    assert sorted(folders) == zoo.names()


def test_the_readmes_lines_run(monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    code = readme.split("## Train on ten images")[1].split("```python\n")[1].split("```")[0]
    assert code.count("range(500)") == 1
    pixels = torch.randint(0, 256, (20, 3, 32, 32), generator=stream(0, "pictures"))
    labels = torch.arange(20) % 10
    names = trajmatch.load_distilled("cifar10-ipc1").classes
    split = Split(pixels.to(torch.uint8), labels)
    data = ImageDataset("cifar10", split, split, None, names)
    monkeypatch.setattr(trajmatch, "load_data", lambda name, data_root: data)
    known: dict[str, Any] = {}
    exec(code.replace("range(500)", "range(2)"), known)
    assert known["found"].shape == labels.shape
    for parameter in known["net"].parameters():
        assert parameter.isfinite().all()


# -- the machinery -------------------------------------------------------------------------------


def test_sets_are_found_by_name(folder: Path) -> None:
    assert zoo.names() == ["digits-ipc1", "digits-ipc2"]
    assert zoo.find("digits-ipc2") == folder / "digits-ipc2"
    assert len(SyntheticSet.load(zoo.find("digits-ipc2"))) == 20
    assert zoo.card("digits-ipc1") == CARD


@pytest.mark.parametrize("name", ["digits-icp1", "../zoo/digits-ipc1", "", ".", "__pycache__"])
def test_an_unknown_name_is_told_with_the_nearest(folder: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"known: digits-ipc1, digits-ipc2") as refused:
        zoo.find(name)
    assert ("did you mean 'digits-ipc1'?" in str(refused.value)) == ("digits-i" in name)


def test_an_empty_zoo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    assert zoo.names() == []
    with pytest.raises(DataError, match="no sets ship"):
        zoo.find("digits")
    assert dispatch(COMMANDS, ["zoo"]) == 0
    assert capsys.readouterr().out == "no sets ship with this version\n"


@pytest.mark.parametrize(
    "changes",
    [
        {"data": None}, {"date": 2025}, {"ipc": "1"}, {"accuracy": None}, {"accuracy": 93.5},
        {"accuracy": {"mean": 93.5, "n": 5}}, {"accuracy": {"mean": "93", "sd": 1, "n": 5}},
    ],
)  # fmt: skip
def test_a_card_that_lacks_something_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    path = folder / "digits-ipc1" / "card.json"
    path.write_text(json.dumps({**CARD, **changes}))
    with pytest.raises(FileFormatError, match=r"card\.json is not a whole card"):
        zoo.card("digits-ipc1")
    for entry in CARD:
        path.write_text(json.dumps({key: CARD[key] for key in CARD if key != entry}))
        with pytest.raises(FileFormatError, match=entry):
            zoo.card("digits-ipc1")
    path.write_text("[]")
    with pytest.raises(FileFormatError):
        zoo.card("digits-ipc1")


def test_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = {**CARD, "accuracy": {"mean": 50.0, "sd": None, "n": 1}}
    (folder / "digits-ipc2" / "card.json").write_text(json.dumps(one))
    assert dispatch(COMMANDS, ["zoo"]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["name", "data", "network", "ipc"]
    for text in ("digits-ipc1", "digits", CARD["network"], "93.5 +- 0.9", CARD["protocol"],
                 CARD["made"], CARD["date"]):  # fmt: skip
        assert text in first
    assert first.index("93.5") == head.index("accuracy") == second.index("50.0")
    assert "+-" not in second


def test_a_set_copied_from_the_zoo_is_a_set(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(zoo.find("digits-ipc1"), tmp_path / "mine"))
    assert torch.equal(
        SyntheticSet.load(copy).images, SyntheticSet.load(zoo.find("digits-ipc1")).images
    )


# -- by name -------------------------------------------------------------------------------------


def test_a_name_is_as_good_as_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    distilled = SyntheticSet.load(folder / "digits-ipc1")
    for name in ("digits-ipc1", Path("digits-ipc1"), folder / "digits-ipc1"):
        assert torch.equal(trajmatch.load_distilled(name).images, distilled.images)
    (score,) = pipeline.evaluate("digits-ipc1", tiny.digits(), config=tiny.EVALUATE)
    assert (score.method, score.ipc) == ("random", 1)
    with pytest.raises(DataError, match="did you mean 'digits-ipc2'"):
        trajmatch.load_distilled("digits-ipc22")
    with pytest.raises(FileFormatError, match="is not a distilled set"):
        trajmatch.load_distilled("somewhere/digits-ipc1")

    SyntheticSet.load(folder / "digits-ipc2").save("digits-ipc1")
    assert len(trajmatch.load_distilled("digits-ipc1")) == 20  # a folder that is there wins


def test_commands_take_names(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = f"{tiny.EVALUATE_WORDS} --device cpu --out {out}"
    assert cli.main(f"evaluate digits-ipc1 {words}".split()) == 0
    assert read_result(out)["scores"][0]["method"] == "random"
    assert cli.main(f"export digits-ipc1 --to hub --out {tmp_path}/hub".split()) == 0
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "| Test accuracy % | 93.5 +- 0.9 (n=5, 500 epochs, DSA) |" in card
    assert cli.main(["zoo"]) == 0

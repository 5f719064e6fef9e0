"""Other people's files in and out: nothing is lost, nothing is guessed, nothing hostile is run."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import tiny
from trajmatch import cli, pipeline
from trajmatch.cli import export as export_command
from trajmatch.cli import import_ as import_command
from trajmatch.cli.frame import Command, dispatch
from trajmatch.data.dataset import Split
from trajmatch.data.whiten import (
    CompactZCA,
    Normalize,
    Whitening,
    fit_whitening,
    to_float,
)
from trajmatch.errors import DataError, FileFormatError, MismatchError, SettingError, TrajmatchError
from trajmatch.evaluation import Score
from trajmatch.experts import ExpertLibrary
from trajmatch.experts.library import expert_path
from trajmatch.networks import NetworkSpec, build_network
from trajmatch.runtime.progress import Silent
from trajmatch.storage import read_log, read_result, write_result
from trajmatch.storage.files import read_json
from trajmatch.synthetic import SyntheticSet
from trajmatch.synthetic import formats as export
from trajmatch.synthetic.formats.buffers import ORIGIN, read_buffer
from trajmatch.synthetic.formats.pictures import clipped_shares

COMMANDS = {
    **cli.COMMANDS,
    "export": Command(export_command.Flags, export_command.run, ""),
    "import": Command(import_command.Flags, import_command.run, ""),
}
SPEC = NetworkSpec("convnet", 1, 10, 8, {"depth": 2, "width": 4})
EPOCHS = 3
TRIES = 150
"""Altered files of each format; 20,000 of each were tried once."""


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk would take most of the time, and is for what no test here does."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def succeed(line: str) -> None:
    assert dispatch(COMMANDS, line.split()) == 0


Mistake = Callable[[str], str]


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str]) -> Mistake:
    """Run a line that is refused; give the one line on stderr."""

    def refused(line: str) -> str:
        capsys.readouterr()
        assert dispatch(COMMANDS, line.split()) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
        return said

    return refused


def whitening() -> Normalize:
    """That of the tiny library, whose experts are exported."""
    return tiny.library().whitening


def statistics_words() -> str:
    """Its numbers as words of a command line."""
    mean, std = (whitening().tensors[name].item() for name in ("mean", "std"))
    return f"--mean {mean} --std {std}"


def released_expert(seed: int, epochs: int = EPOCHS, **options: Any) -> list[list[torch.Tensor]]:
    """An expert as the released code records it: tensors of parameters() at the start and after
    every epoch, each in memory of its own."""
    options = {"depth": 2, "width": 4, **options}
    net = build_network("convnet", channels=1, classes=10, size=8, seed=seed, **options)
    stamps = [[p.detach().clone() for p in net.parameters()]]
    for epoch in range(epochs):
        for p in net.parameters():
            p.data.add_(torch.full_like(p, 0.01 * (epoch + 1)))
        stamps.append([p.detach().clone() for p in net.parameters()])
    return stamps


def flat(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([p.reshape(-1) for p in parts])


def save_buffer(path: Path, *seeds: int, **options: Any) -> list[Any]:
    buffer = [released_expert(seed, **options) for seed in seeds]
    torch.save(buffer, path)
    return buffer


def take(files: list[Path], out: Path, **changes: Any) -> ExpertLibrary:
    parts = {"data": tiny.digits(), "spec": SPEC, "whitening": whitening(), **changes}
    return export.import_buffers(files, out, **parts)


class Observer(Silent):
    """Keeps what an import reports."""

    def __init__(self) -> None:
        self.counts: list[tuple[int, int]] = []
        self.imported: list[export.Imported] = []
        self.messages: list[str] = []

    def update(self, task: str, done: int, total: int, **values: Any) -> None:
        self.counts.append((done, total))

    def message(self, text: str) -> None:
        self.messages.append(text)

    def event(self, name: str, **values: Any) -> None:
        self.imported.append(export.Imported(**values))


# -- buffers of experts --------------------------------------------------------------------------


def test_a_library_goes_out_and_comes_back_to_the_bit(tmp_path: Path) -> None:
    library = tiny.library()
    assert export.export_buffers(library, tmp_path) == ["replay_buffer_0.pt"]
    file = tmp_path / "replay_buffer_0.pt"
    buffer = torch.load(file, weights_only=True)
    assert [len(buffer), len(buffer[0])] == [2, 4]
    shapes = [p.shape for p in library.spec.build(seed=0).parameters()]
    assert [[p.shape for p in epoch] for epoch in buffer[1]] == [shapes] * 4

    back = take([file], tmp_path / "back", spec=library.spec)
    assert back.experts == library.experts
    for expert in library.experts:
        for epoch in range(library.epochs + 1):
            assert torch.equal(
                back.trajectory(expert).row(epoch), library.trajectory(expert).row(epoch)
            )
    assert back.accuracy()[0] == library.accuracy()[0]  # measured anew, on whitened test images
    back.verify()


def test_a_large_library_goes_out_as_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.buffers, "PER_FILE", 1)
    names = export.export_buffers(tiny.library(), tmp_path)
    assert names == ["replay_buffer_0.pt", "replay_buffer_1.pt"]
    (second,) = torch.load(tmp_path / names[1], weights_only=True)
    assert torch.equal(flat(second[2]), tiny.library().trajectory(1).row(2))
    with pytest.raises(DataError, match=r"replay_buffer_0\.pt is there already"):
        export.export_buffers(tiny.library(), tmp_path)


@pytest.mark.parametrize("form", ["plain", "parameters", "legacy", "double"])
def test_a_buffer_becomes_a_library(tmp_path: Path, form: str) -> None:
    buffer = [released_expert(seed) for seed in (0, 1)]
    if form == "parameters":
        buffer = [[[torch.nn.Parameter(p) for p in e] for e in expert] for expert in buffer]
    if form == "double":
        buffer = [[[p.double() for p in e] for e in expert] for expert in buffer]
    file = tmp_path / "replay_buffer_0.pt"
    torch.save(buffer, file, _use_new_zipfile_serialization=form != "legacy")
    library = take([file], tmp_path / "out")
    assert (library.experts, library.epochs, library.spec) == ([0, 1], EPOCHS, SPEC)
    for expert in (0, 1):
        for epoch in range(EPOCHS + 1):
            row = library.trajectory(expert).row(epoch)
            assert row.dtype == torch.float32
            assert torch.equal(row, flat(buffer[expert][epoch]).float())


def test_library_json_says_what_is_not_known(tmp_path: Path) -> None:
    save_buffer(tmp_path / "replay_buffer_7.pt", 0)
    library = take([tmp_path / "replay_buffer_7.pt"], tmp_path / "out")
    document = read_json(tmp_path / "out" / "library.json")
    assert document["made"]["imported"] == ORIGIN == library.imported
    assert document["made"]["seed"] is None
    (entry,) = document["files"]
    assert (entry["name"], entry["first"], entry["experts"]) == ("replay_buffer_7.pt", 0, 1)
    about = library.summary()
    assert about["settings"] == {"experts": 1, "epochs": EPOCHS, "storage": "float32"}
    assert about["imported"] == ORIGIN
    # A library of one's own knows all of it.
    assert tiny.library().imported is None
    assert tiny.library().summary()["settings"]["lr"] == 0.05
    assert "imported" not in tiny.library().summary()


def test_later_files_are_numbered_on_and_none_is_taken_twice(tmp_path: Path) -> None:
    files = [tmp_path / f"replay_buffer_{i}.pt" for i in range(3)]
    buffers = [save_buffer(f, *s) for f, s in zip(files, [(0, 1), (2,), (3, 4)], strict=True)]
    out = tmp_path / "out"
    first, second = Observer(), Observer()
    take(files[:2], out, progress=first)
    assert [(i.first, i.experts, i.added) for i in first.imported] == [(0, 2, 2), (2, 1, 1)]

    expert_path(out, 1).unlink()  # as after a kill
    renamed = files[0].rename(tmp_path / "copy.pt")
    library = take([renamed, files[2]], out, progress=second)
    assert [(i.first, i.experts, i.added) for i in second.imported] == [(0, 2, 1), (3, 2, 2)]
    assert library.experts == [0, 1, 2, 3, 4]
    for expert, original in enumerate(itertools.chain(*buffers)):
        assert torch.equal(library.trajectory(expert).row(EPOCHS), flat(original[-1]))
    assert [e["name"] for e in read_json(out / "library.json")["files"]] == [
        "replay_buffer_0.pt", "replay_buffer_1.pt", "replay_buffer_2.pt",
    ]  # fmt: skip


def test_progress_counts_the_experts(tmp_path: Path) -> None:
    save_buffer(tmp_path / "b.pt", 0, 1, 2)
    observer = Observer()
    take([tmp_path / "b.pt"], tmp_path / "out", progress=observer)
    assert observer.counts == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="Linux tells what is mapped")
def test_a_buffer_is_mapped_and_not_read(tmp_path: Path) -> None:
    file = tmp_path / "replay_buffer_0.pt"
    save_buffer(file, 0)
    buffer = read_buffer(file, SPEC)
    assert str(file) in Path("/proc/self/maps").read_text()
    assert torch.equal(flat(buffer[0][1]), flat(released_expert(0)[1]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": 8}, r"expert 0, epoch 0: parameter 0 is 8x1x3x3, and features\.0\.weight of "
         r"convnet \(.*width=4.*\) on images of 1x8x8 is 4x1x3x3; give the network="),
        ({"depth": 1}, r"parameter 4 is 10x64, and features\.4\.weight .* is 4x4x3x3"),
        ({"depth": 3}, r"parameter 8 is 4x4x3x3, and classifier\.weight .* is 10x16"),
        ({"norm": "none"}, r"parameter 2 is 4x4x3x3, and features\.1\.weight .* is 4;"),
    ],
)  # fmt: skip
def test_another_network_is_refused_by_the_first_parameter_that_differs(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    save_buffer(tmp_path / "b.pt", 0, **options)
    with pytest.raises(MismatchError, match=said):
        take([tmp_path / "b.pt"], tmp_path / "out")
    assert not (tmp_path / "out" / "library.json").exists()


def test_a_parameter_too_many_is_told(tmp_path: Path) -> None:
    expert = [[*epoch, torch.zeros(2)] for epoch in released_expert(0)]
    torch.save([expert], tmp_path / "b.pt")
    with pytest.raises(MismatchError, match=r"has 11 parameters and convnet .* has 10"):
        take([tmp_path / "b.pt"], tmp_path / "out")


def test_batch_norm_cannot_be_matched(tmp_path: Path) -> None:
    save_buffer(tmp_path / "b.pt", 0, norm="batch")
    spec = dataclasses.replace(SPEC, options={**SPEC.options, "norm": "batch"})
    with pytest.raises(SettingError, match="batch norm"):
        take([tmp_path / "b.pt"], tmp_path / "out", spec=spec)


def _frozen() -> list[Any]:
    """What the released code records on a CPU: every epoch is one and the same tensors."""
    start = released_expert(0)[0]
    return [[start] * (EPOCHS + 1)]


def _diverged() -> list[Any]:
    expert = released_expert(0)
    expert[2][3][0] = float("nan")
    return [expert]


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("hostile-was-here",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: {"a": 1}, "is not a buffer of experts"),
        (list, "has experts of no epochs"),
        (lambda: [[torch.zeros(3)]], "is not a buffer of experts"),
        (lambda: [[[1.0] * 10] * 3], "parameter 0 is no float tensor"),
        (lambda: [released_expert(0), released_expert(1, epochs=2)], "experts of 2, 3 epochs"),
        (lambda: [released_expert(0, epochs=0)], "experts of 0 epochs"),
        (_frozen, "same parameters after every epoch.*make the buffer again on a GPU"),
        (_diverged, "expert 0 holds NaN or infinity"),
        (lambda: [Hostile()], "may run code when they are read, so it was not"),
        (lambda: collections.Counter("ab"), "is not a buffer"),
    ],
)
def test_what_is_no_buffer_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Callable[[], Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content(), tmp_path / "b.pt")
    with pytest.raises(FileFormatError, match=said) as refused:
        take([tmp_path / "b.pt"], tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "hostile-was-here").exists()
    assert not list((tmp_path / "out").glob("expert_*"))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9])
def test_a_torn_file_is_refused(tmp_path: Path, share: float, legacy: bool) -> None:
    file = tmp_path / "b.pt"
    torch.save([released_expert(0)], file, _use_new_zipfile_serialization=not legacy)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(FileFormatError, match=r"b\.pt"):
        export.read_pt(file)


def test_no_file_and_no_torch_file(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"gone\.pt is not there"):
        export.read_pt(tmp_path / "gone.pt")
    (tmp_path / "text.pt").write_text("these are not the tensors you are looking for\n")
    with pytest.raises(FileFormatError, match=r"text\.pt"):
        export.read_pt(tmp_path / "text.pt")


def test_experts_that_were_not_made_alike_are_not_mixed(tmp_path: Path) -> None:
    first, long, other = (tmp_path / name for name in ("a.pt", "long.pt", "wide.pt"))
    save_buffer(first, 0)
    save_buffer(long, 1, epochs=5)
    save_buffer(other, 1, width=6)
    out = tmp_path / "out"
    take([first], out)
    wide = dataclasses.replace(SPEC, options={**SPEC.options, "width": 6})
    statistics = whitening().tensors
    brighter = Normalize(statistics["mean"] + 0.1, statistics["std"])
    refusals: list[tuple[str, Path, dict[str, Any]]] = [
        ("have epochs 3, not 5", long, {}),
        ("have network .*'width': 4.*, not .*'width': 6", other, {"spec": wide}),
        ("have data with fingerprint", first, {"data": tiny.digits().resized(9).resized(8)}),
        ("whitening normalize, not zca", first,
         {"whitening": fit_whitening("zca", tiny.digits().train)}),
        ("mean= and std= of the first import", first, {"whitening": brighter}),
    ]  # fmt: skip
    for said, file, changes in refusals:
        with pytest.raises(MismatchError, match=said):
            take([file], out, **changes)
    own = Path(shutil.copytree(tiny.library().path, tmp_path / "own"))
    with pytest.raises(SettingError, match=r"a folder of `trajmatch experts`.*give another out="):
        take([first], own)
    assert ExpertLibrary.open(out).experts == [0]
    assert ExpertLibrary.open(own).experts == [0, 1]


def test_the_test_accuracy_shows_a_wrong_whitening_or_network(tmp_path: Path) -> None:
    observer = Observer()
    export.export_buffers(tiny.library(), tmp_path)
    trained, fresh = tmp_path / "replay_buffer_0.pt", tmp_path / "fresh.pt"
    save_buffer(fresh, 0)
    take([trained, fresh], tmp_path / "out", progress=observer)
    right, wrong = observer.imported
    assert right.accuracy == tiny.library().accuracy()[0] > 40
    assert 10 <= right.chance < 15
    assert [right.suspicious, wrong.suspicious] == [False, True]
    assert observer.messages == [*right.lines(), *wrong.lines()]
    assert (len(right.lines()), len(wrong.lines())) == (1, 2)
    # Of each file the first expert is measured, and only it.
    accuracy = ExpertLibrary.open(tmp_path / "out").accuracy()
    assert accuracy == {0: right.accuracy, 1: None, 2: wrong.accuracy}


def test_import_and_distill(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mistake: Mistake
) -> None:
    succeed(f"export {tiny.library().path} --to pt --out {tmp_path}/pt")
    exported = read_result(tmp_path / "pt")
    assert exported["exported"] == {"files": ["replay_buffer_0.pt"], "experts": 2}
    assert exported["data"]["fingerprint"] == tiny.digits().fingerprint

    out = tmp_path / "experts"
    line = (
        f"import {tmp_path}/pt/replay_buffer_0.pt {statistics_words()} {tiny.NETWORK_WORDS} "
        f"--device cpu --out {out}"
    )
    capsys.readouterr()
    succeed(line)
    said = capsys.readouterr().out
    accuracy = tiny.library().accuracy()[0]
    assert (
        f"experts 0 to 1; test accuracy of expert 0 after its last epoch: {accuracy:.1f} %" in said
    )
    assert "warning" not in said
    succeed(line)
    assert "all there already" in capsys.readouterr().out
    result = read_result(out)
    assert (result["command"], result["device"]) == ("import", "cpu")
    assert result["files"][0]["file"] == "replay_buffer_0.pt"
    assert result["library"]["imported"] == ORIGIN
    assert [e["event"] for e in read_log(out / "log.jsonl")] == ["imported"] * 2

    # What came from there can be matched like experts of one's own, to the same bits.
    outcome, own = (
        pipeline.distill(
            tiny.digits(), tiny.METHOD, experts, tmp_path / name, config=tiny.DISTILL,
            evaluation=tiny.EVALUATE,
        )
        for name, experts in (("run", out), ("own", tiny.library()))
    )  # fmt: skip
    assert torch.equal(outcome.last.images, own.last.images)

    # What is not known of them is not told.
    ceiling = pipeline.experts_score(ExpertLibrary.open(out), tiny.digits())
    assert ceiling.protocol == "3 epochs on all training images, imported, settings not known"
    assert ceiling.values == (accuracy,)
    succeed(f"inspect {out}")
    said = capsys.readouterr().out
    assert f"origin    {ORIGIN}" in said
    assert "lr=" not in said
    assert ExpertLibrary.open(out).trajectory(0).seed is None

    # But nobody can train more of them: how they were made is not known.
    before = sorted(p.name for p in out.iterdir())
    said = mistake(f"experts {tiny.NETWORK_WORDS} {tiny.EXPERT_WORDS} --experts 3 --out {out}")
    assert "is a folder of `trajmatch import`" in said
    assert sorted(p.name for p in out.iterdir()) == before


def test_a_wrong_network_and_near_chance_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mistake: Mistake
) -> None:
    save_buffer(tmp_path / "b.pt", 0)
    line = f"import {tmp_path}/b.pt --whitening normalize --device cpu --out {tmp_path}/out"
    assert "parameter 0 is 4x1x3x3" in mistake(f"{line} --width 6")
    assert "give --whitening zca" in mistake(line.replace("--whitening normalize", ""))
    assert "--step-size and --number belong to a set" in mistake(f"{line} --step-size 0.1")
    assert not (tmp_path / "out" / "result.json").exists()
    succeed(f"{line} {tiny.NETWORK_WORDS}")
    assert "warning: hardly better than chance" in capsys.readouterr().out


# -- sets ----------------------------------------------------------------------------------------


def a_set(*, soft: bool = False, step_size: float | None = 0.0123456789, scale: float = 1.0) -> Any:
    """Twenty digits, whitened by statistics of all training images."""
    data = tiny.digits()
    images = whitening().apply(to_float(data.train.images[:20])) * scale
    labels = data.train.labels[:20]
    if soft:
        labels = torch.eye(10)[labels] * 0.8 + 0.02
    info = {
        "method": "mtt",
        "data": data.summary(),
        "network": SPEC.to_json(),
    }
    return SyntheticSet(images, labels, data.classes, whitening(), step_size, info)


def fitted_on_digits(name: str) -> Whitening:
    """Of any kind, the compact one visibly off the exact one."""
    exact = fit_whitening(name.removesuffix("-compact"), tiny.digits().train)
    return CompactZCA.near(exact, 300) if name == "zca-compact" else exact


def same(a: SyntheticSet, b: SyntheticSet) -> None:
    assert torch.equal(a.images, b.images)
    assert a.labels.dtype == b.labels.dtype
    assert torch.equal(a.labels, b.labels)
    assert a.step_size == b.step_size
    assert a.classes == b.classes
    assert a.whitening.checksum == b.whitening.checksum


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("step_size", [None, 0.0123456789])
def test_a_set_goes_out_as_pt_and_comes_back(
    tmp_path: Path, soft: bool, step_size: float | None
) -> None:
    distilled = a_set(soft=soft, step_size=step_size)
    distilled.save(tmp_path / "set")
    succeed(f"export {tmp_path}/set --to pt --out {tmp_path}/pt")
    files = ["images_best.pt", "labels_best.pt", *(["syn_lr.pt"] if step_size else [])]
    assert sorted(p.name for p in (tmp_path / "pt").glob("*.pt")) == files
    images, labels = (torch.load(tmp_path / "pt" / f, weights_only=True) for f in files[:2])
    assert torch.equal(images, distilled.images)
    assert torch.equal(labels, distilled.labels)

    given = f"--step-size {tmp_path}/pt/syn_lr.pt" if step_size else ""
    succeed(
        f"import {tmp_path}/pt/images_best.pt {given} {statistics_words()} --out {tmp_path}/back"
    )
    back = SyntheticSet.load(tmp_path / "back")
    same(back, distilled)
    assert back.info["method"] == "imported"
    assert back.info["files"] == files[:2]
    assert back.ipc == back.info["ipc"] == 2
    result = read_result(tmp_path / "back")
    assert (result["command"], result["step_size"]) == ("import", step_size)
    assert read_log(tmp_path / "back" / "log.jsonl")[0]["event"] == "imported"


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", ["normalize", "zca", "zca-compact"])
def test_a_set_goes_out_as_npz_and_comes_back(tmp_path: Path, soft: bool, name: str) -> None:
    fitted = fitted_on_digits(name)
    step_size = None if soft else 0.0123456789
    distilled = dataclasses.replace(a_set(soft=soft, step_size=step_size), whitening=fitted)
    distilled.save(tmp_path / "set")
    succeed(f"export {tmp_path}/set --to npz --out {tmp_path}/npz")
    with np.load(tmp_path / "npz" / "distilled.npz", allow_pickle=False) as arrays:
        images = arrays["images"]
        if name != "normalize":  # as the file's description says
            pictures = tiny.digits().train.images[:20].numpy().reshape(20, -1) / np.float32(255)
            white = (pictures - arrays["mean"]) @ arrays["matrix"]
            expected = fitted.apply(to_float(tiny.digits().train.images[:20])).numpy()
            np.testing.assert_allclose(white.reshape(expected.shape), expected, atol=1e-4)
        assert ("step_size" in arrays) == (not soft)
    assert np.array_equal(images, distilled.images.numpy())
    succeed(f"import {tmp_path}/npz/distilled.npz --out {tmp_path}/back")
    back = SyntheticSet.load(tmp_path / "back")
    same(back, dataclasses.replace(distilled, whitening=fitted.full()))
    assert back.info == SyntheticSet.load(tmp_path / "set").info
    assert read_result(tmp_path / "back")["data"]["name"] == "digits"


def test_what_is_no_npz_of_ours_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    export.write_npz(a_set(), tmp_path)
    whole = (tmp_path / "distilled.npz").read_bytes()
    pickled = np.array([Hostile()], dtype=object)
    np.savez(tmp_path / "pickled.npz", images=pickled)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    (tmp_path / "torn.npz").write_bytes(whole[: len(whole) // 2])
    place = whole.index(a_set().images.numpy().tobytes()[:64])
    flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    (tmp_path / "flipped.npz").write_bytes(flipped)
    (tmp_path / "empty.npz").write_bytes(b"")
    arrays = dict(np.load(tmp_path / "distilled.npz"))
    changes: dict[str, dict[str, Any]] = {
        "bytes": {"images": (a_set().images.numpy() * 9).astype(np.uint8)},
        "short": {"mean": arrays["mean"][:0]},
        "nan": {"mean": arrays["mean"] * np.nan},
        "zero": {"std": arrays["std"] * 0},
        "deep": {"info": np.array("[" * 100_000)},
        "singular": {
            "whitening": np.array("zca"), "mean": np.zeros(64, np.float32), "eps": np.array(0.1),
            "matrix": np.ones((64, 64), np.float32), "shape": np.array([1, 8, 8]),
        },
    }  # fmt: skip
    for name, change in changes.items():
        np.savez(tmp_path / f"{name}.npz", **{**arrays, **change})
    os.mkfifo(tmp_path / "fifo.npz")
    names = ("pickled", "other", "torn", "flipped", "empty", "gone", "fifo", *changes)
    for name in names:
        with pytest.raises(FileFormatError, match=rf"{name}\.npz is not a whole set"):
            export.read_npz(tmp_path / f"{name}.npz")
    assert not (tmp_path / "hostile-was-here").exists()


def test_an_npz_of_other_precision_is_converted(tmp_path: Path) -> None:
    export.write_npz(a_set(), tmp_path)
    arrays = dict(np.load(tmp_path / "distilled.npz"))
    arrays |= {
        "images": arrays["images"].astype(np.float64),
        "labels": arrays["labels"].astype("i4"),
    }
    np.savez(tmp_path / "double.npz", **arrays)
    back = export.read_npz(tmp_path / "double.npz")
    same(back, a_set())
    (score,) = pipeline.evaluate(back, tiny.digits(), config=tiny.EVALUATE)
    assert score.n == 2


def altered(original: bytes, tries: int) -> Iterator[bytes]:
    """`original` with one byte changed, at places and to values drawn with a fixed seed."""
    draw = random.Random(0)
    for _ in range(tries):
        place = draw.randrange(len(original))
        yield (
            original[:place]
            + bytes([original[place] ^ draw.randrange(1, 256)])
            + original[place + 1 :]
        )


def test_no_altered_byte_of_an_npz_or_pt_changes_what_is_read(tmp_path: Path) -> None:
    """Refused with one line, or without meaning: as an archive's padding."""
    distilled = dataclasses.replace(
        a_set(soft=True), images=a_set().images[:3], labels=a_set(soft=True).labels[:3]
    )
    export.write_npz(distilled, tmp_path)
    buffer = save_buffer(tmp_path / "b.pt", 0, epochs=1)
    torch.save(published([distilled.images, distilled.labels]), tmp_path / "x.pt")

    def expert(path: Path) -> None:
        (back,) = read_buffer(path, SPEC)
        for epoch, known in zip(back, buffer[0], strict=True):
            assert torch.equal(flat(epoch), flat(known))

    def condensed(path: Path) -> None:
        back = export.read_released(path, data=tiny.digits(), whitening=whitening())
        same(dataclasses.replace(back, step_size=distilled.step_size), distilled)

    readers = {
        "distilled.npz": lambda path: same(export.read_npz(path), distilled),
        "b.pt": expert,
        "x.pt": condensed,
    }
    for name, read in readers.items():
        read(tmp_path / name)
        refusals = []
        for changed in altered((tmp_path / name).read_bytes(), TRIES):
            (tmp_path / "changed").write_bytes(changed)
            try:
                read(tmp_path / "changed")
            except TrajmatchError as error:
                refusals.append(str(error))
        assert len(refusals) > TRIES / 3
        assert not any("\n" in line for line in refusals)


def test_a_damaged_compression_method_is_refused(tmp_path: Path) -> None:
    export.write_npz(a_set(), tmp_path)
    torch.save((a_set().images, a_set().labels), tmp_path / "x.pt")
    for name in ("distilled.npz", "x.pt"):
        data = bytearray((tmp_path / name).read_bytes())
        place = data.rindex(b"PK\x01\x02") + 10
        data[place : place + 2] = (97).to_bytes(2, "little")
        (tmp_path / name).write_bytes(data)
    with pytest.raises(FileFormatError, match=r"npz is not a whole set .*compression method"):
        export.read_npz(tmp_path / "distilled.npz")
    with pytest.raises(FileFormatError, match=r"cannot read .*x\.pt .*compression method"):
        export.read_pt(tmp_path / "x.pt")


@pytest.mark.parametrize("to", ["pt", "npz"])
def test_an_export_is_equal_to_the_byte_and_names_no_local_path(tmp_path: Path, to: str) -> None:
    known = {"path": f"{tmp_path}/experts", "experts": 2}
    distilled = a_set()
    distilled = dataclasses.replace(distilled, info={**distilled.info, "experts": known})
    for name in ("one", "two"):
        export.export_set(distilled, to, tmp_path / name)
    files = sorted((tmp_path / "one").iterdir())
    assert len(files) == {"pt": 3, "npz": 1}[to]
    for file in files:
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
        assert str(tmp_path).encode() not in file.read_bytes()
    if to == "npz":
        assert export.read_npz(files[0]).info["experts"] == {"experts": 2}


def test_buffers_are_exported_equal_to_the_byte(tmp_path: Path) -> None:
    files = [tmp_path / name / "replay_buffer_0.pt" for name in ("one", "two")]
    for file in files:
        export.export_buffers(tiny.library(), file.parent)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_step_size_is_a_number_or_a_file_of_one(tmp_path: Path) -> None:
    torch.save(torch.tensor(0.5, requires_grad=True), tmp_path / "a.pt")
    torch.save(0.25, tmp_path / "b.pt")
    torch.save(torch.zeros(2), tmp_path / "two.pt")
    (tmp_path / "c.txt").write_text("0.125\n")
    (tmp_path / "words.txt").write_text("about a tenth\n")
    assert export.read_number("0.01") == 0.01
    assert [export.read_number(f"{tmp_path}/{f}") for f in ("a.pt", "b.pt", "c.txt")] == [
        0.5, 0.25, 0.125,
    ]  # fmt: skip
    for name in ("two.pt", "words.txt"):
        with pytest.raises(FileFormatError, match=f"{name} does not hold one number"):
            export.read_number(f"{tmp_path}/{name}")
    with pytest.raises(SettingError, match="the step size is 'tenth'; give a number, or a file"):
        export.read_number("tenth")


def test_the_whitening_of_released_files() -> None:
    data = tiny.digits()
    both = Split(
        torch.cat([data.train.images, data.val.images]),
        torch.cat([data.train.labels, data.val.labels]),
    )
    zca = export.fit_released_whitening(data, "zca")
    assert zca.checksum == fit_whitening("zca", both).checksum
    assert zca.checksum != fit_whitening("zca", data.train).checksum
    given = export.fit_released_whitening(data, "normalize", mean=[0.25], std=[0.5])
    assert torch.equal(given.apply(torch.ones(1, 1, 8, 8)), torch.full((1, 1, 8, 8), 1.5))
    for name, mean, std, said in (
        (None, None, None, "give whitening='zca'"),
        ("zca", [0.5], [0.5], "leave them out of zca"),
        (None, [0.5], None, "std is None for images of 1 channels"),
        (None, [0.5, 0.5], [0.5], "mean is .* for images of 1 channels"),
    ):
        with pytest.raises(SettingError, match=said):
            export.fit_released_whitening(data, name, mean=mean, std=std)
    for mean, std, said in (
        ([0.5], [0.0], r"std is \[0\.0\]; give numbers above 0"),
        ([float("nan")], [0.5], "mean of the whitening holds NaN"),
        ([0.5], [float("inf")], "std of the whitening holds NaN or infinity"),
    ):
        with pytest.raises(DataError, match=said):
            export.fit_released_whitening(data, None, mean=mean, std=std)


def test_an_imported_set_is_tested_but_not_judged_on_validation(tmp_path: Path) -> None:
    export.write_released(a_set(), tmp_path / "pt")
    distilled = export.read_released(
        tmp_path / "pt" / "images_best.pt",
        tmp_path / "pt" / "labels_best.pt",
        data=tiny.digits(),
        whitening=whitening(),
        info={"network": SPEC.to_json()},
    )
    (score,) = pipeline.evaluate(distilled, tiny.digits(), config=tiny.EVALUATE)
    assert (score.method, score.model) == ("imported", SPEC.describe())
    with pytest.raises(MismatchError, match="fingerprint unknown"):
        pipeline.evaluate(distilled, tiny.digits(), config=tiny.EVALUATE, split="val")


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]), "are 3x8x8 and those of digits 1x8x8"),
        (torch.zeros(2, 1, 9, 9), torch.tensor([0, 1]), "size= they were made from"),
        (torch.zeros(2, 64), torch.tensor([0, 1]), r"float32 of shape \[2, 64\]; give floats"),
        (torch.zeros(0, 1, 8, 8), torch.zeros(0).long(), "give floats"),
        (torch.zeros(2, 1, 8, 8).byte(), torch.tensor([0, 1]), "uint8 .*give floats"),
        (torch.zeros(2, 1, 8, 8), torch.tensor([0, 1, 2]), r"shape \[3\] for 2 images"),
        (torch.zeros(2, 1, 8, 8), torch.tensor([0.0, 1.0]), "give labels as whole numbers"),
        (torch.zeros(2, 1, 8, 8), torch.tensor(3), "give labels as whole numbers"),
        (torch.zeros(2, 1, 8, 8), torch.tensor([True, False]), "give labels as whole numbers"),
        (torch.zeros(2, 1, 8, 8), [0, 1], "holds a list for 2 images"),
        (torch.zeros(2, 1, 8, 8), torch.tensor([0, 10]), "from 0 to 10 and digits has 10 classes"),
        (torch.zeros(2, 1, 8, 8), torch.full((2, 5), 0.2), "for 5 classes and digits has 10"),
        (torch.zeros(2, 1, 8, 8), torch.full((2, 10), float("nan")), "hold NaN or infinity"),
        (torch.zeros(2, 1, 8, 8).to_sparse(), torch.tensor([0, 1]), "holds sparse or quantized"),
        (torch.zeros(2, 1, 8, 8), torch.eye(10)[:2].to_sparse(), "holds sparse or quantized"),
        (torch.zeros(2, 1, 8, 8, device="meta"), torch.tensor([0, 1]), "holds sparse or quant"),
        ({"data": []}, torch.tensor([0, 1]), r"images_5.pt holds no set; give an images_\*\.pt, a"),
        ({"data": [[torch.zeros(2, 1, 8, 8), [0, 1]]]}, torch.tensor([0, 1]), "holds no set"),
        (torch.full((2, 1, 8, 8), float("nan")), torch.tensor([0, 1]), "NaN"),
    ],
)
def test_sets_that_do_not_fit_are_refused(
    tmp_path: Path, mistake: Mistake, images: Any, labels: Any, said: str
) -> None:
    torch.save(images, tmp_path / "images_5.pt")
    torch.save(labels, tmp_path / "labels_5.pt")
    parts = {"data": tiny.digits(), "whitening": whitening()}
    with pytest.raises((FileFormatError, MismatchError, DataError), match=said):
        export.read_released(tmp_path / "images_5.pt", tmp_path / "labels_5.pt", **parts)


def published(*experiments: list[torch.Tensor]) -> dict[str, Any]:
    """As the code of DC, DSA and DM saves its results: accuracies are NumPy's numbers."""
    accuracies = {"ConvNet": [np.float64(28.1), np.float32(27.5)], "all": np.zeros(3)}
    return {"data": list(experiments), "accs_all_exps": accuracies}


def test_sets_of_dataset_condensation_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mistake: Mistake
) -> None:
    first, last = a_set(), a_set(scale=2.0)
    file, out = tmp_path / "res_DM_digits_ConvNet_2ipc.pt", tmp_path / "out"
    torch.save(published([first.images, first.labels], [last.images, last.labels]), file)
    line = f"import {file} {statistics_words()} --out {out}"
    succeed(line)
    assert "they are set 1 of 0 to 1 in the file (--number)" in capsys.readouterr().out
    back = SyntheticSet.load(out)
    same(dataclasses.replace(back, step_size=first.step_size), last)
    assert (back.info["files"], back.info["number"]) == ([file.name], 1)
    succeed(f"{line} --number 0")
    same(dataclasses.replace(SyntheticSet.load(out), step_size=first.step_size), first)
    said = mistake(f"{line} --number 2")
    assert f"--number is 2 and {file} holds sets 0 to 1; give one of them" in said
    assert "--number is -1; it must be at least 0" in mistake(f"{line} --number -1")
    assert "holds its labels; leave --labels out" in mistake(f"{line} --labels {file}")


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_pair_in_one_file_is_read_in_any_precision(tmp_path: Path, kind: Any) -> None:
    distilled = a_set()
    torch.save(kind([distilled.images.double(), distilled.labels.int()]), tmp_path / "x.pt")
    back = export.read_released(tmp_path / "x.pt", data=tiny.digits(), whitening=whitening())
    assert torch.equal(back.images, distilled.images)
    assert torch.equal(back.labels, distilled.labels)
    assert (back.images.dtype, back.labels.dtype) == (torch.float32, torch.int64)
    assert "number" not in back.info
    (score,) = pipeline.evaluate(back, tiny.digits(), networks=[SPEC], config=tiny.EVALUATE)
    assert score.n == 2


def test_logits_become_probabilities_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distilled = a_set()
    logits = torch.randn(20, 10, generator=torch.Generator().manual_seed(0))
    torch.save((distilled.images, logits), tmp_path / "x.pt")
    succeed(f"import {tmp_path}/x.pt {statistics_words()} --out {tmp_path}/out")
    assert "no probabilities: their softmax was taken, as of logits" in capsys.readouterr().out
    back = SyntheticSet.load(tmp_path / "out")
    torch.testing.assert_close(back.labels, logits.exp() / logits.exp().sum(1, keepdim=True))
    assert back.info["labels"] == "softmax of the logits in the file"


def test_probabilities_that_do_not_sum_to_one_are_no_logits(tmp_path: Path) -> None:
    labels = torch.full((20, 10), 0.1)
    labels[3, 0] = 0.2
    torch.save((a_set().images, labels), tmp_path / "x.pt")
    with pytest.raises(
        DataError, match=r"x\.pt lie in \[0, 1\] .* rows sum to 1 to 1\.1; give prob"
    ):
        export.read_released(tmp_path / "x.pt", data=tiny.digits(), whitening=whitening())


def test_a_file_of_something_else_names_what_is_read(tmp_path: Path, mistake: Mistake) -> None:
    torch.save({"state": torch.zeros(3), "lr": np.float64(0.1)}, tmp_path / "model.pt")
    said = mistake(f"import {tmp_path}/model.pt {statistics_words()} --out {tmp_path}/out")
    assert "model.pt holds no set and no experts; give an images_*.pt, a pair (images, l" in said
    assert not (tmp_path / "out").exists()


def test_sparse_experts_are_refused(tmp_path: Path) -> None:
    buffer = [released_expert(0)]
    buffer[0][2][0] = buffer[0][2][0].to_sparse()
    torch.save(buffer, tmp_path / "b.pt")
    with pytest.raises(FileFormatError, match=r"b\.pt holds sparse or quantized tensors; write"):
        take([tmp_path / "b.pt"], tmp_path / "out")


def test_refusals_of_import_for_sets(tmp_path: Path, mistake: Mistake) -> None:
    export.write_released(a_set(), tmp_path)
    images = tmp_path / "images_best.pt"
    out = tmp_path / "out"
    line = f"import {images} {statistics_words()} --out {out}"
    assert "2 files are given" in mistake(line.replace(str(images), f"{images} {images}"))
    assert "--mean is 'a,b'; give numbers" in mistake(
        f"import {images} --mean a,b --std 1 --out {out}"
    )
    assert "give a number, or a file" in mistake(f"{line} --step-size much")
    assert "step_size is -1" in mistake(f"{line} --step-size -1")
    assert "files" in mistake(f"import --out {out}").lower()
    (tmp_path / "labels_best.pt").rename(tmp_path / "y.pt")
    assert "labels_best.pt; give their file as --labels" in mistake(line)
    assert not out.exists()
    succeed(f"{line} --labels {tmp_path}/y.pt {tiny.NETWORK_WORDS}")
    assert SyntheticSet.load(out).info["network"] == SPEC.to_json()


# -- pictures and the hub ------------------------------------------------------------------------


def test_an_image_folder_and_what_it_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distilled = a_set(scale=2.0)
    distilled.save(tmp_path / "set")
    succeed(f"export {tmp_path}/set --to folder --out {tmp_path}/folder")
    place = dict.fromkeys(range(10), 0)
    for image, label in zip(distilled.pixels(), distilled.labels.tolist(), strict=True):
        name = tmp_path / "folder" / "train" / distilled.classes[label] / f"{place[label]:05d}.png"
        assert np.array_equal(np.array(Image.open(name)), image[0].numpy())
        place[label] += 1
    assert len(list((tmp_path / "folder" / "train").glob("*/*"))) == 20

    plain = whitening().invert(distilled.images)
    lost = ((plain < -0.002) | (plain > 1.002)).flatten(1).double().mean(1).max().item()
    assert lost > 0.1
    assert read_result(tmp_path / "folder")["exported"]["largest_clipped_share"] == pytest.approx(
        lost
    )
    assert f"{100 * lost:.1f} %" in (tmp_path / "folder" / "README.txt").read_text()
    assert f"up to {100 * lost:.1f} %" in capsys.readouterr().out


def test_pictures_that_lose_nothing_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert clipped_shares(a_set()).max() == 0
    a_set(soft=True).save(tmp_path / "set")
    succeed(f"export {tmp_path}/set --to folder --out {tmp_path}/folder")
    assert "warning" not in capsys.readouterr().out
    note = (tmp_path / "folder" / "README.txt").read_text()
    assert "0.0 %\nof the values" in note
    assert "Step size of plain SGD: 0.0123457\n" in note
    assert "The labels are probabilities" in note


def front_matter(card: str) -> list[str]:
    start, yaml, _ = card.split("---\n", 2)
    assert start == ""
    return yaml.splitlines()


def test_a_hub_folder_is_the_set_and_its_card(tmp_path: Path) -> None:
    distilled, run = a_set(scale=2.0), tmp_path / "run"
    distilled.save(run / "best")
    known = {"model": "ConvNet", "ipc": 2, "protocol": "1000 epochs, lr 0.01", "brief": "DSA"}
    scores = [
        Score.of(values, method=method, split="test", **known).to_json()
        for method, values in (("random", [10.0, 11.0]), ("mtt", [88.0, 90.0, 92.0]))
    ]
    common = {"settings": {}, "seed": 0, "data": None, "seconds": 1.0}
    write_result(run, command="distill", scores=scores, **common)
    out = tmp_path / "hub"
    words = f"export {run}/best --to hub --out {out} --title Ten".split()
    assert dispatch(COMMANDS, [*words[:-1], 'Ten "small" digits']) == 0
    same(SyntheticSet.load(out), distilled)
    assert read_result(out)["scores"] == [scores[1]]
    distilled.save(run / "last")  # the score is that of the set that was kept
    succeed(f"export {run}/last --to npz --out {tmp_path}/npz")
    assert read_result(tmp_path / "npz")["scores"] == []
    card = (out / "README.md").read_text()
    lines = front_matter(card)
    assert lines[0] == 'pretty_name: "Ten \\"small\\" digits"'
    for line in ("license: other", "- image-classification", "- n<1K", "    path: images/**"):
        assert line in lines
    lost = 100 * clipped_shares(distilled).max().item()
    for fact in (
        "| Data | digits |",
        "| Images | 20 of 1x8x8, 0 to 3 per class |",
        f"| Network | {SPEC.describe()} |",
        "| Test accuracy % | 90.0 +- 2.0 (n=3, ConvNet, DSA) |",
        "| Step size | 0.0123457 |",
        f"cut off {lost:.1f} % of the values",
    ):
        assert fact in card


@pytest.mark.parametrize("name", ["normalize", "zca", "zca-compact"])
def test_the_cards_ten_lines_run(tmp_path: Path, name: str) -> None:
    data = tiny.digits()
    fitted = fitted_on_digits(name)
    distilled = dataclasses.replace(a_set(), whitening=fitted, info={})
    export.write_hub(distilled, tmp_path / "hub")
    code = (tmp_path / "hub" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) <= 11
    lines = [line for line in code.splitlines() if "snapshot_download" not in line]
    known: dict[str, Any] = {"folder": tmp_path / "hub", "load_file": load_file}
    exec("\n".join(lines), known)
    assert torch.equal(known["distilled"]["images"], distilled.images)
    assert torch.equal(known["distilled"]["labels"], distilled.labels)
    assert known["distilled"]["step_size"].item() == distilled.step_size
    pictures = to_float(data.test.images[:5])
    torch.testing.assert_close(known["whiten"](pictures), fitted.apply(pictures))


def test_a_card_shows_names_as_they_are_and_no_local_path(tmp_path: Path) -> None:
    names = (
        "a|b",
        "<script>x</script>",
        "line\nbreak",
        "`code`",
        "[a](b)",
        "*",
        "c",
        "d",
        "e",
        "f",
    )
    info = {**a_set().info, "experts": {"path": f"{tmp_path}/experts", "experts": 2}}
    distilled = dataclasses.replace(a_set(), classes=names, info=info)
    export.write_hub(distilled, tmp_path / "hub", title="<b>|title\n---")
    card = (tmp_path / "hub" / "README.md").read_text()
    front_matter(card)
    shown = r"a\|b, &lt;script&gt;x&lt;/script&gt;, line break, \`code\`, \[a\](b), \*, c, d, e, f"
    assert f"| Classes | {shown} |" in card
    assert r"# &lt;b&gt;\|title ---" in card
    for file in ("README.md", "distilled.json", "distilled.safetensors"):
        assert str(tmp_path).encode() not in (tmp_path / "hub" / file).read_bytes()
    back = SyntheticSet.load(tmp_path / "hub")
    assert (back.classes, back.info["experts"]) == (names, {"experts": 2})


def test_a_card_of_a_set_that_knows_little(tmp_path: Path) -> None:
    distilled = dataclasses.replace(a_set(step_size=None), info={})
    card = export.hub.card(distilled)
    for fact in ("| Network | not recorded |", "| Test accuracy % | not recorded |",
                 "| Step size | none |", "# distilled images"):  # fmt: skip
        assert fact in card
    assert 'distilled["step_size"]' not in card


@pytest.mark.slow
def test_the_hubs_own_library_reads_the_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    distilled = a_set()
    export.write_hub(distilled, tmp_path / "hub")
    write_result(
        tmp_path / "hub", command="export", settings={}, seed=0, scores=[], data=None, seconds=1.0
    )
    found = datasets.load_dataset(str(tmp_path / "hub"), cache_dir=str(tmp_path / "cache"))
    assert list(found) == ["train"]
    names = found["train"].features["label"].names
    assert names == [distilled.classes[label] for label in sorted(set(distilled.labels.tolist()))]
    seen = collections.Counter(names[row["label"]] for row in found["train"])
    assert seen == collections.Counter(
        distilled.classes[label] for label in distilled.labels.tolist()
    )


@pytest.mark.parametrize("to", export.FORMATS)
def test_export_writes_over_nothing(tmp_path: Path, mistake: Mistake, to: str) -> None:
    a_set().save(tmp_path / "set")
    line = f"export {tmp_path}/set --to {to} --out {tmp_path}/out"
    succeed(line)
    files = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert "is there already; move it away or give another --out" in mistake(line)
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == files


@pytest.mark.parametrize("to", [*export.FORMATS, "buffers"])
def test_a_killed_export_is_repeated_and_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    def write(out: Path) -> dict[str, bytes]:
        if to == "buffers":
            export.export_buffers(tiny.library(), out)
        else:
            export.export_set(a_set(), to, out)
        return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}

    def killed(source: Path, target: Path) -> None:
        if target.parent == out and len(list(out.iterdir())) > files:
            raise KeyboardInterrupt
        os.replace(source, target)

    monkeypatch.setattr(export.buffers, "PER_FILE", 1)
    whole = write(tmp_path / "whole")
    for files in range(1, len({name.partition("/")[0] for name in whole})):
        out = tmp_path / f"after-{files}"
        with monkeypatch.context() as patch:
            patch.setattr("os.rename", killed)
            with pytest.raises(KeyboardInterrupt):
                write(out)
        assert len(list(out.iterdir())) == files
        assert write(out) == whole


@pytest.mark.parametrize("to", ["pt", "folder", "hub"])
def test_a_file_of_other_contents_stays(tmp_path: Path, to: str) -> None:
    name = {"pt": "labels_best.pt", "folder": "README.txt", "hub": "README.md"}[to]
    (tmp_path / name).write_text("mine")
    with pytest.raises(DataError, match=f"{name} is there already; move it away"):
        export.export_set(a_set(), to, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine"}


def test_refusals_of_export(tmp_path: Path, mistake: Mistake) -> None:
    a_set().save(tmp_path / "set")
    line = f"export {tmp_path}/set --out {tmp_path}/out"
    assert "--to" in mistake(line)
    assert "pt" in mistake(f"{line} --to pdf")
    assert "give --to pt" in mistake(f"export {tiny.library().path} --to npz --out {tmp_path}/out")
    assert "gone" in mistake(f"export {tmp_path}/gone --to pt --out {tmp_path}/out")
    with pytest.raises(SettingError, match="did you mean 'npz'"):
        export.export_set(a_set(), "npy", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_result_json_of_export(tmp_path: Path) -> None:
    a_set().save(tmp_path / "set")
    succeed(f"export {tmp_path}/set --to pt --out {tmp_path}/out --seed 3")
    result = read_result(tmp_path / "out")
    assert (result["command"], result["seed"], result["settings"]["to"]) == ("export", 3, "pt")
    assert result["data"]["fingerprint"] == tiny.digits().fingerprint
    assert result["scores"] == []
    (event,) = read_log(tmp_path / "out" / "log.jsonl")
    assert (event["event"], event["files"]) == ("exported", result["exported"]["files"])
    json.dumps(result)

"""A library of experts: the same bits whoever trains them, killed or not; and what it refuses."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from trajmatch.config import ExpertConfig
from trajmatch.data.dataset import ImageDataset
from trajmatch.data.whiten import Normalize, fit_whitening
from trajmatch.errors import FileFormatError, MismatchError, SettingError, TrajmatchError
from trajmatch.experts import ExpertLibrary, LibraryFilling, Trajectory, expert_epochs, open_experts
from trajmatch.experts.library import expert_path
from trajmatch.experts.mapped_images import MappedImages
from trajmatch.networks import NetworkSpec
from trajmatch.runtime.progress import SILENT, Silent
from trajmatch.runtime.resources import Resources
from trajmatch.storage.files import read_json, write_json
from trajmatch.storage.folder import claim
from trajmatch.storage.locks import lock

SPEC = NetworkSpec("convnet", channels=1, classes=3, size=8, options={"depth": 1, "width": 4})
CONFIG = ExpertConfig(experts=3, epochs=4, batch=16, lr=0.05, momentum=0.5)


def make_dataset(seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (60, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(60) % 3
    data = ImageDataset.from_arrays(images[:40], labels[:40], images[40:], labels[40:])
    return data.with_validation(0.2)


DATASET = make_dataset()
WHITENING = fit_whitening("normalize", DATASET.train)


class Epochs(Silent):
    """Calls a function with each epoch event."""

    def __init__(self, on_epoch):
        self.on_epoch = on_epoch

    def event(self, name, **values):
        assert name == "epoch"
        self.on_epoch(values)


def make(
    path,
    config=CONFIG,
    *,
    dataset=DATASET,
    spec=SPEC,
    whitening=WHITENING,
    seed=3,
    workers=1,
    on_epoch=None,
    **timing,
):
    filling = LibraryFilling(path, dataset, spec, whitening, config, seed, **timing)
    progress = Epochs(on_epoch) if on_epoch else SILENT
    return filling.run(resources=Resources(workers=workers), progress=progress)


def rows(library):
    return {
        expert: torch.stack([library.trajectory(expert).row(e) for e in range(library.epochs + 1)])
        for expert in library.experts
    }


def same(one, other):
    assert one.keys() == other.keys()
    for expert in one:
        assert torch.equal(one[expert], other[expert])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A library that nobody disturbed. Not to be written to."""
    return make(tmp_path_factory.mktemp("made") / "library")


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made.path, tmp_path / "copy")


def test_what_a_library_says(made):
    library = open_experts(str(made.path))
    assert library.experts == [0, 1, 2]
    assert (library.epochs, library.trajectory_count, library.seed) == (4, 3, 3)
    assert library.settings == CONFIG
    assert library.spec == SPEC
    assert library.data["fingerprint"] == DATASET.fingerprint
    assert library.whitening.checksum == WHITENING.checksum
    assert [library.index(expert) for expert in library.experts] == [0, 1, 2]
    library.verify()
    words = f"3 experts of 4 epochs, {SPEC.describe()}, {WHITENING.name}, {DATASET.name}"
    assert repr(library) == f"ExpertLibrary({str(made.path)!r}: {words})"
    names = sorted(path.name for path in made.path.iterdir())
    experts = [f"expert_{i:05d}.safetensors" for i in range(3)]
    assert names == [".lock", ".trajmatch.json", *experts, "library.json", "whitening.safetensors"]


def test_experts_differ_and_learn_from_their_own_start(made):
    all_rows = rows(made)
    assert not torch.equal(all_rows[0][0], all_rows[1][0])
    for matrix in all_rows.values():
        assert ((matrix[1:] - matrix[:-1]).norm(dim=1) > 1e-4).all()


def test_segments(made):
    start, target = made.segment(1, 1, 2)
    assert torch.equal(start, made.trajectory(1).row(1))
    assert torch.equal(target, made.trajectory(1).row(3))
    for arguments in [(0, -1, 2), (0, 3, 2), (0, 0, 0), (0, 0, 5)]:
        with pytest.raises(SettingError, match=r"4 epochs.*max_start_epoch= or expert_epochs="):
            made.segment(*arguments)
    with pytest.raises(SettingError, match="no expert 7; it has 0-2"):
        made.segment(7, 0, 1)


def test_summary_and_accuracy(made):
    summary = made.summary()
    json.dumps(summary)
    scores = list(made.accuracy().values())
    assert all(0 <= score <= 100 for score in scores)
    assert made.accuracy("val").keys() == {0, 1, 2}
    assert summary["accuracy_mean"] == pytest.approx(sum(scores) / 3)
    assert summary["accuracy_sd"] == pytest.approx(torch.tensor(scores).std().item())
    assert (summary["experts"], summary["epochs"], summary["n"]) == (3, 4, 3)
    assert summary["bytes"] > 3 * 5 * 4 * SPEC.parameters()


def test_progress_and_nothing_to_do(tmp_path, made):
    events = []
    make(tmp_path / "library", dataclasses.replace(CONFIG, experts=1), on_epoch=events.append)
    assert [(e["expert"], e["epoch"], e["epochs"]) for e in events] == [
        (0, i, 4) for i in (1, 2, 3, 4)
    ]
    assert all({"train_loss", "train_accuracy", "seconds"} <= e.keys() for e in events)
    before = {p.name: p.stat().st_mtime_ns for p in made.path.iterdir()}
    make(made.path, on_epoch=lambda event: pytest.fail("nothing was missing"))
    assert {p.name: p.stat().st_mtime_ns for p in made.path.iterdir()} == before


def test_progress_counts_the_epochs_of_all_experts(copy):
    class Updates(Silent):
        def update(self, task, done, total, **values):
            updates.append((task, done, total, values["expert"], values["epoch"]))
            assert 0 <= values["train_accuracy"] <= 100

    updates = []
    expert_path(copy, 1).unlink()
    LibraryFilling(copy, DATASET, SPEC, WHITENING, CONFIG, 3).run(
        resources=Resources(workers=1), progress=Updates()
    )
    assert updates == [("experts", 8 + epoch, 12, 1, epoch) for epoch in (1, 2, 3, 4)]


def test_two_workers_make_the_same_experts(tmp_path, made):
    events = []
    library = make(tmp_path / "library", workers=2, on_epoch=events.append)
    same(rows(library), rows(made))
    assert library.accuracy() == made.accuracy()
    assert {(e["expert"], e["epoch"]) for e in events} == {
        (i, e) for i in range(3) for e in (1, 2, 3, 4)
    }
    assert not list(library.path.glob("*.partial*"))
    assert not list(library.path.glob("expert*.lock"))


def test_more_experts_extend_a_library(tmp_path, made):
    path = tmp_path / "library"
    make(path, dataclasses.replace(CONFIG, experts=1))
    untouched = expert_path(path, 0).read_bytes()
    library = make(path)
    assert expert_path(path, 0).read_bytes() == untouched
    same(rows(library), rows(made))
    assert make(path, dataclasses.replace(CONFIG, experts=2)).experts == [0, 1, 2]


def test_a_lost_expert_is_made_again(copy, made):
    expert_path(copy, 1).unlink()
    assert open_experts(copy).experts == [0, 2]
    same(rows(make(copy)), rows(made))


SCRIPT = """
import sys
sys.path[:0] = [{tests!r}, {tests!r} + "/experts"]
from pathlib import Path
import test_library

def pause(event):
    print(event["expert"], event["epoch"], flush=True)
    sys.stdin.readline()

test_library.make(Path({path!r}), on_epoch=pause, save_seconds=0)
"""


@pytest.mark.slow
def test_killed_at_any_moment_and_given_again(tmp_path, made):
    path = tmp_path / "library"
    script = SCRIPT.format(tests=os.path.dirname(os.path.dirname(__file__)), path=str(path))
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    for expected in ["0 1", "0 2", "0 3", "0 4", "1 1", "1 2", "1 3"]:
        assert process.stdout.readline().strip() == expected
        if expected != "1 3":
            process.stdin.write("\n")
            process.stdin.flush()
    process.send_signal(signal.SIGKILL)  # it waits for an answer about epoch 3
    process.wait()
    process.stdin.close()
    process.stdout.close()
    assert open_experts(path).experts == [0]
    # What else a kill may leave behind.
    expert_path(path, 1).with_name("expert_00001.safetensors.1-aa.partial").write_bytes(b"half")
    path.joinpath("images.1-aa.partial").write_bytes(b"half")
    events = []
    library = make(path, on_epoch=events.append)
    assert (events[0]["expert"], events[0]["epoch"]) == (1, 3)  # from the state after epoch 2
    same(rows(library), rows(made))
    assert [m["epoch"] for m in library.trajectory(1).metrics] == [1, 2, 3, 4]
    assert not list(path.glob("*.partial*"))
    assert not list(path.glob("images.*"))


WRITER = """
import sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}, {tests!r} + "/experts"]
from test_library import DATASET, WHITENING
from trajmatch.experts.mapped_images import MappedImages
from trajmatch.storage.folder import claim

with claim(Path({path!r}), "experts", shared=True):
    images = MappedImages.write(Path({path!r}), DATASET, WHITENING)
    print(images.path.name, flush=True)
    time.sleep(60)
"""


def test_images_of_a_killed_writer_are_removed_by_the_next_and_those_of_a_living_one_stay(tmp_path):
    script = WRITER.format(tests=os.path.dirname(os.path.dirname(__file__)), path=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    name = process.stdout.readline().strip()
    with claim(tmp_path, "experts", shared=True):
        assert (tmp_path / name).exists()  # its writer lives
    process.kill()
    process.wait()
    process.stdout.close()
    with claim(tmp_path, "experts", shared=True):
        assert not (tmp_path / name).exists()
    assert {path.name for path in tmp_path.iterdir()} == {".lock", ".trajmatch.json"}


def test_a_failed_writer_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Normalize, "apply_split", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        MappedImages.write(tmp_path, DATASET, WHITENING)
    assert list(tmp_path.iterdir()) == []


COMMAND = """
import sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}, {tests!r} + "/experts"]
import test_library

def show(event):
    print(event["expert"], event["epoch"], flush=True)
    time.sleep(0.05)

print("ready", flush=True)
sys.stdin.readline()
test_library.make(Path({path!r}), test_library.MORE, on_epoch=show, poll_seconds=0.02)
"""
MORE = dataclasses.replace(CONFIG, experts=8)


@pytest.mark.slow
def test_several_commands_fill_one_library_and_train_each_expert_once(tmp_path, made):
    script = COMMAND.format(tests=os.path.dirname(os.path.dirname(__file__)), path=str(tmp_path))
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for command in commands:
        assert command.stdout.readline() == "ready\n"
    for command in commands:
        command.stdin.write("\n")
        command.stdin.flush()
    lines = [command.communicate(timeout=120)[0].splitlines() for command in commands]
    assert [command.returncode for command in commands] == [0, 0, 0]
    trained = sorted(line for part in lines for line in part)
    assert trained == sorted(f"{i} {e}" for i in range(8) for e in (1, 2, 3, 4))
    assert sum(1 for part in lines if part) > 1  # else nothing was shared
    library = open_experts(tmp_path)
    library.verify()
    for expert, matrix in rows(made).items():
        assert torch.equal(rows(library)[expert], matrix)
    left = sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("expert_"))
    assert left == [".lock", ".trajmatch.json", "library.json", "whitening.safetensors"]
    assert len(list(tmp_path.glob("expert_*"))) == 8


def _save_state(path, library):
    """Train expert 0 and save its state after the second epoch."""
    images, labels = library.whitening.apply_split(DATASET.train), DATASET.train.labels
    epochs = expert_epochs(SPEC, images, labels, CONFIG, seed=3, index=0)
    state = next(itertools.islice(epochs, 1, None))
    state.save(path, index=0, library=library.digest)
    return state


@pytest.mark.parametrize(
    "harm", ["none", "flip", "cut", "other expert", "other library", "foreign"]
)
def test_a_state_is_used_only_if_it_is_sound(copy, made, harm):
    state = copy / "expert_00000.partial.safetensors"
    saved = _save_state(state, made)
    if harm == "flip":
        content = bytearray(state.read_bytes())
        content[-5] ^= 4
        state.write_bytes(content)
    elif harm == "cut":
        os.truncate(state, 700)
    elif harm == "foreign":
        shutil.copy(expert_path(copy, 0), state)
    elif harm != "none":
        index, library = (1, made.digest) if harm == "other expert" else (0, "0" * 16)
        saved.save(state, index=index, library=library)
    expert_path(copy, 0).unlink()
    events = []
    library = make(copy, on_epoch=events.append)
    assert events[0]["epoch"] == (3 if harm == "none" else 1)
    same(rows(library), rows(made))
    assert not state.exists()


def test_what_another_process_trains_is_left_to_it_until_it_dies(tmp_path, made):
    path, events = tmp_path / "library", []
    path.mkdir()
    config = dataclasses.replace(CONFIG, experts=2)
    # Locks exclude each other within a process as well: this stands for another command.
    with lock(path / "expert_00000.lock"):
        thread = threading.Thread(
            target=make,
            args=(path, config),
            kwargs={"on_epoch": events.append, "poll_seconds": 0.02},
        )
        thread.start()
        patience = time.monotonic() + 20
        while not expert_path(path, 1).exists() and time.monotonic() < patience:
            time.sleep(0.01)
        time.sleep(0.1)
        assert {event["expert"] for event in events} == {1}
        assert thread.is_alive()  # waiting for the other
    thread.join(timeout=20)  # which died
    assert not thread.is_alive()
    assert {event["expert"] for event in events} == {0, 1}
    library = open_experts(path)
    assert library.experts == [0, 1]
    assert torch.equal(library.trajectory(0).row(4), made.trajectory(0).row(4))


def test_images_stay_for_whoever_has_them_open(tmp_path):
    images = MappedImages.write(tmp_path, DATASET, WHITENING)
    found = images.open()
    images.remove()
    images.remove()
    assert list(tmp_path.iterdir()) == []
    assert found.keys() == {"train", "val", "test"}
    for name, (pixels, labels) in found.items():  # still there for whoever has them mapped
        split = getattr(DATASET, name)
        assert torch.equal(pixels, WHITENING.apply_split(split))
        assert torch.equal(labels, split.labels)


def test_divergence_keeps_what_is_good_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "library"
    with pytest.raises(TrajmatchError, match="expert 0 diverged"):
        make(path, dataclasses.replace(CONFIG, lr=1e20))
    names = {p.name for p in path.iterdir()}
    assert names == {".lock", ".trajmatch.json", "library.json", "whitening.safetensors"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"config": dataclasses.replace(CONFIG, lr=0.02)},
            r"was made with lr=0.05, this asks for lr=0.02; use lr=0.05 or another out=",
        ),
        (
            {"config": dataclasses.replace(CONFIG, epochs=3, weight_decay=0.1)},
            r"epochs=4, weight_decay=0.0, this asks for epochs=3, weight_decay=0.1; "
            r"use epochs=4, weight_decay=0.0 or another out=",
        ),
        ({"config": dataclasses.replace(CONFIG, augment=None)}, r"augment=color.*augment=none"),
        ({"config": dataclasses.replace(CONFIG, storage="bf16")}, r"storage='float32'"),
        ({"seed": 4}, r"seed=3, this asks for seed=4; use seed=3"),
        ({"dataset": make_dataset(1)}, r"data=arrays \(fingerprint .*use the same data"),
        ({"whitening": fit_whitening("zca", DATASET.train)}, r"whitening='normalize'"),
        ({"whitening": Normalize(torch.zeros(1), torch.ones(1))}, r"the whitening saved in it"),
        ({"spec": dataclasses.replace(SPEC, options={"width": 4, "depth": 2})}, r"depth=1 or"),
        ({"spec": dataclasses.replace(SPEC, name="mlp", options={})}, r"network='convnet'"),
        ({"spec": dataclasses.replace(SPEC, classes=4)}, r"the same network"),
    ],
)
def test_a_library_made_otherwise_is_refused(copy, change, message):
    with pytest.raises(MismatchError, match=message) as error:
        make(copy, **{"config": CONFIG, **change})
    assert "\n" not in str(error.value)


def test_a_whitening_fitted_on_another_machine_is_the_same(copy, made):
    mean, std = (WHITENING.tensors[name] * (1 + 1e-6) for name in ("mean", "std"))
    expert_path(copy, 2).unlink()
    same(rows(make(copy, whitening=Normalize(mean, std))), rows(made))


def test_no_augmentation_by_either_name(tmp_path):
    config = dataclasses.replace(CONFIG, experts=1, epochs=1, augment="none")
    make(tmp_path / "library", config)
    library = make(tmp_path / "library", dataclasses.replace(config, augment=None))
    assert library.settings.augment is None


@pytest.mark.parametrize("storage", ["float32", "bf16"])
def test_a_segment_is_read_into_given_memory(tmp_path, storage):
    config = dataclasses.replace(CONFIG, experts=1, epochs=2, storage=storage)
    library = make(tmp_path / "library", config)
    out = torch.zeros(2, library.spec.parameters())
    found = library.segment(0, 0, 2, out)
    assert [row.data_ptr() for row in found] == [row.data_ptr() for row in out]
    fresh = library.segment(0, 0, 2)
    assert torch.equal(out, torch.stack(fresh))
    library.segment(0, 1, 1, out)
    assert torch.equal(out[0], library.trajectory(0).row(1))
    assert not torch.equal(out[0], fresh[0])  # which is nobody else's


def test_bf16_storage(tmp_path, made):
    library = make(tmp_path / "library", dataclasses.replace(CONFIG, experts=1, storage="bf16"))
    start, target = library.segment(0, 0, 4)
    assert start.dtype == torch.float32
    assert torch.equal(target, made.segment(0, 0, 4)[1].bfloat16().float())


def test_places_that_hold_no_library(tmp_path, copy):
    with pytest.raises(FileFormatError, match=r"no expert library in .*give the out= of"):
        ExpertLibrary.open(tmp_path / "absent")
    with pytest.raises(SettingError, match="is a file"):
        make(copy / "library.json")
    document = read_json(copy / "library.json")
    for changed, message in [
        ({**document, "format": 2}, "newer trajmatch.*upgrade"),
        ({**document, "made": {**document["made"], "seed": 9}}, "was altered"),
        ({"format": 1}, "does not describe"),
        ([1], "does not describe"),
        ({**document, "format": None}, "does not describe"),
    ]:
        write_json(copy / "library.json", changed)
        with pytest.raises(FileFormatError, match=message):
            ExpertLibrary.open(copy)
    (copy / "library.json").write_text("{")
    with pytest.raises(FileFormatError, match="not a readable JSON"):
        make(copy)


def test_altered_and_foreign_experts(copy, tmp_path):
    content = bytearray(expert_path(copy, 1).read_bytes())
    content[-1] ^= 128
    expert_path(copy, 1).write_bytes(content)
    library = open_experts(copy)
    library.segment(1, 0, 3)  # the last row is not read
    with pytest.raises(FileFormatError, match="row 4 of 'parameters'"):
        library.segment(1, 0, 4)
    with pytest.raises(FileFormatError, match="expert_00001"):
        library.verify()
    shutil.copy(expert_path(copy, 0), expert_path(copy, 2))
    with pytest.raises(MismatchError, match=r"expert_00002.*another library"):
        open_experts(copy).segment(2, 0, 1)
    other = make(tmp_path / "other", dataclasses.replace(CONFIG, experts=1), seed=8)
    shutil.copy(expert_path(other.path, 0), expert_path(copy, 0))
    with pytest.raises(MismatchError, match=r"expert_00000.*another library"):
        open_experts(copy).accuracy()


def test_another_whitening_file_is_noticed(copy):
    Normalize(torch.zeros(1), torch.ones(1)).save(copy / "whitening.safetensors")
    library = open_experts(copy)
    with pytest.raises(MismatchError, match="not the one these experts were trained with"):
        _ = library.whitening


def test_trajectories_are_read_when_drawn(copy, monkeypatch):
    opened = []
    original = Trajectory.__init__
    monkeypatch.setattr(
        Trajectory, "__init__", lambda self, path: opened.append(path.name) or original(self, path)
    )
    library = open_experts(copy)
    assert opened == []
    for _ in range(3):
        library.segment(2, 0, 1)
    assert opened == ["expert_00002.safetensors"]

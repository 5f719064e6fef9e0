"""Training the experts a library lacks, by any number of processes at once.

Each expert is claimed by a file lock, which the end of its process frees, whatever ended it. So
several commands, or machines that share the folder and its locks, fill one library together, and a
command that was killed is simply given again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

from trajmatch.config import ExpertConfig, to_dict
from trajmatch.data.augment import Augmentation
from trajmatch.data.dataset import ImageDataset, Split
from trajmatch.data.whiten import Whitening
from trajmatch.errors import FileFormatError, MismatchError, SettingError
from trajmatch.experts.library import ExpertLibrary, expert_path, present, write_library
from trajmatch.experts.train import expert_accuracy, train_expert
from trajmatch.experts.trajectory import TrainingState, save_trajectory
from trajmatch.networks import NetworkSpec
from trajmatch.networks.functional import require_stateless
from trajmatch.runtime.compiling import log
from trajmatch.runtime.executor import emit, run_tasks
from trajmatch.types import Float, Int, Tensor

SAVE_SECONDS = 20.0
"""How long an expert trains between two saves of its state (at the ends of epochs)."""
POLL_SECONDS = 0.5
"""How often to look whether an expert that another process trains is done, or free again."""


def fill(
    path: str | Path,
    dataset: ImageDataset,
    spec: NetworkSpec,
    whitening: Whitening,
    config: ExpertConfig,
    *,
    seed: int = 0,
    workers: int = 1,
    device: torch.device | str = "cpu",
    on_progress: Callable[[dict[str, Any]], None] | None = None,
) -> ExpertLibrary:
    """Train the experts 0 to config.experts - 1 that the folder lacks; returns when all are there.

    Experts are the same to the bit on the CPU whatever `workers` is, however often the work was
    killed and taken up again, and whoever else fills the folder at the same time. A larger
    `config.experts` extends a library. Workers are processes of one thread (parallel.run_tasks);
    they share one copy of the whitened images: a mapped file in the folder, 12 bytes an RGB pixel,
    that is gone as soon as all have opened it.

    on_progress: called after every epoch of every expert trained here with {expert, epoch, epochs,
    train_loss, train_accuracy, seconds}.

    Raises MismatchError when the folder holds experts made otherwise, TrajmatchError when one
    diverges (nothing of it is kept) or a worker is killed.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise SettingError(f"{path} is a file; give a folder for the library as --out")
    augment = None if config.augment in (None, "none") else Augmentation(str(config.augment))
    config = dataclasses.replace(config, augment=augment.strategy if augment else None)
    require_stateless(spec.build(seed=0))
    path.mkdir(parents=True, exist_ok=True)
    with _lock(path / ".lock") as held:
        assert held
        library = _open_or_found(path, dataset, spec, whitening, config, seed)
        _MappedImages.sweep(path)
        missing = len(set(range(config.experts)) - set(library.experts))
        if not missing:
            return library
        # The library's own whitening: one fitted elsewhere may differ in the last bit.
        images = _MappedImages.write(path, dataset, library.whitening)
    workers = waiting = min(workers, missing)
    job = _Job(path, library.digest, spec, config, seed, str(device), augment, images)

    said: set[str] = set()

    def hear(event: dict[str, Any]) -> None:
        nonlocal waiting
        if "note" in event:
            if event["note"] not in said:  # by one worker is enough
                said.add(event["note"])
                log.info("experts: %s", event["note"])
        elif "expert" not in event:
            waiting -= 1
            if not waiting:
                images.remove()
        elif on_progress:
            on_progress(event)

    try:
        work = functools.partial(_train_missing, job)
        run_tasks(work, range(workers), workers=workers, on_event=hear)
    finally:
        images.remove()
    return ExpertLibrary.open(path)


def _open_or_found(
    path: Path,
    dataset: ImageDataset,
    spec: NetworkSpec,
    whitening: Whitening,
    config: ExpertConfig,
    seed: int,
) -> ExpertLibrary:
    """The library in the folder, after checking that it was made so; a new one if there is none."""
    settings = to_dict(config)
    # How many there are, and how their gradients were computed, is no part of how each was made.
    del settings["experts"], settings["compile"]
    if (path / "library.json").exists():
        library = ExpertLibrary.open(path)
    else:
        made = {
            "seed": seed,
            "settings": settings,
            "network": spec.to_json(),
            "whitening": whitening.summary(),
            "data": dataset.summary(),
        }
        library = write_library(path, made, whitening)
    if library.imported:
        raise MismatchError(
            f"the experts in {path} were imported and how they were trained is not known, so no "
            "more can be trained like them; give another --out, or add some with `trajmatch import`"
        )
    differing = _differences(library, dataset, spec, whitening, {**settings, "seed": seed})
    if differing:
        was, asks, mend = zip(*differing, strict=True)
        raise MismatchError(
            f"library {path} was made with {', '.join(was)}, this asks for {', '.join(asks)}; "
            f"use {', '.join(mend)} or another --out"
        )
    return library


def _differences(
    library: ExpertLibrary,
    dataset: ImageDataset,
    spec: NetworkSpec,
    whitening: Whitening,
    settings: dict[str, Any],
) -> list[tuple[str, str, str]]:
    """What would have to be the same and is not: how the library was made, what is asked, mend."""
    theirs = {**to_dict(library.settings), "seed": library.seed}
    asked = {**settings, "network": spec.name, **spec.options, "whitening": whitening.name}
    theirs.update(network=library.spec.name, **library.spec.options)
    theirs["whitening"] = library.whitening.name
    differing = []
    for name, value in asked.items():
        was = theirs.get(name, value)  # an option that the other network has not
        if was != value:
            was, value = ("none" if v is None else v for v in (was, value))
            flag = f"--{name.replace('_', '-')} {was}"
            differing.append((f"{name}={was}", f"{name}={value}", flag))
    if library.data["fingerprint"] != dataset.fingerprint:
        was = f"data={library.data['name']} (fingerprint {library.data['fingerprint']})"
        asks = f"data={dataset.name} (fingerprint {dataset.fingerprint})"
        differing.append((was, asks, "the same data, --size and --val-fraction"))
    elif not differing and library.spec != spec:
        differing.append((f"{library.spec}", f"{spec}", "the same network"))
    elif not differing and library.whitening.checksum != whitening.checksum:
        # Fitted on another machine it differs in the last bits, and that is no other whitening.
        few = Split(dataset.train.images[:8], dataset.train.labels[:8])
        before, images = library.whitening.apply_split(few), whitening.apply_split(few)
        if not torch.allclose(images, before, rtol=1e-3, atol=1e-3):
            was, asks = (f"whitening {w.checksum}" for w in (library.whitening, whitening))
            differing.append((was, asks, "the whitening saved in it"))
    return differing


@dataclasses.dataclass(frozen=True)
class _MappedImages:
    """Whitened images and labels of every split, as a file that processes map and share.

    Shared memory would do, but /dev/shm is 64 MB in most containers. The writer holds a lock on the
    file, so that one left behind by a killed writer is told apart and removed.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    labels: dict[str, Int[Tensor, "_"]]
    file: IO[bytes] | None
    """The writer's, which holds the lock; None in other processes."""

    @classmethod
    def write(cls, folder: Path, dataset: ImageDataset, whitening: Whitening) -> _MappedImages:
        """Whiten in pieces, to disk. The folder's lock must be held."""
        splits = {"train": dataset.train, "test": dataset.test}
        if dataset.val is not None:
            splits["val"] = dataset.val
        path = folder / f"images.{os.getpid()}-{secrets.token_hex(4)}.partial"
        file = path.open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            for split in splits.values():
                for start in range(0, len(split), 4096):
                    rows = slice(start, start + 4096)
                    piece = whitening.apply_split(Split(split.images[rows], split.labels[rows]))
                    file.write(piece.view(-1).numpy().data)
            file.flush()
        except BaseException:
            path.unlink()
            file.close()
            raise
        shapes = {name: tuple(split.images.shape) for name, split in splits.items()}
        labels = {name: split.labels.long() for name, split in splits.items()}
        return cls(path, shapes, labels, file)

    @staticmethod
    def sweep(folder: Path) -> None:
        """Remove what killed writers left behind. The folder's lock must be held."""
        for left in folder.glob("images.*.partial"):
            with _lock(left, wait=False) as ours:
                if ours:
                    left.unlink(missing_ok=True)

    def open(self) -> dict[str, tuple[Float[Tensor, "n channels height width"], Tensor]]:
        """Images and labels per split; pages of the file, read when touched and shared by all."""
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        mapped = torch.from_file(str(self.path), shared=False, size=sum(sizes), dtype=torch.float32)
        parts = zip(self.shapes.items(), torch.split(mapped, sizes), strict=True)
        return {name: (part.view(shape), self.labels[name]) for (name, shape), part in parts}

    def remove(self) -> None:
        """Take the file's name away: its pages live as long as somebody has them mapped."""
        self.path.unlink(missing_ok=True)
        if self.file:
            self.file.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "file": None}


@dataclasses.dataclass(frozen=True)
class _Job:
    """All a worker needs to know."""

    path: Path
    library: str
    spec: NetworkSpec
    config: ExpertConfig
    seed: int
    device: str
    augment: Augmentation | None
    images: _MappedImages


def _train_missing(job: _Job, worker: int) -> None:
    """Train experts until none is missing: first what is free, then wait for what others train."""
    splits = {
        name: (images.to(job.device), labels.to(job.device))
        for name, (images, labels) in job.images.open().items()
    }
    emit({"opened": worker})
    while missing := sorted(set(range(job.config.experts)) - set(present(job.path))):
        trained = 0
        for index in missing:
            lock = job.path / f"expert_{index:05d}.lock"
            with _lock(lock, wait=False) as ours:
                if not ours:
                    continue
                if not expert_path(job.path, index).exists():
                    _train_one(job, index, splits)
                    trained += 1
                # Only now that the expert is there: whoever locks another file of this name, or
                # still this one, finds it done.
                lock.unlink(missing_ok=True)
        if not trained:
            time.sleep(POLL_SECONDS)


def _train_one(job: _Job, index: int, splits: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Train one expert, from where a killed process left it if there is such a state."""
    state = job.path / f"expert_{index:05d}.partial.safetensors"
    for left in job.path.glob(f"expert_{index:05d}.*.partial"):
        left.unlink()  # half-written by a process that is gone: we hold the lock
    resume = None
    if state.exists():
        try:
            resume = TrainingState.load(state, index=index, library=job.library)
        except FileFormatError:
            state.unlink()
    saved = time.monotonic()

    def on_epoch(recording: TrainingState) -> None:
        nonlocal saved
        emit({"expert": index, "epochs": job.config.epochs, **recording.metrics[-1]})
        done = recording.epochs == job.config.epochs
        if not done and time.monotonic() - saved >= SAVE_SECONDS:
            recording.save(state, index=index, library=job.library)
            saved = time.monotonic()

    recording = train_expert(
        job.spec,
        *splits["train"],
        job.config,
        seed=job.seed,
        index=index,
        augment=job.augment,
        resume=resume,
        on_epoch=on_epoch,
    )
    scores = {
        name: expert_accuracy(job.spec, recording.vector, *splits[name])
        for name in ("val", "test")
        if name in splits
    }
    save_trajectory(
        expert_path(job.path, index),
        recording,
        seed=job.seed,
        index=index,
        library=job.library,
        val_accuracy=scores.get("val"),
        test_accuracy=scores["test"],
    )
    state.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock on a file, made if absent; False when another process holds it."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True  # freed when the file is closed, by us or by our end

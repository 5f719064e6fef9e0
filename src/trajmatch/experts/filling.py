"""Training the experts that a library lacks, by any number of processes at once.

Each expert is claimed by a file lock, which is free again when its process ends, however it ends.
So several commands, or machines that share the folder and its locks, fill one library together, and
a command that was killed continues when it is given again.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

from trajmatch.config import ExpertConfig
from trajmatch.data.dataset import ImageDataset
from trajmatch.data.whiten import Whitening
from trajmatch.errors import FileFormatError
from trajmatch.experts.founding import open_or_found
from trajmatch.experts.library import ExpertLibrary, expert_path, present
from trajmatch.experts.mapped_images import MappedImages
from trajmatch.experts.train import augmentation_of, expert_accuracy, expert_epochs
from trajmatch.experts.trajectory import TrainingState, save_trajectory
from trajmatch.networks import NetworkSpec
from trajmatch.networks.functional import require_stateless
from trajmatch.runtime.compiling import log
from trajmatch.runtime.executor import emit, run_tasks
from trajmatch.runtime.progress import SILENT, Progress
from trajmatch.runtime.resources import Resources
from trajmatch.storage.folder import claim
from trajmatch.storage.locks import ProcessLock, lock
from trajmatch.types import Tensor


@dataclasses.dataclass(frozen=True)
class LibraryFilling:
    """The experts 0 to config.experts - 1 of the library in a folder, to be trained where missing.

    A larger `config.experts` extends a library.
    """

    path: Path
    dataset: ImageDataset
    spec: NetworkSpec
    whitening: Whitening
    config: ExpertConfig
    seed: int = 0
    save_seconds: float = 20.0
    """How long an expert trains between two saves of its state (at the ends of epochs)."""
    poll_seconds: float = 0.5
    """How often to check whether an expert that another process trains is done, or free again."""

    def run(
        self, *, resources: Resources = Resources(), progress: Progress = SILENT
    ) -> ExpertLibrary:
        """Train the missing experts; returns when all are there.

        Experts are the same to the bit on the CPU whatever the number of workers, however often the
        work was killed and resumed, and whoever else fills the folder at the same time. Workers are
        processes of one thread (`executor.run_tasks`). They share one copy of the whitened images:
        a mapped file in the folder, 12 bytes an RGB pixel, removed as soon as all have it open.

        progress: `update("experts", ...)` counts the epochs of all experts, those found in the
            folder included; `event("epoch", expert=, epoch=, epochs=, train_loss=, train_accuracy=,
            seconds=)` follows each epoch trained here.

        Raises MismatchError when the folder holds experts made otherwise, TrajmatchError when one
        diverges (nothing of it is kept) or a worker is killed.
        """
        with claim(self.path, "experts", shared=True):
            return self._run(resources, progress)

    def _run(self, resources: Resources, progress: Progress) -> ExpertLibrary:
        augment = augmentation_of(self.config)
        config = dataclasses.replace(self.config, augment=augment.strategy if augment else None)
        require_stateless(self.spec.build(seed=0))
        with lock(self.path / ".lock"):
            library = open_or_found(
                self.path, self.dataset, self.spec, self.whitening, config, self.seed
            )
            finished = set(range(config.experts)) & set(library.experts)
            missing = config.experts - len(finished)
            if not missing:
                return library
            # The library's own whitening: one fitted elsewhere may differ in the last bit.
            images = MappedImages.write(self.path, self.dataset, library.whitening)
        workers = resources.worker_count(missing)
        job = _Job(
            path=self.path,
            library=library.digest,
            spec=self.spec,
            config=config,
            seed=self.seed,
            device=str(resources.device),
            images=images,
            save_seconds=self.save_seconds,
            poll_seconds=self.poll_seconds,
        )
        events = _Events(images, workers, config, dict.fromkeys(finished, config.epochs), progress)
        try:
            work = functools.partial(_train_missing, job)
            run_tasks(work, range(workers), workers=workers, on_event=events.receive)
        finally:
            images.remove()
        return ExpertLibrary.open(self.path)


@dataclasses.dataclass
class _Events:
    """Receives what workers emit: notes, epochs, and that a worker has the images open."""

    images: MappedImages
    unopened: int
    """Workers that have not opened the images yet."""
    config: ExpertConfig
    epochs: dict[int, int]
    """Epochs done, by expert."""
    progress: Progress
    notes: set[str] = dataclasses.field(default_factory=set)
    """Those logged already: every worker emits its own."""

    def receive(self, event: dict[str, Any]) -> None:
        if "note" in event:
            if event["note"] not in self.notes:
                self.notes.add(event["note"])
                log.info("experts: %s", event["note"])
        elif "expert" in event:
            expert, epoch = event["expert"], event["epoch"]
            self.epochs[expert] = epoch
            self.progress.event("epoch", **event)
            self.progress.update(
                "experts",
                sum(self.epochs.values()),
                self.config.experts * self.config.epochs,
                expert=expert,
                epoch=epoch,
                train_accuracy=event["train_accuracy"],
            )
        else:
            self.unopened -= 1
            if not self.unopened:
                self.images.remove()


@dataclasses.dataclass(frozen=True)
class _Job:
    """What a worker gets."""

    path: Path
    library: str
    """Its digest."""
    spec: NetworkSpec
    config: ExpertConfig
    seed: int
    device: str
    images: MappedImages
    save_seconds: float
    poll_seconds: float


def _train_missing(job: _Job, worker: int) -> None:
    """Train experts until none is missing: those that are free first, then wait for the others."""
    splits = {
        name: (images.to(job.device), labels.to(job.device))
        for name, (images, labels) in job.images.open().items()
    }
    emit({"opened": worker})
    while missing := sorted(set(range(job.config.experts)) - set(present(job.path))):
        trained = 0
        for index in missing:
            claim = ProcessLock(job.path / f"expert_{index:05d}.lock")
            if not claim.acquire():
                continue
            try:
                # Another process may have finished it since the folder was listed.
                if not expert_path(job.path, index).exists():
                    _train_one(job, index, splits)
                    trained += 1
            finally:
                claim.release(remove=True)
        if not trained:
            time.sleep(job.poll_seconds)


def _train_one(job: _Job, index: int, splits: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Train one expert, from the state that a killed process saved if there is one."""
    saved_state = job.path / f"expert_{index:05d}.partial.safetensors"
    resume = state = None
    if saved_state.exists():
        try:
            resume = TrainingState.load(saved_state, index=index, library=job.library)
        except FileFormatError:
            saved_state.unlink()
    saved = time.monotonic()
    for state in expert_epochs(
        job.spec, *splits["train"], job.config, seed=job.seed, index=index, resume=resume
    ):
        emit({"expert": index, "epochs": job.config.epochs, **state.metrics[-1]})
        finished = state.epochs == job.config.epochs
        if not finished and time.monotonic() - saved >= job.save_seconds:
            state.save(saved_state, index=index, library=job.library)
            saved = time.monotonic()
    assert state is not None  # a config has at least one epoch
    scores = {
        name: expert_accuracy(job.spec, state.vector, *splits[name])
        for name in ("val", "test")
        if name in splits
    }
    save_trajectory(
        expert_path(job.path, index),
        state,
        seed=job.seed,
        index=index,
        library=job.library,
        val_accuracy=scores.get("val"),
        test_accuracy=scores["test"],
    )
    saved_state.unlink(missing_ok=True)

"""MTT: which segment of which expert is drawn, and what is asked of the student's end point.

Source: Cazenavette, Wang, Torralba, Efros, Zhu, Dataset Distillation by Matching Training
Trajectories, CVPR 2022, algorithm 1.
"""

from __future__ import annotations

import itertools
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from trajmatch.compiling import Work, forward_flop, wanted
from trajmatch.config import DistillConfig
from trajmatch.data.canvas import Window
from trajmatch.distillation.ground import Ground
from trajmatch.distillation.learned import Estimate, Learned, mean_estimate
from trajmatch.distillation.method import Maker
from trajmatch.errors import SettingError
from trajmatch.networks.base import Network
from trajmatch.passes import Passes, passes
from trajmatch.pieces import piece_length
from trajmatch.rng import stream
from trajmatch.types import Tensor
from trajmatch.unroll import Schedule, SegmentDistance, Student, plan, walk

PASSES = 12
"""Of a network's convolutions, in one student step and its way back."""
WORK_PER_THREAD = 16
"""A second thread is started from a 16th of a cache-sized piece on: half a megabyte."""


class TrajectoryMatching(Maker):
    """Estimates the matching loss and its exact gradient on freshly drawn segments.

    Every draw is a function of (seed, iteration, segment), so nothing has to be saved to resume.
    """

    name = "mtt"
    needs_experts = True
    learns_step_size = True
    normalized = True

    def __init__(self, ground: Ground, config: DistillConfig, *, seed: int) -> None:
        super().__init__(ground, config, seed=seed)
        self.library = ground.experts
        require_long_enough(self.library.epochs, config)
        self.module = self.library.spec.build(seed=0).to(self.device)
        self.piece = piece_length(self.module, self.module.image_shape, self.device)
        height, width = self.module.image_shape[1:]
        self.window = Window(height, width, config.samples) if config.texture else None
        # Segments are read into one of two pairs of rows in turn: fresh memory can cost several
        # times as much as the reading.
        rows = torch.empty(2, 2, self.library.spec.parameters(), dtype=torch.float32)
        self._memory = itertools.cycle(rows.unbind())
        self._reader = ThreadPoolExecutor(1, "segments")
        self._waiting: dict[tuple[int, int], Future[tuple[Tensor, Tensor]]] = {}

    def segment_at(self, iteration: int, number: int) -> tuple[int, int]:
        """The expert and the start epoch that an iteration draws, uniformly."""
        experts = self.library.experts
        draw = stream(self.seed, "distill", "segment", iteration, number)
        expert = int(torch.randint(len(experts), (), generator=draw))
        epoch = int(torch.randint(self.config.max_start_epoch, (), generator=draw))
        return experts[expert], epoch

    def estimate(self, learned: Learned, iteration: int) -> Estimate:
        """Loss and gradients of one iteration: the mean over `config.segments` drawn segments."""
        return mean_estimate(
            [self._one(learned, iteration, number) for number in range(self.config.segments)]
        )

    def _one(self, learned: Learned, iteration: int, number: int) -> Estimate:
        start, target = (row.to(self.device) for row in self._ahead(iteration, number))
        schedule = Schedule.make(
            learned.images,
            steps=self.config.syn_steps,
            batch_syn=self.config.batch_syn,
            augment=self.augment,
            window=self.window,
            seed=self.seed,
            names=("distill", "walk", iteration, number),
        )
        student = Student(
            self._passes(learned),
            learned.images,
            learned.labels,
            self.augment,
            schedule,
            self.piece,
        )
        if "keep" not in self.decisions:
            decided = plan(student, start, self.config.gradient)
            self.decisions |= {"keep": decided.keep, "reason": decided.reason}
        result = walk(
            student,
            start,
            learned.step_size,
            SegmentDistance(start, target),
            keep=self.decisions["keep"],
            truncate=self.config.gradient == "tesla",
        )
        return Estimate(result.loss, result.grad_images, result.grad_labels, result.grad_step_size)

    def _ahead(self, iteration: int, number: int) -> tuple[Tensor, Tensor]:
        """The rows of a segment; those of the next are read meanwhile, by a thread.

        They are good until this is called again: then their memory is read into anew.
        """
        following = (iteration, number + 1)
        if following[1] == self.config.segments:
            following = (iteration + 1, 0)
        rows = self._waiting.pop((iteration, number), None) or self._read(iteration, number)
        self._waiting = {following: self._read(*following)}
        return rows.result()

    def _read(self, iteration: int, number: int) -> Future[tuple[Tensor, Tensor]]:
        expert, epoch = self.segment_at(iteration, number)
        length, out = self.config.expert_epochs, next(self._memory)
        return self._reader.submit(self.library.segment, expert, epoch, length, out)

    def batch(self, learned: Learned) -> int:
        """How many images a student sees at a step."""
        return (self.config.batch_syn or len(learned.images)) * self.config.samples

    def threads(self, learned: Learned) -> int:
        """More than one only where there is work enough for each."""
        small = self.batch(learned) * WORK_PER_THREAD <= self.piece
        return 1 if small else super().threads(learned)

    def _passes(self, learned: Learned) -> Passes:
        """Compiled or not: decided once a run, by how much there is to do."""
        if "compile" not in self.decisions:
            work = walking_work(self.module, self.config, self.batch(learned), self.device)
            self.decisions["compile"] = wanted(self.config.compile, work)
        return passes(
            self.module, precision=self.config.precision, compile=self.decisions["compile"]
        )


def walking_work(module: Network, config: DistillConfig, batch: int, device: torch.device) -> Work:
    """What it takes to walk all iterations of a run, with `batch` images a step, out and back."""
    piece = piece_length(module, module.image_shape, device)
    steps = config.iterations * config.segments * config.syn_steps
    calls = 3 * steps * -(-batch // (piece or batch))
    return Work(calls, PASSES * steps * batch * forward_flop(module, module.image_shape))


def require_long_enough(epochs: int, config: DistillConfig) -> None:
    """Refuse experts of so many epochs when segments reach beyond their last."""
    needed = config.max_start_epoch - 1 + config.expert_epochs
    if epochs < needed:
        fits = epochs - config.expert_epochs + 1
        mend = f"use --max-start-epoch {fits}" if fits >= 1 else f"train with --epochs {needed}"
        raise SettingError(
            f"segments reach epoch {needed} (max_start_epoch {config.max_start_epoch} - 1 + "
            f"expert_epochs {config.expert_epochs}) and these experts have {epochs}; "
            f"{mend}" + (f" or train experts with --epochs {needed}" if fits >= 1 else "")
        )

"""MTT: which segment of which expert is drawn, and what is asked of the student's end point.

Source: Cazenavette, Wang, Torralba, Efros, Zhu, Dataset Distillation by Matching Training
Trajectories, CVPR 2022, algorithm 1.
"""

from __future__ import annotations

import itertools
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from trajmatch.config import DistillConfig
from trajmatch.errors import SettingError
from trajmatch.methods.parameters import SyntheticParameters
from trajmatch.methods.problem import Problem
from trajmatch.methods.unrolled import UnrolledMethod
from trajmatch.rng import stream
from trajmatch.types import Tensor
from trajmatch.unroll import OuterLoss, SegmentDistance


class MTT(UnrolledMethod):
    """Estimates the matching loss and its exact gradient on freshly drawn segments.

    Every draw is a function of (seed, iteration, segment), so nothing has to be saved to resume.
    """

    name = "mtt"
    title = "trajectory matching (MTT)"
    objective = "distance left to the expert"
    needs_experts = True
    normalized = True

    def __init__(self, ground: Problem, config: DistillConfig, *, seed: int) -> None:
        super().__init__(ground, config, seed=seed)
        self.library = ground.experts
        require_long_enough(self.library.epochs, config)
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

    def outer_problem(
        self, learned: SyntheticParameters, iteration: int, number: int
    ) -> tuple[Tensor, OuterLoss]:
        start, target = (row.to(self.device) for row in self._ahead(iteration, number))
        return start, SegmentDistance(start, target)

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

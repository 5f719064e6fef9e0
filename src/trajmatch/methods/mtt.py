"""MTT: the student's end point is matched to where an expert was some epochs later."""

from __future__ import annotations

import dataclasses
import itertools
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ClassVar

import torch

from trajmatch.config import require
from trajmatch.data.canvas import CropSampler
from trajmatch.data.whiten import WHITENINGS
from trajmatch.errors import SettingError
from trajmatch.experts import ExpertLibrary
from trajmatch.methods.base import Canvas, Conditions
from trajmatch.methods.parameters import SyntheticParameters
from trajmatch.methods.problem import Problem
from trajmatch.methods.unrolled import SoftLabels, UnrolledMethod
from trajmatch.networks.base import height_width
from trajmatch.rng import stream
from trajmatch.types import Tensor
from trajmatch.unroll import OuterLoss, SegmentDistance


@dataclasses.dataclass(frozen=True, kw_only=True)
class MTT(SoftLabels, UnrolledMethod):
    """Matching training trajectories (algorithm 1, equation 2).

    Per iteration: draw an expert and a start epoch t in {0, ..., T+ - 1}; from the expert's
    parameters at t take N student steps on the synthetic images; the loss is the squared distance
    to the expert's parameters M epochs later, divided by the squared length of the expert's own
    segment.

    Defaults are the authors' for CIFAR-10 at one image per class; `trajmatch recipes` has the
    others.

        >>> MTT(syn_steps=20).expert_epochs
        2
    """

    name: ClassVar[str] = "mtt"
    title: ClassVar[str] = "trajectory matching (MTT)"
    objective: ClassVar[str] = "distance left to the expert"
    reference: ClassVar[str] = (
        "Cazenavette, Wang, Torralba, Efros, Zhu: Dataset Distillation by Matching Training "
        "Trajectories, CVPR 2022"
    )
    needs_experts: ClassVar[bool] = True
    normalized: ClassVar[bool] = True

    expert_epochs: int = 2
    """M: how many expert epochs the N steps should reach."""
    max_start_epoch: int = 2
    """T+: segments start at an epoch in {0, ..., T+ - 1}."""
    lr_img: float = 100.0
    """Learning rate of the pixels, in whitened units."""
    skip_loss: float = 1.0
    """Skip an update whose loss exceeds this: the student ended farther away than it began."""
    texture: bool = False
    """Learn canvases that wrap around, trained on in crops: tiles without seams, drawn in
    OUT/best/textures (Cazenavette et al., CVPR Workshops 2022). Best with --init noise."""
    canvas: int | None = None
    """Side of a texture's canvas in pixels. None: twice the image's."""
    samples: int = 1
    """Crops of each canvas of a texture per student step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.texture:
            mend = "without --texture, which learns canvases"
            require(self, "canvas", self.canvas is None, f"none {mend}")
            require(self, "samples", self.samples == 1, f"1 {mend}")

    @property
    def last_epoch(self) -> int:
        """The last expert epoch that a segment can end at."""
        return self.max_start_epoch - 1 + self.expert_epochs

    def check(self, conditions: Conditions) -> None:
        super().check(conditions)
        if conditions.expert_epochs is not None:
            self._check_epochs(conditions.expert_epochs)
        if self.texture:
            self._check_texture(conditions)

    def segment_at(self, problem: Problem, iteration: int, number: int) -> tuple[int, int]:
        """The expert and the start epoch that an iteration draws, uniformly."""
        return _draw_segment(self, problem.experts, problem.seed, iteration, number)

    def outer_problem(
        self, problem: Problem, parameters: SyntheticParameters, iteration: int, number: int
    ) -> tuple[Tensor, OuterLoss]:
        reader = problem.cached(
            ("segments", self), lambda: SegmentReader(self, problem.experts, problem.seed)
        )
        start, target = (row.to(parameters.images) for row in reader.read(iteration, number))
        return start, SegmentDistance(start, target)

    def canvas_for(self, height: int, width: int) -> Canvas | None:
        if not self.texture:
            return None
        tall, wide = (2 * height, 2 * width)
        if self.canvas is not None:
            tall = wide = self.canvas
        return Canvas(CropSampler(height, width, self.samples), tall, wide)

    def _check_epochs(self, epochs: int) -> None:
        needed = self.last_epoch
        if epochs >= needed:
            return
        fits = epochs - self.expert_epochs + 1
        mend = f"use --max-start-epoch {fits}" if fits >= 1 else f"train with --epochs {needed}"
        raise SettingError(
            f"segments reach epoch {needed} (max_start_epoch {self.max_start_epoch} - 1 + "
            f"expert_epochs {self.expert_epochs}) and these experts have {epochs}; "
            f"{mend}" + (f" or train experts with --epochs {needed}" if fits >= 1 else "")
        )

    def _check_texture(self, conditions: Conditions) -> None:
        whitening = conditions.whitening
        if whitening is not None and not WHITENINGS.known(whitening).any_size:
            raise SettingError(
                f"whitening is '{whitening}', which is fitted to images of one size, and --texture "
                "learns larger canvases; match experts trained with --whitening=normalize"
            )
        if self.labels_from_experts:
            raise SettingError(
                "init_labels is experts, who see images and not canvases; leave it or --texture out"
            )
        height, width = height_width(conditions.spec.size)
        canvas = self.canvas_for(height, width)
        assert canvas is not None
        if canvas.height < height or canvas.width < width:
            raise SettingError(
                f"canvas is {self.canvas} and the images are {height}x{width} pixels; "
                f"use at least {max(height, width)}, or none for twice the image"
            )


class SegmentReader:
    """Reads each iteration's segments, and the next one ahead in a thread.

    Rows are read into one of two pairs of buffers in turn, because fresh memory can cost several
    times as much as the reading: what `read` returns is valid until it is called again.
    """

    def __init__(self, method: MTT, library: ExpertLibrary, seed: int) -> None:
        self.method, self.library, self.seed = method, library, seed
        rows = torch.empty(2, 2, library.spec.parameters(), dtype=torch.float32)
        self._buffers = itertools.cycle(rows.unbind())
        self._reader = ThreadPoolExecutor(1, "segments")
        self._waiting: dict[tuple[int, int], Future[tuple[Tensor, Tensor]]] = {}

    def read(self, iteration: int, number: int) -> tuple[Tensor, Tensor]:
        """The expert's parameters at the start and at the end of a segment."""
        following = (iteration, number + 1)
        if following[1] == self.method.segments:
            following = (iteration + 1, 0)
        rows = self._waiting.pop((iteration, number), None) or self._begin(iteration, number)
        self._waiting = {following: self._begin(*following)}
        return rows.result()

    def _begin(self, iteration: int, number: int) -> Future[tuple[Tensor, Tensor]]:
        expert, epoch = _draw_segment(self.method, self.library, self.seed, iteration, number)
        length, out = self.method.expert_epochs, next(self._buffers)
        return self._reader.submit(self.library.segment, expert, epoch, length, out)


def _draw_segment(
    method: MTT, library: ExpertLibrary, seed: int, iteration: int, number: int
) -> tuple[int, int]:
    draw = stream(seed, "distill", "segment", iteration, number)
    expert = int(torch.randint(len(library.experts), (), generator=draw))
    epoch = int(torch.randint(method.max_start_epoch, (), generator=draw))
    return library.experts[expert], epoch

"""MTT: the student's end point is matched to where an expert was some epochs later."""

from __future__ import annotations

import dataclasses
import itertools
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ClassVar

import torch

from trajmatch.config import SGD, Adam, DistillConfig, OuterOptimizer, require
from trajmatch.data.canvas import CropSampler
from trajmatch.data.whiten import WHITENINGS
from trajmatch.errors import SettingError
from trajmatch.experts import ExpertLibrary
from trajmatch.methods.base import Canvas, Conditions
from trajmatch.methods.calibration import calibrate
from trajmatch.methods.loop import NO_LIMIT
from trajmatch.methods.parameters import SyntheticParameters
from trajmatch.methods.problem import Problem
from trajmatch.methods.unrolled import SoftLabels, UnrolledMethod
from trajmatch.networks.base import height_width
from trajmatch.rng import stream
from trajmatch.types import Tensor
from trajmatch.unroll import SegmentDistance

MOST_BY_ADAM = 1.0
"""A higher rate of the pixels is refused where Adam is taken because no optimizer is given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MTT(SoftLabels, UnrolledMethod):
    """Matching training trajectories (algorithm 1, equation 2).

    Per iteration: draw an expert and a start epoch t in {0, ..., T+ - 1}; from the expert's
    parameters at t take N student steps on the synthetic images; the loss is the squared distance
    to the expert's parameters M epochs later, divided by the squared length of the expert's own
    segment.

    N, M, T+ and alpha_0 are calibrated from the experts where they are None (`calibration`), and
    the rates are relative: of whitened pixels, and of the step size itself, for Adam. The authors'
    settings, for SGD, are in their recipes (`trajmatch recipes`).

        >>> MTT(syn_steps=20).expert_epochs is None  # calibrated when distillation begins
        True
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
    default_optimizer: ClassVar[OuterOptimizer] = Adam(betas=(0.5, 0.9))
    default_ema: ClassVar[float] = 0.95
    calibrates: ClassVar[tuple[str, ...]] = (
        "syn_steps",
        "expert_epochs",
        "max_start_epoch",
        "step_size",
    )

    syn_steps: int | None = None
    """N: student steps on the synthetic images per iteration. None: calibrated from the experts."""
    expert_epochs: int | None = None
    """M: how many expert epochs the N steps should reach. None: calibrated."""
    max_start_epoch: int | None = None
    """T+: segments start at an epoch in {0, ..., T+ - 1}. None: calibrated."""
    step_size: float | None = None
    """alpha_0: the student's learning rate at the start; learned as log(alpha). None: calibrated by
    a line search on the first images."""
    lr_img: float = 0.03
    """Learning rate of the pixels, in whitened units: with Adam about how far a pixel moves an
    iteration. Published rates (100 and more) are for --optimizer sgd."""
    lr_log_step_size: float = 0.02
    """Learning rate of log(step size): with Adam about its relative change an iteration."""
    lr_lr: float | None = None
    """In its place, for SGD: the rate of the step size in the published unit; lr_lr / step_size^2
    on its log. 0: the step size stays as it is."""
    skip_loss: float | None = None
    """Skip an update whose loss exceeds this: the student ended farther away than it began. None: 1
    as published with SGD; with others, whose steps no large gradient lengthens, only updates that
    are not finite are skipped."""
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
        """The last expert epoch that a segment can end at; what is calibrated counts as 1."""
        return (self.max_start_epoch or 1) - 1 + (self.expert_epochs or 1)

    @property
    def segment(self) -> tuple[int, int]:
        """M and T+. Raises SettingError before they are calibrated."""
        if self.expert_epochs is None or self.max_start_epoch is None:
            raise SettingError(
                "expert_epochs and max_start_epoch are not calibrated yet; use "
                "MTT.calibrated, or give them"
            )
        return self.expert_epochs, self.max_start_epoch

    @property
    def rates(self) -> dict[str, float]:
        rate = self.lr_log_step_size
        if self.lr_lr is not None:
            rate = self.lr_lr / self.first_step_size**2
        return {**super().rates, "log_step_size": rate}

    def completed(self, config: DistillConfig) -> tuple[MTT, DistillConfig]:
        _, loop = super().completed(config)
        if config.optimizer is None and self.lr_img > MOST_BY_ADAM:
            raise SettingError(
                f"lr_img is {self.lr_img:g} and the outer optimizer is adam, which moves every "
                f"pixel by about that much, in whitened units, at each iteration; use "
                f"--lr-img=0.03, or --optimizer=sgd for which published rates are meant"
            )
        if isinstance(loop.optimizer, SGD) and self.lr_img == MTT.lr_img:
            raise SettingError(
                f"lr_img is {self.lr_img:g}, which is meant for adam, and the outer optimizer is "
                f"{loop.optimizer}; give --lr-img too (published: 100 and more), or leave "
                "--optimizer out"
            )
        limit = self.skip_loss
        if limit is None:
            limit = 1.0 if isinstance(loop.optimizer, SGD) else NO_LIMIT
        return dataclasses.replace(self, skip_loss=limit), loop

    def assumed(self) -> MTT:
        """With what calibration gives most often."""
        return dataclasses.replace(
            self,
            syn_steps=self.student_steps,
            expert_epochs=self.expert_epochs or 2,
            max_start_epoch=self.max_start_epoch or 2,
            step_size=self.first_step_size,
        )

    def calibrated(self, problem: Problem, parameters: SyntheticParameters) -> MTT:
        return calibrate(self, problem, parameters)

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
    ) -> tuple[Tensor, SegmentDistance]:
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
        length, starts = self.expert_epochs or 1, self.max_start_epoch or 1
        if epochs >= needed:
            return
        fits = epochs - length + 1
        mend = f"use --max-start-epoch {fits}" if fits >= 1 else f"train with --epochs {needed}"
        raise SettingError(
            f"segments reach epoch {needed} (max_start_epoch {starts} - 1 + "
            f"expert_epochs {length}) and these experts have {epochs}; "
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
        length, out = self.method.segment[0], next(self._buffers)
        return self._reader.submit(self.library.segment, expert, epoch, length, out)


def _draw_segment(
    method: MTT, library: ExpertLibrary, seed: int, iteration: int, number: int
) -> tuple[int, int]:
    draw = stream(seed, "distill", "segment", iteration, number)
    expert = int(torch.randint(len(library.experts), (), generator=draw))
    epoch = int(torch.randint(method.segment[1], (), generator=draw))
    return library.experts[expert], epoch

"""The engine's gradients on a GPU: those of the CPU in float64, near them in each precision,
without the host waiting, in memory that does not grow with the residuals of more steps."""

from __future__ import annotations

import pytest
import torch

from gpu import DEVICE, MARKS, alone, close, cosine, no_synchronization
from trajmatch import match_segment
from trajmatch.data.augment import Augmentation
from trajmatch.networks import build_network
from trajmatch.networks.functional import parameter_vector
from trajmatch.rng import stream
from trajmatch.runtime.memory import peak_bytes
from trajmatch.unroll import EXACT, Schedule, SegmentDistance, Student, UnrolledGradient
from trajmatch.unroll.gradient import DerivedGradient, EagerGradient, gradient_fn
from trajmatch.unroll.unroll import unroll

pytestmark = MARKS
ALL = "color_crop_cutout_flip_scale_rotate"
CPU = torch.device("cpu")


class Problem:
    """A ConvNet, a segment and a synthetic set: equal numbers on every device."""

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype = torch.float64,
        *,
        soft: bool = False,
        width: int = 8,
    ) -> None:
        draw = stream(0, "gpu")
        module = build_network(
            "convnet", channels=3, classes=3, size=16, depth=2, width=width, seed=0
        )
        start = parameter_vector(module)
        target = start + 0.02 * torch.randn(start.shape, generator=draw)
        images = torch.randn((6, 3, 16, 16), generator=draw)
        labels = torch.arange(6) % 3
        if soft:
            labels = torch.randn((6, 3), generator=draw).softmax(1).to(device, dtype)
        self.labels = labels.to(device)
        self.module = module.to(device, dtype)
        self.start, self.target, self.images = (
            tensor.to(device, dtype) for tensor in (start, target, images)
        )

    def match(
        self, method: str, *, compile: bool = False, precision: str = "float32"
    ) -> UnrolledGradient:
        """Five steps on batches of four images, with augmentation."""
        return match_segment(
            self.module, self.start, self.target, self.images, self.labels, 0.05,
            steps=5, batch_syn=4, augment=ALL, seed=1,
            method=method, compile=compile, precision=precision,
        )  # fmt: skip

    def student(self, steps: int, *, compile: bool = False) -> Student:
        augment = Augmentation(ALL)
        schedule = Schedule.make(self.images, steps=steps, batch_syn=4, augment=augment, seed=1)
        gradient = gradient_fn(self.module, compile=compile)
        return Student(gradient, self.images, self.labels, augment, schedule)

    def unroll(self, student: Student, keep: int) -> UnrolledGradient:
        alpha = torch.full((), 0.05, dtype=self.start.dtype, device=self.start.device)
        distance = SegmentDistance(self.start, self.target)
        return unroll(student, self.start, alpha, distance, keep=keep)


def equal(found: UnrolledGradient, wanted: UnrolledGradient, rel: float = 1e-9) -> None:
    close(found.loss, wanted.loss, rel)
    close(found.end, wanted.end, rel)
    close(found.grad_images, wanted.grad_images, rel)
    close(found.grad_step_size, wanted.grad_step_size, rel)
    if wanted.grad_labels is not None:
        close(found.grad_labels, wanted.grad_labels, rel)


# -- the same numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "soft"])
def test_gradients_are_the_cpus(method, soft):
    here = Problem(DEVICE, soft=soft)
    assert isinstance(gradient_fn(here.module), EagerGradient)
    equal(here.match(method), Problem(CPU, soft=soft).match(method))


def compiled_gradients_are_the_cpus():
    for soft in (False, True):
        wanted, here = Problem(CPU, soft=soft).match("stored"), Problem(DEVICE, soft=soft)
        for method in EXACT:
            for _ in range(2):  # the second time by graphs that were recorded the first time
                equal(here.match(method, compile=True), wanted)
        form = gradient_fn(here.module, compile=True)
        assert isinstance(form, DerivedGradient)
        assert form.compiled, "the compiler failed"
    skipped = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
    assert skipped == 0, "no CUDA graph was recorded"


def test_compiled_gradients_are_the_cpus():
    alone(compiled_gradients_are_the_cpus)


# -- precisions ----------------------------------------------------------------------------------

LEAST = {"float32": 1 - 1e-7, "tf32": 0.999, "bf16": 0.99}
"""The least cosine to float64 of the gradient at the images. TF32, to which torch
rounds convolutions by default, would fall below the first."""


def cosines(compile: bool) -> None:
    wanted = Problem(CPU, width=32).match("stored")
    for precision, least in LEAST.items():
        here = Problem(DEVICE, torch.float32, width=32)
        for method in ("stored", "reverse"):
            found = here.match(method, compile=compile, precision=precision)
            near = cosine(found.grad_images, wanted.grad_images)
            assert near > least, (precision, method, near)
            close(found.loss, wanted.loss, 0.02)
        assert gradient_fn(here.module, precision=precision, compile=compile).compiled == compile


def test_each_precision_is_near_float64():
    cosines(compile=False)


def compiled_cosines():
    cosines(compile=True)


def test_each_precision_is_near_float64_compiled():
    alone(compiled_cosines)


# -- waiting and memory --------------------------------------------------------------------------


def unroll_without_synchronization(compile: bool) -> None:
    problem = Problem(DEVICE, torch.float32)
    student = problem.student(steps=12, compile=compile)  # 12 draws: all of the six changes
    for keep in (0, 5, 12):
        for _ in range(2):
            problem.unroll(student, keep)
        with no_synchronization():
            found = problem.unroll(student, keep)
        assert found.grad_images.isfinite().all()


def test_an_iteration_never_makes_the_host_wait():
    names = {draw.name for draw in Problem(DEVICE).student(steps=12).schedule.draws}
    assert names == set(ALL.split("_"))
    unroll_without_synchronization(compile=False)


def compiled_unroll_without_synchronization():
    unroll_without_synchronization(compile=True)


def test_a_compiled_iteration_never_makes_the_host_wait():
    alone(compiled_unroll_without_synchronization)


def test_memory_of_reverse_grows_by_a_vector_a_step():
    problem = Problem(DEVICE, torch.float32, width=32)

    def peak(steps: int, keep: int) -> int:
        student = problem.student(steps)
        problem.unroll(student, keep)
        return peak_bytes(lambda: problem.unroll(student, keep), DEVICE)

    few, many = peak(5, keep=0), peak(25, keep=0)
    vector = 4 * len(problem.start) + 512  # the allocator's rounding
    assert many - few <= 20 * vector + 0.1 * few
    assert peak(25, keep=25) > 2 * many, "stored keeps the residuals of all steps"


def compiled_reverse_records_no_more_for_more_steps():
    problem = Problem(DEVICE, torch.float32, width=32)

    def reserved(steps: int) -> int:
        for _ in range(3):
            problem.unroll(problem.student(steps, compile=True), keep=0)
        if DEVICE.type != "cuda":
            return 0
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    few, many = reserved(5), reserved(25)
    assert many - few <= 20 * 4 * len(problem.start) + 40 * 2**20


def test_compiled_reverse_records_no_more_for_more_steps():
    """The memory of CUDA graphs, which the allocator's peak leaves out."""
    alone(compiled_reverse_records_no_more_for_more_steps)

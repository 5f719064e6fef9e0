"""The engine: N differentiable SGD steps and their exact reverse.

A student starts at a parameter vector theta_0 and walks

    theta_{n+1} = theta_n - alpha * g_n,     g_n = d/dtheta CE(f(theta_n, A_n(X[b_n])), Y[b_n]).

Some question is asked of where it ends (for MTT: how far from the expert?), and the answer's exact
gradient with respect to images X, soft labels Y and step size alpha comes back. With
v = d answer / d theta_N, walking backwards over n = N-1 .. 0:

    dalpha -= <v, g_n>
    dX     -= alpha * d<g_n, v>/dX
    dY     -= alpha * d<g_n, v>/dY
    v      -= alpha * d<g_n, v>/dtheta          (the Hessian-vector product)

The way back from one step needs a record of it: the graph of g_n, or the activations it was made
of. Keeping all N records from the way out is method "stored" (9 convolution passes per step);
throwing them away and making each again on the way back is method "reverse" (12 passes, but the
memory of one step's record whatever N is; only the N parameter vectors are kept). Nothing is
approximated: both replay the same batches and augmentation draws, and
agree with plain back-propagation through the whole walk to rounding. "auto" keeps as many of the
last records as fit.

The engine knows no expert and no data set: `unroll` takes values and a question.

Source: Cazenavette et al., Dataset Distillation by Matching Training Trajectories, CVPR 2022,
algorithm 1 and equation 2. The reverse walk is reverse-mode differentiation with every step a
checkpoint (Griewank & Walther 2000), written out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trajmatch.data.augment import Augmentation
from trajmatch.errors import SettingError, suggest
from trajmatch.runtime.memory import available_bytes, saved_bytes
from trajmatch.runtime.micro_batches import micro_batch_size
from trajmatch.types import Float, Shaped, Tensor
from trajmatch.unroll.gradient import arithmetic, gradient_fn
from trajmatch.unroll.schedule import Schedule
from trajmatch.unroll.student import StepResiduals, Student

__all__ = [
    "EXACT",
    "METHODS",
    "OuterLoss",
    "Plan",
    "Schedule",
    "SegmentDistance",
    "Student",
    "UnrolledGradient",
]
__all__ += ["match_segment", "plan", "unroll"]

EXACT = ("auto", "stored", "reverse")
"""Ways of one gradient; they differ in time and memory."""
METHODS = (*EXACT, "tesla")

OuterLoss = Callable[[Tensor], Tensor]
"""Asked of the end point: vector -> scalar, differentiable."""


@dataclass(frozen=True)
class UnrolledGradient:
    """The answer at the end of a walk and its exact gradients."""

    loss: Float[Tensor, ""]
    grad_images: Float[Tensor, "n channels height width"]
    grad_labels: Float[Tensor, "n classes"] | None
    grad_step_size: Float[Tensor, ""]
    end: Float[Tensor, "params"]


class SegmentDistance:
    """||theta - target||^2 / ||start - target||^2 (paper, equation 2).

    The denominator makes late, short segments count as much as early, long ones.
    """

    def __init__(self, start: Float[Tensor, "params"], target: Float[Tensor, "params"]) -> None:
        self.target = target
        self.length = (start - target).square().sum()

    def __call__(self, end: Float[Tensor, "params"]) -> Float[Tensor, ""]:
        return (end - self.target).square().sum() / self.length


def unroll(
    student: Student,
    start: Float[Tensor, "params"],
    step_size: Float[Tensor, ""],
    outer_loss: OuterLoss,
    *,
    keep: int,
    truncate: bool = False,
    window: int | None = None,
) -> UnrolledGradient:
    """Walk out from `start`, ask `outer_loss` of the end point, and walk back for its gradients.

    The records of the last `keep` steps are kept from the way out (0 to N); the others are made
    again on the way back. Memory: the N vectors, plus `keep` records, and one piece's record
    while it is made again. No host synchronization.

    `truncate` leaves out the Hessian-vector product, so that later parameters are taken not to
    depend on earlier images: TESLA's gradient (Cui et al. 2023), cheaper and biased.

    `window` takes the point before the last `window` steps for given: the steps to it keep nothing,
    and what is learned is told of the others alone (RaT-BPTT, Feng et al. 2023).
    """
    steps = student.schedule.steps
    first = 0 if window is None else steps - window
    with arithmetic(student.gradient_fn.precision):
        vector = start.detach()
        for n in range(first):
            vector = torch.addcmul(vector, student.step(n, vector), step_size, value=-1)
        return _unroll(student, vector, range(first, steps), step_size, outer_loss, keep, truncate)


def _unroll(
    student: Student,
    vector: Tensor,
    steps: range,
    step_size: Tensor,
    outer_loss: OuterLoss,
    keep: int,
    truncate: bool,
) -> UnrolledGradient:
    vectors: list[Tensor] = []
    kept: list[StepResiduals] = []
    for n in steps:
        if n < steps.stop - keep:
            vectors.append(vector)
            vector = torch.addcmul(vector, student.step(n, vector), step_size, value=-1)
        else:
            kept.append(student.residuals(n, vector, keep=True))
            vector = torch.addcmul(vector, kept[-1].gradient(), step_size, value=-1)

    end = vector.detach().requires_grad_()
    with torch.enable_grad():
        loss = outer_loss(end)
        (v,) = torch.autograd.grad(loss, end)

    grad_images = torch.zeros_like(student.images)
    soft = student.labels.is_floating_point()
    grad_labels = torch.zeros_like(student.labels) if soft else None
    grad_step_size = torch.zeros_like(step_size)
    for n in reversed(steps):
        step = kept.pop() if kept else student.residuals(n, vectors.pop(), keep=False)
        inner, hessian_v, images, labels = step.vjp(v)
        del step
        grad_step_size -= inner
        _subtract(grad_images, images, step_size, student.schedule, n)
        if grad_labels is not None and labels is not None:
            _subtract(grad_labels, labels, step_size, student.schedule, n)
        if not truncate:
            v = torch.addcmul(v, hessian_v, step_size, value=-1)
    return UnrolledGradient(loss.detach(), grad_images, grad_labels, grad_step_size, end.detach())


def _subtract(total: Tensor, part: Tensor, step_size: Tensor, schedule: Schedule, n: int) -> None:
    """total[indices of step n] -= step_size * part."""
    if schedule.indices is None:
        total.addcmul_(part, step_size, value=-1)
    else:
        total.index_add_(0, schedule.indices[n], part * step_size, alpha=-1)


@dataclass(frozen=True)
class Plan:
    """How many records a run keeps, and why: decided once, so that a resumed run repeats it."""

    keep: int
    reason: str


def plan(
    student: Student, start: Float[Tensor, "params"], method: str, window: int | None = None
) -> Plan:
    """Decide how many records to keep; "auto" measures one step's record and the free memory."""
    steps = window or student.schedule.steps
    if method == "stored":
        return Plan(steps, f"stored: the records of all {steps} steps are kept")
    if method in ("reverse", "tesla"):
        return Plan(0, f"{method}: every step's record is made again on the way back")
    if method != "auto":
        raise SettingError(f"unknown method '{method}'; {suggest(method, METHODS)}")
    each = saved_bytes(lambda: student.residuals(0, start, keep=True))
    free = available_bytes(start.device)
    keep = min(steps, int(free // 2 // max(each, 1)))
    return Plan(
        keep,
        f"auto: keeping {keep} of {steps} step records ({each / 2**20:,.0f} MB each, half of "
        f"{free / 2**30:,.1f} GB free)",
    )


def match_segment(
    module: nn.Module,
    start: Float[Tensor, "params"],
    target: Float[Tensor, "params"],
    images: Float[Tensor, "n channels height width"],
    labels: Shaped[Tensor, "n ..."],
    step_size: Float[Tensor, ""] | float,
    *,
    steps: int,
    batch_syn: int | None = None,
    augment: Any = None,
    seed: int = 0,
    method: str = "reverse",
    precision: str = "float32",
    compile: bool = False,
) -> UnrolledGradient:
    """The normalized distance to `target` after `steps` student updates from `start`, and its exact
    gradients with respect to images, soft labels and step size.

    `labels` are class indices [n] (then `.grad_labels` is None) or class probabilities
    [n, classes]. `augment` is an `Augmentation` or a strategy such as
    "color_crop_cutout_flip_scale_rotate";
    batches and augmentation are drawn from `seed`, so that two calls with one seed see the same.
    `module` gives the structure only; its own parameters are not read. All tensors are of one
    floating type and on one device, which the result shares.

    Cost: "reverse" keeps the `steps` vectors and one step's record (12 convolution passes a step);
    "stored" keeps every record (9 passes); "auto" keeps what half the free memory holds. "tesla" is
    as "reverse" without the second-order term between steps: not the gradient of the loss, but what
    Cui et al. 2023 descend along, here to be measured against it.

    Raises SettingError for shapes that do not fit, start equal to target, a network that keeps
    state, or an unknown method or precision.

    Source: Cazenavette et al. 2022, algorithm 1, equation 2.
    """
    if isinstance(augment, str):
        augment = Augmentation(augment)
    _check_segment(start, target, images, labels, method)
    alpha = torch.as_tensor(step_size, dtype=start.dtype, device=start.device).detach()
    schedule = Schedule.make(images, steps=steps, batch_syn=batch_syn, augment=augment, seed=seed)
    micro_batch = micro_batch_size(module, tuple(images.shape[1:]), images.device)

    student = Student(
        gradient_fn(module, precision=precision, compile=compile),
        images,
        labels,
        augment,
        schedule,
        micro_batch,
    )
    keep = plan(student, start, method).keep
    distance = SegmentDistance(start, target)
    return unroll(student, start, alpha, distance, keep=keep, truncate=method == "tesla")


def _check_segment(
    start: Tensor, target: Tensor, images: Tensor, labels: Tensor, method: str
) -> None:
    if method not in METHODS:
        raise SettingError(f"unknown method '{method}'; {suggest(method, METHODS)}")
    if start.shape != target.shape:
        raise SettingError(
            f"start has {start.numel():,} numbers and target {target.numel():,}; "
            "both must be parameter vectors of one network"
        )
    if len(labels) != len(images):
        raise SettingError(f"{len(images)} images and {len(labels)} labels; give one label each")
    if labels.is_floating_point() != (labels.ndim == 2):
        raise SettingError(
            f"labels have shape {tuple(labels.shape)} and type {labels.dtype}; give class indices "
            "[n] as integers, or probabilities [n, classes] as floats"
        )
    if images.dtype != start.dtype:
        raise SettingError(
            f"images are {images.dtype} and parameters {start.dtype}; convert one with .to(...)"
        )
    if torch.equal(start, target):
        raise SettingError(
            "start and target are the same point, so the normalized distance is 0/0; "
            "give two different epochs of an expert"
        )

"""N differentiable steps of a student, and the exact gradient of a loss of the end point.

A student starts at a parameter vector theta_0 and takes N steps of plain gradient descent

    theta_{n+1} = theta_n - alpha * g_n,     g_n = d/dtheta CE(f(theta_n, A_n(X[b_n])), Y[b_n]),

or of another inner optimizer (`optimizers`). An outer loss L is a function of theta_N; for MTT it
is the distance to an expert's parameters. `unroll` computes its gradient with respect to the images
X, soft labels Y and step size alpha. With v = dL/dtheta_N, for n = N-1 .. 0:

    dalpha -= <v, g_n>
    dX     -= alpha * d<g_n, v>/dX
    dY     -= alpha * d<g_n, v>/dY
    v      -= alpha * d<g_n, v>/dtheta          (the Hessian-vector product)

This is reverse-mode differentiation with every step a checkpoint (Griewank & Walther, Algorithm
799: revolve, ACM TOMS 2000). Per step it needs a vector-Jacobian product of g_n, whose cost is a
small multiple of g_n's own (Pearlmutter, Fast exact multiplication by the Hessian, Neural
Computation 1994), and for that the residuals of g_n: its autograd graph, or the activations it was
computed from. There are two exact ways to have them:

    method     residuals of a step               network passes per step   memory
    "stored"   kept from the forward sweep       9                         N steps' residuals
    "reverse"  computed again in the reverse     12                        one step's residuals, and
               sweep, from theta_n                                         N parameter vectors

Both use the same batches and augmentation draws and agree to rounding with plain back-propagation
through the whole unroll. "auto" keeps the residuals of as many of the last steps as fit in memory.

Source: Cazenavette et al., Dataset Distillation by Matching Training Trajectories, CVPR 2022,
algorithm 1 and equation 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from trajmatch.errors import SettingError, suggest
from trajmatch.networks.precision import arithmetic
from trajmatch.runtime.memory import available_bytes, saved_bytes
from trajmatch.types import Float, Tensor
from trajmatch.unroll.optimizers import SGD, InnerOptimizer, Vectors
from trajmatch.unroll.schedule import Schedule
from trajmatch.unroll.student import StepResiduals, Student

EXACT = ("auto", "stored", "reverse")
"""Methods that compute the same gradient; they differ in time and memory."""
METHODS = (*EXACT, "tesla")

OuterLoss = Callable[[Tensor], Tensor]
"""theta_N [params] -> scalar, differentiable."""


@dataclass(frozen=True)
class UnrolledGradient:
    """The outer loss at the end of an unroll, and its gradients."""

    loss: Float[Tensor, ""]
    grad_images: Float[Tensor, "n channels height width"]
    grad_labels: Float[Tensor, "n classes"] | None
    """None for class indices."""
    grad_step_size: Float[Tensor, ""]
    end: Float[Tensor, "params"]
    """theta_N."""


def unroll(
    student: Student,
    start: Float[Tensor, "params"],
    step_size: Float[Tensor, ""],
    outer_loss: OuterLoss,
    *,
    keep: int,
    truncate: bool = False,
    bptt_steps: int | None = None,
    optimizer: InnerOptimizer = SGD(),
) -> UnrolledGradient:
    """The student's steps from `start`, then `outer_loss` and its gradients.

    keep: the residuals of this many last steps (0 to N) are kept; those of the others are computed
    again. Memory: N parameter vectors (and what `optimizer` saves), the residuals of `keep` steps,
    and those of one micro-batch. The host never waits for the device.

    truncate: leave out the Hessian-vector product, so that later parameters are taken not to depend
    on earlier images: TESLA's gradient (Cui et al. 2023), cheaper and biased. Plain SGD only.

    bptt_steps: differentiate only the last steps, at most N, and take parameters and optimizer
    state before them as given (truncated back-propagation through time; RaT-BPTT, Feng et al.
    2023). The earlier steps save nothing. None: all steps.

    Raises SettingError for `truncate` with another optimizer than plain SGD.
    """
    if truncate and not isinstance(optimizer, SGD):
        raise SettingError(
            "the truncated gradient ('tesla') is defined for optimizer=SGD() and not for "
            f"{optimizer}; use method='reverse'"
        )
    stop = student.schedule.steps
    steps = range(0 if bptt_steps is None else stop - bptt_steps, stop)
    with arithmetic(student.gradient_fn.precision):
        vector = start.detach()
        state = optimizer.init(vector)
        for n in range(steps.start):
            vector, state, _ = optimizer.update(
                vector, state, student.step(n, vector), step_size, n
            )
        tape = _forward(student, vector, state, step_size, steps, keep, optimizer)
        end = tape.end.detach().requires_grad_()
        with torch.enable_grad():
            loss = outer_loss(end)
            (v,) = torch.autograd.grad(loss, end)
        gradients = _reverse(student, tape, v, step_size, steps, optimizer, truncate)
    return UnrolledGradient(loss.detach(), *gradients, end.detach())


@dataclass
class _Tape:
    """What the forward sweep leaves for the reverse sweep, in the order of the steps."""

    end: Float[Tensor, "params"]
    vectors: list[Float[Tensor, "params"]] = field(default_factory=list)
    """theta_n of the steps whose residuals are computed again."""
    residuals: list[StepResiduals] = field(default_factory=list)
    """Of the last `keep` steps."""
    saved: list[Vectors] = field(default_factory=list)
    """By the optimizer, of every step."""


def _forward(
    student: Student,
    vector: Float[Tensor, "params"],
    state: Vectors,
    step_size: Float[Tensor, ""],
    steps: range,
    keep: int,
    optimizer: InnerOptimizer,
) -> _Tape:
    """All steps."""
    tape = _Tape(vector)

    def gradient(n: int) -> Tensor:
        if n < steps.stop - keep:
            tape.vectors.append(tape.end)
            return student.step(n, tape.end)
        tape.residuals.append(student.residuals(n, tape.end, keep=True))
        return tape.residuals[-1].gradient()

    for n in steps:
        tape.end, state, saved = optimizer.update(tape.end, state, gradient(n), step_size, n)
        tape.saved.append(saved)
    return tape


def _reverse(
    student: Student,
    tape: _Tape,
    v: Float[Tensor, "params"],
    step_size: Float[Tensor, ""],
    steps: range,
    optimizer: InnerOptimizer,
    truncate: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The gradients at images, soft labels and step size; uses the tape up."""
    grad_images = torch.zeros_like(student.images)
    soft = student.labels.is_floating_point()
    grad_labels = torch.zeros_like(student.labels) if soft else None
    grad_step_size = torch.zeros_like(step_size)
    state = optimizer.init(v)  # zeros: the outer loss does not depend on the last state
    for n in reversed(steps):
        if tape.residuals:
            residuals = tape.residuals.pop()
        else:
            residuals = student.residuals(n, tape.vectors.pop(), keep=False)
        back = optimizer.reverse(tape.saved.pop(), v, state, step_size, n)
        inner, hessian_v, images, labels = residuals.vjp(back.direction)
        del residuals
        grad_step_size += -inner if back.step_size is None else back.step_size
        _accumulate(grad_images, images, back.scale, student.schedule, n)
        if grad_labels is not None and labels is not None:
            _accumulate(grad_labels, labels, back.scale, student.schedule, n)
        v, state = back.vector, back.state
        if not truncate:
            v = torch.addcmul(v, hessian_v, back.scale, out=hessian_v)
    return grad_images, grad_labels, grad_step_size


def _accumulate(
    total: Float[Tensor, "n ..."],
    part: Float[Tensor, "batch ..."],
    scale: Float[Tensor, ""],
    schedule: Schedule,
    n: int,
) -> None:
    """total[indices of step n] += scale * part."""
    if schedule.indices is None:
        total.addcmul_(part, scale)
    else:
        total.index_add_(0, schedule.indices[n], part * scale)


@dataclass(frozen=True)
class Plan:
    """How many steps' residuals to keep, and why. Made once a run: a resumed run uses it again."""

    keep: int
    reason: str


def plan(
    student: Student,
    start: Float[Tensor, "params"],
    method: str,
    bptt_steps: int | None = None,
    *,
    free_bytes: int | None = None,
) -> Plan:
    """Decide how many steps' residuals to keep.

    "auto" measures one step's residuals and keeps as many as take half of `free_bytes` (None: what
    is free now on the device). bptt_steps: as in `unroll`; only these steps are counted.

    Raises SettingError for an unknown method.
    """
    steps = bptt_steps or student.schedule.steps
    if method == "stored":
        return Plan(steps, f"stored: the residuals of all {steps} steps are kept")
    if method in ("reverse", "tesla"):
        return Plan(0, f"{method}: every step's residuals are computed again in the reverse sweep")
    if method != "auto":
        raise SettingError(f"unknown method '{method}'; {suggest(method, METHODS)}")
    each = saved_bytes(lambda: student.residuals(0, start, keep=True))
    free = available_bytes(start.device) if free_bytes is None else free_bytes
    keep = min(steps, int(free // 2 // max(each, 1)))
    return Plan(
        keep,
        f"auto: keeping the residuals of {keep} of {steps} steps ({each / 2**20:,.0f} MB each, "
        f"half of {free / 2**30:,.1f} GB free)",
    )

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

One step needs one graph: that of g_n. Keeping all N graphs from the way out is method "stored"
(9 convolution passes per step); throwing them away and building each again on the way back is
method "reverse" (12 passes, but the graph memory of one step whatever N is; only the N parameter
vectors are kept). Nothing is approximated: both replay the same batches and augmentation draws, and
agree with plain back-propagation through the whole walk to rounding. "auto" keeps as many of the
last graphs as fit.

The engine knows no expert and no data set: `walk` takes values and a question.

Source: Cazenavette et al., Dataset Distillation by Matching Training Trajectories, CVPR 2022,
algorithm 1 and equation 2. The reverse walk is reverse-mode differentiation with every step a
checkpoint (Griewank & Walther 2000), written out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trajmatch.data.augment import DSA, Draw
from trajmatch.errors import SettingError, suggest
from trajmatch.gradient import LossGradient, loss_gradient
from trajmatch.memory import available_bytes, graph_bytes
from trajmatch.pieces import piece_length, piece_sizes
from trajmatch.rng import stream
from trajmatch.types import Float, Int, Shaped, Tensor

METHODS = ("auto", "stored", "reverse")

Question = Callable[[Tensor], Tensor]
"""Asked of the end point: vector -> scalar, differentiable."""


@dataclass(frozen=True)
class Schedule:
    """What each step of a walk sees, fixed beforehand so that it can be walked twice.

    `indices[n]` are the images of step n (None: all of them, in order); `draws[n]` is its
    augmentation (None: as they are).
    """

    steps: int
    indices: tuple[Int[Tensor, "batch"], ...] | None = None
    draws: tuple[Draw, ...] | None = None

    @staticmethod
    def make(
        images: Float[Tensor, "n channels height width"],
        *,
        steps: int,
        batch_syn: int | None,
        augment: DSA | None,
        seed: int,
        names: tuple[str | int, ...] = (),
    ) -> Schedule:
        """Draw a schedule from the streams `seed, *names`.

        Mini-batches walk through shuffled passes over all images, joined end to end, so that every
        image is used before any is used again and all batches have `batch_syn` images.
        """
        count, _, height, width = images.shape
        if steps < 1:
            raise SettingError(f"steps is {steps}; a walk needs at least 1")
        if batch_syn is not None and not 1 <= batch_syn <= count:
            raise SettingError(
                f"batch_syn is {batch_syn} and there are {count} synthetic images; "
                f"use 1 to {count}, or none for all of them"
            )
        indices, batch = None, count
        if batch_syn is not None and batch_syn < count:
            batch = batch_syn
            shuffle = stream(seed, *names, "batches")
            passes = -(-steps * batch // count)
            order = torch.cat([torch.randperm(count, generator=shuffle) for _ in range(passes)])
            indices = torch.split(order[: steps * batch].to(images.device), batch)
        draws = None
        if augment is not None:
            generator = stream(seed, *names, "augment")
            draws = tuple(
                augment.draw(generator, batch, height, width).to(images.device)
                for _ in range(steps)
            )
        return Schedule(steps, indices, draws)


@dataclass(frozen=True)
class WalkGradient:
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


class Student:
    """One student's view of the synthetic set: the batch of step n and the way back from it.

    A batch goes through the network `piece` images at a time (0: all at once), so that on a CPU it
    stays in the cache, and the graph of a step that is built again is never larger than a piece's.
    """

    def __init__(
        self,
        gradient: LossGradient,
        images: Tensor,
        labels: Tensor,
        augment: DSA | None,
        schedule: Schedule,
        piece: int = 0,
    ) -> None:
        self.gradient = gradient
        self.images = images.detach()
        self.labels = labels.detach()
        self.augment = augment
        self.schedule = schedule
        self.piece = piece

    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        """Images and labels that step n chooses, before augmentation."""
        if self.schedule.indices is None:
            return self.images, self.labels
        chosen = self.schedule.indices[n]
        return self.images[chosen], self.labels[chosen]

    def seen(self, n: int, images: Tensor) -> Tensor:
        """The images of step n after augmentation."""
        if self.augment is None or self.schedule.draws is None:
            return images
        return self.augment.apply(images, self.schedule.draws[n])

    def step(self, n: int, vector: Tensor) -> Tensor:
        """g_n, without a graph."""
        images, labels = self.batch(n)
        with torch.no_grad():
            images = self.seen(n, images)
            parts = self._split(images, labels)
            return _weighted([(self.gradient(vector, x, y), len(x)) for x, y in parts])

    def recorded(self, n: int, vector: Tensor, *, keep: bool) -> RecordedStep:
        """The way back from step n. `keep`: with the graphs of all its pieces, built now; else they
        are built one after another when they are walked."""
        images, labels = self.batch(n)
        images = images.detach().requires_grad_()
        seen = self.seen(n, images)
        vector = vector.detach().requires_grad_()

        def pieces() -> Iterator[Piece]:
            for x, y in self._split(seen.detach(), labels):
                leaf = x.detach().requires_grad_()
                soft = y.detach().requires_grad_() if y.is_floating_point() else y
                yield Piece(leaf, soft, self.gradient(vector, leaf, soft), len(x) / len(seen))

        return RecordedStep(vector, images, seen, list(pieces()) if keep else pieces())

    def _split(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        sizes = piece_sizes(len(images), self.piece)
        return zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True)


def _weighted(parts: list[tuple[Tensor, int]]) -> Tensor:
    """The mean over images of the gradients of pieces, each a mean over its own images."""
    if len(parts) == 1:
        return parts[0][0]
    count = sum(size for _, size in parts)
    total = parts[0][0] * (parts[0][1] / count)
    for gradient, size in parts[1:]:
        total.add_(gradient, alpha=size / count)
    return total


@dataclass
class Piece:
    """The graph of the gradient of some images of a batch."""

    images: Tensor
    labels: Tensor
    gradient: Tensor
    weight: float
    """The piece's share of the batch."""


@dataclass
class RecordedStep:
    """The graph of one step: what of it depends on the parameters, the images and the labels."""

    vector: Tensor
    images: Tensor
    seen: Tensor
    pieces: Iterable[Piece]

    def gradient(self) -> Tensor:
        """g_n. Only of a step whose pieces are kept."""
        total = torch.zeros_like(self.vector)
        for piece in self.pieces:
            total.add_(piece.gradient.detach(), alpha=piece.weight)
        return total

    def pull(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """<g_n, v>, and its derivatives with respect to parameters, images and soft labels.

        Uses the graphs up.
        """
        inner = torch.zeros_like(v[0])
        hessian_v = torch.zeros_like(v)
        images: list[Tensor] = []
        labels: list[Tensor] = []
        for piece in self.pieces:
            inner += torch.dot(piece.gradient.detach(), v) * piece.weight
            wanted = [self.vector, piece.images]
            if piece.labels.is_floating_point():
                wanted.append(piece.labels)
            share = v if piece.weight == 1 else v * piece.weight
            parts = torch.autograd.grad(piece.gradient, wanted, share)
            del piece
            hessian_v += parts[0]
            images.append(parts[1])
            labels.extend(parts[2:])
        pulled = images[0] if len(images) == 1 else torch.cat(images)
        if self.seen is not self.images:
            (pulled,) = torch.autograd.grad(self.seen, self.images, pulled)
        return inner, hessian_v, pulled, torch.cat(labels) if labels else None


def walk(
    student: Student,
    start: Float[Tensor, "params"],
    step_size: Float[Tensor, ""],
    question: Question,
    *,
    keep: int,
    truncate: bool = False,
) -> WalkGradient:
    """Walk out from `start`, ask `question` of the end point, and walk back for its gradients.

    The graphs of the last `keep` steps are kept from the way out (0 to N); the others are built
    again on the way back. Memory: the N vectors, plus `keep` step graphs, and one piece's graph
    while it is built again. No host synchronization.

    `truncate` leaves out the Hessian-vector product, so that later parameters are taken not to
    depend on earlier images: TESLA's gradient (Cui et al. 2023), cheaper and biased.
    """
    steps = student.schedule.steps
    vectors: list[Tensor] = []
    kept: list[RecordedStep] = []
    vector = start.detach()
    for n in range(steps):
        if n < steps - keep:
            vectors.append(vector)
            vector = torch.addcmul(vector, student.step(n, vector), step_size, value=-1)
        else:
            kept.append(student.recorded(n, vector, keep=True))
            vector = torch.addcmul(vector, kept[-1].gradient(), step_size, value=-1)

    end = vector.detach().requires_grad_()
    with torch.enable_grad():
        loss = question(end)
        (v,) = torch.autograd.grad(loss, end)

    grad_images = torch.zeros_like(student.images)
    soft = student.labels.is_floating_point()
    grad_labels = torch.zeros_like(student.labels) if soft else None
    grad_step_size = torch.zeros_like(step_size)
    for n in reversed(range(steps)):
        step = kept.pop() if kept else student.recorded(n, vectors.pop(), keep=False)
        inner, hessian_v, images, labels = step.pull(v)
        del step
        grad_step_size -= inner
        _subtract(grad_images, images, step_size, student.schedule, n)
        if grad_labels is not None and labels is not None:
            _subtract(grad_labels, labels, step_size, student.schedule, n)
        if not truncate:
            v = torch.addcmul(v, hessian_v, step_size, value=-1)
    return WalkGradient(loss.detach(), grad_images, grad_labels, grad_step_size, end.detach())


def _subtract(total: Tensor, part: Tensor, step_size: Tensor, schedule: Schedule, n: int) -> None:
    """total[indices of step n] -= step_size * part."""
    if schedule.indices is None:
        total.addcmul_(part, step_size, value=-1)
    else:
        total.index_add_(0, schedule.indices[n], part * step_size, alpha=-1)


@dataclass(frozen=True)
class Plan:
    """How many step graphs a run keeps, and why: decided once, so that a resumed run repeats it."""

    keep: int
    reason: str


def plan(student: Student, start: Float[Tensor, "params"], method: str) -> Plan:
    """Decide how many step graphs to keep; "auto" measures one step's graph and the free memory."""
    steps = student.schedule.steps
    if method == "stored":
        return Plan(steps, f"stored: the graphs of all {steps} steps are kept")
    if method == "reverse":
        return Plan(0, "reverse: every step's graph is built again on the way back")
    if method != "auto":
        raise SettingError(f"unknown method '{method}'; {suggest(method, METHODS)}")
    each = graph_bytes(lambda: student.recorded(0, start, keep=True))
    free = available_bytes(start.device)
    keep = min(steps, int(free // 2 // max(each, 1)))
    return Plan(
        keep,
        f"auto: keeping {keep} of {steps} step graphs ({each / 2**20:,.0f} MB each, half of "
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
) -> WalkGradient:
    """The normalized distance to `target` after `steps` student updates from `start`, and its exact
    gradients with respect to images, soft labels and step size.

    `labels` are class indices [n] (then `.grad_labels` is None) or class probabilities
    [n, classes]. `augment` is a `DSA` or a strategy such as "color_crop_cutout_flip_scale_rotate";
    batches and augmentation are drawn from `seed`, so that two calls with one seed see the same.
    `module` gives the structure only; its own parameters are not read. All tensors are of one
    floating type and on one device, which the result shares.

    Cost: "reverse" keeps the `steps` vectors and one step's graph (12 convolution passes a step);
    "stored" keeps every graph (9 passes); "auto" keeps what half the free memory holds.

    Raises SettingError for shapes that do not fit, start equal to target, a network that keeps
    state, or an unknown method or precision.

    Source: Cazenavette et al. 2022, algorithm 1, equation 2.
    """
    if isinstance(augment, str):
        augment = DSA(augment)
    _check_segment(start, target, images, labels, method)
    alpha = torch.as_tensor(step_size, dtype=start.dtype, device=start.device).detach()
    schedule = Schedule.make(images, steps=steps, batch_syn=batch_syn, augment=augment, seed=seed)
    gradient = loss_gradient(module, precision=precision, compile=compile)
    piece = piece_length(module, tuple(images.shape[1:]), images.device)
    student = Student(gradient, images, labels, augment, schedule, piece)
    keep = plan(student, start, method).keep
    return walk(student, start, alpha, SegmentDistance(start, target), keep=keep)


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

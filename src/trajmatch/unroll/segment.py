"""Matching one segment of an expert's trajectory: the normalized distance and its gradients.

Source: Cazenavette et al., Dataset Distillation by Matching Training Trajectories, CVPR 2022,
algorithm 1 and equation 2.
"""

from __future__ import annotations

import torch
from torch import nn

from trajmatch.data.augment import Augmentation
from trajmatch.errors import SettingError, suggest
from trajmatch.runtime.micro_batches import micro_batch_size
from trajmatch.types import Float, Shaped, Tensor
from trajmatch.unroll.gradient import gradient_fn
from trajmatch.unroll.optimizers import SGD, InnerOptimizer
from trajmatch.unroll.schedule import Schedule
from trajmatch.unroll.student import Student
from trajmatch.unroll.unroll import METHODS, UnrolledGradient, plan, unroll


class SegmentDistance:
    """||theta - target||^2 / ||start - target||^2 (paper, equation 2).

    The denominator makes late, short segments count as much as early, long ones.
    """

    def __init__(self, start: Float[Tensor, "params"], target: Float[Tensor, "params"]) -> None:
        self.target = target
        self.length = (start - target).square().sum()

    def __call__(self, end: Float[Tensor, "params"]) -> Float[Tensor, ""]:
        return (end - self.target).square().sum() / self.length


# More than eight parameters: a public contract whose argument names stay, and callers give the
# first six and `steps`.
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
    augment: Augmentation | str | None = None,
    seed: int = 0,
    method: str = "reverse",
    precision: str = "float32",
    compile: bool = False,
    optimizer: InnerOptimizer = SGD(),
) -> UnrolledGradient:
    """The normalized distance to `target` after `steps` student updates from `start`, and its
    gradients with respect to images, soft labels and step size.

    `labels` are class indices [n] (then `.grad_labels` is None) or class probabilities
    [n, classes]. `augment` is an `Augmentation` or a strategy such as
    "color_crop_cutout_flip_scale_rotate". Batches and augmentation are drawn from `seed`: equal
    seeds give equal draws. `module` gives the structure only; its own parameters are not read. All
    tensors are of one floating type and on one device, which the result shares.

    `optimizer` is the student's update rule: `SGD()` as published, `Momentum()` or `Adam()`, with
    `step_size` as its learning rate.

    Cost: "reverse" keeps `steps` parameter vectors (twice as many with `Momentum`, four times with
    `Adam`) and one step's residuals, for 12 network passes a step; "stored" keeps every step's
    residuals, for 9 passes; "auto" keeps those that half the free memory holds. "tesla" is
    "reverse" without the Hessian-vector products: not the gradient of the loss but the direction of
    Cui et al. 2023, for comparison. `compile` costs about a minute once.

    Raises SettingError for shapes that do not fit, start equal to target, a network that keeps
    state, an unknown method or precision, or "tesla" with another optimizer than SGD.

    Examples:
        >>> from trajmatch import build_network, parameter_vector
        >>> network = build_network("mlp", channels=1, classes=2, size=4, seed=0)
        >>> start = parameter_vector(network)
        >>> images, labels = torch.ones(2, 1, 4, 4), torch.tensor([0, 1])
        >>> found = match_segment(network, start, start + 0.01, images, labels, 0.1, steps=3)
        >>> found.grad_images.shape, found.grad_labels
        (torch.Size([2, 1, 4, 4]), None)
    """
    if isinstance(augment, str):
        augment = Augmentation(augment)
    _check_segment(start, target, images, labels, method)
    alpha = torch.as_tensor(step_size, dtype=start.dtype, device=start.device).detach()
    schedule = Schedule.make(images, steps=steps, batch_syn=batch_syn, augment=augment, seed=seed)
    gradient = gradient_fn(module, precision=precision, compile=compile)
    micro_batch = micro_batch_size(module, tuple(images.shape[1:]), images.device)
    student = Student(gradient, images, labels, augment, schedule, micro_batch)
    keep, truncate = plan(student, start, method).keep, method == "tesla"
    loss = SegmentDistance(start, target)
    return unroll(student, start, alpha, loss, keep=keep, truncate=truncate, optimizer=optimizer)


def _check_segment(
    start: Float[Tensor, "..."],
    target: Float[Tensor, "..."],
    images: Float[Tensor, "..."],
    labels: Shaped[Tensor, "..."],
    method: str,
) -> None:
    """Raises SettingError for tensors that cannot be a segment and its synthetic set."""
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

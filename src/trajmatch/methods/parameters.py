"""What is learned: the images, the logits of soft labels, and the log of the step size.

A `SyntheticParameters` is a value: an update makes a new one, so that the old one is there to go
back to.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from trajmatch.types import Float, Int, Tensor

SMOOTHING = 0.1
"""Soft labels begin as one-hot with this share spread over all classes: logits must be finite."""


@dataclass(frozen=True)
class SyntheticParameters:
    """Images and what goes with them, in the form that is optimized."""

    images: Float[Tensor, "n channels height width"]
    """Whitened, never clipped. Of a texture: canvases, larger than what a network is shown."""
    classes: Int[Tensor, "n"]
    """The class each image was made for."""
    log_step_size: Float[Tensor, ""]
    label_logits: Float[Tensor, "n classes"] | None = None
    """Logits of soft labels; None: the labels are `classes`."""

    @staticmethod
    def begin(
        images: Float[Tensor, "n channels height width"],
        classes: Int[Tensor, "n"],
        *,
        step_size: float,
        soft: int | None = None,
    ) -> SyntheticParameters:
        """`soft`: the number of classes, when labels are to be learned as well."""
        logits = None
        if soft is not None:
            one_hot = F.one_hot(classes, soft).to(images.dtype)
            logits = ((1 - SMOOTHING) * one_hot + SMOOTHING / soft).log()
        log_step_size = torch.tensor(math.log(step_size), dtype=images.dtype, device=images.device)
        return SyntheticParameters(images, classes, log_step_size, logits)

    def stepping(self, step_size: float) -> SyntheticParameters:
        """With another step size."""
        log = torch.full_like(self.log_step_size, math.log(step_size))
        return dataclasses.replace(self, log_step_size=log)

    @property
    def step_size(self) -> Float[Tensor, ""]:
        return self.log_step_size.exp()

    @property
    def labels(self) -> Int[Tensor, "n"] | Float[Tensor, "n classes"]:
        """What a student is trained on: class indices, or probabilities."""
        return self.classes if self.label_logits is None else self.label_logits.softmax(1)

    def tensors(self) -> dict[str, Tensor]:
        """What changes while learning, by name."""
        parts = {"images": self.images, "log_step_size": self.log_step_size}
        return parts if self.label_logits is None else {**parts, "label_logits": self.label_logits}

    def to(self, device: torch.device) -> SyntheticParameters:
        """The same on another device."""
        logits = self.label_logits
        return SyntheticParameters(
            self.images.to(device),
            self.classes.to(device),
            self.log_step_size.to(device),
            None if logits is None else logits.to(device),
        )

    def with_tensors(self, tensors: dict[str, Tensor]) -> SyntheticParameters:
        return replace(self, **tensors)


@dataclass(frozen=True)
class Estimate:
    """A loss and its gradients with respect to images, label probabilities and step size; None for
    what is not learned."""

    loss: Float[Tensor, ""]
    images: Float[Tensor, "n channels height width"] | None
    labels: Float[Tensor, "n classes"] | None = None
    step_size: Float[Tensor, ""] | None = None

    def of(self, parameters: SyntheticParameters) -> dict[str, Tensor]:
        """The gradients with respect to `SyntheticParameters.tensors`, by name.

        d/d log(alpha) = alpha d/d alpha; through the softmax p, d/d logits = p * (g - <g, p>).
        """
        gradients = {} if self.images is None else {"images": self.images}
        if self.step_size is not None:
            gradients["log_step_size"] = self.step_size * parameters.step_size
        if self.labels is not None and parameters.label_logits is not None:
            p = parameters.labels
            inner = (self.labels * p).sum(1, keepdim=True)
            gradients["label_logits"] = p * (self.labels - inner)
        return gradients


def mean_estimate(estimates: list[Estimate]) -> Estimate:
    """The mean of several estimates of the same kind."""

    def mean(parts: list[Tensor | None]) -> Tensor | None:
        there = [part for part in parts if part is not None]
        return torch.stack(there).mean(0) if there else None

    if len(estimates) == 1:
        return estimates[0]
    return Estimate(
        torch.stack([e.loss for e in estimates]).mean(),
        mean([e.images for e in estimates]),
        mean([e.labels for e in estimates]),
        mean([e.step_size for e in estimates]),
    )

"""What each step of a walk sees, drawn beforehand: its mini-batch, crops, and augmentation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trajmatch.data.augment import Augmentation, Draw
from trajmatch.data.canvas import Crops, CropSampler
from trajmatch.errors import SettingError
from trajmatch.rng import stream
from trajmatch.types import Float, Int, Tensor


@dataclass(frozen=True)
class Schedule:
    """What each step of a walk sees, fixed beforehand so that it can be walked twice.

    `indices[n]` are the images of step n (None: all of them, in order); `crops[n]` is what is seen
    of them where they are canvases (None: all of each); `draws[n]` is the augmentation of what is
    seen (None: as it is).
    """

    steps: int
    indices: tuple[Int[Tensor, "batch"], ...] | None = None
    draws: tuple[Draw, ...] | None = None
    crops: tuple[Crops, ...] | None = None

    @staticmethod
    def make(
        images: Float[Tensor, "n channels height width"],
        *,
        steps: int,
        batch_syn: int | None,
        augment: Augmentation | None,
        window: CropSampler | None = None,
        seed: int,
        names: tuple[str | int, ...] = (),
    ) -> Schedule:
        """Draw a schedule from the streams `seed, *names`.

        window: what is seen of `images` where these are canvases.

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
            gradient_fn = -(-steps * batch // count)
            order = torch.cat(
                [torch.randperm(count, generator=shuffle) for _ in range(gradient_fn)]
            )
            indices = torch.split(order[: steps * batch].to(images.device), batch)
        crops = None
        if window is not None:
            places = stream(seed, *names, "crops")
            crops = tuple(
                window.draw(places, batch, height, width).to(images.device) for _ in range(steps)
            )
            batch, height, width = window.samples * batch, window.height, window.width
        draws = None
        if augment is not None:
            generator = stream(seed, *names, "augment")
            draws = tuple(
                augment.draw(generator, batch, height, width).to(images.device)
                for _ in range(steps)
            )
        return Schedule(steps, indices, draws, crops)

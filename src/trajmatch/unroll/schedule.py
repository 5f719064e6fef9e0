"""The random draws of a student's steps: mini-batches, crops and augmentation."""

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
    """The draws of `steps` steps, made beforehand so that a step can be computed a second time."""

    steps: int
    indices: tuple[Int[Tensor, "batch"], ...] | None = None
    """Which images are step n's mini-batch. None: all of them, in order."""
    draws: tuple[Draw, ...] | None = None
    """The augmentation of step n. None: none."""
    crops: tuple[Crops, ...] | None = None
    """The crops taken of step n's canvases. None: images are used whole."""

    @staticmethod
    def make(
        images: Float[Tensor, "n channels height width"],
        *,
        steps: int,
        batch_syn: int | None,
        augment: Augmentation | None,
        sampler: CropSampler | None = None,
        seed: int,
        names: tuple[str | int, ...] = (),
    ) -> Schedule:
        """Draw a schedule from the random streams (seed, *names).

        batch_syn: images per step. None, or as many as there are: all of them at every step. The
        images are shuffled, again and again, and the orders joined end to end, so that every image
        is used before any is used again and all batches have `batch_syn` images.

        sampler: draws the crops where `images` are canvases.

        Raises SettingError for no steps, or for a batch_syn that is not 1 to n.

        Examples:
            >>> schedule = Schedule.make(
            ...     torch.zeros(5, 1, 8, 8), steps=3, batch_syn=2, augment=None, seed=0
            ... )
            >>> [len(indices) for indices in schedule.indices]
            [2, 2, 2]
            >>> sorted(torch.cat(schedule.indices)[:5].tolist())
            [0, 1, 2, 3, 4]
        """
        count, _, height, width = images.shape
        if steps < 1:
            raise SettingError(f"steps is {steps}; a student needs at least 1")
        if batch_syn is not None and not 1 <= batch_syn <= count:
            raise SettingError(
                f"batch_syn is {batch_syn} and there are {count} synthetic images; "
                f"use 1 to {count}, or none for all of them"
            )
        indices, batch = None, count
        if batch_syn is not None and batch_syn < count:
            batch = batch_syn
            shuffle = stream(seed, *names, "batches")
            orders = -(-steps * batch // count)
            order = torch.cat([torch.randperm(count, generator=shuffle) for _ in range(orders)])
            indices = torch.split(order[: steps * batch].to(images.device), batch)
        crops = None
        if sampler is not None:
            places = stream(seed, *names, "crops")
            crops = tuple(
                sampler.draw(places, batch, height, width).to(images.device) for _ in range(steps)
            )
            batch, height, width = sampler.samples * batch, sampler.height, sampler.width
        draws = None
        if augment is not None:
            generator = stream(seed, *names, "augment")
            draws = tuple(
                augment.draw(generator, batch, height, width).to(images.device)
                for _ in range(steps)
            )
        return Schedule(steps, indices, draws, crops)

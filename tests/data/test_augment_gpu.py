"""Augmentation on a GPU, by the same draws."""

from __future__ import annotations

import pytest
import torch

from gpu import DEVICE, MARKS, close, no_synchronization
from trajmatch.data.augment import CHANGES, Augmentation
from trajmatch.rng import stream

pytestmark = MARKS


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_images_and_gradients_are_the_cpus(name, dtype):
    random = stream(0, "pictures")
    images, weights = (torch.randn((8, 3, 32, 32), generator=random) for _ in range(2))
    augment = Augmentation(name)
    draw = augment.draw(stream(0, "draw", name), 8, 32, 32)

    def run(device, dtype):
        leaf = images.to(device, dtype).requires_grad_()
        result = augment.apply(leaf, draw)
        (slope,) = torch.autograd.grad((result * weights.to(device, dtype)).sum(), leaf)
        return result.detach(), slope

    rel = {torch.float64: 1e-12, torch.float32: 1e-4}[dtype]
    for found, wanted in zip(run(DEVICE, dtype), run("cpu", torch.float64), strict=True):
        assert found.dtype == dtype
        close(found, wanted, rel)


@pytest.mark.parametrize("name", CHANGES)
def test_a_draw_on_the_gpu_is_applied_without_waiting(name):
    augment = Augmentation(name)
    draw = augment.draw(stream(0, "draw", name), 8, 32, 32).to(DEVICE)
    images = torch.randn((8, 3, 32, 32), generator=stream(0, "pictures")).to(DEVICE)
    before = augment.apply(images, draw)
    with no_synchronization():
        result = augment.apply(images, draw)
    assert torch.equal(result, before)

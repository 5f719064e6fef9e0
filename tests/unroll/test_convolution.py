"""Both ways of a convolution and its gradients against autograd through the library, in float64."""

import pytest
import torch
from torch.nn import functional as F

from trajmatch.rng import stream
from trajmatch.unroll import convolution
from trajmatch.unroll.convolution import convolve, gradient_at_filters, gradient_at_images

SHAPES = [(3, 1, 2, 5, 4), (2, 3, 4, 8, 8), (1, 4, 1, 1, 7), (5, 2, 3, 3, 2)]
"""Images, channels in and out, height, width."""


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("small", [0, 2**16], ids=["library", "product"])
def test_both_ways_are_the_same_convolution(shape, small, monkeypatch):
    monkeypatch.setattr(convolution, "SMALL", small)
    count, channels, out, height, width = shape
    draw = stream(0, "convolution")

    def random(*sizes):
        return torch.randn(sizes, generator=draw, dtype=torch.float64)

    x, filters = random(count, channels, height, width), random(out, channels, 3, 3)
    x = x.contiguous(memory_format=torch.channels_last)
    back = random(count, out, height, width)
    leaves = x.clone().requires_grad_(), filters.clone().requires_grad_()
    wanted = F.conv2d(*leaves, padding=1)
    at_images, at_filters = torch.autograd.grad(wanted, leaves, back)
    torch.testing.assert_close(convolve(x, filters), wanted.detach())
    torch.testing.assert_close(gradient_at_images(back, x, filters), at_images)
    torch.testing.assert_close(gradient_at_filters(back, x, filters), at_filters)


@pytest.mark.parametrize("channels", [1, 3])
def test_products_leave_channels_last(channels):
    """In memory, or every loop that follows would read across."""
    x, filters = torch.zeros(2, channels, 4, 4), torch.zeros(5, channels, 3, 3)
    found = convolve(x, filters)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert not found.is_contiguous()


def test_large_convolutions_are_the_librarys(monkeypatch):
    """There a product takes several times as long."""
    monkeypatch.setattr(convolution, "_neighborhoods", lambda x: pytest.fail("laid out"))
    x, filters = torch.zeros(10, 128, 8, 8), torch.zeros(128, 128, 3, 3)
    back = convolve(x, filters)
    gradient_at_images(back, x, filters)
    gradient_at_filters(back, x, filters)

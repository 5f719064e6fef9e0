"""Both forms of a convolution and its gradients against autograd through torch's, in float64."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from trajmatch.rng import stream
from trajmatch.unroll.convolution import convolve, gradient_at_filters, gradient_at_images

SHAPES = [(3, 1, 2, 5, 4), (2, 3, 4, 8, 8), (1, 4, 1, 1, 7), (5, 2, 3, 3, 2)]
"""Images, channels in and out, height, width."""


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("limit", [0, 2**16], ids=["library", "product"])
def test_both_forms_are_the_same_convolution(shape, limit):
    count, channels, out, height, width = shape
    draw = stream(0, "convolution")

    def random(*sizes):
        return torch.randn(sizes, generator=draw, dtype=torch.float64)

    x, filters = random(count, channels, height, width), random(out, channels, 3, 3)
    x = x.contiguous(memory_format=torch.channels_last)
    grad = random(count, out, height, width)
    leaves = x.clone().requires_grad_(), filters.clone().requires_grad_()
    wanted = F.conv2d(*leaves, padding=1)
    at_images, at_filters = torch.autograd.grad(wanted, leaves, grad)
    torch.testing.assert_close(convolve(x, filters, limit), wanted.detach())
    torch.testing.assert_close(gradient_at_images(grad, x, filters, limit), at_images)
    torch.testing.assert_close(gradient_at_filters(grad, x, filters, limit), at_filters)


@pytest.mark.parametrize("channels", [1, 3])
def test_products_leave_channels_last(channels):
    """In memory, or every loop that follows would read across."""
    x, filters = torch.zeros(2, channels, 4, 4), torch.zeros(5, channels, 3, 3)
    found = convolve(x, filters)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert not found.is_contiguous()


class Operators(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.add(operator.overloadpacket.__name__)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("shape", "product"),
    [((10, 128, 8, 8), False), ((10, 1, 32, 32), True), ((2, 3, 8, 8), True)],
    ids=["large", "one channel", "small"],
)
def test_large_convolutions_are_the_librarys(shape, product):
    """There a product takes several times as long."""
    x, filters = torch.zeros(shape), torch.zeros(16, shape[1], 3, 3)
    with Operators() as ran:
        grad = convolve(x, filters)
        gradient_at_images(grad, x, filters)
        gradient_at_filters(grad, x, filters)
    library = {"convolution", "convolution_backward"}
    assert ("mm" in ran.names) is product
    assert (ran.names & library) == (set() if product else library)

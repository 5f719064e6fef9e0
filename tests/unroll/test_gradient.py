"""The forms of the gradient: the chain and the compiled one against autograd, in float64."""

import subprocess
import sys

import pytest
import torch

from trajmatch.networks import build_network
from trajmatch.networks.functional import parameter_vector
from trajmatch.rng import stream
from trajmatch.unroll import convolution
from trajmatch.unroll.convnet import ConvNetGradient
from trajmatch.unroll.gradient import (
    CompiledGradient,
    EagerGradient,
    classifier,
    gradient_fn,
    training_loss,
)


def problem(*, soft=False, size=8, channels=3, depth=2, **options):
    draw = stream(0, "passes")
    options = {"width": 4, "depth": depth, **options}
    module = build_network(
        "convnet", channels=channels, classes=3, size=size, seed=0, **options
    ).double()
    vector = parameter_vector(module)
    vector += 0.1 * torch.randn(vector.shape, generator=draw, dtype=torch.float64)
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.randn((5, channels, height, width), generator=draw, dtype=torch.float64)
    labels = torch.arange(5) % 3
    if soft:
        # Not of sum 1: the labels are learned freely.
        labels = torch.rand((5, 3), generator=draw, dtype=torch.float64)
    v = torch.randn(vector.shape, generator=draw, dtype=torch.float64)
    return module, vector, images, labels, v


def close(a, b, rel=1e-11):
    assert a.shape == b.shape
    assert (a - b).norm() <= rel * max(b.norm().item(), 1e-300), (a - b).norm() / b.norm()


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "soft"])
@pytest.mark.parametrize("size", [8, 7, (9, 4)], ids=str)
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("small", [0, convolution.SMALL], ids=["library", "product"])
def test_chain_equals_autograd(soft, size, depth, small, monkeypatch):
    monkeypatch.setattr(convolution, "SMALL", small)
    module, vector, images, labels, v = problem(soft=soft, size=size, depth=depth)
    record = gradient_fn(module).record(vector, images, labels)
    wanted, g = record.vjp(v), record.gradient()
    chain = ConvNetGradient.of(module)
    got, kept = chain.grad(vector, images, labels)
    close(got, g)
    hessian_v, at_images, at_labels = chain.grad_vjp(vector, labels, kept, v)
    close(hessian_v, wanted.vector)
    close(at_images, wanted.images)
    if soft:
        close(at_labels, wanted.labels)
    else:
        assert at_labels is None


def test_chain_passes_by_finite_differences():
    module, vector, images, labels, v = problem(soft=True)
    chain, step = ConvNetGradient.of(module), 1e-6
    _, kept = chain.grad(vector, images, labels)
    hessian_v, at_images, at_labels = chain.grad_vjp(vector, labels, kept, v)
    draw = stream(1, "direction")

    def inner(vector, images, labels):
        return torch.dot(chain.grad(vector, images, labels)[0], v)

    inputs = [vector, images, labels]
    for place, gradient in enumerate((hessian_v, at_images, at_labels)):
        to = torch.randn(inputs[place].shape, generator=draw, dtype=torch.float64)
        ahead, behind = (
            inner(*[x + sign * step * to if i == place else x for i, x in enumerate(inputs)])
            for sign in (1, -1)
        )
        slope = (ahead - behind) / (2 * step)
        assert abs(slope - (gradient * to).sum()) < 1e-6 * slope.abs()


@pytest.mark.parametrize(
    "options", [{"norm": "group"}, {"activation": "leakyrelu"}, {"pooling": "max"}]
)
def test_only_the_published_convnet_is_a_chain(options):
    module, *_ = problem(**options)
    assert ConvNetGradient.of(module) is None
    assert ConvNetGradient.of(build_network("lenet", channels=1, classes=3, size=28)) is None


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "soft"])
@pytest.mark.parametrize("name", ["convnet", "mlp", "vit"])
def test_derivative_along_v_equals_autograd_for_any_network(name, soft, monkeypatch):
    monkeypatch.setattr("trajmatch.unroll.gradient.compiled", lambda function: function)
    draw = stream(2, "passes")
    module = build_network(name, channels=1, classes=3, size=8, seed=0).double()
    vector = parameter_vector(module)
    images = torch.randn((4, 1, 8, 8), generator=draw, dtype=torch.float64)
    labels = torch.arange(4) % 3
    if soft:
        labels = torch.rand((4, 3), generator=draw, dtype=torch.float64)
    v = torch.randn(vector.shape, generator=draw, dtype=torch.float64)
    loss = training_loss(classifier(module, "float32"))
    slow = EagerGradient(loss, "float32").record(vector, images, labels)
    fast = CompiledGradient(loss, "float32").record(vector, images, labels)
    close(fast.gradient(), slow.gradient())
    got, wanted = fast.vjp(v), slow.vjp(v)
    close(got.inner, wanted.inner)
    close(got.vector, wanted.vector)
    close(got.images, wanted.images)
    if soft:
        close(got.labels, wanted.labels)


COMPILED = """
import torch
from trajmatch import match_segment
from trajmatch.networks import build_network, parameter_vector

for options in ({}, {"norm": "group"}, {"activation": "sigmoid"}):
    options |= {"depth": 2, "width": 4}
    net = build_network("convnet", channels=2, classes=3, size=8, seed=0, **options)
    start = parameter_vector(net.double())
    draw = torch.Generator().manual_seed(0)
    target = start + 0.1 * torch.randn(start.shape, generator=draw, dtype=torch.float64)
    images = torch.randn((6, 2, 8, 8), generator=draw, dtype=torch.float64)
    labels = torch.arange(6) % 3
    dsa = "color_crop_cutout_flip_scale_rotate"
    for method in ("stored", "reverse", "auto"):
        wanted, got = (
            match_segment(
                net, start, target, images, labels, 0.1, steps=4, augment=dsa, method=method,
                compile=compile,
            )
            for compile in (False, True)
        )
        for name in ("loss", "grad_images", "grad_step_size", "end"):
            a, b = getattr(wanted, name), getattr(got, name)
            assert (a - b).norm() <= 1e-9 * a.norm(), (options, method, name)
"""


@pytest.mark.slow
def test_compiled_segments_equal_eager_ones_in_float64():
    """Not in this process, whose shape checks the compiler cannot follow."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not usable" not in done.stderr

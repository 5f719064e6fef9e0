"""The three gradient functions against each other and finite differences, in float64."""

import subprocess
import sys

import pytest
import torch

from trajmatch.networks import build_network
from trajmatch.networks.functional import parameter_vector
from trajmatch.networks.precision import classifier
from trajmatch.rng import stream
from trajmatch.unroll.convnet import ConvNetGradient
from trajmatch.unroll.convolution import MATMUL_LIMIT
from trajmatch.unroll.gradient import (
    CompiledGradient,
    DerivedGradient,
    EagerGradient,
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
@pytest.mark.parametrize("limit", [0, MATMUL_LIMIT], ids=["library", "product"])
def test_derived_equals_autograd(soft, size, depth, limit):
    module, vector, images, labels, v = problem(soft=soft, size=size, depth=depth)
    eager = gradient_fn(module).residuals(vector, images, labels)
    g, wanted = eager.gradient(), eager.vjp(v)
    derived = ConvNetGradient.of(module, matmul_limit=limit)
    found, saved = derived.grad(vector, images, labels)
    close(found, g)
    hessian_v, at_images, at_labels = derived.grad_vjp(vector, labels, saved, v)
    close(hessian_v, wanted.vector)
    close(at_images, wanted.images)
    if soft:
        close(at_labels, wanted.labels)
    else:
        assert at_labels is None


def test_derived_equals_finite_differences():
    module, vector, images, labels, v = problem(soft=True)
    derived, step = ConvNetGradient.of(module), 1e-6
    _, saved = derived.grad(vector, images, labels)
    hessian_v, at_images, at_labels = derived.grad_vjp(vector, labels, saved, v)
    draw = stream(1, "direction")

    def inner(vector, images, labels):
        return torch.dot(derived.grad(vector, images, labels)[0], v)

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
def test_only_the_published_convnet_is_derived(options):
    module, *_ = problem(**options)
    assert ConvNetGradient.of(module) is None
    assert ConvNetGradient.of(build_network("lenet", channels=1, classes=3, size=28)) is None


def uncompiled(function):
    return function


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "soft"])
@pytest.mark.parametrize("name", ["convnet", "mlp", "vit"])
def test_uncompiled_the_three_forms_are_equal(name, soft):
    """The functions themselves; what the compiler makes of them is tested below."""
    draw = stream(2, "passes")
    module = build_network(name, channels=1, classes=3, size=8, seed=0).double()
    vector = parameter_vector(module)
    images = torch.randn((4, 1, 8, 8), generator=draw, dtype=torch.float64)
    labels = torch.arange(4) % 3
    if soft:
        labels = torch.rand((4, 3), generator=draw, dtype=torch.float64)
    v = torch.randn(vector.shape, generator=draw, dtype=torch.float64)
    loss = training_loss(classifier(module, "float32"))
    forms = [CompiledGradient(loss, "float32", compiler=uncompiled)]
    derived = ConvNetGradient.of(module)
    if name == "convnet":
        forms.append(DerivedGradient(derived, "float32"))
    eager = EagerGradient(loss, "float32").residuals(vector, images, labels)
    g, wanted = eager.gradient(), eager.vjp(v)
    for form in forms:
        residuals = form.residuals(vector, images, labels)
        close(residuals.gradient(), g)
        close(form.gradient(vector, images, labels), g)
        found = residuals.vjp(v)
        close(found.inner, wanted.inner)
        close(found.vector, wanted.vector)
        close(found.images, wanted.images)
        if soft:
            close(found.labels, wanted.labels)


# -- compiled: in processes of their own, since the compiler cannot trace this one's shape checks --


FUNCTIONS = """
import torch
from torch._dynamo.utils import counters
from trajmatch.networks import build_network, parameter_vector
from trajmatch.networks.precision import classifier
from trajmatch.unroll.convnet import ConvNetGradient
from trajmatch.unroll.gradient import CompiledGradient, DerivedGradient, EagerGradient
from trajmatch.unroll.gradient import training_loss
from trajmatch.unroll.native import Compiled

net = build_network("convnet", channels=2, classes=3, size=8, seed=0, depth=2, width=4).double()
vector, draw = parameter_vector(net), torch.Generator().manual_seed(0)
images = torch.randn((5, 2, 8, 8), generator=draw, dtype=torch.float64)
labels = torch.rand((5, 3), generator=draw, dtype=torch.float64)
v = torch.randn(vector.shape, generator=draw, dtype=torch.float64)
loss = training_loss(classifier(net, "float32"))
eager = EagerGradient(loss, "float32").residuals(vector, images, labels)
g, wanted = eager.gradient(), eager.vjp(v)
derived = DerivedGradient(Compiled.of(ConvNetGradient.of(net)), "float32")
forms = CompiledGradient(loss, "float32"), derived
for number, form in enumerate(forms, 1):
    residuals = form.residuals(vector, images, labels)
    pairs = [(residuals.gradient(), g), *zip(residuals.vjp(v), wanted)]
    for found, plain in pairs:
        assert (found - plain).norm() <= 1e-11 * plain.norm(), type(form)
    assert counters["stats"]["unique_graphs"] == 2 * number, "g and its product: one graph each"
assert not counters["graph_break"], counters["graph_break"]
"""


def run_alone(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not usable" not in done.stderr


@pytest.mark.slow
def test_compiled_functions_equal_eager_ones():
    """Both functions of both compiled forms, each one graph, on the CPU in float64."""
    run_alone(FUNCTIONS)


SEGMENTS = """
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
def test_compiled_segments_equal_eager_ones():
    """Of published and other ConvNets, by every exact method, in float64."""
    run_alone(SEGMENTS)

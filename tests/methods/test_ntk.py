"""Kernels of infinitely wide networks: against wide finite ones, by hand, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from trajmatch.errors import SettingError
from trajmatch.methods.kip.ntk import Convolutional, Dense, Kernel, Regression, centered
from trajmatch.methods.kip.ntk.covariance import arc_cosines
from trajmatch.types import Tensor

KERNELS = [Dense(1), Dense(3), Dense(2, 1.2, 0.5), Convolutional(1), Convolutional(2, 1.7, 0.3)]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=str)


def images(n: int, *, seed: int = 0, channels: int = 2, side: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, side, side, generator=generator, dtype=torch.float64)


# -- closed form ---------------------------------------------------------------------------------


def test_one_hidden_layer_by_hand() -> None:
    """At 60 degrees, lengths 1 and 2: with sigma_w^2 = 2 and two pixels the first layer's
    covariance is the product of the images, 1, and the angle stays."""
    a, b = torch.tensor([[1, 0], [1, math.sqrt(3)]], dtype=torch.float64).view(2, 1, 1, 1, 2)
    kernel = Dense(1, math.sqrt(2), 0.0)
    nngp = math.sqrt(3) / math.pi + 2 / 3
    assert kernel.nngp(a, b).item() == pytest.approx(nngp, rel=1e-12)
    assert kernel.ntk(a, b).item() == pytest.approx(nngp + 2 / 3, rel=1e-12)
    # A network doubles its input's length where all gain is 1: K(x, x) = |x|^2, theta = 2 |x|^2.
    assert kernel.nngp(b, b).item() == pytest.approx(4, rel=1e-12)
    assert kernel.ntk(b, b).item() == pytest.approx(8, rel=1e-12)


def test_a_deep_networks_diagonal_by_hand() -> None:
    """A ReLU halves the square; every layer adds its own gradients to those it passes on."""
    x = images(3)
    w, b, depth = 1.3**2, 0.4**2, 3
    kernel = Dense(depth, 1.3, 0.4)
    nngp = ntk = w * (x**2).mean((1, 2, 3)) + b
    for _ in range(depth):
        nngp = w * nngp / 2 + b
        ntk = nngp + w * ntk / 2
    torch.testing.assert_close(kernel.nngp(x, x).diagonal(), nngp, rtol=1e-12, atol=0)
    torch.testing.assert_close(kernel.ntk(x, x).diagonal(), ntk, rtol=1e-12, atol=0)


def test_arc_cosines_are_expectations() -> None:
    generator = torch.Generator().manual_seed(0)
    u, w = torch.randn(2, 10**6, generator=generator, dtype=torch.float64)
    rho = torch.tensor([-1.0, -0.8, 0.0, 0.3, 0.9, 1.0], dtype=torch.float64)
    line, step = arc_cosines(rho[None])
    for i, r in enumerate(rho.tolist()):
        v = r * u + math.sqrt(1 - r**2) * w
        assert line[0, i].item() == pytest.approx(2 * (u.relu() * v.relu()).mean().item(), abs=6e-3)
        both = ((u > 0) & (v > 0)).double().mean()
        assert step[0, i].item() == pytest.approx(2 * both.item(), abs=4e-3)


def test_arc_cosines_have_a_slope_at_their_ends() -> None:
    rho = torch.tensor([[-1.0, -0.5, 1.0]], dtype=torch.float64, requires_grad=True)
    line, step = arc_cosines(rho)
    (of_line,) = torch.autograd.grad(line.sum(), rho, retain_graph=True)
    (of_step,) = torch.autograd.grad(step.sum(), rho)
    torch.testing.assert_close(of_line, step)
    inside = 1 / (math.pi * math.sqrt(3 / 4))
    torch.testing.assert_close(of_step, torch.tensor([[0.0, inside, 0.0]], dtype=torch.float64))


def test_a_dense_kernel_is_blind_to_places_and_a_convolution_is_not() -> None:
    a, b = images(2), images(3, seed=1)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(3))
    mixed = [part[..., order] for part in (a, b)]
    torch.testing.assert_close(Dense(2).ntk(*mixed), Dense(2).ntk(a, b))
    other = Convolutional(2).ntk(*mixed) - Convolutional(2).ntk(a, b)
    assert other.abs().max() > 1e-3


# -- against wide networks -----------------------------------------------------------------------

Forward = Callable[[list[Tensor], Tensor], Tensor]


def finite(kernel: Kernel, width: int, x: Tensor, seed: int) -> tuple[list[Tensor], Forward]:
    """Parameters and function of one network of that width, in the kernel's parametrization."""
    generator = torch.Generator().manual_seed(seed)
    conv = isinstance(kernel, Convolutional)
    shapes: list[tuple[int, ...]] = []
    before = x.shape[1] if conv else x[0].numel()
    for _ in range(kernel.depth):
        shapes += [(width, before, 3, 3) if conv else (width, before), (width,)]
        before = width
    shapes += [(1, width * x[0, 0].numel() if conv else width), (1,)]
    parameters = [torch.randn(s, generator=generator, dtype=x.dtype) for s in shapes]

    def forward(parts: list[Tensor], batch: Tensor) -> Tensor:
        h = batch if conv else batch.flatten(1)
        for k in range(kernel.depth + 1):
            weight, bias = parts[2 * k], kernel.sigma_b * parts[2 * k + 1]
            scaled = kernel.sigma_w / math.sqrt(weight[0].numel()) * weight
            if k == kernel.depth:
                return (h.flatten(1) @ scaled.T + bias)[:, 0]
            h = F.conv2d(h, scaled, bias, padding=1) if conv else h @ scaled.T + bias
            h = h.relu()
        raise AssertionError

    return parameters, forward


def drawn(kernel: Kernel, width: int, x: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """NNGP and NTK of networks that are drawn: products of the gradients of their outputs.

    Those of the last layer alone are an estimate of the NNGP kernel.
    """
    nngp = ntk = torch.zeros(len(x), len(x), dtype=x.dtype)
    for seed in range(draws):
        parameters, forward = finite(kernel, width, x, seed)
        jacobians = torch.func.jacrev(forward)(parameters, x)
        products = [j.flatten(1) @ j.flatten(1).T for j in jacobians]
        nngp = nngp + sum(products[-2:]) / draws
        ntk = ntk + sum(products) / draws
    return nngp, ntk


@pytest.mark.parametrize(
    ("kernel", "width", "draws"),
    [
        (Dense(1), 4096, 4),
        (Dense(2, 1.2, 0.5), 1024, 8),
        (Dense(3), 256, 48),
        (Convolutional(1), 1024, 4),
        (Convolutional(2, 1.7, 0.3), 128, 36),
    ],
    ids=str,
)
def test_wide_networks_come_near_their_kernel(kernel: Kernel, width: int, draws: int) -> None:
    """Within 4 % of the largest entry.

    The error of `draws` networks of `width` units falls with the root of width * draws, to 1 to 3 %
    here; what is left out of a kernel, or counted twice, is more.
    """
    side = 3
    x = images(3, side=side)
    x = torch.cat([x, x[:1] + 0.3 * images(1, seed=5, side=side), -x[1:2]])
    found = drawn(kernel, width, x, draws)
    for estimate, exact in zip(found, (kernel.nngp(x, x), kernel.ntk(x, x)), strict=True):
        assert (estimate - exact).abs().max() < 0.04 * exact.max()


# -- what makes it a kernel ----------------------------------------------------------------------


@every_kernel
def test_it_is_symmetric_and_positive_semi_definite(kernel: Kernel) -> None:
    x = images(12)
    x = torch.cat([x, x[:3], 2 * x[3:5], -x[5:7]])  # coincident, parallel, opposite
    for gram in (kernel.nngp(x, x), kernel.ntk(x, x)):
        torch.testing.assert_close(gram, gram.T, rtol=1e-13, atol=1e-13)
        assert torch.linalg.eigvalsh(gram).min() > -1e-12 * gram.diagonal().sum()
        torch.testing.assert_close(gram[:3, 12:15], gram[:3, :3], rtol=1e-12, atol=0)


@every_kernel
def test_it_is_the_same_in_float32_pieces_and_either_order(kernel: Kernel) -> None:
    a, b = images(4).float(), images(3, seed=1).float()
    whole = kernel.ntk(a, b)
    assert whole.dtype == torch.float64
    torch.testing.assert_close(whole, kernel.ntk(b.double(), a).T, rtol=1e-12, atol=0)
    torch.testing.assert_close(whole[1:3], kernel.ntk(a[1:3], b), rtol=1e-12, atol=0)


# -- gradients -----------------------------------------------------------------------------------


def by_differences(f: Callable[[Tensor], Tensor], x: Tensor, h: float = 1e-4) -> Tensor:
    slopes = torch.empty_like(x)
    for i in range(x.numel()):
        step = torch.zeros_like(x)
        step.view(-1)[i] = h
        slopes.view(-1)[i] = (f(x + step) - f(x - step)) / (2 * h)
    return slopes


@every_kernel
@pytest.mark.parametrize("coincident", [False, True], ids=["apart", "coincident"])
def test_gradients_by_finite_differences(kernel: Kernel, coincident: bool) -> None:
    """The diagonal always coincides; here also an image with another, and with a real one.

    At the tip of a cone the slopes on both sides of it cancel. What is left of 5e-6 is the
    differences' own error: 1 - correlation is 1e-9 there and known to 1e-16.
    """
    s, t = images(3, side=3), images(4, seed=1, side=3)
    if coincident:
        s[1], t[0] = s[0], s[2]
    weigh = [images(1, seed=k, channels=1, side=4)[0, 0] for k in (2, 3)]

    def f(x: Tensor) -> Tensor:
        own, other = kernel.output(x, x), kernel.output(t, x)
        parts = (own.ntk, own.nngp, other.ntk, other.nngp)
        return sum((part * weigh[k % 2][: len(part), :3]).sum() for k, part in enumerate(parts))

    x = s.clone().requires_grad_()
    (found,) = torch.autograd.grad(f(x), x)
    wanted = by_differences(f, s)
    assert wanted.norm() > 0.1
    assert (found - wanted).abs().max() < 5e-6


@pytest.mark.parametrize("kernel", [Dense(2, 1.4, 0.0), Convolutional(2, 1.4, 0.0)], ids=str)
def test_blank_and_opposite_images_have_a_gradient(kernel: Kernel) -> None:
    """Without biases a blank image has no length, and x and -x share no unit that is on."""
    x = images(3)
    x[1], x[2] = 0, -x[0]
    x.requires_grad_()
    gram = kernel.ntk(x, x)
    (found,) = torch.autograd.grad(gram.sum(), x)
    assert gram.isfinite().all()
    assert found.isfinite().all()
    assert gram[1].tolist() == [0, 0, 0]


# -- regression ----------------------------------------------------------------------------------


def test_the_ridge_solution_is_numpys() -> None:
    kernel = Dense(2)
    s, t = images(6), images(5, seed=1)
    targets = torch.randn(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for regularization in (1e-6, 0.3):
        fitted = Regression.fit(kernel, s, targets, regularization)
        k, k_ts = kernel.ntk(s, s).numpy(), kernel.ntk(t, s).numpy()
        ridge = regularization * np.trace(k) / 6
        wanted = k_ts @ np.linalg.solve(k + ridge * np.eye(6), targets.numpy())
        np.testing.assert_allclose(fitted.predict(t).numpy(), wanted, rtol=1e-9)
    assert (Regression.fit(kernel, s, targets).predict(s) - targets).abs().max() < 1e-4


def test_it_is_solved_in_float64_whatever_the_images() -> None:
    s, targets = images(6), centered(torch.arange(6) % 3, 3)
    s[1] = s[0] + 1e-4 * s[1]  # float32 does not tell these two apart in K
    k = Dense(2).ntk(s.float(), s.float()).numpy()
    regularized = k + 1e-6 * np.trace(k) / 6 * np.eye(6)
    precise = k @ np.linalg.solve(regularized, targets.numpy())
    found = Regression.fit(Dense(2), s.float(), targets.float()).predict(s.float())
    np.testing.assert_allclose(found.numpy(), precise, rtol=0, atol=1e-7)


def test_targets_are_centered() -> None:
    hard = centered(torch.tensor([1, 0]), 4)
    assert hard.tolist() == [[-0.25, 0.75, -0.25, -0.25], [0.75, -0.25, -0.25, -0.25]]
    soft = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    torch.testing.assert_close(centered(soft, 4), soft.double() - 0.25)


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e200, math.nan])
def test_images_beyond_bounds_are_told(scale: float) -> None:
    with pytest.raises(SettingError, match=r"kernel of 3 images .* lower lr_img=") as error:
        Regression.fit(Dense(2), scale * images(3), torch.zeros(3, 2))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [((0,), "depth is 0"), ((1, 0.0), "sigma_w above 0"), ((1, 1.0, -0.1), "sigma_b of at least")],
)
def test_settings_that_are_no_network_are_refused(settings: tuple, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Dense(*settings)

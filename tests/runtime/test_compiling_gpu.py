"""Results of compiled functions on a GPU, where a graph's next replay overwrites its own."""

from __future__ import annotations

import math

import torch

from gpu import DEVICE, MARKS, alone
from trajmatch.networks import build_network
from trajmatch.networks.functional import parameter_vector
from trajmatch.runtime.compiling import compiled, is_compiled
from trajmatch.unroll.gradient import gradient_fn

pytestmark = MARKS


def results_belong_to_the_caller():
    function = compiled(lambda x: (x.sin() + 1, [x.cos()]))
    kept, copies = [], []
    for number in range(6):  # run, recorded, replayed
        with torch.no_grad():
            first, (second,) = function(torch.full((64, 64), float(number), device=DEVICE))
        kept += [first, second]
        copies += [first.clone(), second.clone()]
    assert is_compiled(function)
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))
    assert abs(float(kept[-2][0, 0]) - 1 - math.sin(5)) < 1e-5
    assert len({tensor.data_ptr() for tensor in kept}) == len(kept)


def test_compiled_results_belong_to_the_caller():
    alone(results_belong_to_the_caller)


def residuals_belong_to_their_step():
    module = build_network("convnet", channels=3, classes=3, size=8, depth=2, width=4, seed=0)
    vector = parameter_vector(module.to(DEVICE))
    images = torch.randn((4, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    labels = (torch.arange(4) % 3).to(DEVICE)
    gradient = gradient_fn(module, compile=True)
    eager = gradient_fn(module)
    steps = [vector + 0.1 * n for n in range(6)]
    kept = [gradient.residuals(step, images, labels) for step in steps]
    for step, residuals in zip(steps, kept, strict=True):
        plain = eager.residuals(step, images, labels)
        torch.testing.assert_close(residuals.gradient(), plain.gradient(), rtol=1e-3, atol=1e-5)
    for step, residuals in zip(reversed(steps), reversed(kept), strict=True):
        found = residuals.vjp(vector)
        wanted = eager.residuals(step, images, labels).vjp(vector)
        torch.testing.assert_close(found.images, wanted.images, rtol=1e-2, atol=1e-4)
    assert gradient.compiled


def test_compiled_residuals_belong_to_their_step():
    """All are computed before any is used, as method "stored" does."""
    alone(residuals_belong_to_their_step)

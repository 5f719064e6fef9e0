"""What is learned, and its gradients in the form that is optimized, against autograd."""

from __future__ import annotations

import math

import pytest
import torch

from reference import plain_loss
from trajmatch import match_segment
from trajmatch.methods.parameters import SMOOTHING, Estimate, SyntheticParameters, mean_estimate
from trajmatch.networks import build_network
from trajmatch.networks.functional import parameter_vector

CLASSES = torch.tensor([0, 1, 2, 0, 1])


def images(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 1, 8, 8, generator=generator, dtype=torch.float64)


def perturbed(parameters: SyntheticParameters) -> SyntheticParameters:
    """Away from where it began, where the labels of all images are alike."""
    generator = torch.Generator().manual_seed(1)
    return parameters.with_tensors(
        {
            name: part + torch.randn(part.shape, generator=generator, dtype=part.dtype)
            for name, part in parameters.tensors().items()
        }
    )


def test_beginning_with_hard_labels() -> None:
    parameters = SyntheticParameters.begin(images(), CLASSES, step_size=0.02)
    assert parameters.step_size.item() == pytest.approx(0.02, rel=1e-12)
    assert torch.equal(parameters.labels, CLASSES)
    assert list(parameters.tensors()) == ["images", "log_step_size"]


def test_beginning_with_soft_labels() -> None:
    parameters = SyntheticParameters.begin(images(), CLASSES, step_size=0.02, soft=3)
    assert parameters.label_logits is not None
    assert parameters.label_logits.isfinite().all()
    low = SMOOTHING / 3
    high = 1 - SMOOTHING + low
    for row, label in zip(parameters.labels.tolist(), CLASSES.tolist(), strict=True):
        assert row == pytest.approx([high if k == label else low for k in range(3)], rel=1e-12)
    assert list(parameters.tensors()) == ["images", "log_step_size", "label_logits"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_follows_the_images(dtype: torch.dtype) -> None:
    parameters = SyntheticParameters.begin(images().to(dtype), CLASSES, step_size=0.01, soft=3)
    assert {part.dtype for part in parameters.tensors().values()} == {dtype}


def test_an_update_leaves_the_old_value_alone() -> None:
    old = SyntheticParameters.begin(images(), CLASSES, step_size=0.02, soft=3)
    before = {name: part.clone() for name, part in old.tensors().items()}
    new = perturbed(old)
    for name, part in old.tensors().items():
        assert torch.equal(part, before[name])
        assert not torch.equal(part, new.tensors()[name])
    assert torch.equal(new.classes, CLASSES)


def anything_smooth(x: torch.Tensor, p: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """No two of its arguments act apart, and the probabilities' gradient depends on the class."""
    weights = torch.arange(1.0, 4.0, dtype=p.dtype)
    return (x.flatten(1).sin().sum(1) * (p.square() @ weights)).sum() * alpha.sqrt() + alpha**3


def test_gradients_in_the_optimized_form_are_autograds() -> None:
    parameters = perturbed(SyntheticParameters.begin(images(), CLASSES, step_size=0.3, soft=3))
    leaves = {name: part.clone().requires_grad_() for name, part in parameters.tensors().items()}
    moved = parameters.with_tensors(leaves)
    expected = torch.autograd.grad(
        anything_smooth(moved.images, moved.labels, moved.step_size), list(leaves.values())
    )

    x, p, alpha = (
        part.detach().requires_grad_()
        for part in (parameters.images, parameters.labels, parameters.step_size)
    )
    loss = anything_smooth(x, p, alpha)
    estimate = Estimate(loss.detach(), *torch.autograd.grad(loss, (x, p, alpha)))
    found = estimate.of(parameters)

    assert list(found) == ["images", "log_step_size", "label_logits"]
    for name, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-14)
        assert gradient.abs().max() > 1e-3


def test_gradients_through_an_unroll_are_autograds() -> None:
    """The engine and the change of form together, against back-propagation through all of it."""
    module = build_network("mlp", channels=1, classes=3, size=8, width=5, seed=0).double()
    start = parameter_vector(module)
    generator = torch.Generator().manual_seed(2)
    target = start + 0.1 * torch.randn(start.shape, generator=generator, dtype=start.dtype)
    parameters = perturbed(SyntheticParameters.begin(images(), CLASSES, step_size=0.1, soft=3))

    leaves = {name: part.clone().requires_grad_() for name, part in parameters.tensors().items()}
    moved = parameters.with_tensors(leaves)
    vector = start.clone().requires_grad_()
    for _ in range(3):
        loss = plain_loss(module, vector, moved.images, moved.labels)
        (gradient,) = torch.autograd.grad(loss, vector, create_graph=True)
        vector = vector - moved.step_size * gradient
    distance = (vector - target).square().sum() / (start - target).square().sum()
    expected = torch.autograd.grad(distance, list(leaves.values()))

    unrolled = match_segment(
        module, start, target, parameters.images, parameters.labels, parameters.step_size, steps=3
    )
    estimate = Estimate(
        unrolled.loss, unrolled.grad_images, unrolled.grad_labels, unrolled.grad_step_size
    )
    for name, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(estimate.of(parameters)[name], gradient, rtol=1e-9, atol=1e-14)


def test_what_is_not_learned_has_no_gradient() -> None:
    hard = SyntheticParameters.begin(images(), CLASSES, step_size=0.3)
    gradient = images(1)
    loss, slope = torch.tensor(1.0), torch.tensor(2.0, dtype=torch.float64)
    assert list(Estimate(loss, gradient).of(hard)) == ["images"]
    assert list(Estimate(loss, gradient, torch.ones(5, 3).double(), slope).of(hard)) == [
        "images",
        "log_step_size",
    ]


def test_a_gradient_that_favors_no_class_moves_no_label() -> None:
    soft = perturbed(SyntheticParameters.begin(images(), CLASSES, step_size=0.3, soft=3))
    even = Estimate(torch.tensor(1.0), images(1), torch.full((5, 3), 7.0, dtype=torch.float64))
    assert even.of(soft)["label_logits"].abs().max() < 1e-14


def test_the_mean_of_estimates() -> None:
    one, other = (
        Estimate(torch.tensor(loss), images(seed), torch.full((5, 3), loss), torch.tensor(-loss))
        for seed, loss in enumerate((1.0, 4.0))
    )
    mean = mean_estimate([one, other])
    assert mean.loss.item() == 2.5
    torch.testing.assert_close(mean.images, (one.images + other.images) / 2)
    assert mean.labels is not None
    assert mean.step_size is not None
    assert torch.equal(mean.labels, torch.full((5, 3), 2.5))
    assert mean.step_size.item() == -2.5
    assert mean_estimate([one]) is one


def test_the_mean_of_estimates_without_labels_and_step_size() -> None:
    mean = mean_estimate([Estimate(torch.tensor(1.0), images(i)) for i in range(3)])
    assert (mean.labels, mean.step_size) == (None, None)
    assert math.isclose(mean.images.sum(), sum(images(i).sum() for i in range(3)) / 3)

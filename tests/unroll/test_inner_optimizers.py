"""Every inner optimizer: its update against torch's, its reverse against plain back-propagation."""

import itertools
from dataclasses import dataclass

import pytest
import torch

from reference import plain_match, plain_unroll
from trajmatch import match_segment
from trajmatch.data.augment import Augmentation
from trajmatch.errors import SettingError
from trajmatch.networks import build_network
from trajmatch.networks.functional import FunctionalNetwork, parameter_vector
from trajmatch.rng import stream
from trajmatch.unroll import SGD, Adam, InnerOptimizer, Momentum, Schedule, SegmentDistance, Student
from trajmatch.unroll.gradient import gradient_fn
from trajmatch.unroll.unroll import unroll

OPTIMIZERS = [SGD(), Momentum(), Momentum(0.5), Adam(), Adam((0.5, 0.8), eps=1e-3)]
ALPHA = {SGD: 0.3, Momentum: 0.1, Adam: 0.01}
DSA = "color_crop_cutout_flip_scale_rotate"

every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)


def problem(*, soft=False):
    """A network whose parameters all have a gradient: Adam's update of one that has none is noise
    divided by eps."""
    draw = stream(0, "optimizers")
    module = build_network(
        "convnet", channels=2, classes=3, size=8, seed=0,
        depth=2, width=4, norm="none", activation="sigmoid",
    ).double()  # fmt: skip
    start = parameter_vector(module)
    target = start + 0.1 * torch.randn(start.shape, generator=draw, dtype=torch.float64)
    images = torch.randn((6, 2, 8, 8), generator=draw, dtype=torch.float64)
    labels = torch.arange(6) % 3
    if soft:
        labels = torch.randn((6, 3), generator=draw, dtype=torch.float64).softmax(1)
    return module, start, target, images, labels


def close(a, b, rel=1e-9):
    assert a.shape == b.shape
    assert (a - b).norm() <= rel * b.norm(), f"relative error {(a - b).norm() / b.norm():.2e}"


def test_the_list_is_complete():
    assert all(isinstance(optimizer, InnerOptimizer) for optimizer in OPTIMIZERS)
    assert {type(optimizer) for optimizer in OPTIMIZERS} == {SGD, Momentum, Adam}


@every_optimizer
@pytest.mark.parametrize("keep", [0, 2, 5])
@pytest.mark.parametrize("micro_batch", [0, 3])
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "soft"])
def test_gradients_equal_plain_backpropagation(optimizer, keep, micro_batch, soft):
    module, start, target, images, labels = problem(soft=soft)
    augment, alpha = Augmentation(DSA), ALPHA[type(optimizer)]
    schedule = Schedule.make(images, steps=5, batch_syn=4, augment=augment, seed=3)
    student = Student(gradient_fn(module), images, labels, augment, schedule, micro_batch)
    step_size = torch.tensor(alpha, dtype=torch.float64)
    distance = SegmentDistance(start, target)
    found = unroll(student, start, step_size, distance, keep=keep, optimizer=optimizer)
    loss, end, *grads = plain_match(
        module, start, target, images, labels, alpha, schedule, augment, optimizer
    )
    close(found.loss, loss)
    close(found.end, end)
    close(found.grad_images, grads[0])
    close(found.grad_step_size, grads[1])
    if soft:
        close(found.grad_labels, grads[2])
    else:
        assert found.grad_labels is None


@every_optimizer
@pytest.mark.parametrize("method", ["stored", "reverse"])
def test_gradients_equal_finite_differences(optimizer, method):
    module, start, target, images, labels = problem(soft=True)
    inputs = {
        "images": images,
        "labels": labels,
        "step_size": torch.tensor(ALPHA[type(optimizer)]).double(),
    }

    def run(**changed):
        return match_segment(
            module, start, target, **(inputs | changed),
            steps=4, batch_syn=4, augment=DSA, seed=1, method=method, optimizer=optimizer,
        )  # fmt: skip

    exact, h = run(), 1e-5
    draw = stream(5, "directions")
    for name, value in inputs.items():
        for _ in range(3):
            d = torch.randn(value.shape, generator=draw, dtype=torch.float64)
            losses = [run(**{name: value + k * h * d}).loss for k in (-2, -1, 1, 2)]
            # Central differences of fourth order.
            slope = (losses[0] - 8 * losses[1] + 8 * losses[2] - losses[3]) / (12 * h)
            close((getattr(exact, f"grad_{name}") * d).sum(), slope, 1e-5)


def torch_optimizer(optimizer, parameter, lr):
    match optimizer:
        case SGD():
            return torch.optim.SGD([parameter], lr=lr)
        case Momentum():
            return torch.optim.SGD([parameter], lr=lr, momentum=optimizer.momentum)
        case Adam():
            return torch.optim.Adam([parameter], lr=lr, betas=optimizer.betas, eps=optimizer.eps)


@every_optimizer
def test_one_trajectory_is_that_of_torch_optim(optimizer):
    module, start, target, images, labels = problem()
    lr = ALPHA[type(optimizer)]
    found = match_segment(module, start, target, images, labels, lr, steps=20, optimizer=optimizer)
    network, parameter = FunctionalNetwork(module), torch.nn.Parameter(start.clone())
    theirs = torch_optimizer(optimizer, parameter, lr)
    for _ in range(20):
        theirs.zero_grad()
        torch.nn.functional.cross_entropy(network(parameter, images), labels).backward()
        theirs.step()
    close(found.end - start, parameter.detach() - start, 1e-11)


@dataclass(frozen=True)
class Rescaled(InnerOptimizer):
    """Plain SGD in other units, so that no reverse of ours is used."""

    factor: float

    def init(self, vector):
        return ()

    def update(self, vector, state, gradient, step_size, n):
        return vector - self.factor * step_size * gradient, (), (gradient,)

    def reverse(self, saved, vector, state, step_size, n):
        scale = -self.factor * step_size
        return vector, (), vector, scale, -self.factor * torch.dot(saved[0], vector)


def test_an_optimizer_from_outside_is_used_as_ours_are():
    from trajmatch.unroll.optimizers import Adjoints, Update

    class Outside(Rescaled):
        def update(self, *arguments):
            return Update(*super().update(*arguments))

        def reverse(self, *arguments):
            return Adjoints(*super().reverse(*arguments))

    module, start, target, images, labels = problem()
    ours = match_segment(module, start, target, images, labels, 0.3, steps=4)
    other = match_segment(
        module, start, target, images, labels, 0.6, steps=4, optimizer=Outside(0.5)
    )
    close(other.grad_images, ours.grad_images)
    close(other.grad_step_size, 0.5 * ours.grad_step_size)


@every_optimizer
@pytest.mark.parametrize(("bptt_steps", "keep"), [(1, 0), (3, 0), (3, 2), (3, 3)])
def test_with_bptt_steps_the_state_before_them_is_given(optimizer, bptt_steps, keep):
    """Against plain back-propagation: as if the images of earlier steps were others."""
    module, start, target, images, labels = problem(soft=True)
    schedule, alpha = Schedule(5), torch.tensor(ALPHA[type(optimizer)], dtype=torch.float64)
    student, distance = (
        Student(gradient_fn(module), images, labels, None, schedule),
        SegmentDistance(start, target),
    )
    found = unroll(
        student, start, alpha, distance, keep=keep, bptt_steps=bptt_steps, optimizer=optimizer
    )
    leaf = images.clone().requires_grad_()
    first = 5 - bptt_steps
    # Earlier steps use the images themselves, later ones the leaf; both have the same values.
    both = torch.cat([images, leaf])
    halves = [torch.arange(6) + (6 if n >= first else 0) for n in range(5)]
    end = plain_unroll(
        module, start, both, labels.repeat(2, 1), alpha, Schedule(5, tuple(halves)), None, optimizer
    )
    close(found.end, end.detach())
    close(found.grad_images, torch.autograd.grad(distance(end), leaf)[0])


@every_optimizer
def test_the_reverse_is_the_transposed_derivative_of_the_update(optimizer):
    """For the second update, with all adjoints there are; arguments are left unchanged."""
    draw = stream(1, "update")

    def random():
        return torch.randn(7, generator=draw, dtype=torch.float64)

    alpha = torch.tensor(0.2, dtype=torch.float64)
    state = tuple(part + random().square() for part in optimizer.init(random()))
    arguments = [random(), *state, random(), alpha]
    leaves = [argument.clone().requires_grad_() for argument in arguments]

    def apply(vector, *rest):
        return optimizer.update(vector, rest[:-2], rest[-2], rest[-1], 1)

    following = apply(*leaves)
    results = [following.vector, *following.state]
    adjoints = [random() for _ in results]
    wanted = torch.autograd.grad(results, leaves, adjoints, retain_graph=True)
    saved = tuple(part.detach() for part in following.saved)
    before = [part.clone() for part in [*saved, *adjoints]]
    back = optimizer.reverse(saved, adjoints[0], tuple(adjoints[1:]), alpha, 1)
    assert all(map(torch.equal, before, [*saved, *adjoints]))
    assert all(map(torch.equal, arguments, leaves))
    step_size = back.step_size
    if step_size is None:
        step_size = -torch.dot(arguments[-2], back.direction)
    found = [back.vector, *back.state, back.scale * back.direction, step_size]
    for ours, autograd in zip(found, wanted, strict=True):
        close(ours, autograd, 1e-12)


def test_adam_has_a_derivative_where_all_gradients_were_zero():
    """The limit alpha / eps, which plain back-propagation has as 0 * inf."""
    adam, alpha = Adam(eps=1e-3), torch.tensor(0.1, dtype=torch.float64)
    theta = torch.ones(3, dtype=torch.float64)

    def first(g):
        return adam.update(theta, adam.init(theta), torch.full_like(theta, g), alpha, 0)

    back = adam.reverse(first(0.0).saved, theta, adam.init(theta), alpha, 0)
    slope = (first(1e-9).vector - first(-1e-9).vector) / 2e-9
    close(back.direction * back.scale, slope, 1e-5)
    assert back.direction.tolist() == pytest.approx([-100.0] * 3)


@every_optimizer
def test_no_step_saves_more_vectors_than_documented(optimizer):
    theta = torch.ones(3)
    following = optimizer.update(theta, optimizer.init(theta), theta, torch.tensor(0.1), 0)
    assert 1 + len(following.saved) == {SGD: 1, Momentum: 2, Adam: 4}[type(optimizer)]
    shared = itertools.takewhile(lambda pair: pair[0] is pair[1], zip(*following[1:], strict=False))
    assert len(list(shared)) == len(following.state), "a state is saved twice"


@pytest.mark.parametrize("optimizer", [Momentum(), Adam()], ids=str)
def test_the_truncated_gradient_is_of_plain_sgd_alone(optimizer):
    module, start, target, images, labels = problem()
    with pytest.raises(SettingError, match=r"'tesla'.* is defined for optimizer=SGD\(\)") as error:
        match_segment(
            module, start, target, images, labels, 0.1,
            steps=2, method="tesla", optimizer=optimizer,
        )  # fmt: skip
    assert "\n" not in str(error.value)
    student = Student(gradient_fn(module), images, labels, None, Schedule(2))
    with pytest.raises(SettingError, match="tesla"):
        unroll(
            student, start, torch.tensor(0.1).double(), SegmentDistance(start, target),
            keep=0, truncate=True, optimizer=optimizer,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Momentum(1.0), "momentum is 1.0; it must be at least 0 and below 1"),
        (lambda: Adam(betas=(0.9, 1.5)), "betas is .* it must be at least 0 and below 1"),
        (lambda: Adam(eps=0.0), "eps is 0.0; it must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(build, text):
    with pytest.raises(SettingError, match=text):
        build()

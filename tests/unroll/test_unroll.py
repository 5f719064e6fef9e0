"""The engine's gradients: against plain double back-propagation, finite differences, themselves."""

import pytest
import torch

from reference import plain_loss, plain_match, plain_unroll
from trajmatch import match_segment
from trajmatch.data.augment import Augmentation
from trajmatch.errors import SettingError
from trajmatch.networks import build_network
from trajmatch.networks.functional import FunctionalNetwork, parameter_vector
from trajmatch.rng import stream
from trajmatch.runtime.memory import saved_bytes
from trajmatch.unroll import Schedule, SegmentDistance, Student, plan
from trajmatch.unroll.gradient import gradient_fn
from trajmatch.unroll.unroll import unroll

ALL = "color_crop_cutout_flip_scale_rotate"
EXACT = ["stored", "reverse", "auto"]


def problem(*, soft=False, norm="instance", count=6, classes=3, size=8, channels=2, seed=0):
    draw = stream(seed, "problem")
    module = build_network(
        "convnet", channels=channels, classes=classes, size=size, depth=2, width=4, norm=norm,
        activation="sigmoid", seed=seed,
    ).double()  # fmt: skip
    start = parameter_vector(module)
    target = start + 0.1 * torch.randn(start.shape, generator=draw, dtype=torch.float64)
    images = torch.randn((count, channels, size, size), generator=draw, dtype=torch.float64)
    labels = torch.arange(count) % classes
    if soft:
        labels = torch.randn((count, classes), generator=draw, dtype=torch.float64).softmax(1)
    return module, start, target, images, labels


def close(a, b, rel=1e-9):
    assert (a - b).norm() <= rel * b.norm(), f"relative error {(a - b).norm() / b.norm():.2e}"


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "soft"])
@pytest.mark.parametrize("batch_syn", [None, 4], ids=["whole", "batches"])
@pytest.mark.parametrize("augment", [None, ALL], ids=["plain", "dsa"])
def test_gradients_equal_plain_backpropagation(method, soft, batch_syn, augment):
    module, start, target, images, labels = problem(soft=soft)
    got = match_segment(
        module, start, target, images, labels, 0.3,
        steps=7, batch_syn=batch_syn, augment=augment, seed=3, method=method,
    )  # fmt: skip
    dsa = Augmentation(augment) if augment else None
    schedule = Schedule.make(images, steps=7, batch_syn=batch_syn, augment=dsa, seed=3)
    loss, end, *grads = plain_match(module, start, target, images, labels, 0.3, schedule, dsa)
    close(got.loss, loss)
    close(got.end, end)
    close(got.grad_images, grads[0])
    close(got.grad_step_size, grads[1])
    if soft:
        close(got.grad_labels, grads[2])
    else:
        assert got.grad_labels is None


@pytest.mark.parametrize("method", ["stored", "reverse"])
@pytest.mark.parametrize("augment", [None, ALL], ids=["plain", "dsa"])
def test_gradients_equal_finite_differences(method, augment):
    module, start, target, images, labels = problem(soft=True)

    def run(images=images, labels=labels, step_size=0.3):
        return match_segment(
            module, start, target, images, labels, step_size,
            steps=5, batch_syn=4, augment=augment, seed=1, method=method,
        )  # fmt: skip

    exact, h = run(), 1e-6
    draw = stream(5, "directions")
    for _ in range(3):
        d = torch.randn(images.shape, generator=draw, dtype=torch.float64)
        numeric = (run(images=images + h * d).loss - run(images=images - h * d).loss) / (2 * h)
        close((exact.grad_images * d).sum(), numeric, 1e-6)
        d = torch.randn(labels.shape, generator=draw, dtype=torch.float64)
        numeric = (run(labels=labels + h * d).loss - run(labels=labels - h * d).loss) / (2 * h)
        close((exact.grad_labels * d).sum(), numeric, 1e-6)
    numeric = (run(step_size=0.3 + h).loss - run(step_size=0.3 - h).loss) / (2 * h)
    close(exact.grad_step_size, numeric, 1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("convnet", {"depth": 2, "width": 4, "norm": norm, "pooling": pooling})
        for norm, pooling in [("group", "avg"), ("layer", "max"), ("none", "none")]
    ]
    + [("mlp", {}), ("lenet", {}), ("vit", {})],
)
def test_reverse_equals_stored_for_every_network(name, options):
    module = build_network(name, channels=1, classes=3, size=16, seed=0, **options).double()
    start = parameter_vector(module)
    draw = stream(1, "draw")
    target = start + 0.01 * torch.randn(start.shape, generator=draw, dtype=torch.float64)
    images = torch.randn((4, 1, 16, 16), generator=draw, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0])
    a, b = (
        match_segment(module, start, target, images, labels, 0.05, steps=4, method=m)
        for m in ("reverse", "stored")
    )
    schedule = Schedule(4)
    loss, _, grad, grad_step = plain_match(
        module, start, target, images, labels, 0.05, schedule, None
    )
    close(a.grad_images, b.grad_images)
    close(a.grad_images, grad)
    close(a.grad_step_size, grad_step)
    close(a.loss, loss)


def test_any_keep_agrees_and_repeats_its_bits():
    module, start, target, images, labels = problem()
    augment = Augmentation(ALL)
    schedule = Schedule.make(images, steps=6, batch_syn=4, augment=augment, seed=0)
    student = Student(gradient_fn(module), images, labels, augment, schedule)
    alpha = torch.tensor(0.2, dtype=torch.float64)
    outer_loss = SegmentDistance(start, target)
    for keep in (0, 1, 5, 6):
        a, b = (unroll(student, start, alpha, outer_loss, keep=keep) for _ in range(2))
        assert torch.equal(a.grad_images, b.grad_images)
        assert torch.equal(a.grad_step_size, b.grad_step_size)
        one = unroll(student, start, alpha, outer_loss, keep=0)
        close(a.grad_images, one.grad_images, 1e-12)


@pytest.mark.parametrize("keep", [0, 3, 6])
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "soft"])
def test_micro_batches_of_any_size_give_the_same_gradient(keep, soft):
    module, start, target, images, labels = problem(soft=soft)
    augment = Augmentation(ALL)
    schedule = Schedule.make(images, steps=6, batch_syn=5, augment=augment, seed=0)
    alpha = torch.tensor(0.2, dtype=torch.float64)
    outer_loss = SegmentDistance(start, target)
    _, _, *grads = plain_match(module, start, target, images, labels, 0.2, schedule, augment)
    for micro_batch in (1, 2, 4, 5):
        student = Student(gradient_fn(module), images, labels, augment, schedule, micro_batch)
        got = unroll(student, start, alpha, outer_loss, keep=keep)
        close(got.grad_images, grads[0])
        close(got.grad_step_size, grads[1])
        if soft:
            close(got.grad_labels, grads[2])


def test_any_outer_loss():
    """Loss on real images at the end point, as in dataset distillation."""
    module, start, _, images, labels = problem()
    real = torch.randn((9, 2, 8, 8), generator=stream(0, "real"), dtype=torch.float64)
    truth = torch.arange(9) % 3

    def outer_loss(vector):
        return plain_loss(module, vector, real, truth)

    schedule = Schedule(4)
    student = Student(gradient_fn(module), images, labels, None, schedule)
    alpha = torch.tensor(0.2, dtype=torch.float64)
    got = unroll(student, start, alpha, outer_loss, keep=0)
    leaf = images.clone().requires_grad_()
    loss = outer_loss(plain_unroll(module, start, leaf, labels, alpha, schedule, None))
    close(got.grad_images, torch.autograd.grad(loss, leaf)[0])


def test_truncated_gradient_is_exact_at_one_step_and_departs_after():
    module, start, target, images, labels = problem()
    outer_loss = SegmentDistance(start, target)
    alpha = torch.tensor(0.5, dtype=torch.float64)
    differences = []
    for steps in (1, 8):
        student = Student(gradient_fn(module), images, labels, None, Schedule(steps))
        exact = unroll(student, start, alpha, outer_loss, keep=0).grad_images
        cheap = unroll(student, start, alpha, outer_loss, keep=1, truncate=True).grad_images
        differences.append(((exact - cheap).norm() / exact.norm()).item())
    assert differences[0] < 1e-12
    assert differences[1] > 1e-3


def test_float32_agrees_with_float64():
    module, start, target, images, labels = problem()
    truth = match_segment(module, start, target, images, labels, 0.1, steps=3)
    single = [t.float() for t in (start, target, images)]
    got = match_segment(module.float(), *single, labels, 0.1, steps=3)
    close(got.grad_images.double(), truth.grad_images, 1e-4)


def test_mini_batches_use_every_image_before_any_again():
    images = torch.zeros(10, 1, 8, 8)
    schedule = Schedule.make(images, steps=10, batch_syn=4, augment=None, seed=0)
    drawn = torch.cat(schedule.indices)
    assert all(len(b) == 4 for b in schedule.indices)
    for one_pass in drawn.split(10):
        assert sorted(one_pass.tolist()) == list(range(10))
    other = torch.cat(Schedule.make(images, steps=10, batch_syn=4, augment=None, seed=1).indices)
    assert not torch.equal(drawn, other)


def test_auto_says_why():
    module, start, _, images, labels = problem()
    student = Student(gradient_fn(module), images, labels, None, Schedule(5))
    roomy = plan(student, start, "auto")
    assert roomy.keep == 5
    assert "keeping the residuals of 5 of 5 steps" in roomy.reason
    each = saved_bytes(lambda: student.residuals(0, start, keep=True))
    assert plan(student, start, "auto", free_bytes=2 * 3 * each).keep == 3
    assert plan(student, start, "auto", free_bytes=10).keep == 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"method": "revers"}, "did you mean 'reverse'"),
        ({"steps": 0}, "steps is 0"),
        ({"batch_syn": 7}, "batch_syn is 7 and there are 6"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"augment": "flop"}, "flip"),
    ],
)
def test_bad_settings_are_refused(change, text):
    module, start, target, images, labels = problem()
    with pytest.raises(SettingError, match=text):
        match_segment(module, start, target, images, labels, 0.1, **({"steps": 2} | change))


def test_bad_tensors_are_refused():
    module, start, target, images, labels = problem()
    cases = [
        ((start, start, images, labels), "same point"),
        ((start, target, images.float(), labels), "convert one"),
        ((start, target, images, labels.double()), "probabilities"),
        ((start[1:], target[1:], images, labels), "the network"),
        ((start, target, images, labels[:, None]), "class indices"),
    ]
    for arguments, text in cases:
        with pytest.raises(SettingError, match=text):
            match_segment(module, *arguments, 0.1, steps=2)
    stateful = build_network(
        "convnet", channels=2, classes=3, size=8, depth=2, width=4, norm="batch"
    )
    with pytest.raises(SettingError, match="running statistics"):
        match_segment(stateful.double(), start, target, images, labels, 0.1, steps=2)


# -- the truncated gradient ----------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4])
def test_teslas_gradient_is_the_exact_one_of_a_single_step(steps):
    """With more steps it lacks the effect of earlier images on later parameters."""
    module, start, target, images, labels = problem(soft=True)
    exact, truncated = (
        match_segment(
            module, start, target, images, labels, 0.3,
            steps=steps, augment=ALL, seed=1, method=method,
        )
        for method in ("reverse", "tesla")
    )  # fmt: skip
    torch.testing.assert_close(truncated.loss, exact.loss)
    torch.testing.assert_close(truncated.end, exact.end)
    pairs = [
        (truncated.grad_images, exact.grad_images),
        (truncated.grad_labels, exact.grad_labels),
        (truncated.grad_step_size, exact.grad_step_size),
    ]
    for one, other in pairs:
        if steps == 1:
            torch.testing.assert_close(one, other)
        else:
            assert (one - other).norm() > 1e-3 * other.norm()


def test_teslas_gradient_is_that_of_each_step_at_a_fixed_end():
    """By its definition (Cui et al. 2023): v = dLoss/dtheta_N at every step, and no Hessian."""
    module, start, target, images, labels = problem(soft=True)
    found = match_segment(
        module, start, target, images, labels, 0.3, steps=3, seed=1, method="tesla"
    )
    v = 2 * (found.end - target) / (start - target).square().sum()
    pixels = images.clone().requires_grad_()
    network, theta, total = FunctionalNetwork(module), start, 0
    for _ in range(3):
        leaf = theta.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(network(leaf, pixels), labels)
        (g,) = torch.autograd.grad(loss, leaf, create_graph=True)
        total = total - 0.3 * torch.dot(g, v)
        theta = theta - 0.3 * g.detach()
    torch.testing.assert_close(found.grad_images, torch.autograd.grad(total, pixels)[0])


# -- the last steps only -------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 2, 7])
@pytest.mark.parametrize("bptt_steps", [1, 3, 7])
def test_bptt_steps_are_plain_backpropagation_from_a_given_point(bptt_steps, keep):
    module, start, target, images, labels = problem(soft=True)
    augment, steps = Augmentation(ALL), 7
    schedule = Schedule.make(images, steps=steps, batch_syn=4, augment=augment, seed=3)
    student = Student(gradient_fn(module), images, labels, augment, schedule)
    alpha = torch.tensor(0.3, dtype=torch.float64)
    distance = SegmentDistance(start, target)
    got = unroll(student, start, alpha, distance, keep=keep, bptt_steps=bptt_steps)

    first = steps - bptt_steps
    early = Schedule(first, schedule.indices[:first], schedule.draws[:first])
    late = Schedule(bptt_steps, schedule.indices[first:], schedule.draws[first:])
    middle = plain_unroll(module, start, images, labels, alpha, early, augment).detach()
    leaves = [part.clone().requires_grad_() for part in (images, labels, alpha)]
    end = plain_unroll(module, middle, *leaves, late, augment)
    loss = distance(end)
    close(got.loss, loss.detach())
    close(got.end, end.detach())
    parts = (got.grad_images, got.grad_labels, got.grad_step_size)
    for part, plain in zip(parts, torch.autograd.grad(loss, leaves), strict=True):
        close(part, plain)
    if bptt_steps == steps:
        whole = unroll(student, start, alpha, distance, keep=keep)
        assert torch.equal(whole.grad_images, got.grad_images)


class WatchedStudent(Student):
    """Notes of which steps residuals are computed, and whether they are kept."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.computed = []

    def residuals(self, n, vector, *, keep):
        self.computed.append((n, keep))
        return super().residuals(n, vector, keep=keep)


def test_no_residuals_of_the_steps_before():
    module, start, target, images, labels = problem()
    student = WatchedStudent(gradient_fn(module), images, labels, None, Schedule(6))
    alpha = torch.tensor(0.2, dtype=torch.float64)
    for keep in (0, 6):
        unroll(student, start, alpha, SegmentDistance(start, target), keep=keep, bptt_steps=2)
    assert student.computed == [(5, False), (4, False), (4, True), (5, True)]


def test_a_plan_counts_the_bptt_steps():
    module, start, _, images, labels = problem()
    student = Student(gradient_fn(module), images, labels, None, Schedule(6))
    assert plan(student, start, "stored", 2).keep == 2
    assert plan(student, start, "auto", 2).keep == 2

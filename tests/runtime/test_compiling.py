"""When the compiler is used, and that a run goes on where it does not work."""

import pytest
import torch

from trajmatch.config import ExpertConfig
from trajmatch.experts.train import gradient_step, sgd_update
from trajmatch.networks import build_network
from trajmatch.networks.functional import parameter_vector
from trajmatch.runtime import compiling
from trajmatch.runtime.compiling import Work, compiled, forward_flop, wanted
from trajmatch.unroll import SegmentDistance
from trajmatch.unroll.gradient import CompiledGradient, DerivedGradient, EagerGradient, gradient_fn
from trajmatch.unroll.schedule import Schedule
from trajmatch.unroll.student import Student
from trajmatch.unroll.unroll import unroll


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    monkeypatch.setattr(compiling, "_SAID", set())


def test_auto_compiles_what_takes_minutes():
    demo = Work(calls=120 * 20 * 3, flop=10**9)
    recipe = Work(calls=5000 * 50 * 3, flop=10**9)
    heavy = Work(calls=100, flop=10**14)
    assert [wanted("auto", work) for work in (demo, recipe, heavy)] == [False, True, True]
    assert [wanted(choice, demo) for choice in ("yes", "no")] == [True, False]
    assert wanted("no", recipe) is False
    assert Work(2, 3).times(5) == Work(10, 15)


def test_flop_of_the_published_network():
    """Multiplications and additions of three 3x3 convolutions and the linear layer, by hand."""
    module = build_network("convnet", channels=3, classes=10, size=32)
    by_hand = 2 * 9 * 128 * (3 * 32**2 + 128 * 16**2 + 128 * 8**2) + 2 * 10 * 128 * 4 * 4
    assert forward_flop(module, (3, 32, 32)) == by_hand


def test_an_unusable_compiler_is_one_line_and_nothing_lost(monkeypatch):
    from torch._dynamo.exc import BackendCompilerFailed

    tries = []

    def compile(function, **options):
        def call(*arguments):
            tries.append(1)
            raise BackendCompilerFailed(compile, RuntimeError("no C++ compiler\nlong story"), None)

        return call

    monkeypatch.setattr(torch, "compile", compile)
    said: list[str] = []
    double = compiled(lambda x: 2 * x, said.append)
    for _ in range(2):
        assert double(torch.ones(2)).tolist() == [2, 2]
    assert len(tries) == 1
    assert len(said) == 2
    assert said[0].startswith("compiling")
    assert said[1].startswith("the compiler is not usable")
    assert "no C++ compiler" in said[1]
    assert "\n" not in said[1]


def test_the_functions_own_errors_are_not_the_compilers(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)

    def broken(x):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        compiled(broken)(torch.ones(1))


def test_which_form_a_network_takes():
    convnet = build_network("convnet", channels=1, classes=3, size=8, width=4)
    other = build_network("mlp", channels=1, classes=3, size=8)
    assert isinstance(gradient_fn(convnet), EagerGradient)
    assert isinstance(gradient_fn(convnet, compile=True), DerivedGradient)
    assert isinstance(gradient_fn(other, compile=True), CompiledGradient)


# -- no waiting for the device -------------------------------------------------------------------
# On the meta device there are no numbers, so that whatever asks for one (.item(), .cpu(), bool())
# raises; on a GPU the same would stop the host until all work given to the device is done.


def meta(module):
    return module.to("meta"), parameter_vector(module.to("meta"))


def test_meta_tensors_tell_of_a_wait():
    for outer_problem in (
        lambda t: t.item(),
        lambda t: bool(t),
        lambda t: t.cpu(),
        lambda t: t.nonzero(),
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            outer_problem(torch.ones((), device="meta"))


@pytest.mark.parametrize("form", ["eager", "chain"])
@pytest.mark.parametrize("keep", [0, 2])
def test_an_iteration_waits_for_nothing(form, keep, monkeypatch):
    monkeypatch.setattr("trajmatch.unroll.gradient.compiled", lambda function: function)
    module, start = meta(build_network("convnet", channels=3, classes=4, size=8, width=4))
    images = torch.empty(4, 3, 8, 8, device="meta")
    labels = torch.empty(4, dtype=torch.int64, device="meta")
    schedule = Schedule.make(images, steps=2, batch_syn=3, augment=None, seed=0)
    student = Student(gradient_fn(module, compile=form == "chain"), images, labels, None, schedule)
    alpha = torch.empty((), device="meta")
    found = unroll(student, start, alpha, SegmentDistance(start, start), keep=keep)
    assert found.grad_images.shape == images.shape


@pytest.mark.parametrize("change", ["color", "crop", "cutout", "flip", "scale", "rotate"])
def test_augmentation_waits_for_nothing(change):
    from trajmatch.data.augment import Augmentation

    dsa = Augmentation(change)
    draw = dsa.draw(torch.Generator().manual_seed(0), 4, 8, 8).to("meta")
    assert dsa.apply(torch.empty(4, 3, 8, 8, device="meta"), draw).shape == (4, 3, 8, 8)


def test_an_experts_step_waits_for_nothing():
    module, vector = meta(build_network("convnet", channels=3, classes=4, size=8, width=4))
    config = ExpertConfig()
    step = gradient_step(module, config.precision)
    images = torch.empty(6, 3, 8, 8, device="meta")
    gradient, _, _ = step(vector, images, torch.empty(6, dtype=torch.int64, device="meta"))
    sgd_update(vector, gradient, torch.empty_like(vector), lr=config.lr, momentum=0.9)

"""When the compiler is used, what happens where it does not work, and that no step synchronizes."""

import pytest
import torch

from trajmatch.config import ExpertConfig
from trajmatch.experts.train import gradient_step, sgd_update
from trajmatch.networks import build_network
from trajmatch.networks.functional import parameter_vector
from trajmatch.runtime.compiling import Work, compiled, forward_flop, wanted
from trajmatch.unroll import SGD, Adam, Momentum, SegmentDistance
from trajmatch.unroll.convnet import ConvNetGradient
from trajmatch.unroll.gradient import CompiledGradient, DerivedGradient, EagerGradient, gradient_fn
from trajmatch.unroll.schedule import Schedule
from trajmatch.unroll.student import Student
from trajmatch.unroll.unroll import unroll


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


def test_an_unusable_compiler_is_one_line_and_nothing_lost():
    from torch._dynamo.exc import BackendCompilerFailed

    tries = []

    def compiler(function, **options):
        def call(*arguments):
            tries.append(1)
            raise BackendCompilerFailed(compiler, RuntimeError("no C++ compiler\nlong story"), None)

        return call

    notes, announced = [], set()
    double = compiled(lambda x: 2 * x, notes.append, compiler=compiler, announced=announced)
    for _ in range(2):
        assert double(torch.ones(2)).tolist() == [2, 2]
    assert len(tries) == 1
    assert len(notes) == 2
    assert notes[0].startswith("compiling")
    assert notes[1].startswith("the compiler is not usable")
    assert "no C++ compiler" in notes[1]
    assert "\n" not in notes[1]
    other = compiled(lambda x: 3 * x, notes.append, compiler=compiler, announced=announced)
    assert other(torch.ones(2)).tolist() == [3, 3]
    assert len(notes) == 2, "the same lines again"


def test_the_functions_own_errors_are_not_the_compilers():
    def broken(x):
        raise RuntimeError("out of memory")

    notes = []
    call = compiled(
        broken, notes.append, compiler=lambda function, **options: function, announced=set()
    )
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            call(torch.ones(1))
    assert len(notes) == 1, "only the line before compiling"


def test_which_form_a_network_takes():
    convnet = build_network("convnet", channels=1, classes=3, size=8, width=4)
    other = build_network("mlp", channels=1, classes=3, size=8)
    assert isinstance(gradient_fn(convnet), EagerGradient)
    assert isinstance(gradient_fn(convnet, compile=True), DerivedGradient)
    assert isinstance(gradient_fn(other, compile=True), CompiledGradient)


# -- no synchronization --------------------------------------------------------------------------
# Meta tensors have no values, so that reading one (.item(), .cpu(), bool()) raises; on a GPU the
# same read would stop the host until the device has finished all its work.


def meta(module):
    return module.to("meta"), parameter_vector(module.to("meta"))


@pytest.mark.parametrize(
    "read", [torch.Tensor.item, bool, torch.Tensor.cpu, torch.Tensor.nonzero], ids=str
)
def test_reading_a_meta_tensor_raises(read):
    with pytest.raises((RuntimeError, NotImplementedError)):
        read(torch.ones((), device="meta"))


@pytest.mark.parametrize("form", ["eager", "derived"])
@pytest.mark.parametrize("keep", [0, 2])
@pytest.mark.parametrize("optimizer", [SGD(), Momentum(), Adam()], ids=str)
def test_an_iteration_never_synchronizes(form, keep, optimizer):
    module, start = meta(build_network("convnet", channels=3, classes=4, size=8, width=4))
    images = torch.empty(4, 3, 8, 8, device="meta")
    labels = torch.empty(4, dtype=torch.int64, device="meta")
    schedule = Schedule.make(images, steps=2, batch_syn=3, augment=None, seed=0)
    gradient = gradient_fn(module)
    if form == "derived":
        gradient = DerivedGradient(ConvNetGradient.of(module), "float32")
    student = Student(gradient, images, labels, None, schedule)
    alpha = torch.empty((), device="meta")
    distance = SegmentDistance(start, start)
    found = unroll(student, start, alpha, distance, keep=keep, optimizer=optimizer)
    assert found.grad_images.shape == images.shape


@pytest.mark.parametrize("change", ["color", "crop", "cutout", "flip", "scale", "rotate"])
def test_augmentation_never_synchronizes(change):
    from trajmatch.data.augment import Augmentation

    dsa = Augmentation(change)
    draw = dsa.draw(torch.Generator().manual_seed(0), 4, 8, 8).to("meta")
    assert dsa.apply(torch.empty(4, 3, 8, 8, device="meta"), draw).shape == (4, 3, 8, 8)


def test_an_experts_step_never_synchronizes():
    module, vector = meta(build_network("convnet", channels=3, classes=4, size=8, width=4))
    config = ExpertConfig()
    step = gradient_step(module, config.precision)
    images = torch.empty(6, 3, 8, 8, device="meta")
    gradient, _, _ = step(vector, images, torch.empty(6, dtype=torch.int64, device="meta"))
    sgd_update(vector, gradient, torch.empty_like(vector), lr=config.lr, momentum=0.9)

"""The C++ operators against the derivation in Python and against autograd, both in float64."""

import copy
import dataclasses
import functools
import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from trajmatch import match_segment
from trajmatch.evaluation.train import TrainingSettings, is_correct, train_network
from trajmatch.experts.train import gradient_step
from trajmatch.networks import build_network
from trajmatch.networks.functional import parameter_vector, split_vector
from trajmatch.networks.precision import classifier
from trajmatch.rng import stream
from trajmatch.runtime import operators
from trajmatch.runtime.operators import OperatorsMissing
from trajmatch.runtime.processor import processor_kind
from trajmatch.unroll import native, segment
from trajmatch.unroll.convnet import LOGITS, ConvNetGradient
from trajmatch.unroll.gradient import EagerGradient, gradient_fn, training_loss
from trajmatch.unroll.native import NativeConvNet, Shape, library_is_faster

CLASSES = 4
FLOAT32 = 2e-5
"""Relative error of a result in float32. Where a gate of ReLU falls on the other side of zero, the
error is larger: networks are small here, so that none does."""
BF16 = 4e-2
"""Of one in bf16 to another whose sums are rounded elsewhere."""
PRECISIONS = ["float32", "bf16"]


# -- the networks and what they are compared with ------------------------------------------------


class Problem:
    """A network, and all that its functions take, in float32."""

    def __init__(self, depth, width, channels, size, batch, *, soft=False, seed=0):
        draw = stream(seed, "native")
        options = {"depth": depth, "width": width}
        self.module = build_network(
            "convnet", channels=channels, classes=CLASSES, size=size, seed=0, **options
        )
        height, breadth = (size, size) if isinstance(size, int) else size
        vector = parameter_vector(self.module)
        self.vector = vector + 0.1 * torch.randn(vector.shape, generator=draw)
        self.images = torch.randn((batch, channels, height, breadth), generator=draw)
        self.labels = torch.arange(batch) % CLASSES
        if soft:
            # Not of sum 1: the labels are learned freely.
            self.labels = torch.rand((batch, CLASSES), generator=draw)
        self.v = torch.randn(vector.shape, generator=draw)

    def derived(self, precision="float32"):
        return ConvNetGradient.of(self.module, torch.bfloat16 if precision == "bf16" else None)

    def operators(self, precision="float32"):
        """Skips the test where they cannot be had."""
        require(precision)
        found = NativeConvNet.of(self.derived(precision), self.vector)
        assert found is not None
        return found

    def double(self):
        """The same numbers in float64."""
        wide = copy.copy(self)
        for name, tensor in vars(self).items():
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                setattr(wide, name, tensor.double())
        return wide

    def results(self, functions):
        """Everything that `functions` compute, by name."""
        gradient, saved = functions.grad(self.vector, self.images, self.labels)
        hessian_v, at_images, at_labels = functions.grad_vjp(
            self.vector, self.labels, saved, self.v
        )
        found = {"logits": functions.logits(self.vector, self.images), "images": at_images}
        if self.labels.is_floating_point():
            found["labels"] = at_labels
        else:
            assert at_labels is None
        for name, vector in (("gradient", gradient), ("hessian_v", hessian_v)):
            parts = split_vector(self.module, vector)
            found |= {f"{name} {parameter}": part for parameter, part in parts.items()}
        names = [
            f"{name} {n}"
            for n in range(self.derived().depth)
            for name in ("x", "h", "mean", "s", "e", "h_grad")
        ]
        names += ["features", "saved logits", "error"]
        return found | dict(zip(names, saved, strict=True))

    def by_autograd(self):
        """Gradient and products in float64."""
        wide = self.double()
        eager = EagerGradient(training_loss(classifier(wide.module, "float32")), "float32")
        residuals = eager.residuals(wide.vector, wide.images, wide.labels)
        return residuals.gradient(), residuals.vjp(wide.v)

    def native_results(self, precision, library):
        """Everything by the operators, with the convolutions `library` torch's own; as one list."""
        options = self.derived().depth, self.module.options["width"], precision == "bf16", library
        ops = torch.ops.trajmatch
        gradient, *saved = ops.convnet_grad(self.vector, self.images, self.labels, *options)
        products = ops.convnet_grad_vjp(self.vector, self.labels, saved, self.v, *options)
        logits = ops.convnet_logits(self.vector, self.images, *options)
        return [logits, gradient, *products, *saved]


@functools.cache
def missing():
    """Why there are no operators here; empty where there are."""
    try:
        operators.load(native.SOURCE)
    except OperatorsMissing as error:
        return str(error)
    return ""


def require(precision="float32"):
    if missing():
        pytest.skip(missing())
    avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    if precision == "bf16" and not (avx512 and processor_kind() in ("avx512_bf16", "amx_bf16")):
        pytest.skip("the processor has no products in bfloat16")


def error_of(found, wanted):
    """Relative to the norm of `wanted`; of zeros, absolute."""
    return ((found.double() - wanted).norm() / (wanted.norm().item() or 1)).item()


def cosine(a, b):
    return F.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0).item()


def assert_close(found, wanted, rel):
    """Of two dicts of tensors, which may differ in trailing sides of 1."""
    assert found.keys() == wanted.keys()
    errors = {
        name: error_of(found[name].reshape(wanted[name].shape), wanted[name].double())
        for name in wanted
    }
    assert {name: error for name, error in errors.items() if not error <= rel} == {}


def assert_equal_bits(found, wanted):
    assert len(found) == len(wanted)
    for number, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert torch.equal(a, b), number


NETWORKS = [
    # depth, width, channels, size, batch, soft labels
    (1, 32, 1, 7, 2, False),
    (1, 96, 2, (5, 6), 3, True),
    (2, 64, 3, (9, 4), 5, False),
    (2, 160, 16, (4, 5), 1, True),
    (2, 32, 48, 7, 3, False),
    (3, 32, 4, 8, 10, True),
    (3, 128, 1, (8, 9), 2, True),
    (4, 32, 32, 16, 1, False),
]
EVERY = itertools.product(
    [1, 2, 3, 4], [32, 96, 128], [1, 3, 4, 16, 20], [(16, 19), 28, 32], [1, 5]
)
WIDE = [(*network, number % 2 == 0) for number, network in enumerate(list(EVERY)[::7])]


# -- the functions of a network ------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_float32_equals_the_derivation_in_float64(network):
    problem = Problem(*network[:5], soft=network[5])
    wide = problem.double()
    assert_close(problem.results(problem.operators()), wide.results(problem.derived()), FLOAT32)


@pytest.mark.parametrize("network", NETWORKS[:6], ids=str)
def test_float32_equals_autograd_in_float64(network):
    problem = Problem(*network[:5], soft=network[5])
    functions = problem.operators()
    g, wanted = problem.by_autograd()
    found, saved = functions.grad(problem.vector, problem.images, problem.labels)
    assert error_of(found, g) < FLOAT32
    hessian_v, images, labels = functions.grad_vjp(problem.vector, problem.labels, saved, problem.v)
    assert error_of(hessian_v, wanted.vector) < FLOAT32
    assert error_of(images, wanted.images) < FLOAT32
    assert (labels is None) == (wanted.labels is None)
    if labels is not None:
        assert error_of(labels, wanted.labels) < FLOAT32


@pytest.mark.slow
@pytest.mark.parametrize("network", WIDE, ids=str)
def test_many_networks_in_float32(network):
    """With a gate or two on the other side of zero."""
    problem = Problem(*network[:5], soft=network[5])
    wanted = problem.double().results(problem.derived())
    assert_close(problem.results(problem.operators()), wanted, 3e-2)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_bf16_equals_the_derivation_in_bf16(network):
    """And is no farther from float64, where gates of ReLU make most of the distance."""
    problem = Problem(*network[:5], soft=network[5])
    found = problem.results(problem.operators("bf16"))
    plain = problem.results(problem.derived("bf16"))
    exact = problem.double().results(problem.derived())
    assert_close(found, plain, BF16)
    for name, wanted in exact.items():
        if wanted.norm() > 0:
            by_operators = found[name].reshape(wanted.shape)
            assert cosine(by_operators, plain[name]) > 0.999, name
            error, plain_error = error_of(by_operators, wanted), error_of(plain[name], wanted)
            assert error <= 1.5 * plain_error + 1e-3, (name, error, plain_error)


def test_bf16_has_the_direction_of_float64():
    problem = Problem(1, 128, 3, 16, 10, soft=True)
    functions = problem.operators("bf16")
    g, wanted = problem.by_autograd()
    found, saved = functions.grad(problem.vector, problem.images, problem.labels)
    hessian_v, images, labels = functions.grad_vjp(problem.vector, problem.labels, saved, problem.v)
    assert cosine(found, g) > 0.9995
    assert cosine(hessian_v, wanted.vector) > 0.999
    assert cosine(images, wanted.images) > 0.998
    assert cosine(labels, wanted.labels) > 0.999


@pytest.mark.parametrize("precision", PRECISIONS)
def test_types_and_layouts_of_what_is_saved(precision):
    """As the derivation's: convolutions' inputs and results rounded, all else in float32."""
    problem = Problem(2, 32, 3, 8, 2, soft=True)
    gradient, saved = problem.operators(precision).grad(
        problem.vector, problem.images, problem.labels
    )
    _, wanted = problem.derived(precision).grad(problem.vector, problem.images, problem.labels)
    assert [tensor.dtype for tensor in saved] == [tensor.dtype for tensor in wanted]
    assert [tensor.numel() for tensor in saved] == [tensor.numel() for tensor in wanted]
    assert gradient.dtype == torch.float32
    assert saved[LOGITS].shape == (2, CLASSES)
    assert not any(tensor.requires_grad for tensor in [gradient, *saved])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("channels", [1, 3, 32])
def test_any_choice_of_torchs_own_convolutions_gives_the_same(channels, precision):
    require(precision)
    problem = Problem(2, 32, channels, (8, 7), 3, soft=True)
    wanted = problem.native_results(precision, [])
    for library in [*([n] for n in range(6)), [0, 4], list(range(6))]:
        found = problem.native_results(precision, library)
        errors = [error_of(a.float(), b.double()) for a, b in zip(found, wanted, strict=True)]
        assert max(errors) < (FLOAT32 if precision == "float32" else BF16), library


# -- threads, memory and layouts -----------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("network", [(3, 32, 3, 9, 5), (1, 64, 32, 4, 1)], ids=str)
def test_threads_change_rounding_only(network, precision):
    require(precision)
    problem = Problem(*network)
    once = problem.native_results(precision, [])[:4]
    assert_equal_bits(problem.native_results(precision, [])[:4], once)
    try:
        torch.set_num_threads(2)
        twice = problem.native_results(precision, [])[:4]
    finally:
        torch.set_num_threads(1)
    for found, wanted in zip(twice, once, strict=True):
        assert error_of(found, wanted.double()) < 1e-5


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("network", "threads"),
    [
        ((2, 32, 3, (5, 7), 3), 1),
        ((2, 64, 16, 4, 2), 1),
        ((1, 32, 1, 5, 1), 1),
        ((3, 32, 48, 9, 4), 1),
        ((2, 32, 3, 7, 3), 2),
    ],
    ids=str,
)
def test_nothing_remains_of_what_was_computed_before(network, threads, precision):
    """Memory is used again from call to call: what is not finite in it stays out of results."""
    require(precision)
    problem = Problem(*network, soft=True)
    # Larger ones, of many channels and of few: borders of zeros lie elsewhere in each.
    larger = [(2, 64, 32, 7, 3), (1, 96, 4, (6, 9), 7), (1, 32, 2, (5, 31), 1)]
    others = [problem, *(Problem(*shape, soft=True) for shape in larger)]
    torch.set_num_threads(threads)
    try:
        wanted = problem.native_results(precision, [])
        for other, value in itertools.product(others, (math.nan, math.inf)):
            broken = copy.copy(other)
            for name in ("vector", "images", "v"):
                setattr(broken, name, torch.full_like(getattr(other, name), value))
            for result in broken.native_results(precision, [])[:4]:
                assert not result.isfinite().all()
        found = problem.native_results(precision, [])
    finally:
        torch.set_num_threads(1)
    assert all(tensor.isfinite().all() for tensor in found)
    assert_equal_bits(found, wanted)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_pixel_that_is_not_finite_shows_in_its_images_results(value, precision):
    """Just where it does in the derivation."""
    problem = Problem(2, 32, 3, 8, 2)
    functions = problem.operators(precision)
    clean = functions.logits(problem.vector, problem.images)
    problem.images[1, 2, 3, 4] = value
    found, wanted = problem.results(functions), problem.results(problem.derived(precision))
    assert torch.equal(found["logits"][0], clean[0])
    assert not found["logits"][1].isfinite().any()
    for name in wanted:
        if name[0] not in "xh" or name.startswith("hessian_v"):  # how far a pixel reaches in h
            finite = found[name].isfinite().reshape(wanted[name].shape)
            assert torch.equal(finite, wanted[name].isfinite()), name


def test_parameters_that_are_not_finite_show_in_the_logits():
    """So that a training that diverged has no finite loss."""
    problem = Problem(2, 32, 3, 8, 2)
    functions = problem.operators()
    split_vector(problem.module, problem.vector)["features.0.weight"][:] = math.nan
    assert not functions.logits(problem.vector, problem.images).isfinite().any()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("channels", [1, 3, 16])
def test_layouts_of_images_and_v_do_not_matter(channels, precision):
    require(precision)
    problem = Problem(2, 32, channels, (6, 5), 3)
    plain, v = problem.images, problem.v
    wanted = problem.native_results(precision, [])[:4]
    wider = torch.zeros(3, channels, 6, 10)
    wider[..., ::2] = plain
    layouts = {
        "channels last": plain.contiguous(memory_format=torch.channels_last),
        "every second column": wider[..., ::2],
        "transposed": plain.mT.contiguous().mT,
        "batch last": plain.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    }
    spread = torch.zeros(2 * len(v))
    spread[::2] = v
    problem.v = spread[::2]
    assert not problem.v.is_contiguous()
    for name, images in layouts.items():
        assert torch.equal(images, plain), name
        problem.images = images
        assert_equal_bits(problem.native_results(precision, [])[:4], wanted)


def test_inputs_are_left_as_they_were():
    problem = Problem(2, 32, 3, 6, 3, soft=True)
    functions = problem.operators()
    gradient, saved = functions.grad(problem.vector, problem.images, problem.labels)
    inputs = [problem.vector, problem.images, problem.labels, problem.v, gradient, *saved]
    before = [tensor.clone() for tensor in inputs]
    first = functions.grad_vjp(problem.vector, problem.labels, saved, problem.v)
    assert_equal_bits(inputs, before)
    assert_equal_bits(functions.grad_vjp(problem.vector, problem.labels, saved, problem.v), first)


# -- the three convolutions ----------------------------------------------------------------------


CONVOLUTIONS = [
    # batch, channels, out, height, width
    (1, 1, 32, 5, 5),
    (2, 3, 64, 8, 7),
    (3, 20, 32, 4, 9),
    (2, 16, 96, 7, 5),
    (5, 48, 32, 2, 3),
    (1, 32, 160, 1, 1),
    # Images laid out some at a time: with a last part of fewer, and one by one.
    (7, 64, 32, 16, 16),
    (37, 32, 32, 8, 8),
    (2, 32, 32, 32, 32),
]


@pytest.mark.parametrize("library", [False, True], ids=["tiles", "library"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=str)
def test_a_convolution_and_its_gradients(shape, precision, library):
    require(precision)
    batch, channels, out, height, width = shape
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    draw = stream(0, "native")
    x = torch.randn((batch, channels, height, width), generator=draw).to(dtype)
    filters = torch.randn((out, channels, 3, 3), generator=draw).to(dtype)
    gradients = torch.randn((batch, out, height, width), generator=draw).to(dtype)
    leaves = x.double().requires_grad_(), filters.double().requires_grad_()
    wanted = F.conv2d(*leaves, padding=1)
    at_x, at_filters = torch.autograd.grad(wanted, leaves, gradients.double())
    ops = torch.ops.trajmatch
    found = {
        "convolution": (ops.convolution(x, filters.float(), library), wanted),
        "at images": (ops.convolution_at_images(gradients, filters.float(), library), at_x),
        "at filters": (ops.convolution_at_filters(gradients, x, library), at_filters),
    }
    for name, (by_operators, exact) in found.items():
        assert by_operators.shape == exact.shape, name
        # bfloat16 has eight bits; sums are exact but for the last rounding.
        limit = (
            4e-3
            if by_operators.dtype == torch.bfloat16 or (library and precision == "bf16")
            else 2e-6
        )
        assert error_of(by_operators, exact.detach()) < limit, name


# -- what does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize("change", [-1, 1])
def test_a_vector_of_another_length_is_refused(change):
    require()
    problem = Problem(2, 32, 3, 8, 2)
    length, options = len(problem.vector) + change, (2, 32, False, [])
    vector, ops = torch.zeros(length), torch.ops.trajmatch
    saved = ops.convnet_grad(problem.vector, problem.images, problem.labels, *options)[1:]
    calls = [
        lambda: ops.convnet_logits(vector, problem.images, *options),
        lambda: ops.convnet_grad(vector, problem.images, problem.labels, *options),
        lambda: ops.convnet_grad_vjp(vector, problem.labels, saved, problem.v, *options),
    ]
    text = f"{length} parameters in Float and 2 images of 3x8x8 do not fit depth 2, width 32"
    for call in calls:
        with pytest.raises(RuntimeError, match=text):
            call()


@pytest.mark.parametrize("change", [-1, 1])
def test_a_v_of_another_length_is_refused(change):
    problem = Problem(2, 32, 3, 8, 2)
    functions = problem.operators()
    _, saved = functions.grad(problem.vector, problem.images, problem.labels)
    v = torch.zeros(len(problem.vector) + change)
    with pytest.raises(RuntimeError, match="convnet"):
        torch.ops.trajmatch.convnet_grad_vjp(
            problem.vector, problem.labels, saved, v, 2, 32, False, []
        )


def test_a_network_that_does_not_fit_is_refused():
    require()
    problem, ops = Problem(2, 32, 3, 8, 2), torch.ops.trajmatch
    vector, images = problem.vector, problem.images
    for depth, width in ((2, 33), (3, 32), (2, 64)):
        with pytest.raises(RuntimeError, match=f"do not fit depth {depth}, width {width}"):
            ops.convnet_logits(vector, images, depth, width, False, [])
    with pytest.raises(RuntimeError, match="do not fit"):  # pooled away
        ops.convnet_logits(vector, images[:, :, :3, :3], 2, 32, False, [])
    with pytest.raises(RuntimeError, match="do not fit"):
        ops.convnet_logits(vector.double(), images, 2, 32, False, [])


def test_labels_of_another_number_and_no_images_are_refused():
    require()
    problem, grad = Problem(2, 32, 3, 8, 2), torch.ops.trajmatch.convnet_grad
    vector, images, labels = problem.vector, problem.images, problem.labels
    with pytest.raises(RuntimeError, match="2 images and 1 labels"):
        grad(vector, images, labels[:1], 2, 32, False, [])
    with pytest.raises(RuntimeError, match="0 images of 3x8x8 do not fit"):
        grad(vector, images[:0], labels[:0], 2, 32, False, [])
    assert problem.operators().library((0, 3, 8, 8)) == []


def test_other_label_types_default_types_and_autocast_change_nothing():
    problem = Problem(2, 32, 3, 8, 2)
    functions = problem.operators()
    arguments = problem.vector, problem.images
    wanted, _ = functions.grad(*arguments, problem.labels)
    narrow, _ = functions.grad(*arguments, problem.labels.to(torch.uint8))
    assert torch.equal(narrow, wanted)
    twice = torch.stack([problem.vector, problem.vector], 1)
    strided, _ = functions.grad(twice[:, 0], problem.images, problem.labels)
    assert torch.equal(strided, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        cast, _ = functions.grad(*arguments, problem.labels)
    assert torch.equal(cast, wanted)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        wide, _ = functions.grad(*arguments, problem.labels)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(wide, wanted)


def test_a_convolution_that_does_not_fit_is_refused():
    require()
    x = torch.ones(1, 3, 4, 4)
    with pytest.raises(RuntimeError, match="20 channels are not a multiple of"):
        torch.ops.trajmatch.convolution(x, torch.ones(20, 3, 3, 3), False)
    with pytest.raises(RuntimeError, match="no products in Double"):
        torch.ops.trajmatch.convolution(x.double(), torch.ones(32, 3, 3, 3), False)


# -- where there are operators -------------------------------------------------------------------


def of(module, precision="float32", dtype=torch.float32, device="cpu"):
    derived = ConvNetGradient.of(module, torch.bfloat16 if precision == "bf16" else None)
    return NativeConvNet.of(derived, torch.zeros(1, dtype=dtype, device=device))


def test_which_networks_have_operators(monkeypatch):
    require()
    options = {"channels": 3, "classes": 3, "size": 8}
    module = build_network("convnet", width=32, **options)
    assert of(module) == NativeConvNet(2, 32, False)
    assert of(module, dtype=torch.float64) is None
    assert of(module, dtype=torch.bfloat16) is None
    assert of(module, device="meta") is None
    assert of(build_network("convnet", width=20, **options)) is None
    monkeypatch.setattr(native, "processor_kind", lambda: "avx2")
    assert of(module, "bf16") is None
    assert of(module) is not None
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert of(module) is None


def test_bf16_is_for_avx512_only_as_the_build_is(monkeypatch):
    """torch can be told to use AVX2 (ATEN_CPU_CAPABILITY), whatever the processor has."""
    require()
    module = build_network("convnet", channels=3, classes=3, size=8, width=32)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert of(module) is not None
    assert of(module, "bf16") is None


def test_none_has_operators_where_they_are_off(monkeypatch):
    module = build_network("convnet", channels=3, classes=3, size=8, width=32)
    # With a cache of its own, so that other tests keep theirs.
    fresh = functools.cache(operators._loaded.__wrapped__)
    monkeypatch.setattr(operators, "_loaded", fresh)
    monkeypatch.setenv(operators.FOLDER_VARIABLE, operators.OFF)
    assert of(module) is None
    assert isinstance(native.fastest(ConvNetGradient.of(module), module), native.Compiled)


def test_where_there_are_none_each_function_goes_through_the_compiler():
    problem = Problem(2, 32, 3, 8, 2)
    derived, compiled = problem.derived(), []

    def compiler(function):
        compiled.append(function)
        return function

    found = native.Compiled.of(derived, compiler)
    assert compiled == [found.logits, found.grad, found.grad_vjp]
    assert compiled == [derived.logits, derived.grad, derived.grad_vjp]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_fastest_are_operators_where_there_are_any(precision):
    problem = Problem(2, 32, 3, 8, 2)
    wanted = problem.operators(precision)
    assert native.fastest(problem.derived(precision), problem.module) == wanted


# -- which convolutions are torch's own ----------------------------------------------------------


def of_shape(channels, out, size, batch):
    return Shape(channels, out, float(size), batch)


def row(shape, ratio, processor="avx512", precision="float32", function="convolve"):
    return {
        "processor": processor, "precision": precision, "function": function,
        "shape": dataclasses.asdict(of_shape(*shape)),
        "ratio": ratio,
    }  # fmt: skip


def measure(monkeypatch, rows, *, kind="avx512", tiles=False):
    monkeypatch.setattr(native, "measured", lambda: rows)
    monkeypatch.setattr(native, "processor_kind", lambda: kind)
    monkeypatch.setattr(native, "multiplies_tiles", lambda: tiles)


def test_the_nearest_measured_shape_decides(monkeypatch):
    rows = [row((128, 128, 16, 10), 1.2), row((128, 128, 4, 10), 0.8), row((3, 128, 32, 10), 1.01)]
    measure(monkeypatch, rows)
    assert library_is_faster("convolve", of_shape(128, 128, 16, 10), "float32")
    assert library_is_faster("convolve", of_shape(96, 160, 20, 7), "float32")
    assert not library_is_faster("convolve", of_shape(128, 128, 5, 10), "float32")
    assert not library_is_faster("convolve", of_shape(4, 128, 28, 10), "float32")


def test_other_functions_precisions_and_processors_do_not_decide(monkeypatch):
    shape = (128, 128, 16, 10)
    for other in ({"processor": "avx2"}, {"precision": "bf16"}, {"function": "at images"}):
        measure(monkeypatch, [row(shape, 5.0, **other)])
        assert not library_is_faster("convolve", of_shape(*shape), "float32")


def test_unmeasured_torch_computes_where_the_processor_multiplies_tiles(monkeypatch):
    many, few = of_shape(16, 128, 16, 10), of_shape(3, 128, 16, 10)
    measure(monkeypatch, [], kind="amx_bf16", tiles=True)
    assert library_is_faster("convolve", many, "bf16")
    assert not library_is_faster("convolve", few, "bf16")
    assert not library_is_faster("convolve", many, "float32")
    measure(monkeypatch, [], kind="avx512_bf16", tiles=False)
    assert not library_is_faster("convolve", many, "bf16")


def test_the_distance_of_shapes_is_in_octaves():
    shape = of_shape(32, 128, 16, 10)
    assert shape.distance(shape) == 0
    assert shape.distance(of_shape(64, 128, 8, 10)) == of_shape(64, 128, 8, 10).distance(shape) == 2


def test_every_function_of_every_block_is_decided_by_its_shape(monkeypatch):
    asked = []

    def decide(function, shape, precision):
        asked.append((function, shape, precision))
        return (function, shape.channels) in {("at images", 3), ("at filters", 32)}

    monkeypatch.setattr(native, "library_is_faster", decide)
    chosen = native._library.__wrapped__(NativeConvNet(2, 32, True), 5, 3, 9, 4)
    assert chosen == [1, 5]
    first, second = of_shape(3, 32, 6, 5), of_shape(32, 32, math.sqrt(8), 5)
    assert asked == [
        (function, shape, "bf16") for shape in (first, second) for function in native.FUNCTIONS
    ]


def test_the_packages_table_decides_by_its_own_rows(monkeypatch):
    for entry in native.measured():
        assert entry["precision"] in PRECISIONS
        assert entry["function"] in native.FUNCTIONS
        monkeypatch.setattr(native, "processor_kind", lambda entry=entry: entry["processor"])
        faster = library_is_faster(
            entry["function"], of_shape(**entry["shape"]), entry["precision"]
        )
        assert faster is (entry["ratio"] > 1 + native.SUMMING)


# -- in use --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["stored", "reverse", "auto"])
@pytest.mark.parametrize("micro_batch", [0, 2])
def test_segments_are_equal(method, micro_batch, monkeypatch):
    require()
    monkeypatch.setattr(segment, "micro_batch_size", lambda *_: micro_batch)
    problem = Problem(2, 32, 3, 8, 5, soft=True)
    form = gradient_fn(problem.module, compile=True)
    assert form.compiled is True
    assert isinstance(form.grad.__self__, NativeConvNet)
    target = problem.vector + 0.05 * problem.v
    wanted, found = (
        match_segment(
            problem.module, problem.vector, target, problem.images, problem.labels, 0.05, steps=3,
            batch_syn=4, augment="color_crop_flip_scale_rotate", method=method, compile=compile,
        )
        for compile in (False, True)
    )  # fmt: skip
    for name in ("loss", "end", "grad_images", "grad_labels", "grad_step_size"):
        error = error_of(getattr(found, name), getattr(wanted, name).double())
        assert error < 1e-4, (name, error)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_an_experts_step_is_equal(precision, micro_batch):
    require(precision)
    problem = Problem(2, 32, 3, 8, 5)
    (wanted, loss, right), (found, found_loss, found_right) = (
        gradient_step(problem.module, precision, compile=compile, micro_batch=micro_batch)(
            problem.vector, problem.images, problem.labels
        )
        for compile in (False, True)
    )
    limit = 1e-5 if precision == "float32" else 3e-2
    assert error_of(found, wanted.double()) < limit
    assert abs(found_loss - loss) < limit * loss
    assert found_right.tolist() == right.tolist()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "soft"])
def test_a_training_is_equal(soft, precision):
    require(precision)
    problem = Problem(2, 32, 3, 8, 10, soft=soft)
    if soft:
        problem.labels /= problem.labels.sum(1, keepdim=True)
    settings = TrainingSettings(lr=0.02, epochs=5, batch=4, precision=precision)
    begin, ends, right = parameter_vector(problem.module), [], []
    classes = torch.arange(10) % CLASSES
    for compile in (False, True):
        module = build_network(
            "convnet", channels=3, classes=CLASSES, size=8, seed=0, depth=2, width=32
        )
        assert torch.equal(parameter_vector(module), begin)
        train_network(module, problem.images, problem.labels, settings, compile=compile)
        ends.append(parameter_vector(module))
        right.append(is_correct(module, problem.images, classes, 4, compile=compile).tolist())
    change = ends[0] - begin
    assert change.norm() > 0.1
    assert error_of(ends[1] - begin, change.double()) < (1e-4 if precision == "float32" else 5e-2)
    assert right[1] == right[0]

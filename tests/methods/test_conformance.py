"""What holds of every method, ours and those of other packages: one list, run over the registry."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

import tiny
from trajmatch.config import (
    SGD,
    Adam,
    Constant,
    Cosine,
    Decay,
    DistillConfig,
    NamedValue,
    OuterOptimizer,
)
from trajmatch.errors import SettingError
from trajmatch.methods import (
    CAFE,
    DC,
    DD,
    DM,
    DSA,
    KIP,
    LD,
    METHODS,
    MTT,
    Conditions,
    Method,
    SyntheticParameters,
    from_settings,
    to_settings,
)
from trajmatch.methods.coresets.random import Random
from trajmatch.methods.loop import NO_LIMIT
from trajmatch.methods.registry import setting_names
from trajmatch.pipeline import select_coreset
from trajmatch.rng import stream
from trajmatch.storage import read_log
from trajmatch.storage.files import open_tensors
from trajmatch.synthetic import SyntheticSet

UNROLL = {"syn_steps": 3, "lr_lr": 1e-6}
SEGMENT = {"expert_epochs": 1, "max_start_epoch": 2, "step_size": 0.01, "lr_img": 1.0}
LOOPS = {"batch_real": 16, "outer_loop": 3, "inner_loop": 2}
TINY: dict[str, list[Method]] = {
    "mtt": [
        tiny.METHOD,
        MTT(**UNROLL, **SEGMENT, soft_labels=True, batch_syn=7, segments=2),
        MTT(**UNROLL, **SEGMENT, texture=True, canvas=10, samples=2),
    ],
    "dm": [DM(batch_real=16)],
    "dc": [DC(**LOOPS)],
    "dsa": [DSA(**LOOPS)],
    "cafe": [CAFE(**LOOPS), CAFE(batch_real=16, accuracies=2, max_epochs=3, batch_query=20)],
    "dd": [
        DD(**UNROLL, batch_real=32),
        DD(**UNROLL, batch_real=32, soft_labels=True, bptt_steps=2),
    ],
    "ld": [LD(**UNROLL, batch_real=32)],
    "kip": [KIP(batch_real=40), KIP(batch_real=40, soft_labels=True)],
}
"""Settings for the digits; a method that is not in here is run with its defaults."""

CASES = [
    pytest.param(method, id=f"{name}-{number}")
    for name, kind in METHODS.items()
    for number, method in enumerate(TINY.get(name) or [kind()])
]
every_case = pytest.mark.parametrize("method", CASES)
every_exact_case = pytest.mark.parametrize(
    "method", [case for case in CASES if getattr(case.values[0], "bptt_steps", None) is None]
)
"""Without those whose gradient leaves out what the first steps contribute (test_dd.py)."""
every_kind = pytest.mark.parametrize("kind", [pytest.param(k, id=n) for n, k in METHODS.items()])


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def make_problem(method: Method, **settings: Any) -> tiny.DoubleProblem:
    """In float64, of a smooth network, so that finite differences cross no kink."""
    bare = tiny.bare_problem(tiny.DoubleProblem, seed=5, **settings)
    options = {**bare.spec.options, "activation": "sigmoid"}
    experts = tiny.library() if method.needs_experts else None
    return dataclasses.replace(
        bare, spec=dataclasses.replace(bare.spec, options=options), library=experts
    )


def make_parameters(method: Method) -> SyntheticParameters:
    """Two images of each class, not in the order of the classes, and labels that are not equal."""
    canvas = method.canvas_for(8, 8)
    size = (8, 8) if canvas is None else (canvas.height, canvas.width)
    draw = stream(5, "parameters")
    images = torch.randn(20, 1, *size, generator=draw, dtype=torch.float64)
    parameters = SyntheticParameters.begin(
        images, torch.arange(10).repeat(2), step_size=0.3, soft=10 if method.learns_labels else None
    )
    if parameters.label_logits is None:
        return parameters
    logits = parameters.label_logits + torch.randn(20, 10, generator=draw, dtype=torch.float64)
    return dataclasses.replace(parameters, label_logits=logits)


def learned_names(method: Method) -> set[str]:
    """What a method says that it learns, by the names of `SyntheticParameters.tensors`."""
    names = {"images"} if hasattr(method, "lr_img") else set()
    names |= {"label_logits"} if method.learns_labels else set()
    return names | ({"log_step_size"} if method.learns_step_size else set())


# -- the estimate --------------------------------------------------------------------------------


@every_exact_case
@pytest.mark.parametrize("iteration", [0, 12])
def test_the_gradients_are_those_of_the_loss(method: Method, iteration: int) -> None:
    """By central differences along a random direction of each tensor. The iterations are ones in
    which a method that trains a network beside the images begins with a fresh one."""
    parameters = make_parameters(method)
    gradients = method.estimate(make_problem(method), parameters, iteration).of(parameters)
    assert set(gradients) == learned_names(method)
    assert set(gradients) <= set(method.rates)
    h = 1e-5
    for name, gradient in gradients.items():
        at = parameters.tensors()[name]
        assert (gradient.shape, gradient.dtype) == (at.shape, at.dtype)
        direction = torch.randn(at.shape, generator=stream(5, name), dtype=at.dtype)
        plus, minus = (
            method.estimate(
                make_problem(method),
                parameters.with_tensors({**parameters.tensors(), name: moved}),
                iteration,
            ).loss.item()
            for moved in (at + h * direction, at - h * direction)
        )
        slope = (gradient * direction).sum().item()
        assert slope == pytest.approx((plus - minus) / (2 * h), rel=1e-5)
        assert abs(slope) > 1e-7


@every_case
def test_an_estimate_is_a_function_of_its_arguments(method: Method) -> None:
    """Two calls with the same state give the same bits, and change no parameter."""
    parameters, problem = make_parameters(method), make_problem(method)
    before = {name: part.clone() for name, part in parameters.tensors().items()}
    estimates = []
    for iteration in range(3):
        state = {name: part.clone() for name, part in problem.state.items()}
        problem.resolved.clear()
        first = method.estimate(problem, parameters, iteration)
        after = dict(problem.state)
        problem.state.clear()
        problem.state.update(state)
        second = method.estimate(problem, parameters, iteration)
        other = make_problem(method, state=state)
        for again, left in (
            (second, problem.state),
            (method.estimate(other, parameters, iteration), other.state),
        ):
            assert torch.equal(first.loss, again.loss)
            gradients = again.of(parameters)
            for name, gradient in first.of(parameters).items():
                assert torch.equal(gradient, gradients[name]), name
            assert left.keys() == after.keys()
            assert all(torch.equal(part, left[name]) for name, part in after.items())
        estimates.append(first.loss.item())
    for name, part in parameters.tensors().items():
        assert torch.equal(part, before[name]), name
        assert not part.requires_grad
    assert len(set(estimates)) == 3  # other draws in every iteration
    seeded = dataclasses.replace(make_problem(method), seed=6)
    assert method.estimate(seeded, parameters, 0).loss.item() != estimates[0]


@every_case
def test_an_estimate_follows_the_images_dtype(method: Method) -> None:
    exact = make_parameters(method)
    rounded = exact.with_tensors({name: part.float() for name, part in exact.tensors().items()})
    experts = tiny.library() if method.needs_experts else None
    problem = dataclasses.replace(tiny.bare_problem(), library=experts)
    found = method.estimate(problem, rounded, 0)
    assert found.loss.dtype == torch.float32
    assert {part.dtype for part in found.of(rounded).values()} == {torch.float32}
    assert not found.loss.requires_grad
    assert all(part.isfinite().all() for part in found.of(rounded).values())


# -- a run ---------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize(
    "outer",
    [
        {"optimizer": SGD(), "schedule": Cosine(end=0.1)},
        {"optimizer": Adam(), "schedule": Cosine(end=0.1), "ema": 0.5},
    ],
    ids=["sgd", "adam"],
)
def test_an_interrupted_run_resumes_to_the_same_bits(
    tmp_path: Path, method: Method, outer: dict[str, Any]
) -> None:
    """Four iterations at once, and two, an interruption and two more."""
    experts = tiny.library() if method.needs_experts else None
    settings = {"eval_every": 4, "eval_networks": 1, "ipc": 2, **outer}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    tiny.distill(whole, method, experts, **settings)
    with pytest.raises(KeyboardInterrupt):
        tiny.distill(parts, method, experts, stop=2, **settings)
    tiny.distill(parts, method, experts, **settings)
    one, other = (
        open_tensors(out / "checkpoint.safetensors", kind="checkpoint", version=1)
        for out in (whole, parts)
    )
    assert one.names == other.names
    for name in one.names:
        assert torch.equal(one.read(name), other.read(name)), name
    for values in (one.metadata, other.metadata):
        del values["seconds"]
    assert one.metadata == other.metadata
    for name in ("best", "last"):
        first, second = (SyntheticSet.load(out / name) for out in (whole, parts))
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.labels, second.labels)
        assert (first.step_size, first.info) == (second.step_size, second.info)
        assert (first.step_size is not None) == method.learns_step_size
        assert first.info["method"] == method.name
    lines = [
        [
            (line["step"], line.get("loss"), line.get("val_mean"))
            for line in read_log(out / "log.jsonl")
            if "step" in line
        ]
        for out in (whole, parts)
    ]
    assert lines[0] == lines[1]
    moved = [name for name in one.names if name.startswith("learned.")]
    assert {f"learned.{name}" for name in learned_names(method)} <= set(moved)


# -- settings ------------------------------------------------------------------------------------

ALL_SETTINGS = sorted({name for kind in METHODS.values() for name in setting_names(kind)})


def default(name: str) -> Any:
    """The default of a setting in the first method that has it."""
    for kind in METHODS.values():
        for field in dataclasses.fields(kind):
            if field.name == name:
                return field.default
    raise AssertionError(name)


@every_kind
def test_settings_of_other_methods_are_refused_by_name(kind: type[Method]) -> None:
    shared = setting_names(DistillConfig)
    assert not set(shared) & set(setting_names(kind))
    for name in ALL_SETTINGS:
        if name in setting_names(kind):
            continue
        with pytest.raises(SettingError) as error:
            from_settings({"method": kind.name, name: default(name)}, "distill.")
        owners = [other for other, k in METHODS.items() if name in setting_names(k)]
        message = str(error.value)
        assert f"distill.{name} is no setting of {kind.name};" in message
        assert f"it is a setting of {', '.join(owners)}:" in message
        assert f"use method {owners[0]}" in message
    with pytest.raises(SettingError, match=r"iteratoins is no setting.*did you mean 'iterations'"):
        from_settings({"method": kind.name, "iteratoins": 3})


def out_of_range(hint: Any) -> list[Any]:
    """Values that no field of this type takes."""
    options = [option for option in get_args(hint) or (hint,) if option is not NoneType]
    if get_origin(hint) is Literal:
        return ["nonsense", 3]
    if options == [int]:
        return [0, -1, 1.5, "2"]
    if options == [float]:
        return [-1.0, math.nan, math.inf, "2"]
    if isinstance(options[0], type) and issubclass(options[0], NamedValue):
        return ["nonsense", "sgd(nonsense=1)", 3]
    return {bool: [1, "yes"], str: ["colour", 3]}[options[0]]  # a plug-in's other types: add them


@every_kind
def test_values_out_of_range_are_refused(kind: type[Method]) -> None:
    """By the constructor, or by `check` where it takes the network to tell."""
    hints = get_type_hints(kind)
    conditions = Conditions(tiny.bare_problem().spec, ipc=2, expert_epochs=99)
    for name in setting_names(kind):
        for value in out_of_range(hints[name]):
            with pytest.raises(SettingError) as error:  # noqa: PT012
                _, method = from_settings({"method": kind.name, name: value})
                method.check(conditions)
            message = str(error.value)
            assert name in message or "colour" in message, message
            assert "\n" not in message


@every_kind
def test_the_constructor_refuses_what_it_can_tell_by_itself(kind: type[Method]) -> None:
    for name, hint in get_type_hints(kind).items():
        for value in {int: [0], float: [-1.0, math.nan, math.inf]}.get(hint, []):
            with pytest.raises(SettingError, match=name):
                kind(**{name: value})
        if get_origin(hint) is Literal:
            method = kind()
            # Not by the constructor: the type checks of the tests may come before ours.
            object.__setattr__(method, name, "nonsense")
            with pytest.raises(SettingError, match=rf"{name} is nonsense; it must be one of"):
                method.__post_init__()


@every_case
def test_settings_go_through_json_and_back(method: Method) -> None:
    config = DistillConfig(
        ipc=3, optimizer=OuterOptimizer.parse("AdamW(weight_decay=0.01)"), schedule=Decay(to=0.2)
    )
    for loop, chosen in ((config, method), (DistillConfig(), type(method)())):
        plain = to_settings(loop, chosen)
        assert plain["method"] == method.name
        assert from_settings(json.loads(json.dumps(plain))) == (loop, chosen)
        assert from_settings(plain) == (loop, chosen)
    assert from_settings({"method": method.name}) == (DistillConfig(), type(method)())


def test_the_default_method_is_trajectory_matching() -> None:
    assert from_settings({}) == (DistillConfig(), MTT())
    assert DistillConfig() == DistillConfig(optimizer=None, ema=None, schedule=Constant())


def test_methods_bring_their_own_outer_optimizer() -> None:
    for name, kind in METHODS.items():
        _, loop = kind().completed(DistillConfig())
        own = (Adam(betas=(0.5, 0.9)), 0.95) if name == "mtt" else (SGD(momentum=0.5), 0.0)
        assert (loop.optimizer, loop.ema) == own
        _, loop = kind().completed(DistillConfig(optimizer=Adam(), ema=0.5))  # as given
        assert (loop.optimizer, loop.ema) == (Adam(), 0.5)


@pytest.mark.parametrize(
    ("optimizer", "limit"), [(None, NO_LIMIT), (Adam(), NO_LIMIT), (SGD(), 1.0)]
)
def test_updates_are_skipped_for_their_loss_with_sgd_alone(
    optimizer: OuterOptimizer | None, limit: float
) -> None:
    config = DistillConfig(optimizer=optimizer)
    assert MTT(lr_img=1.0).completed(config)[0].skip_loss == limit
    assert MTT(lr_img=1.0, skip_loss=3.0).completed(config)[0].skip_loss == 3.0


def test_published_rates_need_the_published_optimizer() -> None:
    with pytest.raises(SettingError, match=r"lr_img is 100 and .* adam.* optimizer='sgd'"):
        MTT(lr_img=100.0).completed(DistillConfig())
    with pytest.raises(SettingError, match=r"lr_img is 0.03, .* outer optimizer is sgd; give lr_"):
        MTT().completed(DistillConfig(optimizer=SGD()))
    MTT(lr_img=100.0).completed(DistillConfig(optimizer=SGD()))
    MTT(lr_img=100.0).completed(DistillConfig(optimizer=Adam()))  # as a person says


# -- what a class says of itself -----------------------------------------------------------------


@every_kind
def test_it_says_what_it_is(kind: type[Method]) -> None:
    assert METHODS[kind.name] is kind
    for text in (kind.name, kind.title, kind.objective):
        assert text.strip() == text != ""
    if kind.reference or kind.__module__.startswith("trajmatch."):  # ours all have a paper
        assert any(year in kind.reference for year in map(str, range(2000, 2100)))
    doc = vars(kind)["__doc__"]
    assert doc is not None
    assert not doc.startswith(f"{kind.__name__}(")  # what dataclass writes where there is none
    source = inspect.getsource(kind)
    for name in vars(kind).get("__annotations__", {}):
        if name in setting_names(kind):  # each setting of its own has a docstring
            after = source.split(f"    {name}: ", 1)[1].split("\n", 1)[1].lstrip()
            assert after.startswith('"""'), name


@every_case
def test_it_is_a_frozen_value(method: Method) -> None:
    kind = type(method)
    same = dataclasses.replace(method)
    assert same == method
    assert hash(same) == hash(method)
    assert len({method, same, kind()}) == (1 if method == kind() else 2)
    for field in dataclasses.fields(kind):
        assert field.kw_only
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, field.name, getattr(method, field.name))


@every_case
def test_it_checks_the_experts(method: Method) -> None:
    spec = tiny.bare_problem().spec
    method.check(Conditions(spec, ipc=2, expert_epochs=3))
    if method.needs_experts:
        with pytest.raises(SettingError, match=rf"{method.name} matches experts; give experts="):
            method.check(Conditions(spec, ipc=2))
    else:
        method.check(Conditions(spec, ipc=2))
        assert method.last_epoch == 0
    if "init_labels" in setting_names(type(method)):
        wrong = dataclasses.replace(method, init_labels="experts")
        unlearned = not method.learns_labels
        message = "no labels are learned" if unlearned else f"{method.name} (has none|matches)"
        with pytest.raises(SettingError, match=message):
            wrong.check(Conditions(spec, ipc=2, expert_epochs=3 if unlearned else None))


def test_an_object_may_not_have_the_name_of_another_method(tmp_path: Path) -> None:
    """Its results would count as that method's."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mine(DM):
        pass

    class Chosen(Random):
        pass

    with pytest.raises(SettingError, match="Mine has the name 'dm', which is another method's"):
        tiny.distill(tmp_path / "out", Mine())
    with pytest.raises(SettingError, match="Chosen has the name 'random', which is another corese"):
        select_coreset(Chosen(), tiny.digits(), 1)
    assert not (tmp_path / "out").exists()

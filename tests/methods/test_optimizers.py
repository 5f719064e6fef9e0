"""Outer optimizers against torch.optim run by hand, their written form, and the schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from trajmatch.config import (
    SGD,
    Adam,
    Constant,
    Cosine,
    Decay,
    DistillConfig,
    OuterOptimizer,
    Schedule,
    TorchOptimizer,
    from_dict,
    to_dict,
)
from trajmatch.errors import SettingError
from trajmatch.methods.checkpoint import Checkpoint
from trajmatch.rng import stream
from trajmatch.types import Tensor

Tensors = dict[str, Tensor]

RATES = {"images": 0.3, "log_step_size": 0.02, "label_logits": 0.7}
SHAPES = {"images": (4, 1, 3, 3), "log_step_size": (), "label_logits": (4, 2)}
STEPS = 6


def parameters(dtype: torch.dtype = torch.float32) -> Tensors:
    draw = stream(0, "parameters")
    return {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in SHAPES.items()}


def gradients(step: int, dtype: torch.dtype = torch.float32) -> Tensors:
    """Of very different sizes, as those of images and a step size are."""
    draw = stream(step, "gradients")
    scales = {"images": 1e-3, "log_step_size": 10.0, "label_logits": 1.0}
    return {
        name: (scales[name] * torch.randn(shape, generator=draw)).to(dtype)
        for name, shape in SHAPES.items()
    }


def ours(optimizer: OuterOptimizer, dtype: torch.dtype = torch.float32) -> list[Tensors]:
    """The parameters after each step."""
    at, found = parameters(dtype), []
    state = optimizer.start(at)
    for step in range(STEPS):
        at, state = optimizer.step(at, gradients(step, dtype), RATES, state)
        found.append(at)
    return found


def torchs(
    build: Callable[[list[dict]], torch.optim.Optimizer], dtype: torch.dtype = torch.float32
) -> list[Tensors]:
    """The same by one optimizer of torch that lives through all steps."""
    leaves = {name: part.requires_grad_() for name, part in parameters(dtype).items()}
    optimizer = build([{"params": [leaf], "lr": RATES[name]} for name, leaf in leaves.items()])
    found = []
    for step in range(STEPS):
        for name, gradient in gradients(step, dtype).items():
            leaves[name].grad = gradient
        optimizer.step()
        found.append({name: leaf.detach().clone() for name, leaf in leaves.items()})
    return found


def equal(found: list[Tensors], wanted: list[Tensors]) -> None:
    for at, expected in zip(found, wanted, strict=True):
        assert at.keys() == expected.keys()
        for name, part in at.items():
            assert torch.equal(part, expected[name]), name
            assert not part.requires_grad


# -- the updates ---------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_sgd_is_the_published_formula_to_the_bit(momentum: float) -> None:
    at, momenta = parameters(), {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    wanted = []
    for step in range(STEPS):
        momenta = {name: momentum * momenta[name] + g for name, g in gradients(step).items()}
        at = {name: part - RATES[name] * momenta[name] for name, part in at.items()}
        wanted.append(at)
    equal(ours(SGD(momentum=momentum)), wanted)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_sgd_is_torchs_but_for_rounding(momentum: float) -> None:
    """torch multiplies and adds in one rounding where the formula has two."""
    found = ours(SGD(momentum=momentum))
    wanted = torchs(lambda groups: torch.optim.SGD(groups, momentum=momentum))
    for at, expected in zip(found, wanted, strict=True):
        for name, part in at.items():
            torch.testing.assert_close(part, expected[name], rtol=1e-6, atol=1e-6)
    exact = ours(SGD(momentum=momentum), torch.float64)[-1]
    double = torchs(lambda groups: torch.optim.SGD(groups, momentum=momentum), torch.float64)[-1]
    for name, part in exact.items():
        torch.testing.assert_close(part, double[name], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adam_is_torchs(dtype: torch.dtype) -> None:
    wanted = torchs(lambda groups: torch.optim.Adam(groups, betas=(0.8, 0.95), eps=1e-6), dtype)
    equal(ours(Adam(betas=(0.8, 0.95), eps=1e-6), dtype), wanted)
    equal(ours(Adam(), dtype), torchs(torch.optim.Adam, dtype))


@pytest.mark.parametrize(
    ("text", "build"),
    [
        ("AdamW(weight_decay=0.01)", lambda g: torch.optim.AdamW(g, weight_decay=0.01)),
        ("Adam(amsgrad=True)", lambda g: torch.optim.Adam(g, amsgrad=True)),
        ("RMSprop(momentum=0.5)", lambda g: torch.optim.RMSprop(g, momentum=0.5)),
        ("Adagrad", torch.optim.Adagrad),
        ("Adadelta(rho=0.8)", lambda g: torch.optim.Adadelta(g, rho=0.8)),
        ("NAdam", torch.optim.NAdam),
        ("Rprop", torch.optim.Rprop),
        ("Adafactor", torch.optim.Adafactor),
        ("SGD(momentum=0.9, nesterov=True)",
         lambda g: torch.optim.SGD(g, momentum=0.9, nesterov=True)),
        ("SGD", torch.optim.SGD),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_class_of_torch_is_that_class_by_hand(
    text: str, build: Callable[[list[dict]], torch.optim.Optimizer]
) -> None:
    equal(ours(OuterOptimizer.parse(text)), torchs(build))


EVERY = ["sgd", "sgd(momentum=0.0)", "adam", "AdamW(weight_decay=0.01)", "Adafactor", "Adagrad"]


@pytest.mark.parametrize("text", EVERY)
def test_a_step_changes_none_of_its_arguments(text: str) -> None:
    optimizer = OuterOptimizer.parse(text)
    at, state = parameters(), optimizer.start(parameters())
    for step in range(2):
        given = gradients(step)
        before = [{n: part.clone() for n, part in parts.items()} for parts in (at, given, state)]
        after, moved = optimizer.step(at, given, RATES, state)
        for parts, saved in zip((at, given, state), before, strict=True):
            assert parts.keys() == saved.keys()
            assert all(torch.equal(part, saved[name]) for name, part in parts.items())
        again, same = optimizer.step(at, given, RATES, state)
        equal([after], [again])
        equal([moved], [same])
        at, state = after, moved


@pytest.mark.parametrize("text", EVERY)
def test_a_parameter_without_gradient_stays_as_it_is(text: str) -> None:
    """As the images of label distillation, whose rate no method gives."""
    optimizer, at = OuterOptimizer.parse(text), parameters()
    some = {name: g for name, g in gradients(0).items() if name != "images"}
    rates = {name: RATES[name] for name in some}
    after, _ = optimizer.step(at, some, rates, optimizer.start(at))
    assert torch.equal(after["images"], at["images"])
    assert not torch.equal(after["label_logits"], at["label_logits"])


@pytest.mark.parametrize("text", EVERY)
def test_its_state_goes_through_a_checkpoint(tmp_path: Path, text: str) -> None:
    optimizer = OuterOptimizer.parse(text)
    wanted = ours(optimizer)
    at = parameters()
    state = optimizer.start(at)
    for step in range(STEPS):
        values = {"iteration": step, "resolved": {}}
        Checkpoint(at, state, {}, at["images"], values).save(tmp_path)
        found = Checkpoint.load(tmp_path, parameters())
        assert found is not None
        equal([found.parameters], [at])
        equal([found.optimizer], [state])
        shapes = {name: part.shape for name, part in state.items()}
        assert {name: part.shape for name, part in found.optimizer.items()} == shapes
        at, state = optimizer.step(found.parameters, gradients(step), RATES, found.optimizer)
        equal([at], [wanted[step]])


# -- the written form ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("sgd", SGD()),
        ("sgd()", SGD()),
        (" sgd(momentum=0.9) ", SGD(momentum=0.9)),
        ("adam", Adam()),
        ("adam(betas=(0.8, 0.9), eps=1e-07)", Adam(betas=(0.8, 0.9), eps=1e-7)),
        ("adam(betas=[0.8, 0.9])", Adam(betas=(0.8, 0.9))),
        ("AdamW(weight_decay=0.01)", TorchOptimizer("AdamW", (("weight_decay", 0.01),))),
        ("RMSprop(momentum=0.5, centered=True)",
         TorchOptimizer("RMSprop", (("centered", True), ("momentum", 0.5)))),
    ],
)  # fmt: skip
def test_an_optimizer_is_written_and_read(text: str, value: OuterOptimizer) -> None:
    assert OuterOptimizer.parse(text) == value
    assert OuterOptimizer.parse(str(value)) == value
    assert hash(OuterOptimizer.parse(text)) == hash(value)
    config = DistillConfig(optimizer=value)
    assert to_dict(config)["optimizer"] == str(value)
    assert from_dict(DistillConfig, to_dict(config)) == config


def test_as_published_it_is_written_by_its_name_alone() -> None:
    assert [str(value) for value in (SGD(), SGD(momentum=0.9), Adam(), Constant())] == [
        "sgd",
        "sgd(momentum=0.9)",
        "adam",
        "constant",
    ]


def test_a_table_of_a_toml_file_is_read_as_well() -> None:
    config = from_dict(
        DistillConfig,
        {"optimizer": {"name": "sgd", "momentum": 0.9}, "schedule": {"name": "decay", "at": 0.25}},
    )
    assert (config.optimizer, config.schedule) == (SGD(momentum=0.9), Decay(at=0.25))
    with pytest.raises(SettingError, match=r"optimizer: sgd has no option 'momentun'"):
        from_dict(DistillConfig, {"optimizer": {"name": "sgd", "momentun": 0.9}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sdg", r"'sdg' is unknown; use sgd, adam, or a class of torch.optim such as AdamW"),
        ("Optimizer", "cannot be the outer optimizer"),
        ("lr_scheduler", "'lr_scheduler' is unknown"),
        ("LBFGS", "torch.optim.LBFGS cannot be the outer optimizer"),
        ("SparseAdam", "torch.optim.SparseAdam cannot be the outer optimizer"),
        ("sgd(momentun=0.9)", r"sgd has no option 'momentun'; .*momentum"),
        ("AdamW(weight_decoy=1)", "torch.optim.AdamW cannot be .*weight_decoy"),
        ("AdamW(weight_decay=-1)", "weight_decay is -1; it must be at least 0"),
        ("RMSprop(alpha=-1)", "torch.optim.RMSprop cannot be .*-1"),
        ("AdamW(lr=0.1)", r"AdamW is given an lr; .*lr_img, lr_lr and lr_label"),
        ("sgd(momentum=1)", "momentum is 1.0; it must be at least 0 and below 1"),
        ("sgd(momentum=-0.1)", "momentum is -0.1"),
        ("sgd(momentum=1e999)", "momentum is inf"),
        ("sgd(momentum=1" + 400 * "0" + ")", "momentum is 8.9"),
        ("sgd(momentum='x')", r"sgd\(momentum\) is 'x'; it must be float"),
        ("adam(betas=3)", r"adam\(betas\) is 3; it must be tuple\[float, float\]"),
        ("adam(betas=(0.9,))", r"adam\(betas\) is \(0.9,\); it must be tuple"),
        ("adam(betas=(0.9, 1.0))", r"betas is \(0.9, 1.0\)"),
        ("adam(eps=0)", "eps is 0.0; it must be above 0"),
        ("sgd(0.9)", r"'sgd\(0.9\)' cannot be read; write a name, or a name with values"),
        ("sgd(**{'momentum': 0.9})", "cannot be read"),
        ("sgd(momentum=0.5 + 0.4)", "cannot be read"),
        ("sgd(momentum=x)", "cannot be read"),
        ("sgd(momentum={[]: 1})", "cannot be read"),
        ("torch.optim.AdamW", "cannot be read"),
        ("sgd(momentum=0.5)(momentum=0.5)", "cannot be read"),
        ("sgd; adam", "cannot be read"),
        ("sgd(", "cannot be read"),
        ("", "cannot be read"),
        ("sgd\0", "cannot be read"),
        ("(" * 5000, "cannot be read"),
    ],
)
def test_what_is_no_optimizer_is_refused(text: str, message: str) -> None:
    with pytest.raises(SettingError, match=message) as error:
        OuterOptimizer.parse(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        "sgd(momentum=__import__('pathlib').Path('{}').touch())",
        "__import__('pathlib').Path('{}').touch()",
        "adam(betas=[__import__('pathlib').Path('{}').touch() for _ in (1,)])",
        "AdamW(eps=(lambda: __import__('pathlib').Path('{}').touch())())",
        "sgd(momentum=f\"{{__import__('pathlib').Path('{}').touch()}}\")",
    ],
)
def test_calls_in_a_value_are_never_evaluated(tmp_path: Path, text: str) -> None:
    path = tmp_path / "touched"
    for family in (OuterOptimizer, Schedule):
        with pytest.raises(SettingError, match="cannot be read"):
            family.parse(text.format(path))
    assert not path.exists()


# -- schedules -----------------------------------------------------------------------------------


def factors(schedule: Schedule, iterations: int) -> list[float]:
    return [schedule.factor(iteration, iterations) for iteration in range(iterations)]


@pytest.mark.parametrize(
    ("text", "schedule", "wanted"),
    [
        ("constant", Constant(), [1, 1, 1, 1]),
        ("cosine", Cosine(), [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        ("cosine(end=0.2)", Cosine(end=0.2), [1, None, 0.6, None]),
        ("cosine(end=1)", Cosine(end=1.0), [1, 1, 1, 1]),
        ("decay", Decay(), [1, 1, 0.1, 0.1]),
        ("decay(to=0.5, at=0.7)", Decay(to=0.5, at=0.7), [1, 1, 1, 0.5]),
        ("decay(at=1)", Decay(at=1.0), [1, 1, 1, 1]),
    ],
)
def test_factors_by_hand(text: str, schedule: Schedule, wanted: list[float | None]) -> None:
    assert Schedule.parse(text) == schedule == Schedule.parse(str(schedule))
    for found, factor in zip(factors(schedule, 4), wanted, strict=True):
        assert factor is None or found == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("schedule", [Constant(), Cosine(), Cosine(end=0.3), Decay()], ids=str)
def test_factors_begin_at_one_and_never_rise(schedule: Schedule) -> None:
    for iterations in (1, 7, 100):
        found = factors(schedule, iterations)
        assert found[0] == 1
        assert found == sorted(found, reverse=True)
        assert min(found) > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cosin", r"'cosin' is unknown; did you mean 'cosine'"),
        ("sgd", "'sgd' is unknown"),
        ("constant(end=1)", "constant has no option 'end'; it has no options"),
        ("cosine(end=1.5)", "end is 1.5; it must be at least 0 and at most 1"),
        ("cosine(end='x')", r"cosine\(end\) is 'x'; it must be float"),
        ("decay(to=0)", "to is 0.0; it must be above 0 and at most 1"),
        ("decay(at=None)", r"decay\(at\) is None; it must be float"),
        ("decay(0.5)", "cannot be read"),
    ],
)
def test_what_is_no_schedule_is_refused(text: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Schedule.parse(text)


def test_names_of_one_family_are_not_those_of_another() -> None:
    members: Mapping[str, type] = OuterOptimizer.members
    assert set(members) == {"sgd", "adam"}
    assert set(Schedule.members) == {"constant", "cosine", "decay"}

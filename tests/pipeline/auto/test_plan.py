"""Plans, as a function of the data's shape, a pilot's measurements and the budget."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from trajmatch.config import DSA_STRATEGY, DataConfig, DistillConfig, ExpertConfig, NetworkConfig
from trajmatch.data import ImageDataset
from trajmatch.methods import MTT
from trajmatch.pipeline.auto.pilot import STEPS, WITHOUT_FLIP, Pilot
from trajmatch.pipeline.auto.plan import (
    EPOCHS,
    EVALUATION,
    EXPERT_EPOCHS,
    EXPERTS,
    FEWEST_EXPERTS,
    MOST_EXPERTS,
    MOST_PER_STEP,
    SEGMENT,
    Plan,
    batch_size,
    make_plan,
)
from trajmatch.pipeline.recipe import Recipe

PILOT = Pilot(
    call_seconds=1e-3,
    flop_seconds={128: 1e-11, 64: 1e-11, 32: 2e-11},
    bf16=False,
    accuracies=(20.0, 30.0, 40.0, 48.0, 50.0),
    mirrored=49.0,
    chance=10.0,
)


def data(images: int = 2000, channels: int = 3, size: int = 32, classes: int = 10) -> ImageDataset:
    count = images + 200
    pixels = torch.zeros(count, channels, size, size, dtype=torch.uint8)
    pixels[:, :, 0, 0] = torch.arange(count)[:, None] % 256
    labels = torch.arange(count) % classes
    rest = slice(images, None)
    arrays = (pixels[:images], labels[:images], pixels[rest], labels[rest])
    return ImageDataset.from_arrays(*arrays).with_validation(0.1)


def plan(
    budget: float = 1200.0, *, start: Recipe | None = None, pilot: Pilot = PILOT, **options
) -> Plan:
    fixed = options.pop("fixed", ())
    recipe = Recipe() if start is None else start
    return make_plan(recipe, data(**options), pilot, budget, cores=2, fixed=fixed)


def test_more_time_gives_more_of_all() -> None:
    short, long = plan(60.0).recipe, plan(36_000.0).recipe
    assert short.network.width < long.network.width == 128
    assert short.distill.iterations < long.distill.iterations
    assert short.evaluate.epochs < long.evaluate.epochs == EPOCHS[0]
    assert FEWEST_EXPERTS <= short.experts.experts <= long.experts.experts == MOST_EXPERTS


@pytest.mark.parametrize("budget", [300.0, 1200.0, 7200.0])
def test_the_stages_fit_into_their_shares(budget: float) -> None:
    from trajmatch.pipeline.auto import plan as module

    recipe = plan(budget).recipe
    width = recipe.network.width
    shape = module.Shape.of(data())
    flop = module._flop(recipe.network, shape)
    step = PILOT.step_seconds(width, recipe.experts.batch * flop)
    experts = recipe.experts.experts * recipe.experts.epochs * SEGMENT * step / 2
    assert experts <= EXPERTS * budget or recipe.experts.experts == FEWEST_EXPERTS
    network = module._network_seconds(PILOT, 10, width, flop, recipe.evaluate.epochs)
    assert 27 * network / 2 <= EVALUATION * budget or recipe.evaluate.epochs == EPOCHS[-1]


def test_every_decision_has_a_reason() -> None:
    reasons = plan().reasons
    words = ("whitening zca", "augmentation with flip", "ConvNet of width", "experts of", "epochs")
    assert len(reasons) == len(words)
    for reason, word in zip(reasons, words, strict=True):
        assert word in reason
        assert "\n" not in reason


def test_mirrored_images_that_are_not_recognized_are_not_trained_on() -> None:
    for mirrored, strategy in ((49.0, DSA_STRATEGY), (44.0, DSA_STRATEGY), (43.0, WITHOUT_FLIP)):
        recipe = plan(pilot=dataclasses.replace(PILOT, mirrored=mirrored)).recipe
        used = (recipe.experts.augment, recipe.method.augment, recipe.evaluate.augment)
        assert used == (strategy,) * 3
    nothing = dataclasses.replace(PILOT, accuracies=(10.0, 9.0), mirrored=5.0)
    assert nothing.flip  # a network that learned nothing says nothing


def test_experts_are_as_long_as_accuracy_rises() -> None:
    assert PILOT.enough(0.94) == 4 * STEPS  # 48 of 50, above a chance of 10
    below = dataclasses.replace(PILOT, accuracies=(70.0, 80.0, 79.0), chance=90.0)
    assert below.enough(0.97) == 2 * STEPS  # its best, though one class alone gives more
    slow = dataclasses.replace(PILOT, accuracies=tuple(10.0 + n for n in range(60)))
    quick = dataclasses.replace(PILOT, accuracies=(50.0,) * 60)
    lengths = [plan(pilot=pilot).recipe.experts.epochs for pilot in (quick, slow)]
    assert lengths == [EXPERT_EPOCHS[0], 20]


@pytest.mark.parametrize(
    ("options", "whitening"),
    [
        ({}, "zca"),
        ({"channels": 1}, "normalize"),
        ({"images": 500}, "normalize"),
        ({"size": 48}, "normalize"),
    ],
)
def test_the_whitening_follows_from_the_images(options: dict, whitening: str) -> None:
    assert plan(**options).recipe.data.whitening == whitening


def test_batches_follow_from_the_number_of_images() -> None:
    sizes = [batch_size(count) for count in (1, 1000, 2000, 5000, 8000, 10**6)]
    assert sizes == [32, 32, 64, 128, 256, 256]
    assert plan(images=5000).recipe.experts.batch == 128


def test_many_synthetic_images_are_shown_in_batches() -> None:
    few, many = (Recipe(distill=DistillConfig(ipc=ipc)) for ipc in (10, 20))
    assert plan(start=few).recipe.method.batch_syn is None
    assert plan(start=many).recipe.method.batch_syn == MOST_PER_STEP


def test_wide_networks_are_computed_in_bf16_where_the_processor_does() -> None:
    fast = dataclasses.replace(PILOT, bf16=True)
    wide, narrow = plan(36_000.0, pilot=fast).recipe, plan(60.0, pilot=fast).recipe
    for recipe, precision in ((wide, "bf16"), (narrow, "float32")):
        assert recipe.experts.precision == recipe.distill.precision == precision
        assert recipe.evaluate.precision == precision


def test_a_fixed_precision_is_that_of_the_evaluation_too() -> None:
    fast = dataclasses.replace(PILOT, bf16=True)
    fixed = ["experts.precision", "distill.precision"]
    recipe = plan(36_000.0, pilot=fast, fixed=fixed).recipe
    assert recipe.evaluate.precision == recipe.experts.precision == "float32"


def test_what_a_person_fixed_stays() -> None:
    start = Recipe(
        data=DataConfig(whitening="normalize"),
        network=NetworkConfig(width=16),
        experts=ExpertConfig(batch=7, epochs=3, experts=2, augment=None),
        method=MTT(syn_steps=9, batch_syn=5),
        distill=DistillConfig(iterations=11, eval_every=3),
    )
    names = {
        "data": ["whitening"],
        "network": ["width"],
        "experts": ["batch", "epochs", "experts", "augment"],
        "distill": ["syn_steps", "batch_syn", "iterations", "eval_every"],
    }
    fixed = [f"{part}.{name}" for part, fields in names.items() for name in fields]
    recipe = plan(start=start, fixed=fixed).recipe
    for part, fields in names.items():
        for name in fields:
            where = "method" if name in ("syn_steps", "batch_syn") else part
            assert getattr(getattr(recipe, where), name) == getattr(getattr(start, where), name)
    assert recipe.experts.steps_per_epoch == SEGMENT
    assert recipe.method.step_size is None  # calibrated later


def test_experts_reach_as_far_as_given_segments() -> None:
    start = Recipe(method=MTT(max_start_epoch=30))
    recipe = plan(start=start, fixed=["distill.max_start_epoch"]).recipe
    assert recipe.experts.epochs == 30


def test_a_network_of_another_kind_is_planned_around() -> None:
    start = Recipe(network=NetworkConfig(network="mlp"))
    recipe = plan(start=start, fixed=["network.network"]).recipe
    assert recipe.network == NetworkConfig(network="mlp")
    assert recipe.experts.experts >= FEWEST_EXPERTS

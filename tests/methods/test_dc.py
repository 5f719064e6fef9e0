"""Gradient matching: its distance by hand, its gradient by finite differences, and its networks."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tiny
from trajmatch import cli, pipeline
from trajmatch.config import DSA_STRATEGY as EVERY_CHANGE
from trajmatch.config import DistillConfig
from trajmatch.data.augment import Augmentation
from trajmatch.errors import SettingError
from trajmatch.methods import Outcome, Problem, SyntheticParameters, begin
from trajmatch.methods.dc import DC, layer_distance, loops
from trajmatch.networks.functional import parameter_vector, split_vector
from trajmatch.rng import stream
from trajmatch.storage import read_result
from trajmatch.storage.files import open_tensors
from trajmatch.synthetic import SyntheticSet
from trajmatch.unroll.schedule import Schedule

CONFIG = DistillConfig(
    method="dsa", iterations=6, ipc=2, lr_img=0.1, batch_real=16, eval_every=6, checkpoint_every=1,
    outer_loop=4, inner_loop=3, lr_net=0.05,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def matching(ground: Problem, seed: int = 3, **settings: object) -> DC:
    method = begin(ground, dataclasses.replace(CONFIG, **settings), seed=seed)
    assert isinstance(method, DC)
    return method


def learned(dtype: torch.dtype = torch.float64) -> SyntheticParameters:
    images = torch.randn(20, 1, 8, 8, generator=stream(0, "images"), dtype=torch.float64)
    # Not in the order of the classes, which nothing may rely on.
    return SyntheticParameters.begin(images.to(dtype), torch.arange(10).repeat(2), step_size=0.01)


# -- the distance --------------------------------------------------------------------------------


def test_the_distance_by_hand() -> None:
    """A convolution of two filters of 1x1x2, a norm's scale and shift, a linear layer 2 -> 2."""
    module = nn.Sequential(nn.Conv2d(1, 2, (1, 2)), nn.GroupNorm(1, 2), nn.Linear(2, 2))
    real = torch.tensor(
        [3, 4, 1, 0, 7, 7, 5, 5, 6, 6, 1, 1, 0, 2, 9, 9], dtype=torch.float64
    )  # filters (3, 4) and (1, 0); bias; scale; shift; rows (1, 1) and (0, 2); bias
    synthetic = torch.tensor(
        [4, 3, 0, 5, -1, 2, -3, 4, 5, -6, -2, -2, 0, 1, 7, 0], dtype=torch.float64
    )
    wanted = (1 - 24 / 25) + (1 - 0) + (1 - -1) + (1 - 1)
    assert layer_distance(module, real, synthetic).item() == pytest.approx(wanted, abs=1e-5)
    # The published 1e-6 beside the norms: 5 * 5, 1 * 5, sqrt(2) * sqrt(8), 2 * 1.
    exact = 4 - 24 / 25.000001 - 0 / 5.000001 + 4 / 4.000001 - 2 / 2.000001
    assert layer_distance(module, real, synthetic).item() == pytest.approx(exact, abs=1e-14)


def test_a_row_without_gradient_is_at_distance_one_and_stays_finite() -> None:
    module = nn.Linear(3, 2, bias=False)
    real = torch.tensor([1.0, 2, 3, 0, 0, 0])
    synthetic = torch.tensor([0.0, 0, 0, 4, 5, 6], requires_grad=True)
    distance = layer_distance(module, real, synthetic)
    assert distance.item() == 2
    distance.backward()
    assert synthetic.grad is not None
    assert synthetic.grad.isfinite().all()


def plain_gradient(
    module: nn.Module, vector: torch.Tensor, images: torch.Tensor, label: int
) -> torch.Tensor:
    """By autograd, without the engine."""
    leaf = vector.clone().requires_grad_()
    logits = torch.func.functional_call(module, split_vector(module, leaf), (images,))
    loss = F.cross_entropy(logits, torch.full((len(images),), label))
    return torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("name", ["dc", "dsa"])
def test_images_that_are_the_real_ones_are_at_no_distance(name: str) -> None:
    """But for what the published 1e-6 adds: 1e-6 / (|row|^2 + 1e-6) a row."""
    ground = tiny.bare_ground(tiny.DoubleProblem)
    method = matching(ground, method=name, batch_real=10_000)
    made = SyntheticParameters.begin(ground.images, ground.labels.long(), step_size=0.01)
    found = method.estimate(made, 0)
    rest = 0.0
    if name == "dc":
        for label in range(10):
            images = ground.images[ground.labels == label]
            g = plain_gradient(method.module, method.carried["network"], images, label)
            for part in split_vector(method.module, g).values():
                if part.ndim > 1:
                    squares = part.flatten(1).square().sum(1)
                    rest += (1e-6 / (squares + 1e-6)).sum().item()
        assert found.loss.item() == pytest.approx(rest, rel=1e-6)
    others = ground.images.flip(0)
    far = matching(ground, method=name).estimate(made.with_tensors({"images": others}), 0)
    assert 0 < found.loss.item() < 1e-2 * far.loss.item()


# -- the gradient --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dc", "dsa"])
@pytest.mark.parametrize("piece", [0, 1])
def test_by_finite_differences(name: str, piece: int) -> None:
    """At a fresh network, and at one that has walked (which does not move with the images)."""
    made = learned()
    method = matching(tiny.bare_ground(tiny.DoubleProblem), method=name)
    method.piece = piece and 5
    for iteration in (0, 1):
        before = dict(method.carried)
        found = method.estimate(made, iteration)
        vector = method.carried["network"]
        method._network = lambda *_, vector=vector: vector  # type: ignore[method-assign]
        way = torch.randn(
            made.images.shape, generator=stream(iteration, "way"), dtype=torch.float64
        )
        losses = [
            method.estimate(made.with_tensors({"images": made.images + h * way}), iteration).loss
            for h in (1e-6, -1e-6)
        ]
        del method._network
        slope = (losses[0] - losses[1]).item() / 2e-6
        assert (found.images * way).sum().item() == pytest.approx(slope, rel=1e-4)
        assert (found.labels, found.step_size) == (None, None)
        assert iteration == 0 or not torch.equal(before["network"], vector)


def test_the_loss_by_plain_autograd() -> None:
    ground, made = tiny.bare_ground(tiny.DoubleProblem), learned()
    method = matching(ground, method="dc", batch_real=10_000)
    found = method.estimate(made, 0)
    module = ground.fresh(3, "distill", "gradient", "network", 0)
    vector, loss = parameter_vector(module), 0.0
    for label in range(10):
        g, h = (
            plain_gradient(module, vector, images, label)
            for images in (
                ground.images[ground.labels == label], made.images[made.classes == label]
            )
        )  # fmt: skip
        loss += layer_distance(module, g, h).item()
    assert found.loss.item() == pytest.approx(loss, rel=1e-9)


def test_both_sides_are_changed_alike_by_dsa_and_not_at_all_by_dc(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = []
    original = Augmentation.apply

    def watched(self: Augmentation, images: torch.Tensor, draw: object) -> torch.Tensor:
        drawn.append(draw)
        return original(self, images, draw)

    monkeypatch.setattr(Augmentation, "apply", watched)
    matching(tiny.bare_ground(), augment="color_crop").estimate(learned(torch.float32), 0)
    assert len(drawn) == 20
    for real, synthetic in zip(drawn[::2], drawn[1::2], strict=True):
        assert real.name == synthetic.name
        for key, value in real.values.items():
            assert len(value) == 16
            assert len(synthetic.values[key]) == 2
            assert torch.cat([value, synthetic.values[key]]).unique().numel() == 1
    assert {draw.name for draw in drawn} == {"color", "crop"}
    drawn.clear()
    method = matching(tiny.bare_ground(), method="dc", augment=EVERY_CHANGE)
    for iteration in (0, 1):
        method.estimate(learned(torch.float32), iteration)
    assert drawn == []


# -- the networks --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dc", "dsa"])
def test_a_network_walks_on_the_images_between_two_updates(name: str) -> None:
    ground = tiny.bare_ground(tiny.DoubleProblem)
    method = matching(ground, method=name)
    vectors = []
    for iteration in range(6):
        made = learned()
        made = made.with_tensors({"images": made.images * (1 + iteration)})  # as if updated
        method.estimate(made, iteration)
        vectors.append(method.carried["network"])
        position = iteration % 4
        if position == 0:
            fresh = ground.fresh(3, "distill", "gradient", "network", iteration // 4)
            assert torch.equal(vectors[-1], parameter_vector(fresh))
            continue
        vector = vectors[-2]
        augment = None if name == "dc" else Augmentation(EVERY_CHANGE)
        schedule = Schedule.make(
            made.images, steps=3, batch_syn=None, augment=augment, seed=3,
            names=("distill", "gradient", "walk", iteration),
        )  # fmt: skip
        for step in range(3):
            leaf, seen = vector.clone().requires_grad_(), made.images
            if augment is not None:
                seen = augment.apply(seen, schedule.draws[step])
            logits = torch.func.functional_call(
                method.module, split_vector(method.module, leaf), (seen,)
            )
            loss = F.cross_entropy(logits, made.classes)
            vector = vector - 0.05 * torch.autograd.grad(loss, leaf)[0]
        torch.testing.assert_close(vectors[-1], vector)
    assert not torch.equal(vectors[0], vectors[4])


def test_batches_of_256_where_there_are_more_images(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    original = Schedule.make

    def make(*arguments: object, **settings: object) -> Schedule:
        made = original(*arguments, **settings)
        lengths.append([len(chosen) for chosen in made.indices])
        return made

    monkeypatch.setattr(Schedule, "make", make)
    method = matching(tiny.bare_ground(), method="dc", ipc=26)
    images = torch.randn(260, 1, 8, 8, generator=stream(0))
    made = SyntheticParameters.begin(images, torch.arange(10).repeat(26), step_size=0.01)
    for iteration in (0, 1):
        method.estimate(made, iteration)
    assert lengths == [[256, 256, 256]]


@pytest.mark.parametrize(
    ("ipc", "classes", "given", "wanted"),
    [
        (1, 10, (None, None), (1, 1)),
        (10, 10, (None, None), (10, 50)),
        (10, 100, (None, None), (10, 200)),  # four batches a pass
        (50, 10, (None, None), (50, 20)),
        (10, 10, (3, None), (3, 50)),
        (10, 10, (None, 2), (10, 2)),
        (7, 10, (3, 2), (3, 2)),
    ],
)
def test_published_loops(
    ipc: int, classes: int, given: tuple[int | None, int | None], wanted: tuple[int, int]
) -> None:
    config = DistillConfig(method="dc", ipc=ipc, outer_loop=given[0], inner_loop=given[1])
    assert loops(config, ipc * classes) == wanted


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"outer_loop": None}, r"ipc is 2 and dsa.*1, 10, 20.*--outer-loop and --inner-loop"),
        ({"augment": "none"}, r"augment is none.*--method dc"),
        ({"soft_labels": True}, r"not learned by dsa"),
    ],
)
def test_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        matching(tiny.bare_ground(), **settings)


# -- the whole way -------------------------------------------------------------------------------


class Killed(Exception):
    pass


def distilled(out: Path, *, kill_at: int | None = None, **settings: object) -> Outcome:
    def watch(iteration: int, _: object) -> None:
        if iteration == kill_at:
            raise Killed

    return pipeline.distill(
        tiny.digits(),
        None,
        out,
        config=dataclasses.replace(CONFIG, **settings),
        evaluation=tiny.EVALUATE,
        network=tiny.NETWORK,
        on_iteration=watch,
    )


# From where it was killed, and from one before.
@pytest.mark.parametrize(("name", "every"), [("dc", 1), ("dsa", 2)])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path, name: str, every: int) -> None:
    settings = {"method": name, "checkpoint_every": every}
    whole = distilled(tmp_path / "whole", **settings)
    with pytest.raises(Killed):
        distilled(tmp_path / "killed", kill_at=3, **settings)
    resumed = distilled(tmp_path / "killed", **settings)
    assert torch.equal(whole.last.images, resumed.last.images)
    files = [
        open_tensors(tmp_path / run / "checkpoint.safetensors", kind="checkpoint", version=1)
        for run in ("whole", "killed")
    ]
    assert "carried.network" in files[0].names
    for part in files[0].names:
        assert torch.equal(*(file.read(part) for file in files)), part
    assert whole.last.step_size is None
    assert whole.last.info["method"] == name


@pytest.mark.parametrize("name", ["dc", "dsa"])
def test_through_the_command_line(tmp_path: Path, name: str) -> None:
    words = (
        f"distill --device cpu --method {name} --iterations 2 --batch-real 8 --eval-every 2 "
        f"--lr-img 0.1 --out {tmp_path / 'run'} {tiny.NETWORK_WORDS} {tiny.JUDGE_WORDS}"
    )
    assert cli.main(words.split()) == 0
    assert read_result(tmp_path / "run")["scores"][0]["method"] == name
    assert math.isfinite(read_result(tmp_path / "run")["scores"][0]["mean"])
    assert SyntheticSet.load(tmp_path / "run" / "best").step_size is None

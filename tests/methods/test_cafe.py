"""Feature alignment: its loss and gradient by hand, its schedule, and a killed run."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tiny
from trajmatch import cli, pipeline
from trajmatch.config import DSA_STRATEGY as EVERY_CHANGE
from trajmatch.config import DistillConfig, NetworkConfig
from trajmatch.data.augment import Augmentation
from trajmatch.errors import SettingError
from trajmatch.methods import Outcome, Problem, SyntheticParameters, begin
from trajmatch.methods import cafe as alignment
from trajmatch.methods.cafe import BETA, CAFE, discrimination, spread
from trajmatch.networks.base import Network
from trajmatch.networks.functional import parameter_vector
from trajmatch.rng import stream
from trajmatch.storage import read_result
from trajmatch.storage.files import open_tensors
from trajmatch.synthetic import SyntheticSet

CONFIG = DistillConfig(
    method="cafe", iterations=6, ipc=2, lr_img=0.1, batch_real=16, eval_every=6,
    checkpoint_every=1, outer_loop=4, inner_loop=3, lr_net=0.05,
)  # fmt: skip
PAPERS = {"outer_loop": None, "inner_loop": None}


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def aligning(ground: Problem, seed: int = 3, **settings: object) -> CAFE:
    method = begin(ground, dataclasses.replace(CONFIG, **settings), seed=seed)
    assert isinstance(method, CAFE)
    return method


def learned(dtype: torch.dtype = torch.float64) -> SyntheticParameters:
    images = torch.randn(20, 1, 8, 8, generator=stream(0, "images"), dtype=torch.float64)
    # Not in the order of the classes, which nothing may rely on.
    return SyntheticParameters.begin(images.to(dtype), torch.arange(10).repeat(2), step_size=0.01)


# -- the loss ------------------------------------------------------------------------------------


def test_the_distance_by_hand() -> None:
    """Three layers: a block, the last block, the embedding."""
    means = [torch.tensor([[1.0, 2.0]]), torch.tensor([3.0]), torch.tensor([0.0, 1.0])]
    layers = [
        torch.tensor([[[0.0, 0.0]], [[0.0, 2.0]]]),  # mean (0, 1), apart (1, 1): 2
        torch.tensor([[1.0], [2.0]]),  # mean 1.5, apart 1.5: 2.25
        torch.tensor([[2.0, 1.0], [4.0, 1.0]]),  # mean (3, 1), apart (-3, 0): 9
    ]
    wanted = 0.1 * 2 + 2.25 + 2 * 9
    assert alignment.alignment(means, layers).item() == pytest.approx(wanted)
    assert alignment.alignment(means[1:], layers[1:]).item() == pytest.approx(2.25 + 18)
    assert alignment.alignment(means[2:], layers[2:]).item() == pytest.approx(18)


def test_the_discrimination_by_hand() -> None:
    embedded = np.array([[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]])
    centers = np.array([[1.0, 0.0], [0.5, 1.0]])
    labels = [0, 1, 1]
    wanted = 0.0
    for feature, label in zip(embedded, labels, strict=True):
        logits = [feature @ center for center in centers]
        wanted -= math.log(math.exp(logits[label]) / sum(map(math.exp, logits)))
    found = discrimination(
        torch.from_numpy(embedded), torch.tensor(labels), torch.from_numpy(centers)
    )
    assert found.item() == pytest.approx(wanted, rel=1e-12)


class Linear(Network):
    """Three layers, each a matrix."""

    def __init__(self, seed: int, *names: str | int) -> None:
        super().__init__(channels=1, classes=10, size=8, options={})
        self.ends = (nn.Identity,)
        sizes = (64, 6, 5, 4)
        maps = [nn.Linear(*pair, bias=False) for pair in itertools.pairwise(sizes)]
        self.features = nn.Sequential(
            nn.Flatten(), maps[0], nn.Identity(), maps[1], nn.Identity(), maps[2]
        )
        self.classifier = nn.Linear(4, 10)
        self.double()
        draw = stream(seed, *names)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=draw)

    def describe(self) -> str:
        return "matrices"


class LinearProblem(tiny.DoubleProblem):
    """The digits below a linear network, another for every name."""

    def fresh(self, seed: int, *names: str | int) -> Network:
        return Linear(seed, *names)


def test_of_a_linear_network_it_is_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """With A_l from pixels to layer l, m_c and s_c the class means, p the softmax of real images'
    logits and y their labels, an image of n of a class has the gradient
    - 2/n sum_l w_l A_l^T A_l (m_c - s_c) + beta/n A_3^T sum_i (p_ic - y_ic) A_3 x_i."""
    monkeypatch.setattr("trajmatch.methods.alternating.micro_batch_size", lambda *_: 50)
    ground, made = tiny.bare_ground(LinearProblem), learned()
    method = aligning(ground, outer_loop=1, batch_real=10_000, augment="none")
    for iteration in (0, 5):
        found = method.estimate(made, iteration)
        network = ground.fresh(3, "distill", "alignment", "network", iteration)
        maps: list[np.ndarray] = []
        for part in network.features:
            if isinstance(part, nn.Linear):
                weight = part.weight.detach().numpy()
                maps.append(weight @ maps[-1] if maps else weight)
        real, labels = ground.images.flatten(1).numpy(), ground.labels.numpy()
        images, classes = made.images.flatten(1).numpy(), made.classes.numpy()
        of = range(10)
        means = np.stack([real[labels == c].mean(0) for c in of])
        mine = np.stack([images[classes == c].mean(0) for c in of])
        features = real @ maps[2].T
        logits = features @ (mine @ maps[2].T).T
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        y = np.eye(10)[labels]
        loss = -BETA * np.log(p[y == 1]).sum()
        gradient = BETA / 2 * (p - y).T @ features @ maps[2]
        for weight, matrix in zip((0.1, 1, 2), maps, strict=True):
            apart = (means - mine) @ matrix.T
            loss += weight * (apart**2).sum()
            gradient -= 2 / 2 * weight * apart @ matrix
        assert found.loss.item() == pytest.approx(loss, rel=1e-10)
        np.testing.assert_allclose(found.images.flatten(1), gradient[classes], rtol=1e-9)
        assert (found.labels, found.step_size) == (None, None)


@pytest.mark.parametrize("augment", ["none", EVERY_CHANGE])
def test_by_finite_differences(augment: str) -> None:
    """At a fresh network, and at one that has walked (which does not move with the images)."""
    made = learned()
    method = aligning(tiny.bare_ground(tiny.DoubleProblem), augment=augment)
    for iteration in range(3):  # several changes
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
        assert (found.images * way).sum().item() == pytest.approx(slope, rel=1e-5)


def test_of_images_that_are_the_real_ones_only_the_discrimination_is_left() -> None:
    ground = tiny.bare_ground(tiny.DoubleProblem)
    method = aligning(ground, batch_real=10_000, augment="none")
    made = SyntheticParameters.begin(ground.images, ground.labels.long(), step_size=0.01)
    embedded = ground.fresh(3, "distill", "alignment", "network", 0).embed(ground.images).detach()
    centers = torch.stack([embedded[ground.labels == label].mean(0) for label in range(10)])
    wanted = BETA * discrimination(embedded, ground.labels.long(), centers)
    assert method.estimate(made, 0).loss.item() == pytest.approx(wanted.item(), rel=1e-9)


def test_both_sides_are_changed_alike_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    original = Augmentation.apply

    def watched(self: Augmentation, images: torch.Tensor, draw: object) -> torch.Tensor:
        drawn.append(draw)
        return original(self, images, draw)

    monkeypatch.setattr(Augmentation, "apply", watched)
    aligning(tiny.bare_ground(), augment="color_crop").estimate(learned(torch.float32), 0)
    assert len(drawn) == 20
    for real, synthetic in zip(drawn[::2], drawn[1::2], strict=True):
        assert real.name == synthetic.name
        for key, value in real.values.items():
            assert (len(value), len(synthetic.values[key])) == (16, 2)
            assert torch.cat([value, synthetic.values[key]]).unique().numel() == 1
    drawn.clear()
    method = aligning(tiny.bare_ground(), augment="none")
    for iteration in (0, 1):
        method.estimate(learned(torch.float32), iteration)
    assert drawn == []


def test_bf16_is_near_and_the_images_stay_float32() -> None:
    made = learned(torch.float32)
    plain = aligning(tiny.bare_ground()).estimate(made, 0)
    rounded = aligning(tiny.bare_ground(), precision="bf16").estimate(made, 0)
    assert rounded.images.dtype == rounded.loss.dtype == torch.float32
    apart = (plain.images - rounded.images).norm() / plain.images.norm()
    assert 1e-4 < apart < 0.2


def test_any_network_has_layers_to_align() -> None:
    ground = tiny.bare_ground()
    spec = pipeline.checks.network_for(tiny.digits(), NetworkConfig(network="mlp", width=8))
    method = aligning(dataclasses.replace(ground, spec=spec))
    assert method.estimate(learned(torch.float32), 0).images.abs().max() > 0


# -- the schedule --------------------------------------------------------------------------------


class Scripted:
    """Accuracies as they are told, and which passes lay before each."""

    def __init__(self, method: CAFE, values: list[float]) -> None:
        self.values = iter(values)
        self.asked: list[tuple[int, ...]] = []
        method._accuracy = self  # type: ignore[method-assign, assignment]

    def __call__(self, vector: torch.Tensor, *names: int) -> torch.Tensor:
        self.asked.append(names)
        return torch.tensor([next(self.values)], dtype=torch.float64)


def test_a_network_is_trained_until_it_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "WATCHED", 3)
    monkeypatch.setattr(alignment, "LONGEST", 5)
    ground, made = tiny.bare_ground(), learned(torch.float32)
    method = aligning(ground, augment="none", **PAPERS)
    # Fresh; then 0.5 to 0.52 are still together, 0.51 to 0.55 are not; then it never moves.
    script = Scripted(method, [0.1, 0.5, 0.51, 0.52, 0.55, 0.6, *[0.6] * 5, 0.8])
    vectors = []
    for iteration in range(3):
        method.estimate(made, iteration)
        vectors.append(method.carried["network"])
    passes = {0: 0, 1: 4, 2: 5}
    assert script.asked == [
        names for i, count in passes.items() for names in [*((i, k) for k in range(count)), (i,)]
    ]
    assert method.carried["accuracies"].tolist() == [0.1, 0.6, 0.8]
    assert torch.equal(
        vectors[0], parameter_vector(ground.fresh(3, "distill", "alignment", "network", 0))
    )
    # 20 images are one batch, so that four passes are four steps.
    steps = aligning(ground, augment="none", inner_loop=4)
    assert torch.equal(vectors[1], steps._walked(vectors[0], made, 4, 0))


def test_a_network_that_has_settled_makes_way_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(alignment, "WATCHED", 2)
    monkeypatch.setattr(alignment, "LONGEST", 1)
    ground, made = tiny.bare_ground(), learned(torch.float32)
    method = aligning(ground, **PAPERS)
    # One look after the only pass of each iteration, one at where it ended.
    Scripted(method, [0.1, 0.0, 0.5, 0.0, 0.53, 0.1, 0.0, 0.3])
    watched = []
    for iteration in range(5):
        method.estimate(made, iteration)
        watched.append(method.carried["accuracies"].tolist())
    assert watched == [[0.1], [0.1, 0.5], [0.5, 0.53], [0.1], [0.1, 0.3]]
    fresh = [ground.fresh(3, "distill", "alignment", "network", i) for i in (0, 3)]
    method = aligning(ground, **PAPERS)
    Scripted(method, [0.1])
    method.carried["accuracies"] = torch.tensor([0.5, 0.53], dtype=torch.float64)
    method.estimate(made, 3)
    assert torch.equal(method.carried["network"], parameter_vector(fresh[1]))
    assert not torch.equal(parameter_vector(fresh[0]), parameter_vector(fresh[1]))


def test_the_accuracy_is_the_mean_over_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "QUERY", 10_000)
    ground = tiny.bare_ground(tiny.DoubleProblem)
    method = aligning(ground, **PAPERS)
    method.piece = 50
    network = ground.fresh(8)
    found = method._accuracy(parameter_vector(network), 0)
    right = (network(ground.images).argmax(1) == ground.labels).double()
    shares = [right[ground.labels == label].mean().item() for label in range(10)]
    assert found.item() == pytest.approx(sum(shares) / 10, abs=1e-12)
    monkeypatch.setattr(alignment, "QUERY", 5)
    few = [method._accuracy(parameter_vector(network), k).item() for k in (0, 1, 2, 3, 0)]
    assert few[0] == few[4]
    assert len(set(few)) > 1


def test_spread() -> None:
    assert spread(torch.tensor([0.5, 0.25, 0.375])) == 0.25


def test_fixed_loops_are_those_of_gradient_matching() -> None:
    ground, made = tiny.bare_ground(), learned(torch.float32)
    method = aligning(ground)
    vectors = []
    for iteration in range(5):
        method.estimate(made, iteration)
        vectors.append(method.carried["network"])
    assert "accuracies" not in method.carried
    for iteration, number in ((0, 0), (4, 1)):
        fresh = ground.fresh(3, "distill", "alignment", "network", number)
        assert torch.equal(vectors[iteration], parameter_vector(fresh))
    assert torch.equal(vectors[2], method._walked(vectors[1], made, 3, 2))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"soft_labels": True}, r"not learned by cafe.*--method mtt"),
        ({"outer_loop": None}, r"outer_loop is None and inner_loop is 3; cafe takes both"),
        ({"inner_loop": None}, r"outer_loop is 4 and inner_loop is None; cafe takes both"),
    ],
)
def test_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        aligning(tiny.bare_ground(), **settings)


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
@pytest.mark.parametrize(("schedule", "every"), [({}, 1), (PAPERS, 2)])
def test_a_killed_run_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: dict[str, None], every: int
) -> None:
    """By the paper's schedule in the middle of a network's life, which another one's follows."""
    monkeypatch.setattr(alignment, "WATCHED", 3)
    monkeypatch.setattr(alignment, "QUERY", 20)
    monkeypatch.setattr(alignment, "SETTLED", 0.5)
    settings = {**schedule, "checkpoint_every": every}
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
    assert ("carried.accuracies" in files[0].names) == bool(schedule)
    for part in files[0].names:
        assert torch.equal(*(file.read(part) for file in files)), part
    assert whole.last.step_size is None
    assert whole.last.info["method"] == "cafe"


def test_through_the_command_line(tmp_path: Path) -> None:
    words = (
        "distill --device cpu --method cafe --iterations 2 --batch-real 8 --eval-every 2 "
        f"--lr-img 0.1 --out {tmp_path / 'run'} {tiny.NETWORK_WORDS} {tiny.JUDGE_WORDS}"
    )
    assert cli.main(words.split()) == 0
    assert read_result(tmp_path / "run")["scores"][0]["method"] == "cafe"
    assert SyntheticSet.load(tmp_path / "run" / "best").step_size is None

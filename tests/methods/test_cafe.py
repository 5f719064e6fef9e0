"""Feature alignment: its loss and gradient by hand, its schedule, and an interrupted run."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tiny
from trajmatch import cli
from trajmatch.config import DSA_STRATEGY, NetworkConfig
from trajmatch.data.augment import Augmentation
from trajmatch.errors import SettingError
from trajmatch.methods import CAFE, Conditions, Problem, SyntheticParameters
from trajmatch.methods.cafe import alignment, discrimination, spread
from trajmatch.networks.base import Network
from trajmatch.networks.functional import parameter_vector
from trajmatch.rng import stream
from trajmatch.storage import read_result
from trajmatch.storage.files import open_tensors
from trajmatch.synthetic import SyntheticSet

FIXED = {"lr_img": 0.1, "batch_real": 16, "outer_loop": 4, "inner_loop": 3, "lr_net": 0.05}
PAPERS = {"lr_img": 0.1, "batch_real": 16, "lr_net": 0.05}
WEIGHT = 0.01
"""The released weight of the discrimination loss."""


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def problem() -> Problem:
    return tiny.bare_problem(seed=3)


def fixed(**settings: object) -> CAFE:
    return CAFE(**{**FIXED, **settings})


def papers(**settings: object) -> CAFE:
    """By the paper's schedule, which follows the accuracy on real images."""
    return CAFE(**{**PAPERS, **settings})


def make_parameters(dtype: torch.dtype = torch.float64) -> SyntheticParameters:
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
    assert alignment(means, layers).item() == pytest.approx(wanted)
    assert alignment(means[1:], layers[1:]).item() == pytest.approx(2.25 + 18)
    assert alignment(means[2:], layers[2:]).item() == pytest.approx(18)


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

    def fresh(self, *names: str | int) -> Network:
        return Linear(self.seed, *names)


@pytest.mark.parametrize("weight", [WEIGHT, 0.5])
def test_of_a_linear_network_it_is_the_closed_form(weight: float) -> None:
    """With A_l from pixels to layer l, m_c and s_c the class means, p the softmax of real images'
    logits and y their labels, an image of n of a class has the gradient
    - 2/n sum_l w_l A_l^T A_l (m_c - s_c) + beta/n A_3^T sum_i (p_ic - y_ic) A_3 x_i."""
    problem = tiny.bare_problem(LinearProblem, seed=3, micro_batch_size=50)
    parameters = make_parameters()
    method = fixed(outer_loop=1, batch_real=10_000, augment="none", discrimination_weight=weight)
    for iteration in (0, 5):
        found = method.estimate(problem, parameters, iteration)
        network = problem.fresh("distill", "alignment", "network", iteration)
        maps: list[np.ndarray] = []
        for part in network.features:
            if isinstance(part, nn.Linear):
                matrix = part.weight.detach().numpy()
                maps.append(matrix @ maps[-1] if maps else matrix)
        real, labels = problem.images.flatten(1).numpy(), problem.labels.numpy()
        images, classes = parameters.images.flatten(1).numpy(), parameters.classes.numpy()
        means = np.stack([real[labels == c].mean(0) for c in range(10)])
        own = np.stack([images[classes == c].mean(0) for c in range(10)])
        features = real @ maps[2].T
        logits = features @ (own @ maps[2].T).T
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        y = np.eye(10)[labels]
        loss = -weight * np.log(p[y == 1]).sum()
        gradient = weight / 2 * (p - y).T @ features @ maps[2]
        for layer_weight, matrix in zip((0.1, 1, 2), maps, strict=True):
            apart = (means - own) @ matrix.T
            loss += layer_weight * (apart**2).sum()
            gradient -= 2 / 2 * layer_weight * apart @ matrix
        assert found.loss.item() == pytest.approx(loss, rel=1e-10)
        np.testing.assert_allclose(found.images.flatten(1), gradient[classes], rtol=1e-9)
        assert (found.labels, found.step_size) == (None, None)


@pytest.mark.parametrize("augment", ["none", DSA_STRATEGY])
def test_by_finite_differences(augment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a fresh network, and at a trained one (which is no function of the images here)."""
    parameters, method = make_parameters(), fixed(augment=augment)
    problem = tiny.bare_problem(tiny.DoubleProblem, seed=3)
    for iteration in range(3):  # several changes
        found = method.estimate(problem, parameters, iteration)
        vector = problem.state["network"]
        direction = torch.randn(
            parameters.images.shape, generator=stream(iteration, "direction"), dtype=torch.float64
        )
        with monkeypatch.context() as patched:
            patched.setattr(CAFE, "_network", lambda *_, vector=vector: vector)
            slope = tiny.slope(method, problem, parameters, direction, iteration)
        assert (found.images * direction).sum().item() == pytest.approx(slope, rel=1e-5)


def test_of_images_that_are_the_real_ones_only_the_discrimination_is_left() -> None:
    problem = tiny.bare_problem(tiny.DoubleProblem, seed=3)
    method = fixed(batch_real=10_000, augment="none")
    equal = SyntheticParameters.begin(problem.images, problem.labels.long(), step_size=0.01)
    network = problem.fresh("distill", "alignment", "network", 0)
    embedded = network.embed(problem.images).detach()
    centers = torch.stack([embedded[problem.labels == label].mean(0) for label in range(10)])
    wanted = WEIGHT * discrimination(embedded, problem.labels.long(), centers)
    found = method.estimate(problem, equal, 0).loss
    assert found.item() == pytest.approx(wanted.item(), rel=1e-9)


def test_real_and_synthetic_images_change_alike_or_not_at_all(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    original = Augmentation.apply

    def recorded(self: Augmentation, images: torch.Tensor, draw: object) -> torch.Tensor:
        drawn.append(draw)
        return original(self, images, draw)

    monkeypatch.setattr(Augmentation, "apply", recorded)
    fixed(augment="color_crop").estimate(problem, make_parameters(torch.float32), 0)
    assert len(drawn) == 20
    for real, synthetic in zip(drawn[::2], drawn[1::2], strict=True):
        assert real.name == synthetic.name
        for key, value in real.values.items():
            assert (len(value), len(synthetic.values[key])) == (16, 2)
            assert torch.cat([value, synthetic.values[key]]).unique().numel() == 1
    drawn.clear()
    for iteration in (0, 1):
        fixed(augment="none").estimate(problem, make_parameters(torch.float32), iteration)
    assert drawn == []


def test_bf16_is_near_and_the_images_stay_float32(problem: Problem) -> None:
    parameters = make_parameters(torch.float32)
    plain = fixed().estimate(problem, parameters, 0)
    rounded = fixed().estimate(tiny.bare_problem(seed=3, precision="bf16"), parameters, 0)
    assert rounded.images.dtype == rounded.loss.dtype == torch.float32
    apart = (plain.images - rounded.images).norm() / plain.images.norm()
    assert 1e-4 < apart < 0.2


def test_any_network_has_layers_to_align() -> None:
    problem = tiny.bare_problem(network=NetworkConfig(network="mlp", width=8), seed=3)
    assert fixed().estimate(problem, make_parameters(torch.float32), 0).images.abs().max() > 0


# -- the schedule --------------------------------------------------------------------------------


class Scripted:
    """Gives `CAFE._accuracy` these values in turn, and records which draws it is called for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
        self.values = iter(values)
        self.calls: list[tuple[int, ...]] = []
        monkeypatch.setattr(CAFE, "_accuracy", lambda _, *arguments: self.measure(*arguments))

    def measure(
        self, problem: Problem, vector: torch.Tensor, names: tuple[int, ...]
    ) -> torch.Tensor:
        self.calls.append(names)
        return torch.tensor([next(self.values)], dtype=torch.float64)


def test_a_network_is_trained_until_its_accuracy_has_moved(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = make_parameters(torch.float32)
    method = papers(augment="none", accuracies=3, max_epochs=5)
    # Fresh; then 0.5 to 0.52 are still together, 0.51 to 0.55 are not; then it never moves.
    script = Scripted(monkeypatch, [0.1, 0.5, 0.51, 0.52, 0.55, 0.6, *[0.6] * 5, 0.8])
    vectors = []
    for iteration in range(3):
        method.estimate(problem, parameters, iteration)
        vectors.append(problem.state["network"])
    passes = {0: 0, 1: 4, 2: 5}
    assert script.calls == [
        names for i, count in passes.items() for names in [*((i, k) for k in range(count)), (i,)]
    ]
    assert problem.state["accuracies"].tolist() == [0.1, 0.6, 0.8]
    fresh = problem.fresh("distill", "alignment", "network", 0)
    assert torch.equal(vectors[0], parameter_vector(fresh))
    # 20 images are one batch, so that four passes are four steps.
    steps = fixed(augment="none", inner_loop=4)
    assert torch.equal(vectors[1], steps._trained(problem, vectors[0], parameters, 4, (0,)))


def test_the_thresholds_are_settings(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `moved` at 0.005 two of the passes of the test above are enough."""
    method = papers(augment="none", accuracies=2, max_epochs=5, moved=0.005)
    script = Scripted(monkeypatch, [0.1, 0.5, 0.51, 0.6])
    for iteration in range(2):
        method.estimate(problem, make_parameters(torch.float32), iteration)
    assert script.calls == [(0,), (1, 0), (1, 1), (1,)]


def test_a_network_that_has_settled_is_replaced(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = make_parameters(torch.float32)
    method = papers(accuracies=2, max_epochs=1)
    # One accuracy after the only pass of each iteration, one of the network that is used.
    Scripted(monkeypatch, [0.1, 0.0, 0.5, 0.0, 0.53, 0.1, 0.0, 0.3])
    accuracies = []
    for iteration in range(5):
        method.estimate(problem, parameters, iteration)
        accuracies.append(problem.state["accuracies"].tolist())
    assert accuracies == [[0.1], [0.1, 0.5], [0.5, 0.53], [0.1], [0.1, 0.3]]
    fresh = [problem.fresh("distill", "alignment", "network", i) for i in (0, 3)]
    state = {"accuracies": torch.tensor([0.5, 0.53], dtype=torch.float64)}
    resumed = tiny.bare_problem(seed=3, state=state)
    Scripted(monkeypatch, [0.1])
    method.estimate(resumed, parameters, 3)
    assert torch.equal(resumed.state["network"], parameter_vector(fresh[1]))
    assert not torch.equal(parameter_vector(fresh[0]), parameter_vector(fresh[1]))


def test_the_accuracy_is_the_mean_over_the_classes() -> None:
    problem = tiny.bare_problem(tiny.DoubleProblem, seed=8, micro_batch_size=50)
    network = problem.fresh()
    found = papers(batch_query=10_000)._accuracy(problem, parameter_vector(network), (0,))
    right = (network(problem.images).argmax(1) == problem.labels).double()
    shares = [right[problem.labels == label].mean().item() for label in range(10)]
    assert len(set(shares)) > 2
    assert found.item() == pytest.approx(sum(shares) / 10, abs=1e-12)
    method = papers(batch_query=5)
    few = [
        method._accuracy(problem, parameter_vector(network), (k,)).item() for k in (0, 1, 2, 3, 0)
    ]
    assert few[0] == few[4]
    assert len(set(few)) > 1


def test_spread() -> None:
    assert spread(torch.tensor([0.5, 0.25, 0.375])) == 0.25


def test_fixed_loops_are_those_of_gradient_matching(problem: Problem) -> None:
    parameters, method = make_parameters(torch.float32), fixed()
    vectors = []
    for iteration in range(5):
        method.estimate(problem, parameters, iteration)
        vectors.append(problem.state["network"])
    assert "accuracies" not in problem.state
    for iteration, number in ((0, 0), (4, 1)):
        fresh = problem.fresh("distill", "alignment", "network", number)
        assert torch.equal(vectors[iteration], parameter_vector(fresh))
    assert torch.equal(vectors[2], method._trained(problem, vectors[1], parameters, 3, (2,)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outer_loop": None}, r"outer_loop is None and inner_loop is 3; cafe takes both"),
        ({"inner_loop": None}, r"outer_loop is 4 and inner_loop is None; cafe takes both"),
    ],
)
def test_one_loop_alone_is_refused(settings: dict[str, object], message: str) -> None:
    conditions = Conditions(tiny.bare_problem().spec, ipc=2)
    for method in (fixed(), papers()):
        method.check(conditions)
    with pytest.raises(SettingError, match=message):
        fixed(**settings).check(conditions)


# -- whole runs ----------------------------------------------------------------------------------


# From the iteration where it was interrupted, and from one before.
@pytest.mark.parametrize(
    ("method", "every"),
    [(fixed(), 1), (papers(accuracies=3, batch_query=20, settled=0.5), 2)],
    ids=["fixed", "papers"],
)
def test_an_interrupted_run_resumes_to_the_same_bits(
    tmp_path: Path, method: CAFE, every: int
) -> None:
    """By the paper's schedule while one network is in use, which another one replaces."""
    settings = {"iterations": 6, "ipc": 2, "eval_every": 6, "checkpoint_every": every}
    whole = tiny.distill(tmp_path / "whole", method, **settings)
    with pytest.raises(KeyboardInterrupt):
        tiny.distill(tmp_path / "parts", method, stop=3, **settings)
    resumed = tiny.distill(tmp_path / "parts", method, **settings)
    assert torch.equal(whole.last.images, resumed.last.images)
    files = [
        open_tensors(tmp_path / run / "checkpoint.safetensors", kind="checkpoint", version=1)
        for run in ("whole", "parts")
    ]
    assert "carried.network" in files[0].names
    assert ("carried.accuracies" in files[0].names) == (method.outer_loop is None)
    for part in files[0].names:
        assert torch.equal(*(file.read(part) for file in files)), part
    assert whole.last.step_size is None
    assert whole.last.info["method"] == "cafe"


def test_through_the_command_line(tmp_path: Path) -> None:
    words = (
        "distill --device cpu --method cafe --iterations 2 --batch-real 8 --eval-every 2 "
        f"--lr-img 0.1 --out {tmp_path / 'run'} {tiny.NETWORK_WORDS} {tiny.SCORE_WORDS}"
    )
    assert cli.main(words.split()) == 0
    assert read_result(tmp_path / "run")["scores"][0]["method"] == "cafe"
    assert SyntheticSet.load(tmp_path / "run" / "best").step_size is None

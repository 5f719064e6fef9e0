"""Judging a small set: n fresh networks trained on it alone, 300 epochs, then tested.

Ours: trajmatch.evaluation.evaluate_sets in one process. The twin: module, torch.optim.SGD and a
DataLoader per network. Both start from the same parameters and see the same draws; before anything
is timed, where a network ends is compared in float64.

    python -m benchmarks.evaluate                    # the digits demo's set, and a CIFAR-sized one
    python -m benchmarks.evaluate --cases digits
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks import harness, machine, twin
from trajmatch.config import EvaluateConfig
from trajmatch.data.augment import Augmentation
from trajmatch.evaluation import TestSet, TrainingSet, TrainingSettings, evaluate_sets
from trajmatch.evaluation.train import train_network
from trajmatch.networks import NetworkSpec, load_parameter_vector, parameter_vector
from trajmatch.rng import derive, stream
from trajmatch.runtime.resources import Resources
from trajmatch.types import Tensor

CLASSES, LR = 10, 0.01


@dataclass(frozen=True)
class Case:
    """A small set, the networks trained on it, and for how long."""

    name: str
    images: int
    channels: int
    size: int
    depth: int
    width: int
    networks: int
    epochs: int
    tests: int

    @property
    def spec(self) -> NetworkSpec:
        options = {"depth": self.depth, "width": self.width}
        return NetworkSpec("convnet", self.channels, CLASSES, self.size, options)

    def words(self) -> str:
        shape = f"{self.size}x{self.size}x{self.channels}"
        return f"{self.name}: {self.networks} networks, {self.epochs} epochs, {self.images} {shape}"


CASES = {
    "digits": Case("digits", 10, 1, 8, depth=2, width=32, networks=5, epochs=300, tests=360),
    "cifar": Case("cifar", 10, 3, 32, depth=3, width=128, networks=2, epochs=300, tests=256),
}
TINY = {
    "digits": {"width": 8, "networks": 2, "epochs": 5, "tests": 20},
    "cifar": {"width": 8, "networks": 2, "epochs": 3, "tests": 20, "size": 16},
}


def small_set(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """Random images and labels to train on, and to test on."""
    drawn = stream(0, "benchmark", "small")
    sides = (case.channels, case.size, case.size)
    images, tests = (torch.randn((n, *sides), generator=drawn) for n in (case.images, case.tests))
    labels, wanted = torch.arange(case.images) % CLASSES, torch.arange(case.tests) % CLASSES
    return tuple(t.to(device) for t in (images, labels, tests, wanted))


def ours(case: Case, data: tuple[Tensor, ...], config: EvaluateConfig, seed: int) -> list[float]:
    """Accuracies of n networks."""
    images, labels, tests, wanted = data
    (score,) = evaluate_sets(
        [TrainingSet(images, labels, LR)],
        case.spec,
        config,
        TestSet(tests, wanted),
        seed=seed,
        resources=Resources(images.device, workers=1),
    )
    return list(score.values)


def theirs(case: Case, data: tuple[Tensor, ...], config: EvaluateConfig, seed: int) -> list[float]:
    """The same of the twin."""
    images, labels, tests, wanted = data
    scores = []
    for i in range(config.n):
        network_seed = derive(seed, "evaluate", i)
        module = twin_network(case, network_seed).to(images.device)
        train_twin(module, images.cpu(), labels.cpu(), config, network_seed)
        scores.append(twin.percent_right(module, tests, wanted))
    return scores


def twin_network(case: Case, seed: int) -> torch.nn.Module:
    """The twin's module with the parameters that ours begins with."""
    module = twin.TwinConvNet(case.channels, CLASSES, case.size, case.depth, case.width)
    load_parameter_vector(module, parameter_vector(case.spec.build(seed=seed)))
    return module


def train_twin(
    module: torch.nn.Module, images: Tensor, labels: Tensor, config: EvaluateConfig, seed: int
) -> None:
    draws, dsa = stream(seed, "augment"), Augmentation()
    height, width = images.shape[2:]

    def order(epoch: int) -> list[int]:
        if len(images) <= config.batch:
            return list(range(len(images)))
        shuffle = stream(seed, "shuffle", epoch)
        return torch.randperm(len(images), generator=shuffle).tolist()

    twin.train_small(
        module,
        images,
        labels,
        lr=LR,
        epochs=config.epochs,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        batch=config.batch,
        order=order,
        draw=lambda count: dsa.draw(draws, count, height, width),
        dsa=dsa,
    )


def agreement() -> float:
    """|ours - twin| / |way|, where a network trained for 7 epochs ends, in float64, for a set of
    one batch and of several. Raises RuntimeError when it is not rounding."""
    worst = 0.0
    case = replace(CASES["digits"], width=4, images=12)
    for batch in (5, 256):
        with harness.default_dtype(torch.float64):
            config = EvaluateConfig(epochs=7, batch=batch)
            images, labels, *_ = small_set(case, torch.device("cpu"))
            ours_module, theirs_module = case.spec.build(seed=1), twin_network(case, 1)
            start = parameter_vector(ours_module)
            settings = TrainingSettings.of(config, LR)
            train_network(ours_module, images, labels, settings, seed=1)
            train_twin(theirs_module, images, labels, config, 1)
            one, other = parameter_vector(ours_module), parameter_vector(theirs_module)
            worst = max(worst, float((one - other).norm() / (other - start).norm()))
    if not worst < 1e-9:
        raise RuntimeError(f"ours and the twin do not train the same, nothing is timed: {worst}")
    return worst


def time_row(case: Case, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """n networks of ours and of the twin in turns."""
    # Compiled where a whole run's evaluations would be.
    compile = "yes" if case.width >= 128 else "no"
    config = EvaluateConfig(n=case.networks, epochs=case.epochs, compile=compile)
    data = small_set(case, device)
    pairs = harness.alternate(
        lambda number: ours(case, data, config, number),
        lambda number: theirs(case, data, config, number),
        repeats=args.repeats,
        warmup=args.warmup,
        device=device,
    )
    return {"case": case.name, "sizes": asdict(case), **pairs.to_json()}


def show(found: dict[str, Any]) -> str:
    """The table of a result."""
    rows = [[Case(**row["sizes"]).words(), *harness.timing_cells(row)] for row in found["times"]]
    words = machine.words(found["machine"])
    return "\n".join([words, "", harness.table(harness.TIMING_HEAD, rows)])


def main(argv: list[str] | None = None) -> dict[str, Any]:
    made = harness.parser("evaluate", __doc__, repeats=3)
    made.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    made.set_defaults(warmup=1)
    args = made.parse_args(argv)
    device = harness.begin(args)
    found: dict[str, Any] = {"machine": machine.describe(device), "quick": args.quick}
    found["agreement"] = agreement()
    found["times"] = []
    for name in args.cases:
        case = replace(CASES[name], **TINY[name]) if args.quick else CASES[name]
        harness.say(f"time: {case.words()}")
        found["times"].append(time_row(case, args, device))
    print(show(found))
    harness.write(args, "evaluate", found)
    return found


if __name__ == "__main__":
    main()

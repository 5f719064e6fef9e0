"""The whole pipeline as small as it can be: digits, a ConvNet of 4 filters, 2 experts, 3 epochs."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from trajmatch import pipeline
from trajmatch.config import SGD, DistillConfig, EvaluateConfig, ExpertConfig, NetworkConfig
from trajmatch.data import ImageDataset, load_data
from trajmatch.data.whiten import fit_whitening
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import MTT, Method, Outcome, Problem, SyntheticParameters
from trajmatch.networks.base import Network
from trajmatch.networks.spec import network_for
from trajmatch.runtime.progress import Silent
from trajmatch.runtime.resources import Resources

torch.set_num_threads(1)  # conftest.py does so for each test, after module fixtures have run

NETWORK = NetworkConfig(network="convnet", depth=2, width=4)
EXPERTS = ExpertConfig(experts=2, epochs=3, batch=128, lr=0.05)
DISTILL = DistillConfig(iterations=4, optimizer=SGD(), ema=0.0, eval_every=2, checkpoint_every=1)
METHOD = MTT(
    syn_steps=3, expert_epochs=1, max_start_epoch=2, step_size=0.01, lr_img=10.0, lr_lr=1e-6
)
EVALUATE = EvaluateConfig(n=2, epochs=2, workers=1)

# The same, as words of a command line.
NETWORK_WORDS = "--network convnet --depth 2 --width 4"
EXPERT_WORDS = "--experts 2 --epochs 3 --batch 128 --lr 0.05 --workers 1"
LOOP_WORDS = "--iterations 4 --eval-every 2 --checkpoint-every 1 --optimizer sgd --ema 0"
DISTILL_WORDS = (
    f"{LOOP_WORDS} --syn-steps 3 --expert-epochs 1 --max-start-epoch 2 --step-size 0.01 "
    "--lr-img 10 --lr-lr 1e-6"
)
SCORE_WORDS = "--evaluate.n 2 --evaluate.epochs 2 --evaluate.workers 1"
EVALUATE_WORDS = "--n 2 --epochs 2 --workers 1"


@functools.cache
def digits() -> ImageDataset:
    return load_data("digits")


@functools.cache
def library() -> ExpertLibrary:
    """Trained once a test process. Not to be written to: copy its folder."""
    folder = tempfile.mkdtemp(prefix="trajmatch-tiny-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "library"
    return pipeline.train_experts(
        digits(), path, network=NETWORK, config=EXPERTS, resources=Resources(workers=1)
    )


def problem(experts: ExpertLibrary | None = None, **settings: Any) -> Problem:
    """The digits and these experts, or the library's; settings: further fields of `Problem`."""
    return Problem.of(digits(), experts or library(), torch.device("cpu"), **settings)


class DoubleProblem(Problem):
    """The same in float64, for finite differences."""

    @functools.cached_property
    def images(self) -> torch.Tensor:
        return super().images.double()

    def fresh(self, *names: str | int) -> Network:
        return super().fresh(*names).double()


def bare_problem(
    kind: type[Problem] = Problem, *, network: NetworkConfig = NETWORK, **settings: Any
) -> Problem:
    """The digits and no experts; settings: further fields of `Problem`."""
    data = digits()
    fitted = fit_whitening("normalize", data.train)
    return kind(data, network_for(data, network), fitted, torch.device("cpu"), **settings)


def slope(
    method: Method,
    problem: Problem,
    parameters: SyntheticParameters,
    direction: torch.Tensor,
    iteration: int,
) -> float:
    """The derivative of the loss along `direction` in the images, by central differences."""
    above, below = (
        method.estimate(
            problem,
            parameters.with_tensors({"images": parameters.images + h * direction}),
            iteration,
        ).loss
        for h in (1e-6, -1e-6)
    )
    return (above - below).item() / 2e-6


class StopAfter(Silent):
    """An observer that ends a distillation after so many iterations, as Ctrl-C does."""

    def __init__(self, iterations: int | None) -> None:
        self.iterations = iterations

    def update(self, task: str, done: int, total: int, **values: Any) -> None:
        if task == "distill" and done == self.iterations:
            raise KeyboardInterrupt


def distill(
    out: Path,
    method: Method,
    experts: ExpertLibrary | pipeline.Untrained | None = None,
    *,
    stop: int | None = None,
    seed: int = 0,
    **settings: Any,
) -> Outcome:
    """Distill the digits with `DISTILL` and `EVALUATE` into `out`; settings: of the outer loop.

    experts: None: the tiny network, untrained. stop: interrupt the run after so many iterations.
    """
    return pipeline.distill(
        digits(), method, experts or pipeline.Untrained(NETWORK), out,
        config=dataclasses.replace(DISTILL, **settings), evaluation=EVALUATE, seed=seed,
        progress=StopAfter(stop),
    )  # fmt: skip

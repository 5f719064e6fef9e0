"""The whole way, as small as it can be: digits, a ConvNet of 4 filters, 2 experts of 3 epochs."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import torch

from trajmatch import pipeline
from trajmatch.config import DistillConfig, EvaluateConfig, ExpertConfig, NetworkConfig
from trajmatch.data import ImageDataset, load_data
from trajmatch.data.whiten import fit_whitening
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import Problem
from trajmatch.networks.base import Network
from trajmatch.pipeline.checks import network_for

torch.set_num_threads(1)  # conftest.py does so for each test, after what modules share was made

NETWORK = NetworkConfig(network="convnet", depth=2, width=4)
EXPERTS = ExpertConfig(experts=2, epochs=3, batch=128, lr=0.05)
DISTILL = DistillConfig(
    iterations=4, syn_steps=3, expert_epochs=1, max_start_epoch=2, eval_every=2, checkpoint_every=1
)
EVALUATE = EvaluateConfig(n=2, epochs=2, workers=1)

# The same, as words of a command line.
NETWORK_WORDS = "--network convnet --depth 2 --width 4"
EXPERT_WORDS = "--experts 2 --epochs 3 --batch 128 --lr 0.05 --workers 1"
DISTILL_WORDS = (
    "--iterations 4 --syn-steps 3 --expert-epochs 1 --max-start-epoch 2 --eval-every 2 "
    "--checkpoint-every 1"
)
JUDGE_WORDS = "--evaluate.n 2 --evaluate.epochs 2 --evaluate.workers 1"
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
    return pipeline.train_experts(digits(), path, network=NETWORK, config=EXPERTS, workers=1)


def ground(experts: ExpertLibrary | None = None) -> Problem:
    """The digits and these experts, or the library's."""
    return Problem.of(digits(), experts or library(), torch.device("cpu"))


class DoubleProblem(Problem):
    """The same in float64, for finite differences."""

    @functools.cached_property
    def images(self) -> torch.Tensor:
        return super().images.double()

    def fresh(self, seed: int, *names: str | int) -> Network:
        return super().fresh(seed, *names).double()


def bare_ground(kind: type[Problem] = Problem) -> Problem:
    """The digits and no experts."""
    data = digits()
    fitted = fit_whitening("normalize", data.train)
    return kind(data, network_for(data, NETWORK), fitted, torch.device("cpu"))

"""An expert trained on a GPU: resumed, near the CPU's, compiled."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from gpu import DEVICE, MARKS, alone
from trajmatch.config import ExpertConfig
from trajmatch.experts.train import expert_accuracy, expert_epochs, train_expert
from trajmatch.networks import NetworkSpec

pytestmark = MARKS
SPEC = NetworkSpec("convnet", channels=3, classes=3, size=16, options={"depth": 2, "width": 8})
CONFIG = ExpertConfig(experts=1, epochs=3, batch=16, lr=0.05, momentum=0.5)
CPU = torch.device("cpu")


def data(device):
    """Three kinds of stripes, in noise: learnable at once."""
    labels = torch.arange(48) % 3
    images = 0.3 * torch.randn((48, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, label::3] += 2
    return images.to(device), labels.to(device)


def train(config=CONFIG, device=DEVICE, **keywords):
    return train_expert(SPEC, *data(device), config, seed=7, index=2, **keywords)


def apart(state, other):
    """How far two experts end from each other, as a share of the way."""
    way = (other.vector - other.parameters[0]).norm()
    return float((state.vector - other.vector).norm() / way)


def resumes(config):
    whole = train(config)
    images = data(DEVICE)
    first = next(iter(expert_epochs(SPEC, *images, config, seed=7, index=2)))
    assert first.epochs == 1
    state = train(config, resume=first)
    assert state.parameters.shape == (config.epochs + 1, SPEC.parameters())
    assert state.parameters.isfinite().all()
    assert all(tensor.device == CPU for tensor in (state.parameters, state.vector, state.velocity))
    assert torch.equal(state.parameters[:2], first.parameters)
    assert apart(state, whole) < 0.05  # a GPU's sums need not repeat to the bit
    assert [row["epoch"] for row in state.metrics] == [1, 2, 3]
    assert apart(whole, train(config, CPU)) < 0.1
    return state


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_an_expert_resumes_and_is_near_the_cpus(precision):
    state = resumes(dataclasses.replace(CONFIG, precision=precision))
    assert expert_accuracy(SPEC, state.vector, *data(DEVICE)) > 90


def compiled_experts_resume():
    for precision in ("float32", "bf16"):
        resumes(dataclasses.replace(CONFIG, precision=precision, compile="yes"))


def test_compiled_experts_resume():
    alone(compiled_experts_resume)

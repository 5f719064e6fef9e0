"""Fresh networks trained and tested on a GPU."""

from __future__ import annotations

import pytest
import torch

from gpu import DEVICE, MARKS, alone
from trajmatch.config import EvaluateConfig
from trajmatch.data.augment import Augmentation
from trajmatch.evaluation import TestSet, TrainingSet, evaluate_sets
from trajmatch.evaluation.train import TrainingSettings, is_correct, is_finite, train_network
from trajmatch.networks import NetworkSpec, build_network
from trajmatch.runtime.resources import Resources

pytestmark = MARKS
OPTIONS = {"depth": 2, "width": 8}
CPU = torch.device("cpu")


def pictures(per_class, seed):
    """Three classes, told apart by where a bright bar stands."""
    labels = torch.arange(3).repeat(per_class)
    generator = torch.Generator().manual_seed(seed)
    images = 0.5 * torch.rand((len(labels), 1, 16, 16), generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, :, 5 * label : 5 * label + 4] += 1
    return images - 0.5, labels


def correct(device, *, compile, soft=False):
    """Which of 30 images a network is right about that is trained on six."""
    images, labels = pictures(2, seed=0)
    if soft:
        labels = torch.nn.functional.one_hot(labels, 3).float()
    module = build_network("convnet", channels=1, classes=3, size=16, seed=1, **OPTIONS).to(device)
    settings = TrainingSettings(lr=0.02, epochs=40, augment=Augmentation("color_crop_cutout"))
    train_network(module, images.to(device), labels.to(device), settings, compile=compile)
    assert is_finite(module)
    assert next(module.parameters()).device.type == device.type
    found = is_correct(module, *(t.to(device) for t in pictures(10, seed=1)), compile=compile)
    assert found.device.type == device.type
    return found.cpu()


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "soft"])
def test_a_network_learns_as_on_the_cpu(soft):
    here = correct(DEVICE, compile=False, soft=soft)
    assert here.float().mean() > 0.9
    assert (here == correct(CPU, compile=False, soft=soft)).float().mean() > 0.9


def compiled_networks_learn():
    assert correct(DEVICE, compile=True).float().mean() > 0.9


def test_compiled_networks_learn():
    alone(compiled_networks_learn)


def test_sets_are_evaluated():
    spec = NetworkSpec("convnet", 1, 3, 16, OPTIONS)
    images, labels = (tensor.to(DEVICE) for tensor in pictures(2, seed=0))
    test = TestSet(*(tensor.to(DEVICE) for tensor in pictures(10, seed=1)))
    sets = [TrainingSet(images, labels, lr=0.02), TrainingSet(images, labels.flip(0), lr=0.02)]
    config = EvaluateConfig(n=2, epochs=40, augment="color_crop_cutout")
    resources = Resources(DEVICE)
    good, bad = evaluate_sets(sets, spec, config, test, resources=resources)
    assert good.mean > 90
    assert bad.mean < good.mean

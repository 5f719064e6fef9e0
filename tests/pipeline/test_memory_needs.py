"""What settings need of memory at the least, against free memory of a known size."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import tiny
from trajmatch import pipeline
from trajmatch.config import DataConfig, EvaluateConfig, ExpertConfig, NetworkConfig
from trajmatch.errors import SettingError
from trajmatch.methods import DD, DM, KIP, METHODS, MTT, Method
from trajmatch.networks import NetworkSpec
from trajmatch.pipeline.cost.estimate import estimate
from trajmatch.pipeline.cost.shape import Shape
from trajmatch.pipeline.memory_needs import distill_needs, evaluation_needs, expert_needs
from trajmatch.pipeline.recipe import Recipe
from trajmatch.runtime import memory
from trajmatch.runtime.memory import Need, require_memory
from trajmatch.runtime.resources import Resources

CPU = torch.device("cpu")
SPEC = NetworkSpec("mlp", 3, 10, 8, {"width": 16})
P, D = SPEC.parameters(), 3 * 8 * 8
ALONE = Resources(workers=1)
TERABYTE = 10**12


def sizes(needs: list[Need]) -> dict[str, int]:
    return {need.what: need.bytes for need in needs}


def test_what_does_not_fit_is_refused_with_both_amounts_and_the_setting() -> None:
    needs = [Need("10 images", 3 * 10**9, "ipc"), Need("the network", 10**9, "width")]
    require_memory(needs, CPU, free=4 * 10**9)
    with pytest.raises(SettingError) as error:
        require_memory(needs, CPU, free=4 * 10**9 - 1)
    assert str(error.value) == (
        "at least 4 GB of memory are needed, 3 GB of them for 10 images, and 4 GB are free on cpu; "
        "lower ipc"
    )


def test_where_free_memory_is_unknown_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    require_memory([Need("all", 10**18, "ipc")], CPU)
    assert memory.available_bytes(CPU) == 4 * 2**30


def test_a_container_s_cache_of_files_is_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if memory.free_bytes(CPU) is None:
        pytest.skip("this system does not tell")
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.free_bytes(CPU) == 100
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 500\nactive_file 100\n")
    assert memory.free_bytes(CPU) == 600


def test_synthetic_images_count_with_gradient_optimizer_and_average() -> None:
    config = dataclasses.replace(tiny.DISTILL, ipc=100)
    plain = sizes(distill_needs(SPEC, 50, DM(), config))
    assert plain["1000 synthetic images of 3x8x8"] == 3 * 4 * 1000 * D
    assert plain["whitened validation images"] == 4 * 50 * D
    averaged = dataclasses.replace(config, ema=0.9)
    assert (
        sizes(distill_needs(SPEC, 50, DM(), averaged))["1000 synthetic images of 3x8x8"]
        == 4 * 4 * 1000 * D
    )


def test_what_methods_add() -> None:
    config = dataclasses.replace(tiny.DISTILL, ipc=10)
    unrolled = sizes(distill_needs(SPEC, 50, MTT(syn_steps=7), config))
    assert unrolled["the parameters at 7 steps"] == 7 * 4 * P
    texture = MTT(syn_steps=7, texture=True, samples=5)
    canvases = sizes(distill_needs(SPEC, 50, texture, config))
    assert canvases["100 synthetic images of 3x16x16"] == 3 * 4 * 100 * 4 * D
    assert canvases["500 crops a step"] == 500 * (4 * D + 8 * 64)
    real = sizes(distill_needs(SPEC, 50, DD(batch_real=10**6, syn_steps=7, bptt_steps=3), config))
    assert real["the parameters at 3 steps"] == 3 * 4 * P
    assert real["1000000 real images an iteration"] == 4 * 10**6 * D
    kernels = sizes(distill_needs(SPEC, 50, KIP(), config))
    assert kernels["kernels of 100 images with each other"] == 3 * 8 * 100**2


def test_experts_hold_their_epochs_and_processes() -> None:
    config = ExpertConfig(experts=9, epochs=4)
    needs = sizes(expert_needs(SPEC, 200, config, Resources(workers=3), zca=True))
    assert needs["4 epochs of 3 experts"] == 3 * 5 * 4 * P
    assert needs["3 processes"] == 3 * 150 * 10**6
    assert needs["200 whitened images of 3x8x8"] == 4 * 200 * D
    assert needs[f"ZCA of {D} pixels"] == 3 * 8 * D**2
    half = dataclasses.replace(config, storage="bf16")
    assert sizes(expert_needs(SPEC, 200, half, ALONE))["4 epochs of 1 experts"] == 5 * 2 * P


def test_fresh_networks_hold_the_test_images() -> None:
    config = EvaluateConfig(n=2, workers=8)
    needs = sizes(evaluation_needs(SPEC, 300, 20, config, Resources()))
    assert needs["whitened test images"] == 4 * 300 * D
    assert needs["2 processes"] == 2 * 150 * 10**6


RECIPE = Recipe(
    data=DataConfig(),
    network=NetworkConfig(width=16, depth=1),
    experts=ExpertConfig(experts=1, epochs=4),
    distill=tiny.DISTILL,
    method=tiny.METHOD,
)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"network": NetworkConfig(width=2**16)}, "width"),
        ({"distill": dataclasses.replace(tiny.DISTILL, ipc=10**7, init="noise")}, "lower ipc"),
        ({"experts": ExpertConfig(epochs=10**6, experts=1)}, "lower epochs, workers or width"),
        ({"method": DM(), "network": NetworkConfig(width=2**16)}, "width"),
        ({"method": DD(batch_real=10**9)}, "lower batch_real"),
    ],
)
def test_it_is_refused_before_anything_is_measured_or_written(
    change: dict[str, object], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 8 * 10**9)
    recipe = dataclasses.replace(RECIPE, **change)
    data = pipeline.load(recipe.data)
    with pytest.raises(SettingError, match=f"of memory are needed.* are free.*{words}"):
        estimate(recipe, Shape.of(data), resources=ALONE)
    with pytest.raises(SettingError, match=words):
        pipeline.run(recipe, tmp_path / "out", data=data, resources=ALONE)
    assert not (tmp_path / "out").exists()


def test_each_verb_refuses_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pipeline.load(DataConfig())
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**5)
    network, out = NetworkConfig(width=64, depth=2), tmp_path / "out"
    with pytest.raises(SettingError, match="are free on cpu"):
        pipeline.train_experts(data, out, network=network, config=ExpertConfig(epochs=40))
    with pytest.raises(SettingError, match="are free on cpu"):
        pipeline.distill(data, DM(), pipeline.Untrained(network), out)
    forgetting = ("forgetting", data, 1, pipeline.Untrained(network))
    with pytest.raises(SettingError, match="are free on cpu"):
        pipeline.select_coreset(*forgetting)
    chosen = pipeline.select_coreset("random", data, 1)
    with pytest.raises(SettingError, match="are free on cpu"):
        pipeline.evaluate(chosen, data, networks=[NetworkConfig(width=256)], out=out)
    assert not out.exists()


@pytest.mark.parametrize("kind", METHODS.values(), ids=lambda kind: kind.name)
def test_no_method_is_refused_what_it_needs_little_of(kind: type[Method]) -> None:
    needs = kind().memory_needs(SPEC, 10)
    assert sum(need.bytes for need in needs) < 10**8

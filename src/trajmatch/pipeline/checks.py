"""Checks before anything starts: of artefacts that do not belong together, and of settings that do
not fit the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trajmatch.config import DataConfig, EvaluateConfig, NetworkConfig
from trajmatch.data import ImageDataset, load_data
from trajmatch.data.whiten import Whitening
from trajmatch.errors import MismatchError, SettingError
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import Conditions, Method
from trajmatch.methods.base import augmentation_of
from trajmatch.networks import Network, NetworkSpec
from trajmatch.networks.spec import network_for
from trajmatch.pipeline.cost.shape import Shape
from trajmatch.pipeline.memory_needs import require_recipe_memory
from trajmatch.pipeline.recipe import Recipe
from trajmatch.runtime.resources import Resources
from trajmatch.storage import read_result
from trajmatch.types import Tensor


def load(config: DataConfig, progress: Callable[[int, int], None] | None = None) -> ImageDataset:
    """The data set a config names."""
    return load_data(
        config.data,
        size=config.size,
        val_fraction=config.val_fraction,
        progress=progress,
        data_root=config.data_root,
        classes=config.classes,
    )


def require_fit(
    library: ExpertLibrary,
    data: ImageDataset,
    *,
    network: NetworkConfig | NetworkSpec | type[Network] | None = None,
    whitening: str | Whitening | None = None,
) -> None:
    """Refuse data, network or whitening that are not those the experts were trained with."""
    trained_on = library.data
    if trained_on["fingerprint"] != data.fingerprint:
        raise MismatchError(
            f"the experts in {library.path} were trained on {_data_words(trained_on)} and this is "
            f"{_data_words(data.summary())}; give the same --data, --classes, --size and "
            "--val-fraction, or train experts on these data"
        )
    name = whitening.name if isinstance(whitening, Whitening) else whitening
    if name is not None and name != library.whitening.name:
        raise MismatchError(
            f"the experts in {library.path} were trained with whitening "
            f"'{library.whitening.name}' and this asks for '{name}'; use --whitening "
            f"{library.whitening.name}, or train experts with --whitening {name}"
        )
    if isinstance(whitening, Whitening) and whitening.checksum != library.whitening.checksum:
        raise MismatchError(
            f"the experts in {library.path} were trained with another '{name}' whitening (checksum "
            f"{library.whitening.checksum}, not {whitening.checksum}); leave it out to take theirs"
        )
    if network is not None:
        wanted = network_for(data, network)
        if wanted != library.spec:
            raise MismatchError(
                f"the experts in {library.path} are {_spec_words(library.spec)} and this asks for "
                f"{_spec_words(wanted)}; leave the network out to take the experts', or train "
                "experts with it"
            )


def require_experts(library: ExpertLibrary) -> None:
    """Refuse a library without a finished expert."""
    if not library.experts:
        raise SettingError(
            f"the library {library.path} holds 0 finished experts; run `trajmatch experts --out "
            f"{library.path}` again, with the settings it was begun with, to continue it"
        )


def conditions_of(
    data: ImageDataset,
    spec: NetworkSpec,
    ipc: int,
    *,
    expert_epochs: int | None,
    whitening: str | None,
) -> Conditions:
    """What a method has to work with."""
    counts = torch.bincount(data.train.labels, minlength=data.num_classes)
    fewest = int(counts.argmin())
    return Conditions(
        spec, ipc, expert_epochs, whitening, (data.classes[fewest], int(counts[fewest]))
    )


def require_sound(
    method: Method, conditions: Conditions, *, init: str, evaluation: EvaluateConfig
) -> None:
    """Refuse what would otherwise fail in the middle of a run."""
    method.check(conditions)
    if conditions.fewest is not None:
        name, count = conditions.fewest
        if init == "real" and conditions.ipc > count:
            raise SettingError(
                f"ipc is {conditions.ipc} and class '{name}' has {count} training "
                f"images; choose ipc from 1 to {count}, or begin with --init noise"
            )
    augmentation_of(evaluation.augment)


def require_recipe(
    recipe: Recipe,
    data: ImageDataset,
    *,
    epochs: int | None = None,
    resources: Resources = Resources(),
) -> None:
    """Refuse a recipe that does not fit the data or, at the least it needs, the memory.

    epochs: the experts' (None: the recipe's).
    """
    require_recipe_memory(recipe, Shape.of(data), resources)
    conditions = conditions_of(
        data,
        network_for(data, recipe.network),
        recipe.distill.ipc,
        expert_epochs=recipe.experts.epochs if epochs is None else epochs,
        whitening=recipe.data.whitening,
    )
    require_sound(recipe.method, conditions, init=recipe.distill.init, evaluation=recipe.evaluate)


def require_own_folder(out: Path, command: str) -> None:
    """Refuse a folder that another command has written to, or is still writing to."""
    other = None
    if (out / "result.json").is_file():
        other = str(read_result(out).get("command"))
    elif (out / "checkpoint.safetensors").is_file():
        other = "distill"
    elif (out / "library.json").is_file():
        other = "experts"
    if other not in (None, command):
        raise SettingError(
            f"--out is {out}, which holds the result of `trajmatch {other}`, and {command} "
            "would write over it; give another --out"
        )


def _data_words(summary: Mapping[str, Any]) -> str:
    size = summary["size"]
    side = f"{size}x{size}" if isinstance(size, int) else "x".join(map(str, size))
    return (
        f"{summary['name']} ({summary['train']} training images of {side}x{summary['channels']}, "
        f"{len(summary['classes'])} classes, fingerprint {summary['fingerprint']})"
    )


def _spec_words(spec: NetworkSpec) -> str:
    options = ", ".join(f"{k}={v}" for k, v in spec.options.items())
    return f"{spec.name} ({options})"


def some_words(names: Sequence[str]) -> str:
    """The first four names, and how many there are."""
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")


def shape_words(images: Tensor) -> str:
    """`3x32x32` of images [n, c, h, w]."""
    return "x".join(map(str, images.shape[1:]))

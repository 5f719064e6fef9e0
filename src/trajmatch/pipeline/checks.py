"""What belongs together and what is refused before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from trajmatch.config import (
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    NetworkConfig,
)
from trajmatch.data import ImageDataset, load_data
from trajmatch.data.augment import Augmentation
from trajmatch.errors import MismatchError, SettingError
from trajmatch.experts import ExpertLibrary
from trajmatch.methods.mtt import require_long_enough
from trajmatch.networks import NetworkSpec
from trajmatch.networks.spec import network_for
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
    network: NetworkConfig | None = None,
    whitening: str | None = None,
) -> None:
    """Refuse data, network or whitening that are not those the experts were trained with."""
    made = library.data
    if made["fingerprint"] != data.fingerprint:
        raise MismatchError(
            f"the experts in {library.path} were trained on {_in_words(made)} and this is "
            f"{_in_words(data.summary())}; give the same --data, --classes, --size and "
            "--val-fraction, or train experts on these data"
        )
    if whitening is not None and whitening != library.whitening.name:
        raise MismatchError(
            f"the experts in {library.path} were trained with whitening "
            f"'{library.whitening.name}' and this asks for '{whitening}'; use --whitening "
            f"{library.whitening.name}, or train experts with --whitening {whitening}"
        )
    if network is not None:
        asked = network_for(data, network)
        if asked != library.spec:
            raise MismatchError(
                f"the experts in {library.path} are {_spec_words(library.spec)} and this asks for "
                f"{_spec_words(asked)}; leave the network out to take the experts', or train "
                "experts with it"
            )


def require_ipc(data: ImageDataset, config: DistillConfig) -> None:
    """Refuse more real images per class to begin from than the smallest class has."""
    counts = torch.bincount(data.train.labels, minlength=data.num_classes)
    fewest = int(counts.argmin())
    if config.init == "real" and config.ipc > counts[fewest]:
        raise SettingError(
            f"ipc is {config.ipc} and class '{data.classes[fewest]}' has {counts[fewest]} training "
            f"images; choose ipc from 1 to {counts[fewest]}, or begin with --init noise"
        )


def require_experts(library: ExpertLibrary) -> None:
    if not library.experts:
        raise SettingError(
            f"the library {library.path} holds 0 finished experts; run `trajmatch experts --out "
            f"{library.path}` again, with the settings it was begun with, to continue it"
        )


def require_sound(
    data: ImageDataset, config: DistillConfig, evaluation: EvaluateConfig, epochs: int | None
) -> None:
    """Refuse now what would otherwise come to light in the middle of a run."""
    require_settings(data.num_classes, config, evaluation, epochs)
    require_ipc(data, config)


def require_settings(
    classes: int, config: DistillConfig, evaluation: EvaluateConfig, epochs: int | None
) -> None:
    """The part of `require_sound` for which the number of classes is enough. epochs: the experts',
    where there are any."""
    if epochs is not None and config.method == "mtt":
        require_long_enough(epochs, config)
    images = config.ipc * classes
    if config.batch_syn is not None and config.batch_syn > images:
        raise SettingError(
            f"batch_syn is {config.batch_syn} and there are {images} synthetic images; use 1 to "
            f"{images}, or none for all of them"
        )
    for strategy in (config.augment, evaluation.augment):
        if strategy not in (None, "none"):
            Augmentation(str(strategy))


def _in_words(summary: Mapping[str, Any]) -> str:
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
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")


def shape_words(images: Tensor) -> str:
    return "x".join(map(str, images.shape[1:]))

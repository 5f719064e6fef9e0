"""The experts of a study: one library for all variants whose experts are alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trajmatch import pipeline
from trajmatch.config import NetworkConfig, RunConfig
from trajmatch.data import ImageDataset
from trajmatch.errors import SettingError
from trajmatch.experts import ExpertLibrary
from trajmatch.networks import NetworkSpec
from trajmatch.pipeline.checks import require_experts, require_fit
from trajmatch.studies.study import Variant, reach

Kind = tuple[Any, ...]
"""What an expert is like, apart from how many there are and for how long they train."""


def as_in(library: ExpertLibrary, base: RunConfig, data: ImageDataset) -> RunConfig:
    """The base with network, whitening and expert settings of a library that is there already."""
    network = None if base.network == NetworkConfig() else base.network
    require_fit(library, data, network=network, whitening=base.data.whitening)
    require_experts(library)
    whitened: Any = library.whitening.name
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, whitening=whitened),
        experts=library.settings,
    )


def libraries_of(
    variants: Sequence[Variant],
    base: RunConfig,
    given: ExpertLibrary | None,
    out: Path,
    data: ImageDataset,
    workers: int | None,
    device: str,
    on_progress: pipeline.Progress | None,
) -> dict[str, ExpertLibrary]:
    """The library of each variant, by its name. Variants whose experts are alike share one."""
    alike: dict[Kind, list[Variant]] = {}
    for variant in variants:
        alike.setdefault(_kind(variant.config), []).append(variant)
    if given is not None and given.imported and set(alike) != {_kind(base)}:
        raise SettingError(
            f"the experts in {given.path} were imported ({given.imported}), so how to train others "
            "like them is not known, which this study needs; leave --experts out"
        )
    found: dict[str, ExpertLibrary] = {}
    for kind, group in alike.items():
        own = kind == _kind(base)
        configs = [base, *(variant.config for variant in group)]
        count = max(config.experts.experts for config in configs)
        epochs = max(max(config.experts.epochs, reach(config)) for config in configs)
        if own and given is not None:
            library = given
        else:
            config = group[0].config
            network: NetworkConfig | NetworkSpec = config.network
            if given is not None and network == base.network:
                network = given.spec
            library = pipeline.train_experts(
                data,
                out / ("experts" if own else f"experts-{group[0].name}"),
                network=network,
                config=dataclasses.replace(config.experts, experts=count, epochs=epochs),
                whitening=config.data.whitening,
                seed=base.seed,
                workers=workers,
                device=device,
                on_progress=on_progress,
            )
        library = library.first(count)
        found |= dict.fromkeys((variant.name for variant in group), library)
    return found


def _kind(config: RunConfig) -> Kind:
    training = dataclasses.replace(config.experts, experts=1, epochs=1)
    return config.data.whitening or "normalize", config.network, training

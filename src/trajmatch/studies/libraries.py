"""The experts of a study: one library for all variants whose experts are alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trajmatch import pipeline
from trajmatch.config import NetworkConfig
from trajmatch.data import ImageDataset
from trajmatch.errors import SettingError
from trajmatch.experts import ExpertLibrary
from trajmatch.networks import NetworkSpec
from trajmatch.pipeline.checks import require_experts, require_fit
from trajmatch.pipeline.recipe import Recipe
from trajmatch.runtime.progress import SILENT, Progress
from trajmatch.runtime.resources import Resources
from trajmatch.studies.study import Variant, reach

Kind = tuple[Any, ...]
"""What determines an expert, apart from how many there are and for how long they train."""


def as_in(library: ExpertLibrary, base: Recipe, data: ImageDataset) -> Recipe:
    """The base with network, whitening and expert settings of an existing library."""
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
    base: Recipe,
    given: ExpertLibrary | None,
    out: Path,
    data: ImageDataset,
    *,
    resources: Resources = Resources(),
    progress: Progress = SILENT,
) -> dict[str, ExpertLibrary]:
    """The library of each variant, by its name. Variants whose experts are alike share one.

    given: a library for variants whose experts are the base's; None trains one in `out`.

    Raises SettingError where experts like those of an imported library would have to be trained.
    """
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
                resources=resources,
                progress=progress,
            )
        library = library.first(count)
        found |= dict.fromkeys((variant.name for variant in group), library)
    return found


def _kind(config: Recipe) -> Kind:
    training = dataclasses.replace(config.experts, experts=1, epochs=1)
    return config.data.whitening or "normalize", config.network, training

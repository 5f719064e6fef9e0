"""Founding a library, or checking that an existing one was made the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trajmatch.config import ExpertConfig, to_dict
from trajmatch.data.dataset import ImageDataset, Split
from trajmatch.data.whiten import Whitening
from trajmatch.errors import MismatchError
from trajmatch.experts.library import ExpertLibrary, plan_experts, write_library
from trajmatch.networks import NetworkSpec


def open_or_found(
    path: Path,
    dataset: ImageDataset,
    spec: NetworkSpec,
    whitening: Whitening,
    config: ExpertConfig,
    seed: int,
) -> ExpertLibrary:
    """The library in the folder `path`, a new and empty one if there is none.

    The caller must hold the folder's lock. Raises MismatchError, with every difference and its
    mend, when the library there was made with other data, network, whitening, settings or seed.
    How many experts it holds and how gradients were compiled may differ.
    """
    if (path / "library.json").exists():
        library = ExpertLibrary.open(path)
    else:
        provenance = {
            "seed": seed,
            "settings": _determining(config),
            "network": spec.to_json(),
            "whitening": whitening.summary(),
            "data": dataset.summary(),
        }
        library = write_library(path, provenance, whitening, planned=config.experts)
    require_same(library, dataset, spec, whitening, config, seed)
    if config.experts > max(library.planned or 0, len(library.experts)):
        plan_experts(library, config.experts)
    return library


def require_same(
    library: ExpertLibrary,
    dataset: ImageDataset,
    spec: NetworkSpec,
    whitening: Whitening,
    config: ExpertConfig,
    seed: int,
) -> None:
    """Refuse to add experts to a library that was made otherwise, as `open_or_found` does."""
    settings = {**_determining(config), "seed": seed}
    differences = _differences(library, dataset, spec, whitening, settings)
    if differences:
        theirs, ours, mend = zip(*differences, strict=True)
        raise MismatchError(
            f"library {library.path} was made with {', '.join(theirs)}, this asks for "
            f"{', '.join(ours)}; use {', '.join(mend)} or another --out"
        )


def _determining(config: ExpertConfig) -> dict[str, Any]:
    """The settings that determine an expert."""
    settings = to_dict(config)
    del settings["experts"], settings["compile"]
    return settings


def _differences(
    library: ExpertLibrary,
    dataset: ImageDataset,
    spec: NetworkSpec,
    whitening: Whitening,
    settings: dict[str, Any],
) -> list[tuple[str, str, str]]:
    """Per difference: the library's value, the requested one, and the flag that mends it."""
    theirs = {**to_dict(library.settings), "seed": library.seed}
    theirs.update(network=library.spec.name, **library.spec.options)
    theirs["whitening"] = library.whitening.name
    ours = {**settings, "network": spec.name, **spec.options, "whitening": whitening.name}
    differences = []
    for name, value in ours.items():
        their_value = theirs.get(name, value)  # absent: an option of the other network only
        if their_value != value:
            their_value, value = ("none" if v is None else v for v in (their_value, value))
            flag = f"--{name.replace('_', '-')}={their_value}"
            differences.append((f"{name}={their_value}", f"{name}={value}", flag))
    if library.data["fingerprint"] != dataset.fingerprint:
        their_data = f"data={library.data['name']} (fingerprint {library.data['fingerprint']})"
        our_data = f"data={dataset.name} (fingerprint {dataset.fingerprint})"
        differences.append((their_data, our_data, "the same data, --size and --val-fraction"))
    elif not differences and library.spec != spec:
        differences.append((f"{library.spec}", f"{spec}", "the same network"))
    elif not differences and library.whitening.checksum != whitening.checksum:
        # A whitening fitted on another machine differs in the last bits, which is no difference.
        few = Split(dataset.train.images[:8], dataset.train.labels[:8])
        before, images = library.whitening.apply_split(few), whitening.apply_split(few)
        if not torch.allclose(images, before, rtol=1e-3, atol=1e-3):
            their_fit, our_fit = (f"whitening {w.checksum}" for w in (library.whitening, whitening))
            differences.append((their_fit, our_fit, "the whitening saved in it"))
    return differences

"""Chosen sets: what a coreset looks at is made here, and the images are picked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trajmatch.config import ExpertConfig, NetworkConfig, to_dict
from trajmatch.data import ImageDataset
from trajmatch.data.whiten import Whitening, fit_whitening
from trajmatch.errors import SettingError
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import coresets
from trajmatch.networks import NetworkSpec
from trajmatch.networks.functional import require_stateless
from trajmatch.networks.spec import network_for
from trajmatch.pipeline.checks import require_experts, require_fit
from trajmatch.pipeline.experts import Progress
from trajmatch.synthetic import SyntheticSet
from trajmatch.types import Float, Tensor


def select_coreset(
    method: str,
    data: ImageDataset,
    ipc: int,
    *,
    experts: str | Path | ExpertLibrary | None = None,
    network: NetworkConfig | None = None,
    training: ExpertConfig | None = None,
    whitening: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
    on_progress: Progress | None = None,
) -> SyntheticSet:
    """`ipc` real training images per class, chosen by `method`, a name in `coresets.CORESETS`.

    experts: a library whose first expert gives the features that some methods look at (papers:
    features of a trained network), and whose whitening is used. Without it `whitening` is fitted.

    "forgetting" looks at a training run, which costs as much as an expert: of `network` (None: the
    experts', else the default ConvNet) by `training` (None: as `training_like` has it), on
    `device`. `say` hears a line before it, `on_progress` of each of its epochs, as that of
    `train_experts` does.

    Raises SettingError or MismatchError before any training for what does not fit, TrajmatchError
    when the training diverges.
    """
    looks_at = coresets.coreset_of(method).looks_at
    library = None
    if experts is not None:
        library = (
            experts if isinstance(experts, ExpertLibrary) else ExpertLibrary.open(Path(experts))
        )
        require_fit(library, data, network=network, whitening=whitening)
    if looks_at == "features":
        if library is None:
            raise SettingError(
                f"{method} looks at features of a trained network; give --experts a library"
            )
        require_experts(library)
    coresets.require_enough(data, ipc)
    spec = library.spec if library else network_for(data, network or NetworkConfig())
    training = training or training_like(library)
    if looks_at == "forgetting":
        require_stateless(spec.build(seed=0))
    fitted = library.whitening if library else fit_whitening(whitening or "normalize", data.train)
    evidence: Tensor | None = None
    origin: dict[str, Any] = {}
    if looks_at == "features" and library is not None:
        evidence = _features(data, library, device)
    elif looks_at == "forgetting":
        say(
            f"forgetting: training {spec.describe()} on {len(data.train):,} images for "
            f"{training.epochs} epochs"
        )
        evidence = _forgetting(data, spec, fitted, training, seed, device, on_progress)
        settings = to_dict(training)
        del settings["experts"], settings["storage"]
        origin["forgetting"] = {"network": spec.describe(), **settings}
    return coresets.select_coreset(
        method, data, ipc, seed=seed, whitening=fitted, evidence=evidence, origin=origin
    )


def training_like(
    library: ExpertLibrary | None,
    *,
    epochs: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
) -> ExpertConfig:
    """How the experts of `library` were trained, but for what is given. ExpertConfig's defaults
    stand in where there are no experts, or nobody knows."""
    known = ExpertConfig() if library is None else library.settings
    return dataclasses.replace(
        known,
        epochs=known.epochs if epochs is None else epochs,
        batch=known.batch if batch is None else batch,
        lr=known.lr if lr is None else lr,
    )


def _features(
    data: ImageDataset, library: ExpertLibrary, device: str
) -> Float[Tensor, "n features"]:
    """What the first expert, as it was after its last epoch, makes of the training images."""
    vector = library.segment(library.experts[0], 0, library.epochs)[1].to(device)
    return coresets.embeddings(library.spec, vector, library.whitening.apply_split(data.train))


def _forgetting(
    data: ImageDataset,
    spec: NetworkSpec,
    whitening: Whitening,
    training: ExpertConfig,
    seed: int,
    device: str,
    on_progress: Progress | None,
) -> Float[Tensor, "n"]:
    """How often each training image is forgotten."""

    def tell(metrics: Mapping[str, Any]) -> None:
        if on_progress is not None:
            on_progress({"expert": 0, "epochs": training.epochs, **metrics})

    images = whitening.apply_split(data.train).to(device)
    labels = data.train.labels.to(device)
    return coresets.forgetting_counts(spec, images, labels, training, seed=seed, on_epoch=tell)

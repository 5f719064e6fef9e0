"""Coresets: real images chosen by what a trained network, or its training, says of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from trajmatch.config import ExpertConfig, to_dict
from trajmatch.data import ImageDataset
from trajmatch.data.whiten import Whitening, fit_whitening
from trajmatch.errors import SettingError
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import coresets
from trajmatch.methods.coresets import Coreset, Share
from trajmatch.networks import NetworkSpec
from trajmatch.networks.functional import require_stateless
from trajmatch.networks.spec import network_for
from trajmatch.pipeline.checks import require_experts, require_fit
from trajmatch.pipeline.distill import Untrained
from trajmatch.pipeline.memory_needs import expert_needs
from trajmatch.runtime.display import shown_or
from trajmatch.runtime.memory import require_memory
from trajmatch.runtime.progress import Progress, Silent
from trajmatch.runtime.resources import Resources
from trajmatch.runtime.threads import limited_threads
from trajmatch.synthetic import SyntheticSet
from trajmatch.types import Float, Tensor


def select_coreset(
    method: str | Coreset,
    data: ImageDataset,
    ipc: int | Share,
    experts: str | Path | ExpertLibrary | Untrained = Untrained(),
    *,
    training: ExpertConfig | None = None,
    seed: int = 0,
    resources: Resources = Resources(),
    progress: Progress | None = None,
) -> SyntheticSet:
    """`ipc` real training images per class, chosen by `method`, a `Coreset` or a name in
    `coresets.CORESETS`.

    ipc: the same number of each class, or `methods.coresets.Share(0.1)`, a tenth of each, which is
        not equally many where the classes are not.
    experts: a library, or its folder, whose whitening is used and whose first expert gives the
        features that some methods need (herding, k-center, k-means). `Untrained` for the others.
    training: how "forgetting", which needs a training run, trains its network on all images
        (None: `training_like` the experts). It costs as much as one expert.
    progress: of the training of "forgetting" a message, and an update and an event "epoch" after
        each of its epochs.

    Raises SettingError or MismatchError before any training for what does not fit, TrajmatchError
    when the training diverges.

    Examples:
        >>> from trajmatch.data import load_data
        >>> len(select_coreset("random", load_data("digits"), 2))
        20
        >>> len(select_coreset("random", load_data("digits"), coresets.Share(0.1)))
        129
    """
    requires = coresets.coreset_of(method).requires
    coresets.require_enough(data, ipc)
    library = _library(method, data, experts)
    untrained = experts if isinstance(experts, Untrained) else Untrained()
    spec = network_for(data, untrained.network) if library is None else library.spec
    training = training or training_like(library)
    if requires != "nothing":
        _require_room(spec, data, training, resources)
    whitening = library.whitening if library else fit_whitening(untrained.whitening, data.train)
    statistics: Tensor | None = None
    origin: dict[str, Any] = {}
    if requires == "features":
        assert library is not None
        statistics = _features(data, library, str(resources.device))
    elif requires == "forgetting":
        run = _ForgettingRun(
            spec, whitening, training, seed, resources.torch_device,
            resources.threads or torch.get_num_threads(),
        )  # fmt: skip
        with limited_threads(run.threads), shown_or(progress) as observer:
            statistics = run.counts(data, observer)
        origin["forgetting"] = run.origin()
    return coresets.select_coreset(
        method, data, ipc, seed=seed, whitening=whitening, statistics=statistics, origin=origin
    )


def _require_room(
    spec: NetworkSpec, data: ImageDataset, training: ExpertConfig, resources: Resources
) -> None:
    """Refuse what one network trained on all images would not have the memory for."""
    one = dataclasses.replace(training, experts=1)
    require_memory(expert_needs(spec, len(data.train), one, resources), resources.torch_device)


def _library(
    method: str | Coreset, data: ImageDataset, experts: str | Path | ExpertLibrary | Untrained
) -> ExpertLibrary | None:
    """The experts, where there are any. Raises where they are not of `data`, or are missing."""
    needs_features = coresets.coreset_of(method).requires == "features"
    if isinstance(experts, Untrained):
        if needs_features:
            name = coresets.coreset_of(method).name
            raise SettingError(
                f"{name} needs features of a trained network; give --experts a library"
            )
        return None
    library = experts if isinstance(experts, ExpertLibrary) else ExpertLibrary.open(Path(experts))
    require_fit(library, data)
    if needs_features:
        require_experts(library)
    return library


def training_like(
    library: ExpertLibrary | None,
    *,
    epochs: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
) -> ExpertConfig:
    """How the experts of `library` were trained, but for what is given. ExpertConfig's defaults
    stand in where there are no experts, or nobody knows."""
    known = ExpertConfig() if library is None else _by_all_images(library)
    return dataclasses.replace(
        known,
        epochs=known.epochs if epochs is None else epochs,
        batch=known.batch if batch is None else batch,
        lr=known.lr if lr is None else lr,
    )


def _by_all_images(library: ExpertLibrary) -> ExpertConfig:
    """The settings of a library in epochs of one pass over the images, which forgetting counts."""
    settings = library.settings
    if settings.steps_per_epoch is None:
        return settings
    images = int(library.data["train"])
    epochs = settings.epochs * settings.images_per_epoch(images) / images
    return dataclasses.replace(settings, steps_per_epoch=None, epochs=max(1, round(epochs)))


def _features(
    data: ImageDataset, library: ExpertLibrary, device: str
) -> Float[Tensor, "n features"]:
    """The training images' embeddings in the first expert, after its last epoch."""
    vector = library.segment(library.experts[0], 0, library.epochs)[1].to(device)
    return coresets.embeddings(library.spec, vector, library.whitening.apply_split(data.train))


class _Epochs(Silent):
    """Passes on the epochs of one network, as those of expert 0, and counts them."""

    def __init__(self, progress: Progress, epochs: int) -> None:
        self._progress, self._epochs = progress, epochs

    def event(self, name: str, **values: Any) -> None:
        self._progress.event(name, **{"expert": 0, "epochs": self._epochs, **values})
        accuracy = values["train_accuracy"]
        self._progress.update("training", values["epoch"], self._epochs, train_accuracy=accuracy)


@dataclasses.dataclass(frozen=True)
class _ForgettingRun:
    """The training that forgetting counts are taken from."""

    spec: NetworkSpec
    whitening: Whitening
    training: ExpertConfig
    seed: int
    device: torch.device
    threads: int
    """Which images are forgotten depends on it, as sums are taken in another order."""

    def counts(self, data: ImageDataset, progress: Progress) -> Float[Tensor, "n"]:
        """How often each training image is forgotten."""
        require_stateless(self.spec.build(seed=0))
        epochs = self.training.epochs
        progress.message(
            f"forgetting: training {self.spec.describe()} on {len(data.train):,} images for "
            f"{epochs} epochs"
        )

        images = self.whitening.apply_split(data.train).to(self.device)
        labels = data.train.labels.to(self.device)
        return coresets.forgetting_counts(
            self.spec,
            images,
            labels,
            self.training,
            seed=self.seed,
            progress=_Epochs(progress, epochs),
        )

    def origin(self) -> dict[str, Any]:
        """What the set's info says of it."""
        settings = to_dict(self.training)
        del settings["experts"], settings["storage"]
        return {"network": self.spec.describe(), **settings, "threads": self.threads}

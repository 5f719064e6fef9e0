"""Experts for a data set, and the accuracy they reach."""

from __future__ import annotations

from pathlib import Path

from trajmatch.config import (
    ExpertConfig,
    NetworkConfig,
)
from trajmatch.data import ImageDataset
from trajmatch.data.whiten import Whitening, fit_whitening
from trajmatch.evaluation import Score
from trajmatch.experts import ExpertLibrary, LibraryFilling
from trajmatch.methods.base import augmentation_of
from trajmatch.networks import Network, NetworkSpec
from trajmatch.networks.spec import network_for
from trajmatch.pipeline.checks import require_fit, require_validation
from trajmatch.pipeline.memory_needs import expert_needs
from trajmatch.pipeline.recipe import Recipe
from trajmatch.runtime.display import shown_or
from trajmatch.runtime.memory import require_memory
from trajmatch.runtime.progress import Progress
from trajmatch.runtime.resources import Resources
from trajmatch.storage.folder import claim
from trajmatch.storage.results import EXPERTS


def train_experts(
    data: ImageDataset,
    out: str | Path,
    *,
    network: NetworkConfig | NetworkSpec | type[Network] = NetworkConfig(),
    config: ExpertConfig = ExpertConfig(),
    whitening: str | Whitening | None = None,
    seed: int = 0,
    resources: Resources = Resources(),
    progress: Progress | None = None,
) -> ExpertLibrary:
    """Train `config.experts` networks on `data` and record their trajectories in the folder `out`.

    A library that is there already is continued: only missing experts are trained, and any number
    of processes may do so at once. The result is the same to the bit on the CPU.

    progress: None shows a display where a person is looking; an observer gets
        `update("experts", epochs done, epochs in all, ...)` and `event("epoch", ...)` after every
        epoch of every expert trained here.

    Raises MismatchError when `out` holds experts made otherwise; SettingError when it is the folder
    of another command, and for data without validation images, which these experts would have seen:
    no distillation could use them.

    Examples:
        >>> data = trajmatch.load_data("digits")  # doctest: +SKIP
        >>> train_experts(data, "runs/experts")  # doctest: +SKIP
    """
    with claim(Path(out), "experts", shared=True):
        begun = (Path(out) / "library.json").exists()
        if not begun:
            require_validation(data)
        spec = network_for(data, network)
        whitening = whitening or "normalize"
        zca = whitening == "zca"
        needs = expert_needs(spec, len(data.train), config, resources, zca=zca)
        require_memory(needs, resources.torch_device)
        augmentation_of(config.augment)  # refuses an unknown strategy
        if begun:  # fitting a ZCA again would take half a minute
            library = ExpertLibrary.open(out)
            require_fit(library, data, whitening=whitening)
            whitening = library.whitening
        fitted = fit_whitening(whitening, data.train)
        filling = LibraryFilling(Path(out), data, spec, fitted, config, seed)
        with shown_or(progress) as observer:
            return filling.run(resources=resources, progress=observer)


def recipe_experts(
    recipe: Recipe,
    data: ImageDataset,
    out: Path,
    *,
    resources: Resources = Resources(),
    progress: Progress | None = None,
) -> ExpertLibrary:
    """The experts of a recipe in the folder `out`, as by `train_experts`."""
    return train_experts(
        data,
        out,
        network=recipe.network,
        config=recipe.experts,
        whitening=recipe.data.whitening,
        seed=recipe.seed,
        resources=resources,
        progress=progress,
    )


def experts_score(library: ExpertLibrary, data: ImageDataset) -> Score:
    """The experts' own test accuracy after their last epoch, on all training images of `data`.

    It is no ceiling: `pipeline.ceiling` trains to the end.
    """
    config = library.settings
    steps = f" of {config.steps_per_epoch} steps" if config.steps_per_epoch else ""
    words = f"{library.epochs} epochs{steps} on all training images, lr {config.lr:g}"
    protocol = f"{words}, batch {config.batch}"
    if library.imported:
        words = f"{library.epochs} epochs on all training images"
        protocol = f"{words}, imported, settings not known"
    return Score.of(
        [score for score in library.accuracy("test").values() if score is not None],
        method=EXPERTS,
        model=library.spec.describe(),
        ipc=None,
        protocol=protocol,
        split="test",
        brief=words,
        tests=data.class_counts()["test"],
    )

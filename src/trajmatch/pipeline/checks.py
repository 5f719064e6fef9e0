"""Checks before anything starts: of artefacts that do not belong together, and of settings that do
not fit the data."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trajmatch.config import DataConfig, DistillConfig, EvaluateConfig, NetworkConfig
from trajmatch.data import ImageDataset, load_data
from trajmatch.data.canvas import CropSampler
from trajmatch.data.sources import HUB, SOURCES
from trajmatch.data.sources.source import Caching
from trajmatch.data.whiten import Whitening
from trajmatch.errors import DataError, MismatchError, SettingError
from trajmatch.evaluation.batch import split_of
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import Conditions, Method, coresets
from trajmatch.methods.base import augmentation_of
from trajmatch.networks import Network, NetworkSpec
from trajmatch.networks.base import height_width
from trajmatch.networks.spec import network_for
from trajmatch.pipeline.cost.shape import Shape
from trajmatch.pipeline.memory_needs import require_recipe_memory
from trajmatch.pipeline.recipe import Recipe
from trajmatch.runtime.resources import Resources
from trajmatch.storage.folder import REWRITTEN
from trajmatch.synthetic import SyntheticSet, load_distilled
from trajmatch.types import Tensor


def load(
    config: DataConfig,
    progress: Callable[[int, int], None] | None = None,
    *,
    cache: Caching = True,
) -> ImageDataset:
    """The data set a config names. cache: as for `load_data`."""
    return load_data(
        config.data,
        size=config.size,
        val_fraction=config.val_fraction,
        progress=progress,
        data_root=config.data_root,
        classes=config.classes,
        on_bad_image=config.on_bad_image,
        cache=cache,
    )


def data_folder(config: DataConfig) -> Path | None:
    """The path of the images; None where the config names a data set."""
    named = not config.data.strip() or config.data in SOURCES or config.data.startswith(HUB)
    return None if named else Path(config.data).expanduser()


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
            f"'{library.whitening.name}' and this asks for '{name}'; use "
            f"--whitening={library.whitening.name}, or train experts with --whitening={name}"
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


def require_validation(data: ImageDataset) -> None:
    """Refuse data without the validation images that the best set is selected on."""
    if data.val is None:
        raise SettingError(
            "the data have no validation images, by which the best set is selected and which the "
            "experts must not see; use data.with_validation(0.1) for the experts and for all else"
        )


def require_experts(library: ExpertLibrary) -> None:
    """Refuse a library without a finished expert."""
    if not library.experts:
        quoted = shlex.quote(str(library.path))
        raise SettingError(
            f"the library {library.path} holds 0 finished experts; run `trajmatch experts --out "
            f"{quoted}` again, with the settings it was begun with, to continue it"
        )


def require_library(recipe: Recipe, data: ImageDataset, library: ExpertLibrary) -> None:
    """Refuse a library whose experts are not those of the recipe's data, network and whitening, or
    are fewer than the recipe takes."""
    network = None if recipe.network == NetworkConfig() else recipe.network
    require_fit(library, data, network=network, whitening=recipe.data.whitening)
    require_experts(library)
    if recipe.experts.experts > len(library.experts):
        raise SettingError(
            f"{recipe.experts.experts} experts are to be used and {library.path} holds "
            f"{len(library.experts)} finished ones; use --experts.experts {len(library.experts)}, "
            "or train more in it with `trajmatch experts`"
        )


def require_augmentations(*strategies: str | None) -> None:
    """Refuse unknown augmentations, which takes no data. Raises SettingError."""
    for strategy in strategies:
        augmentation_of(strategy)


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
    if conditions.fewest is not None and init == "real":
        _require_images(method, conditions, *conditions.fewest)
    augmentation_of(evaluation.augment)


def _require_images(method: Method, conditions: Conditions, name: str, count: int) -> None:
    """Refuse to begin with more real images than class `name`, which has `count`, can give."""
    ipc, (height, width) = conditions.ipc, height_width(conditions.spec.size)
    canvas = method.canvas_for(height, width)
    if canvas is None:
        crops, what, mend = ipc, f"ipc is {ipc}", f"choose ipc from 1 to {count}"
    else:
        crops = ipc * math.prod(canvas.sampler.grid(canvas.height, canvas.width))
        what = f"{ipc} canvases of {canvas.height}x{canvas.width} are as large as {crops} images"
        mend = "use a smaller --ipc or --canvas"
    if crops > count:
        raise SettingError(
            f"{what} and class '{name}' has {count} training images to begin from; {mend}, or "
            f"begin with --init=noise, which leaves {' and '.join(coresets.BASELINES)} images, to "
            "compare with, out"
        )


def baselines_left_out(data: ImageDataset, ipc: int, *, experts: bool) -> dict[str, str]:
    """The baselines that cannot be had for `ipc` images per class, and why.

    experts: whether there are any, whose features some baselines need.

    Examples:
        >>> from trajmatch.data import load_data
        >>> baselines_left_out(load_data("digits"), 10, experts=False)
        {'herding': 'it needs the features of an expert, and there is none'}
    """
    reasons = {}
    for name in coresets.BASELINES:
        if not experts and coresets.coreset_of(name).requires == "features":
            reasons[name] = "it needs the features of an expert, and there is none"
            continue
        try:
            coresets.require_enough(data, ipc)
        except SettingError as error:
            reasons[name] = str(error).partition(";")[0]
    return reasons


def set_ipc(method: Method, ipc: int, data: ImageDataset) -> int:
    """Images per class of the set that `method` learns: of a texture the crops of its canvases."""
    canvas = method.canvas_for(*data.train.images.shape[2:])
    crops = 1 if canvas is None else math.prod(canvas.sampler.grid(canvas.height, canvas.width))
    return ipc * crops


def left_out_words(left_out: Mapping[str, str]) -> list[str]:
    """A line for each baseline that is left out."""
    return [f"{name} images are left out: {reason}" for name, reason in left_out.items()]


def starting_set(
    config: DistillConfig, method: Method, data: ImageDataset, out: Path | None = None
) -> SyntheticSet | None:
    """The set that `config.init` names, read and checked; None for "real" and "noise".

    Raises SettingError for a name that is no set's, a set inside the folder `out` of the run, and
    one of another number of images per class; MismatchError for other classes or sizes of images.
    """
    if config.init in ("real", "noise"):
        return None
    path = Path(config.init)
    if out is not None and path.exists() and _is_written(path.resolve(), out.resolve()):
        raise SettingError(
            f"init is {config.init}, inside of the output folder {out}, where this run writes its "
            "own sets; give another --out"
        )
    try:
        start = load_distilled(config.init)
    except DataError as error:
        raise SettingError(
            f"init is '{config.init}'; give real, noise, or the folder of a set ({error})"
        ) from error
    if start.classes != data.classes:
        raise MismatchError(
            f"the set in {config.init} has classes {some_words(start.classes)} and the data "
            f"{some_words(data.classes)}; start from a set of the same classes in the same order"
        )
    _, size = canvas_of(data, method)
    images = learned_of(start, method, data)
    if images is None or tuple(images.shape[1:]) != (data.channels, *size):
        what, mend = ("images", "give the --size it was made with, or start from another set")
        if method.canvas_for(*data.train.images.shape[2:]) is not None:
            what, mend = ("canvases", "start from the set of a texture with the same --canvas")
        own = "none" if images is None else shape_words(images)
        raise MismatchError(
            f"the {what} of the set in {config.init} are {own} and those to learn "
            f"{'x'.join(map(str, (data.channels, *size)))} (channels x height x width); {mend}"
        )
    counts = start.hard_labels[: len(images)].bincount(minlength=data.num_classes).tolist()
    for name, count in zip(start.classes, counts, strict=True):
        if count != config.ipc:
            raise SettingError(
                f"ipc is {config.ipc} and the set in {config.init} has {count} images of class "
                f"'{name}'; give --ipc {start.ipc}, or start from a set with {config.ipc} of each"
            )
    return start


def _is_written(path: Path, out: Path) -> bool:
    """Whether the run in `out` writes its own sets to `path`."""
    return path == out or any(path.is_relative_to(out / name) for name in REWRITTEN)


def learned_of(start: SyntheticSet, method: Method, data: ImageDataset) -> Tensor | None:
    """What of a set the method learns: its images, or of a texture its canvases."""
    textured = method.canvas_for(*data.train.images.shape[2:]) is not None
    return start.canvases if textured else start.images


def canvas_of(data: ImageDataset, method: Method) -> tuple[CropSampler, tuple[int, int]]:
    """What the network is shown of the synthetic images, and their height and width: of plain
    images all of each."""
    height, width = data.train.images.shape[2:]
    canvas = method.canvas_for(height, width)
    if canvas is None:
        return CropSampler(height, width), (height, width)
    return canvas.sampler, (canvas.height, canvas.width)


def require_recipe(
    recipe: Recipe,
    data: ImageDataset,
    *,
    epochs: int | None = None,
    out: Path | None = None,
    resources: Resources = Resources(),
) -> None:
    """Refuse a recipe that does not fit the data or, at the least it needs, the memory.

    epochs: the experts' (None: the recipe's). out: the folder of the run.
    """
    require_validation(data)
    require_recipe_memory(recipe, Shape.of(data), resources)
    conditions = conditions_of(
        data,
        network_for(data, recipe.network),
        recipe.distill.ipc,
        expert_epochs=recipe.experts.epochs if epochs is None else epochs,
        whitening=recipe.data.whitening,
    )
    require_sound(recipe.method, conditions, init=recipe.distill.init, evaluation=recipe.evaluate)
    starting_set(recipe.distill, recipe.method, data, out)


def require_split(data: ImageDataset, split: str) -> None:
    """Refuse a split that the data do not have."""
    if split_of(data, split) is None:
        raise SettingError(f"unknown split '{split}'; use test or val")


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

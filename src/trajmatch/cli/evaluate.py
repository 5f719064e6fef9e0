"""`trajmatch evaluate`: train fresh networks on a distilled set and test them."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trajmatch.cli.flags import Common, Flat, Positional, first_word, pick_device
from trajmatch.cli.values import networks_of
from trajmatch.config import DataConfig, EvaluateConfig
from trajmatch.errors import SettingError

if TYPE_CHECKING:
    from trajmatch.data import ImageDataset
    from trajmatch.evaluation import Score
    from trajmatch.runtime.resources import Resources
    from trajmatch.synthetic import SyntheticSet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Train fresh networks on a distilled set alone and test them on real images.

    The protocol is the paper's: SGD, momentum 0.9, 1000 epochs, the rate dropped once at the
    middle, DSA. --protocol quick takes 300 epochs. The learning rate is the set's own step size for
    the network it was distilled with. For another network that rate means nothing: five are tried
    on the validation images, by two networks each, and the best goes to the test. --lr sets one for
    all.

    Every finished network is recorded in OUT/log.jsonl: run the same command again to continue a
    killed one, and with a larger --n to train only what is added. The page of a run (`trajmatch
    report RUN`) shows evaluations in a folder inside it, as one table over the networks.
    """

    set: Positional[Path]
    """A run such as runs/ipc1 (its set in best/), a set's own folder, or a name (`trajmatch zoo`).
    """
    out: Path = Path("runs/evaluated")
    """Folder for result.json and log.jsonl; of a run's set, `evaluated` in the run unless given."""
    networks: str | None = None
    """Networks to train, separated by commas: convnet,resnet18,vgg11,alexnet,lenet,mlp,vit. None:
    the one the set was distilled with. As usual in the literature, convnet, resnet18 and vgg11 have
    instance norm, which does not depend on the batch, and alexnet has none; resnet18:batch asks for
    another norm (instance, group, layer, batch, none)."""
    protocol: Literal["paper", "quick"] = "paper"
    """quick: 300 epochs instead of --epochs."""
    ceiling: bool = False
    """Also train networks on all training images, to the end: what any set can reach at most. They
    take at least 50 epochs and 2,000 steps each."""
    ceiling_epochs: int | None = None
    """With --ceiling: how many epochs instead."""
    split: Literal["test", "val"] = "test"
    """Which real images to test on; choose settings on val, report test once."""
    data: Flat[DataConfig] = DataConfig()
    settings: Flat[EvaluateConfig] = EvaluateConfig()

    @classmethod
    def base(cls, arguments: Sequence[str]) -> dict[str, Any]:
        """The default folder of a run's set is `evaluated` in the run."""
        values, word = super().base(arguments), first_word(cls, arguments)
        run = None if word is None else _run_of(Path(word))
        return values if run is None else {**values, "out": run / "evaluated"}


def run(flags: Flags) -> None:
    import time

    from trajmatch.cli import shown
    from trajmatch.evaluation.evaluator import network_of
    from trajmatch.pipeline.checks import require_augmentations
    from trajmatch.runtime.resources import Resources
    from trajmatch.synthetic import load_distilled

    began = time.perf_counter()
    flags = dataclasses.replace(flags, set=_set_of(flags.set))
    device = pick_device(flags.device)
    networks_of(flags.networks or "")  # refuses unknown ones before anything is loaded
    _check_ceiling(flags)
    require_augmentations(flags.settings.augment)
    distilled = load_distilled(flags.set)
    data = shown.load(flags.data)
    scores = _scores(flags, distilled, data, Resources(device))
    own = network_of(distilled)
    extra: dict[str, Any] = {"set": {"fingerprint": distilled.fingerprint}}
    if own is not None and own.describe() in {score.model for score in scores}:
        extra["network"] = own.describe()
    shown.result(
        flags,
        "evaluate",
        data.summary(counts=True),
        began,
        scores=scores,
        device=device,
        extra=extra,
    )
    _table(scores)
    run = _run_of(flags.set)
    inside = run is not None and run.resolve() == flags.out.resolve().parent
    drawn = shlex.quote(str(run if inside else flags.out))
    print(f"results in {flags.out}; `trajmatch report {drawn}` draws it")


def _check_ceiling(flags: Flags) -> None:
    """Refuse epochs of no ceiling, and none of one."""
    epochs = flags.ceiling_epochs
    if epochs is not None and not flags.ceiling:
        raise SettingError(f"ceiling-epochs is {epochs} and there is no --ceiling; add it")
    if epochs is not None and epochs < 1:
        raise SettingError(f"ceiling-epochs is {epochs}; it must be at least 1")


def _scores(
    flags: Flags, distilled: SyntheticSet, data: ImageDataset, resources: Resources
) -> list[Score]:
    """Of the set on each network, then with --ceiling of all training images on each."""
    from trajmatch import pipeline
    from trajmatch.cli import shown

    networks = networks_of(flags.networks or "") or None
    config, complete = flags.settings, None
    if flags.ceiling:
        complete = pipeline.ceiling_config(config, len(data.train), flags.ceiling_epochs)
    if flags.protocol == "quick":
        config = dataclasses.replace(config, epochs=pipeline.QUICK_EPOCHS)
    with shown.progress_of(flags.out) as progress:
        common: dict[str, Any] = {
            "split": flags.split,
            "seed": flags.seed,
            "out": flags.out,
            "resources": resources,
            "progress": progress,
        }
        scores = pipeline.evaluate(distilled, data, networks=networks, config=config, **common)
        if complete is not None:
            for spec in pipeline.networks_for(distilled, data, networks):
                network = pipeline.Untrained(spec, distilled.whitening)
                scores.append(pipeline.ceiling(data, network, config=complete, **common))
    return scores


def _set_of(place: Path) -> Path:
    """The best set of a run; another place as it is."""
    return place / "best" if _run_of(place) == place else place


def _run_of(place: Path) -> Path | None:
    """The run that a folder is, or whose best set it is; None for any other place."""
    if (place / "best" / "distilled.json").is_file() and not (place / "distilled.json").is_file():
        return place
    if place.name == "best" and (place / "distilled.json").is_file():
        run = place.parent
        return run if any((run / name).is_file() for name in ("log.jsonl", "result.json")) else None
    return None


def _table(scores: Sequence[Score]) -> None:
    """A row a network; under them what holds for all."""
    from trajmatch.cli import shown

    first = scores[0]
    names = [
        score.model if score.label == first.label else f"{score.model}, {score.label}"
        for score in scores
    ]
    rows = []
    for name, score in zip(names, scores, strict=True):
        lr = f"{score.lr:.3g}{'*' if score.lr_origin else ''}"
        accuracy, n = shown.spread(score.mean, score.sd), shown.networks(score)
        rows.append((name, f"{score.parameters:,}", lr, accuracy, n))
    shown.columns(("network", "parameters", "lr", "accuracy %", "n"), rows, scores)
    for one in {score.label: score for score in scores}.values():
        images = "" if one.ipc is None else f", {one.ipc} per class"
        print(f"{one.label or 'unnamed'}{images}, {one.split} split: {one.brief}")
    origins = sorted({score.lr_origin for score in scores if score.lr_origin})
    for origin in origins:
        print(f"* learning rate {origin}")

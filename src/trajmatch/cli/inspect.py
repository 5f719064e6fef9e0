"""`trajmatch inspect`: what a folder or a data set holds, and whether it is whole."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from trajmatch.cli.flags import Common, Flat, Positional, pick_device
from trajmatch.config import DataConfig

if TYPE_CHECKING:
    from trajmatch.pipeline.flipping import FlipComparison


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """List an expert library or a distilled set with sizes, accuracies and settings, and verify
    every byte of it. Without PATH, say what a command would read as --data: classes, numbers of
    images, what is passed over; with --flip also whether mirrored images help.
    """

    path: Annotated[Positional[Path | None], tyro.conf.arg(metavar="PATH")] = None
    """Folder of an expert library, a distilled set or a run."""
    verify: bool = True
    """Read everything and check it; --no-verify only lists."""
    data: Flat[DataConfig] = DataConfig()
    flip: bool = False
    """Train three small networks with and three without flip in --augment, and compare their
    accuracy on the validation images; test images are not used."""


def run(flags: Flags) -> None:
    from trajmatch.errors import SettingError

    if flags.path is None:
        _data(flags)
    elif flags.flip or flags.data != DataConfig():
        raise SettingError(
            f"{flags.path} is given, and flags of the images beside it; give images as --data "
            "alone, or the folder alone"
        )
    else:
        _folder(flags.path, flags.verify)


def _folder(path: Path, verify: bool) -> None:
    from trajmatch.cli import shown
    from trajmatch.errors import FileFormatError
    from trajmatch.experts import ExpertLibrary
    from trajmatch.synthetic import SyntheticSet

    found = [p for p in (path, path / "experts", path / "best") if p.is_dir()]
    libraries = [p for p in found if (p / "library.json").exists()]
    sets = [p for p in found if (p / "distilled.json").exists()]
    if not libraries and not sets:
        raise FileFormatError(
            f"{path} is neither an expert library (library.json), a distilled set "
            "(distilled.json), nor a run that holds one; give the --out of experts or distill, or "
            "images as --data"
        )
    for place in libraries:
        library = ExpertLibrary.open(place)
        shown.library(library)
        if verify:
            library.verify()
            print(f"verified: {len(library.experts)} experts, every row's checksum")
    for place in sets:
        shown.distilled(place, SyntheticSet.load(place))
        print("verified: images, labels, whitening and document belong together")


def _data(flags: Flags) -> None:
    from trajmatch.cli import shown
    from trajmatch.pipeline import compare_flipping
    from trajmatch.runtime.resources import Resources

    data = shown.load(flags.data, cache=True if flags.flip else "read")
    if flags.flip:
        shown.say("training three small networks with flip and three without")
        resources = Resources(device=pick_device(flags.device))
        for line in flip_words(compare_flipping(data, seed=flags.seed, resources=resources)):
            print(line)


def flip_words(found: FlipComparison) -> list[str]:
    """The two accuracies, and what follows from them."""
    from trajmatch.cli.shown import spread
    from trajmatch.config import DSA_STRATEGY

    with_flip, without = (
        spread(statistics.fmean(each), statistics.stdev(each) if len(each) > 1 else None)
        for each in found
    )
    accuracies = (
        f"validation accuracy with flip {with_flip} %, without {without} % "
        f"(n={len(found.flipped)} small networks each)"
    )
    if abs(found.difference) <= found.spread:
        return [accuracies, "the difference is within the spread and says nothing about flip"]
    if found.difference > 0:
        return [accuracies, "flip helps: leave it in --augment"]
    others = "_".join(name for name in DSA_STRATEGY.split("_") if name != "flip")
    return [accuracies, f"flip harms: leave it out everywhere, as in --augment {others}"]

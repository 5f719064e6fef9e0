"""`trajmatch inspect`: what a folder holds, and whether it is whole."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from trajmatch.cli.flags import Common, Positional


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """List an expert library or a distilled set with sizes, accuracies and settings, and verify
    every byte of it.
    """

    path: Positional[Path]
    """Folder of an expert library, a distilled set or a run."""
    verify: bool = True
    """Read everything and check it; --no-verify only lists."""


def run(flags: Flags) -> None:
    from trajmatch.cli import shown
    from trajmatch.errors import FileFormatError
    from trajmatch.experts import ExpertLibrary
    from trajmatch.synthetic import SyntheticSet

    path = flags.path
    found = [p for p in (path, path / "experts", path / "best") if p.is_dir()]
    libraries = [p for p in found if (p / "library.json").exists()]
    sets = [p for p in found if (p / "distilled.json").exists()]
    if not libraries and not sets:
        raise FileFormatError(
            f"{path} is neither an expert library (library.json), a distilled set "
            "(distilled.json), nor a run that holds one; give the --out of experts or distill"
        )
    for place in libraries:
        library = ExpertLibrary.open(place)
        shown.library(library)
        if flags.verify:
            library.verify()
            print(f"verified: {len(library.experts)} experts, every row's checksum")
    for place in sets:
        shown.distilled(place, SyntheticSet.load(place))
        print("verified: images, labels, whitening and document belong together")

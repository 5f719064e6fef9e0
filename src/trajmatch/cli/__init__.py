"""The command line: parses, calls, prints; no logic of its own.

One file a command: a frozen dataclass of flags (`class Flags(Common)`) and a `run(flags)`.
`COMMANDS` names them in the order in which the work is done. These files import what is heavy
(torch and all that needs it) inside `run`, so that the overview and a mistyped command answer at
once. Commands whose flags are a method's import the methods, and so torch, to read their line.
"""

from __future__ import annotations

from collections.abc import Sequence

from trajmatch.cli import (
    cache,
    compare,
    demo,
    distill,
    doctor,
    evaluate,
    experts,
    export,
    import_,
    inspect,
    recipes,
    report,
    run,
    select,
    study,
    tune,
    zoo,
)
from trajmatch.cli.frame import Command, dispatch

COMMANDS: dict[str, Command] = {
    "demo": Command(
        demo.Flags,
        demo.run,
        "the whole job on embedded digits, in a minute or two",
        "trajmatch demo --out runs/demo",
        claims="run",
    ),
    "recipes": Command(
        recipes.Flags,
        recipes.run,
        "list published and quick settings, or print one as TOML",
        "trajmatch recipes cifar10-ipc1",
    ),
    "run": Command(
        run.Flags,
        run.run,
        "everything from real images to a page, as a recipe says",
        "trajmatch run cifar10-ipc1-quick --data-root data --dry-run",
        claims="run",
    ),
    "experts": Command(
        experts.Flags,
        experts.run,
        "train networks on real images and record their trajectories",
        "trajmatch experts --data photos.zip --size 32 --experts 20 --epochs 12 --out runs/experts",
        claims="experts",
        shared=True,
    ),
    "distill": Command(
        distill.Flags,
        distill.run,
        "distill images whose training follows those trajectories",
        "trajmatch distill --data photos.zip --size 32 --experts runs/experts --out runs/ipc1",
        claims="distill",
    ),
    "select": Command(
        select.Flags,
        select.run,
        "choose real images instead: random, herding, k-center, k-means, forgetting",
        "trajmatch select --method herding --data photos.zip --size 32 --experts runs/experts",
        claims="select",
    ),
    "evaluate": Command(
        evaluate.Flags,
        evaluate.run,
        "train fresh networks on a distilled set and test them",
        "trajmatch evaluate runs/ipc1 --data photos.zip --size 32 --networks convnet,resnet18",
        claims="evaluate",
    ),
    "study": Command(
        study.Flags,
        study.run,
        "the method's own studies: ranges, drift, init, zca, step size, experts",
        "trajmatch study range --quick",
        claims="study {name}",
    ),
    "compare": Command(
        compare.Flags,
        compare.run,
        "methods side by side: distilled and chosen images, evaluated alike",
        "trajmatch compare --methods random,herding,mtt --ipc 1,10 --quick",
        claims="compare",
    ),
    "tune": Command(
        tune.Flags,
        tune.run,
        "better settings for a recipe on any data, found on validation images",
        "trajmatch tune digits-ipc1 --trials 30 --budget 1h --out runs/tuned",
        claims="tune",
    ),
    "report": Command(
        report.Flags,
        report.run,
        "one HTML page of a run: pictures, curves, scores, settings",
        "trajmatch report runs/ipc1",
    ),
    "doctor": Command(
        doctor.Flags,
        doctor.run,
        "what keeps a run from a better result, and what to change",
        "trajmatch doctor runs/ipc1",
    ),
    "inspect": Command(
        inspect.Flags,
        inspect.run,
        "what a library, a set or --data holds, and whether it is whole",
        "trajmatch inspect runs/experts",
    ),
    "import": Command(
        import_.Flags,
        import_.run,
        "experts and sets of the method's released code",
        "trajmatch import replay_buffer_0.pt --data photos.zip --size 32 --whitening zca",
        claims="import",
    ),
    "export": Command(
        export.Flags,
        export.run,
        "a set as .pt, .npz, pictures, or a folder for the Hugging Face hub",
        "trajmatch export runs/ipc1/best --to npz --out runs/npz",
        claims="export",
    ),
    "zoo": Command(
        zoo.Flags,
        zoo.run,
        "the distilled sets that ship with the package",
        "trajmatch zoo",
    ),
    "cache": Command(
        cache.Flags,
        cache.run,
        "list or clear the cache of decoded images",
        "trajmatch cache --clear",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (None: the process's own) and return the exit code.

    0 on success, 2 on a user's mistake (one line on stderr), 130, 143 or 129 when interrupted by
    Ctrl-C, SIGTERM or SIGHUP, 141 when the reader of the output has gone.
    """
    return dispatch(COMMANDS, argv)

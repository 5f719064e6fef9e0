"""Opening a library of experts and drawing segments from it.

Ours: open_experts, then two rows a draw, read and checked one draw after another into two pairs of
vectors in turn, as TrajectoryMatching has them (which reads in a thread, meanwhile). The twin:
pickled lists of lists of lists of tensors, ten experts a file, all loaded whole (the published
code's --load_all; its default loads one file after another, over and over), then drawing. The same
segments are drawn and compared to the bit before anything is timed. Files have just been written,
no more of them than the system's cache has room for, so both read from there; what was read from
the disk all the same is told.

    python -m benchmarks.library                     # 100 experts of 50 epochs, as far as they fit
    python -m benchmarks.library --width 36          # P = 30,394: a tenth of the disk
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness, machine, twin
from trajmatch.config import ExpertConfig, to_dict
from trajmatch.data.whiten import Normalize
from trajmatch.experts import TrainingState, open_experts, save_trajectory
from trajmatch.experts.library import FORMAT, digest, expert_path
from trajmatch.networks import NetworkSpec
from trajmatch.rng import stream
from trajmatch.storage.files import write_json
from trajmatch.types import Tensor

LENGTH = 2
"""Expert epochs from a segment's start to its end."""
PER_FILE = 10
"""Experts in a file of the twin's."""
SHARE = 0.7
"""Of the free memory for both forms' files and the twin's lists, and of the free disk for both."""

Draws = list[tuple[int, int]]
"""Expert and start epoch of each segment."""


def write_both(folder: Path, spec: NetworkSpec, experts: int, epochs: int, twins: int) -> None:
    """A library of `experts` random trajectories, and the first `twins` of them as pickles."""
    ours = folder / "ours"
    settings = to_dict(ExpertConfig(epochs=epochs))
    del settings["experts"]
    channels = torch.zeros(spec.channels), torch.ones(spec.channels)
    whitening = Normalize(*channels)
    whitening.save(ours / "whitening.safetensors")
    made = {
        "seed": 0,
        "settings": settings,
        "network": spec.to_json(),
        "whitening": whitening.summary(),
        "data": {"name": "random", "fingerprint": "0" * 16},
    }
    made = json.loads(json.dumps(made))
    write_json(ours / "library.json", {"format": FORMAT, "digest": digest(made), "made": made})
    shapes = [p.shape for p in spec.build(seed=0).parameters()]
    metrics = [{"epoch": e + 1, "train_loss": 1.0} for e in range(epochs)]
    waiting: list[Tensor] = []
    for index in range(experts):
        generator = stream(0, "benchmark", "expert", index)
        rows = torch.randn((epochs + 1, spec.parameters()), generator=generator)
        recording = TrainingState(rows, rows[-1], None, [dict(m) for m in metrics])
        save_trajectory(
            expert_path(ours, index), recording, seed=0, index=index, library=digest(made)
        )
        if index < twins:
            waiting.append(rows)
        if waiting and (len(waiting) == PER_FILE or index == twins - 1):
            file = folder / f"replay_buffer_{index // PER_FILE}.pt"
            twin.save_trajectories(file, waiting, shapes)
            waiting = []


def draws(experts: int, epochs: int, count: int) -> Draws:
    """Uniform over experts and the start epochs that leave room for a segment."""
    drawn = stream(0, "benchmark", "segments")
    which = torch.randint(experts, (count,), generator=drawn).tolist()
    start = torch.randint(epochs - LENGTH + 1, (count,), generator=drawn).tolist()
    return list(zip(which, start, strict=True))


def ours(folder: Path, chosen: Draws) -> None:
    library = open_experts(folder / "ours")
    pairs = torch.empty(2, 2, library.spec.parameters()).unbind()
    for number, (expert, start) in enumerate(chosen):
        library.segment(expert, start, LENGTH, pairs[number % 2])


def theirs(folder: Path, chosen: Draws) -> float:
    """Seconds spent on loading come back: they are what grows with the number of experts."""
    device = torch.device("cpu")
    began = harness.now(device)
    experts = twin.load_trajectories(twin_files(folder))
    loaded = harness.now(device) - began
    for expert, start in chosen:
        twin.segment(experts, expert % len(experts), start, LENGTH)
    return loaded


def twin_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("replay_buffer_*.pt"), key=lambda p: int(p.stem.split("_")[-1]))


def memory_job(folder: str, who: str, chosen: list[list[int]]) -> Callable[[], object]:
    """For harness.peak_of: opening and drawing once, by "ours" or "twin"."""
    pairs = [(expert, start) for expert, start in chosen]
    if who == "ours":
        return lambda: ours(Path(folder), pairs)
    return lambda: theirs(Path(folder), pairs)


def agreement(folder: Path, chosen: Draws) -> int:
    """How many segments of both were equal to the bit. Raises RuntimeError at the first that is
    not."""
    library, experts = open_experts(folder / "ours"), twin.load_trajectories(twin_files(folder)[:1])
    compared = [(expert, start) for expert, start in chosen if expert < len(experts)][:50]
    for expert, start in compared:
        one = library.segment(expert, start, LENGTH)
        other = twin.segment(experts, expert, start, LENGTH)
        if not all(torch.equal(a, b) for a, b in zip(one, other, strict=True)):
            raise RuntimeError(f"expert {expert} at epoch {start}: ours and the twin differ")
    return len(compared)


def fitting(experts: int, each: int, folder: Path) -> int:
    """How many experts of `each` bytes the twin can hold in memory, with their files and ours in
    the system's cache and on disk."""
    room = int(SHARE * shutil.disk_usage(folder).free / each)
    if room <= experts:
        raise SystemExit(
            f"{folder} has no room for {experts} experts of {each / 1e6:.0f} MB and a twin of one; "
            "give another --folder, fewer --experts or a smaller --width"
        )
    cached = int(SHARE * machine.free_bytes() / each) - experts
    return max(1, min(experts, room - experts, cached // 2))


def disk_bytes() -> int:
    """How much this process has read from the disk itself; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def measure(folder: Path, spec: NetworkSpec, args: argparse.Namespace) -> dict[str, Any]:
    """Write both, time them in turns, and take the peak of each."""
    device = torch.device("cpu")
    params = spec.parameters()
    size = (args.epochs + 1) * params * 4
    twins = fitting(args.experts, size, folder)
    harness.say(f"writing {args.experts} experts of {size / 1e6:.0f} MB, {twins} of them pickled")
    write_both(folder, spec, args.experts, args.epochs, twins)
    chosen = draws(args.experts, args.epochs, args.segments)
    same = agreement(folder, chosen)
    loading: list[float] = []
    disk: list[int] = []
    scale = args.experts / twins

    def ours_here(number: int) -> None:
        disk.append(disk_bytes())  # a timed pair begins: it ends where the next one does
        ours(folder, chosen)

    def theirs_here(number: int) -> None:
        loading.append(theirs(folder, chosen))

    harness.say(f"time: {args.segments} segments")
    pairs = harness.alternate(
        ours_here,
        theirs_here,
        repeats=args.repeats,
        warmup=args.warmup,
        device=device,
    )
    # Where fewer were pickled, the loading of the others is added; the drawing is whole already.
    loads = loading[-len(pairs.twin) :]
    from_disk = disk_bytes() - disk[-len(pairs.twin)]
    pairs.twin = [s + (scale - 1) * load for s, load in zip(pairs.twin, loads, strict=True)]
    how = "measured" if twins == args.experts else f"loading {twins}, scaled linearly"
    row: dict[str, Any] = {
        "experts": args.experts,
        "epochs": args.epochs,
        "params": params,
        "segments": args.segments,
        "twin_experts": twins,
        "twin_how": how,
        "segments_compared": same,
        "disk_mb": from_disk / harness.MIB,
        **pairs.to_json(),
    }
    for who in () if args.no_memory else ("ours", "twin"):
        harness.say(f"memory: {who}")
        found = harness.peak_of(
            "benchmarks.library:memory_job",
            threads=args.threads,
            folder=str(folder),
            who=who,
            chosen=[list(draw) for draw in chosen],
        )
        row[f"{who}_mb"] = found.above_mb * (scale if who == "twin" else 1)
    return row


def show(found: dict[str, Any]) -> str:
    """The table of a result."""
    rows, notes = [], []
    for row in found["times"]:
        name = f"{row['experts']} experts x {row['epochs']} epochs, P {row['params']:,}"
        rows.append([name, *harness.timing_cells(row), *harness.peak_cells(row)])
        notes.append(
            f"  {row['segments']} segments; twin: {row['twin_how']}; "
            f"read from the disk in all pairs: {row['disk_mb']:.0f} MB"
        )
    head = [*harness.TIMING_HEAD, "ours MB", "twin MB"]
    words = machine.words(found["machine"])
    return "\n".join([words, "", harness.table(head, rows), *notes])


def main(argv: list[str] | None = None) -> dict[str, Any]:
    made = harness.parser("library", __doc__, repeats=3)
    made.add_argument("--experts", type=int, default=100)
    made.add_argument("--epochs", type=int, default=50)
    made.add_argument("--segments", type=int, default=1000)
    made.add_argument("--width", type=int, default=128, help="of the ConvNet-D3 (128: P 320,010)")
    made.add_argument("--folder", type=Path, help="where to write, removed after (a new one)")
    made.set_defaults(warmup=1)
    args = made.parse_args(argv)
    device = harness.begin(args)
    if args.quick:
        args.experts, args.epochs, args.segments, args.width = 11, 3, 20, 4
    spec = NetworkSpec("convnet", 3, 10, 32, {"width": args.width})
    found: dict[str, Any] = {"machine": machine.describe(device), "quick": args.quick}
    with tempfile.TemporaryDirectory(prefix="trajmatch-bench-", dir=args.folder) as folder:
        found["times"] = [measure(Path(folder), spec, args)]
    print(show(found))
    harness.write(args, "library", found)
    return found


if __name__ == "__main__":
    main()

"""How near the gradient of each precision comes to float64's, over real segments.

Experts are trained on the digits for a moment, or read from a library; synthetic images start as
real ones, one or more per class. For each precision: the image gradient's cosine and ratio of norms
to float64, and the relative difference of the loss and of the step size's gradient.

    python -m benchmarks.precision
    python -m benchmarks.precision --experts runs/experts --data path/to/data --steps 50

The result over a library is a file of its own, precision-<data>.json, beside the digits'
precision.json; `benchmarks.summary` shows each.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import harness, machine
from benchmarks.walks import apart, cosine
from trajmatch.config import DataConfig, ExpertConfig
from trajmatch.data import Augmentation, ImageDataset, fit_whitening, load_data
from trajmatch.data.whiten import Whitening
from trajmatch.errors import TrajmatchError
from trajmatch.experts import open_experts, train_expert
from trajmatch.networks import NetworkSpec
from trajmatch.pipeline.checks import require_experts, require_fit
from trajmatch.rng import stream
from trajmatch.types import Tensor
from trajmatch.unroll import UnrolledGradient, match_segment


@dataclasses.dataclass(frozen=True)
class Real:
    """Where segments come from: a network, its experts' rows, whitened images and labels."""

    spec: NetworkSpec
    segments: list[tuple[Tensor, Tensor]]
    images: Tensor
    labels: Tensor
    origin: str
    result: str = "precision"
    """Name of the result; one for every data set, so that none replaces another's."""


def from_digits(args: argparse.Namespace) -> Real:
    """Experts of the digits, trained now: the demo's network and settings."""
    data = load_data("digits")
    spec = NetworkSpec("convnet", 1, 10, 8, {"depth": 2, "width": args.width})
    whitening = fit_whitening("normalize", data.train)
    config = ExpertConfig(epochs=args.max_start_epoch - 1 + args.expert_epochs, batch=64, lr=0.02)
    images = whitening.apply_split(data.train)
    segments = []
    for index in range(args.segments):
        rows = train_expert(spec, images, data.train.labels, config, seed=0, index=index).parameters
        start = _start_epoch(index, args)
        segments.append((rows[start].float(), rows[start + args.expert_epochs].float()))
    origin = f"{args.segments} experts of the digits, {config.epochs} epochs"
    return Real(spec, segments, *_first_of_each(data, whitening, args.ipc), origin)


def from_library(args: argparse.Namespace) -> Real:
    """Segments of a library that exists, each another, and images of the data it was trained on."""
    library = open_experts(args.experts)
    data = load_data(args.data, size=args.size, val_fraction=args.val_fraction)
    require_fit(library, data)
    require_experts(library)
    pairs = [(e, start) for e in library.experts for start in range(args.max_start_epoch)]
    order = torch.randperm(len(pairs), generator=stream(0, "benchmark", "segments"))
    chosen = [pairs[place] for place in order[: args.segments].tolist()]
    segments = [library.segment(e, start, args.expert_epochs) for e, start in chosen]
    images, labels = _first_of_each(data, library.whitening, args.ipc)
    origin = (
        f"{len({e for e, _ in chosen})} experts of {data.name} ({library.whitening.name}), "
        f"{library.epochs} epochs"
    )
    result = f"precision-{re.sub(r'[^A-Za-z0-9]+', '-', data.name)}"
    return Real(library.spec, segments, images, labels, origin, result)


def _start_epoch(index: int, args: argparse.Namespace) -> int:
    drawn = stream(0, "benchmark", "start", index)
    return int(torch.randint(args.max_start_epoch, (), generator=drawn))


def _first_of_each(data: ImageDataset, whitening: Whitening, ipc: int) -> tuple[Tensor, Tensor]:
    chosen = torch.cat([found[:ipc] for found in data.train.per_class(data.num_classes)])
    small = data.train.take(chosen)
    return whitening.apply_split(small), small.labels


def gradients(
    module: nn.Module,
    real: Real,
    args: argparse.Namespace,
    *,
    dtype: torch.dtype,
    precision: str,
    compile: bool,
) -> list[UnrolledGradient]:
    """The gradient over each segment, in one precision."""
    device = torch.device(args.device)
    module = module.to(device, dtype)
    images = real.images.to(device, dtype)
    form = "float64" if dtype == torch.float64 else _form(precision, compile)
    found = []
    for number, (start, target) in enumerate(real.segments):
        began = time.monotonic()
        one = match_segment(
            module,
            start.to(device, dtype),
            target.to(device, dtype),
            images,
            real.labels.to(device),
            args.step_size,
            steps=args.steps,
            augment=Augmentation(),
            seed=number,
            precision=precision,
            compile=compile,
        )
        found.append(one)
        took = time.monotonic() - began
        harness.say(f"{form}: segment {number + 1} of {len(real.segments)}, {took:.1f} s")
    return found


def _form(precision: str, compile: bool) -> str:
    return f"{precision} {'compiled' if compile else 'eager'}"


def compare(found: list[UnrolledGradient], exact: list[UnrolledGradient]) -> dict[str, Any]:
    """Over the segments: median and worst of each comparison."""
    cosines = [cosine(f.grad_images, e.grad_images) for f, e in zip(found, exact, strict=True)]
    norms = [
        float(f.grad_images.double().norm() / e.grad_images.norm())
        for f, e in zip(found, exact, strict=True)
    ]
    losses = [apart(f.loss, e.loss) for f, e in zip(found, exact, strict=True)]
    steps = [apart(f.grad_step_size, e.grad_step_size) for f, e in zip(found, exact, strict=True)]
    return {
        "cosine": vars(harness.Spread.of(cosines)),
        "norm_ratio": vars(harness.Spread.of(norms)),
        "loss_apart": vars(harness.Spread.of(losses)),
        "step_size_apart": vars(harness.Spread.of(steps)),
        "all_cosines": cosines,
    }


def show(found: dict[str, Any]) -> str:
    """The table of a result: medians, and the worst segment's cosine."""
    rows = []
    for row in found["rows"]:
        spread = row["norm_ratio"]
        rows.append(
            [
                _form(row["precision"], row["compile"]),
                f"{row['cosine']['median']:.6f}",
                f"{row['cosine']['low']:.6f}",
                f"{spread['median']:.4f} ({spread['low']:.4f}-{spread['high']:.4f})",
                f"{row['loss_apart']['median']:.1e}",
                f"{row['step_size_apart']['median']:.1e}",
            ]
        )
    head = ("precision", "cosine", "worst", "norm ratio", "loss, rel.", "d step size, rel.")
    about = f"{found['network']}, N {found['steps']}, {found['images']} images; {found['origin']}"
    words = machine.words(found["machine"])
    return "\n".join([words, about, "", harness.table(head, rows)])


def main(argv: list[str] | None = None) -> dict[str, Any]:
    made = harness.parser("precision", __doc__)
    made.add_argument("--experts", type=Path, help="a library (experts of the digits, trained now)")
    made.add_argument("--data", default="digits", help="what the library was trained on")
    made.add_argument("--size", type=int, help="side its images were resized to")
    made.add_argument(
        "--val-fraction",
        type=float,
        default=DataConfig.val_fraction,
        help=f"of its training images, set aside then ({DataConfig.val_fraction})",
    )
    made.add_argument("--width", type=int, default=32, help="of the network on the digits")
    made.add_argument("--segments", type=int, default=5, help="at most all that a library has (5)")
    made.add_argument("--steps", type=int, default=20)
    made.add_argument("--ipc", type=int, default=1)
    made.add_argument("--expert-epochs", type=int, default=2)
    made.add_argument("--max-start-epoch", type=int, default=6)
    made.add_argument("--step-size", type=float, default=0.01)
    made.add_argument("--precision", nargs="+", choices=("float32", "bf16", "tf32"))
    made.add_argument("--force", action="store_true", help="bf16 even where it is emulated")
    made.add_argument("--compile", choices=("no", "yes", "both"), default="no")
    args = made.parse_args(argv)
    device = harness.begin(args)
    if args.quick:
        args.segments, args.steps, args.width, args.max_start_epoch = 2, 3, 8, 1
    if args.force and not args.precision:
        args.precision = ["float32", "bf16"]
    try:
        real = from_library(args) if args.experts else from_digits(args)
    except TrajmatchError as error:
        raise SystemExit(str(error)) from error
    compiles = {"no": [False], "yes": [True], "both": [False, True]}[args.compile]
    found: dict[str, Any] = {
        "machine": machine.describe(device),
        "quick": args.quick,
        "origin": real.origin,
        "network": real.spec.describe(),
        "steps": args.steps,
        "images": len(real.images),
        "segments": len(real.segments),
        "expert_epochs": args.expert_epochs,
        "max_start_epoch": args.max_start_epoch,
        "step_size": args.step_size,
    }
    exact = gradients(
        real.spec.build(seed=0), real, args, dtype=torch.float64, precision="float32", compile=False
    )
    found["rows"] = []
    for precision in machine.precisions(args.precision, device):
        for compile in compiles:
            got = gradients(
                real.spec.build(seed=0),
                real,
                args,
                dtype=torch.float32,
                precision=precision,
                compile=compile,
            )
            row = {"precision": precision, "compile": compile, **compare(got, exact)}
            found["rows"].append(row)
    print(show(found))
    harness.write(args, real.result, found)
    return found


if __name__ == "__main__":
    main()

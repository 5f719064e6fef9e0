"""Several networks on ten images: one after another, or as one grouped convolution.

The second block's convolution of the ConvNet (128 to 128 channels, 16x16) and both gradients, of
five networks with filters of their own: by the C++ operators, by torch's own, and by torch's with
the networks as groups. Ratios are of the grouped form, in turns, over each of the others.

    python -m benchmarks.grouped
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks import harness, machine
from trajmatch.runtime.operators import load
from trajmatch.unroll.native import SOURCE

NETWORKS, IMAGES = 5, 10


def forms(precision: str, width: int, size: int) -> dict[str, Callable[[int], object]]:
    """form -> the three functions of all networks."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    last, drawn = torch.channels_last, torch.Generator().manual_seed(0)

    def images() -> torch.Tensor:
        x = torch.randn((IMAGES, width * NETWORKS, size, size), generator=drawn, dtype=dtype)
        return x.contiguous(memory_format=last)

    x, grad = images(), images()
    filters = torch.randn((width * NETWORKS, width, 3, 3), generator=drawn)
    rounded = filters.to(dtype).contiguous(memory_format=last)
    each = [
        [part.contiguous(memory_format=last) for part in torch.chunk(whole, NETWORKS, 1)]
        for whole in (x, grad)
    ]
    xs, grads = each
    own, all_filters = torch.chunk(rounded, NETWORKS), torch.chunk(filters, NETWORKS)
    ops = torch.ops.trajmatch

    def library(x: torch.Tensor, grad: torch.Tensor, filters: torch.Tensor, groups: int) -> None:
        F.conv2d(x, filters, padding=1, groups=groups)
        one, outputs = [1, 1], [True, True, False]
        torch.ops.aten.convolution_backward(
            grad, x, filters, None, one, one, one, False, [0, 0], groups, outputs
        )

    def operators(number: int) -> None:
        for x, grad, filters in zip(xs, grads, all_filters, strict=True):
            ops.convolution(x, filters, False)
            ops.convolution_at_images(grad, filters, False)
            ops.convolution_at_filters(grad, x, False)

    def in_turn(number: int) -> None:
        for x, grad, filters in zip(xs, grads, own, strict=True):
            library(x, grad, filters, 1)

    return {
        "grouped": lambda number: library(x, grad, rounded, NETWORKS),
        "operators": operators,
        "torch": in_turn,
    }


def row(precision: str, other: str, args: Any) -> dict[str, Any]:
    """The grouped form against another."""
    width, size = (32, 4) if args.quick else (128, 16)
    both, device = forms(precision, width, size), torch.device("cpu")
    least = 0 if args.quick else 1
    pairs = harness.alternate(
        both["grouped"], both[other], repeats=args.repeats, warmup=args.warmup, device=device,
        least=least,
    )  # fmt: skip
    return {"precision": precision, "over": other, **pairs.to_json()}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = harness.parser("grouped", __doc__).parse_args(argv)
    device = harness.begin(args)
    load(SOURCE)
    rows = [
        row(precision, other, args)
        for precision in machine.precisions(None, device)
        for other in ("operators", "torch")
    ]
    found = {"machine": machine.describe(device), "quick": args.quick, "times": rows}
    cells = [
        [f"grouped, {row['precision']}, over {row['over']}", *harness.timing_cells(row)]
        for row in rows
    ]
    print(machine.words(found["machine"]), harness.table(harness.TIMING_HEAD, cells), sep="\n")
    harness.write(args, "grouped", found)
    return found


if __name__ == "__main__":
    main()

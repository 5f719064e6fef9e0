"""The C++ operators' convolutions against torch's own, by shape.

Where torch's is faster by more than `native.SUMMING` it is taken from then on.

The three functions (a convolution, its gradient at the images and at the filters) of both kinds, in
turns on the same tensors, packing of filters included. Writes the rows of this kind of processor
into src/trajmatch/unroll/convolutions.json; those of other kinds stay.

    python -m benchmarks.tiles                       # a minute
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness, machine
from trajmatch.runtime.operators import load
from trajmatch.runtime.processor import processor_kind
from trajmatch.types import Tensor
from trajmatch.unroll import native
from trajmatch.unroll.native import FUNCTIONS, SOURCE, TABLE, Shape

PATH = Path(native.__file__).parent / TABLE
LEAST = 3e-3
"""Seconds of calls that are timed at once."""


def shapes(quick: bool) -> list[Shape]:
    """First layers of color and gray, and inner layers, at the sizes and batches of the recipes."""
    if quick:
        return [Shape(3, 32, 8.0, 2), Shape(32, 32, 4.0, 2)]
    found = []
    for width, batch in itertools.product((32, 128), (1, 10, 50)):
        found += [Shape(3, width, 32.0, batch), Shape(1, width, 8.0, batch)]
        found += [Shape(width, width, size, batch) for size in (16.0, 8.0, 4.0)]
    return found


def calls(shape: Shape, dtype: torch.dtype) -> dict[str, Callable[[bool], Tensor]]:
    """function -> (whether by torch's own) -> its result."""
    drawn, size = torch.Generator().manual_seed(0), int(shape.size)

    def images(channels: int) -> Tensor:
        x = torch.randn((shape.batch, channels, size, size), generator=drawn).to(dtype)
        return x.contiguous(memory_format=torch.channels_last)

    x, grad = images(shape.channels), images(shape.out)
    filters = torch.randn((shape.out, shape.channels, 3, 3), generator=drawn)
    ops = torch.ops.trajmatch
    return {
        "convolve": lambda library: ops.convolution(x, filters, library),
        "at images": lambda library: ops.convolution_at_images(grad, filters, library),
        "at filters": lambda library: ops.convolution_at_filters(grad, x, library),
    }


def seconds_per_call(call: Callable[[], object], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began) / count


def row(
    function: str, shape: Shape, precision: str, call: Callable[[bool], Tensor], repeats: int
) -> dict[str, Any]:
    """A row of the table."""
    apart = float((call(False).float() - call(True).float()).norm() / call(True).float().norm())
    if not apart < (0.02 if precision == "bf16" else 1e-5):
        raise RuntimeError(f"{function} {shape} {precision}: the two differ by {apart:.2g}")
    count = max(1, round(LEAST / seconds_per_call(lambda: call(False), 3)))
    pairs = [
        (seconds_per_call(lambda: call(False), count), seconds_per_call(lambda: call(True), count))
        for _ in range(repeats)
    ]
    flop = 2 * 9 * shape.channels * shape.out * shape.size**2 * shape.batch
    best = [min(times) for times in zip(*pairs, strict=True)]
    return {
        "processor": processor_kind(),
        "precision": precision,
        "function": function,
        "shape": asdict(shape),
        "ratio": round(statistics.median(a / b for a, b in pairs), 3),
        "gflops": [round(flop / each / 1e9) for each in best],
    }


def show(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            each["precision"],
            each["function"],
            "{channels} -> {out}, {size:g} px, {batch} images".format(**each["shape"]),
            *map(str, each["gflops"]),
            f"{each['ratio']:.2f}",
        ]
        for each in rows
    ]
    head = ["precision", "function", "shape", "tiles GFLOP/s", "torch GFLOP/s", "time ratio"]
    return harness.table(head, cells)


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    made = harness.parser("tiles", __doc__)
    args = made.parse_args(argv)
    device = harness.begin(args)
    load(SOURCE)
    rows = []
    for precision in machine.precisions(None, device):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        for shape in shapes(args.quick):
            for function, call in calls(shape, dtype).items():
                rows.append(row(function, shape, precision, call, args.repeats))
    assert {each["function"] for each in rows} == set(FUNCTIONS)
    print(machine.words(machine.describe(device)), "", show(rows), sep="\n")
    if not args.quick:
        others = [each for each in native.measured() if each["processor"] != processor_kind()]
        write(others + rows)
    return rows


def write(rows: list[dict[str, Any]]) -> None:
    """A row a line, so that changes can be read."""
    lines = ",\n".join(json.dumps(each) for each in rows)
    PATH.write_text(f'{{"rows": [\n{lines}\n]}}\n', encoding="utf-8")
    harness.say(f"written: {PATH}")


if __name__ == "__main__":
    main()

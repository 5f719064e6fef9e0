"""One iteration of distillation: N student steps and the gradient to the pixels and step size.

Ours: trajmatch.unroll by each method, precision and compiled or not. The twin: the whole walk's
graph, by create_graph=True, in float32. Both draw the same augmentation inside the timed work.
Before anything is timed, both are compared in float64 on small walks through all six changes.

    python -m benchmarks.unroll                      # what issue 3 asks for
    python -m benchmarks.unroll --cases digits --repeats 20
    python -m benchmarks.unroll --cases ipc1 ipc10 --device cuda --no-profile   # published sizes
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any
from unittest import mock

import torch

from benchmarks import convolutions, harness, machine
from benchmarks.walks import (
    CASES,
    LONG,
    PUBLISHED_SIZES,
    SMALL,
    Case,
    Inputs,
    agreement,
    cosine,
    ours,
    theirs,
)
from trajmatch.networks.precision import arithmetic
from trajmatch.runtime import compiling
from trajmatch.unroll import EXACT

FIT = 0.6
"""A twin's graph is measured where it should need less than this share of the free memory."""


def time_row(
    case: Case,
    inputs: Inputs,
    args: argparse.Namespace,
    *,
    method: str,
    precision: str,
    compile: bool,
) -> dict[str, Any]:
    """Ours in one form against the twin, in turns; and where our time goes."""
    device = inputs.images.device
    if compile:  # or an earlier row's compiled forms would count against the limit
        torch._dynamo.reset()
    before = harness.reserved_mb(device)
    our, reason = ours(case, inputs, method=method, precision=precision, compile=compile)
    their = theirs(case, inputs)
    pairs = harness.alternate(
        our,
        their,
        repeats=args.repeats,
        warmup=args.warmup,
        device=device,
        least=0 if args.quick else args.least,
    )
    found = our(0)
    with arithmetic("float32"):  # torch's default on a GPU, which the timed twin has, is TF32
        wanted = their(0)
    near = cosine(found.grad_images, wanted[1])
    if precision == "float32" and not near > 0.99:
        raise RuntimeError(f"{case.name} {method}: the gradients' cosine to the twin's is {near}")
    form = {"method": method, "precision": precision, "compile": compile}
    return {
        "case": case.name,
        **form,
        "sizes": asdict(case),
        "reason": reason,
        "cosine_to_twin": near,
        **pairs.to_json(),
        **_gpu_memory(lambda: our(0), lambda: their(0), device, before),
        **({} if args.no_profile else _profile(case, inputs, form)),
    }


def _gpu_memory(
    our: Callable[[], object], their: Callable[[], object], device: torch.device, before: float
) -> dict[str, float]:
    """MB that an iteration of each needs of a GPU; nothing on a CPU, where each has a process."""
    if device.type != "cuda":
        return {}
    peak = harness.gpu_peak(our, device, before)
    with_ours = harness.reserved_mb(device)
    return {"ours_gpu_mb": peak, "twin_gpu_mb": harness.gpu_peak(their, device, with_ours)}


def _profile(case: Case, inputs: Inputs, form: dict[str, Any]) -> dict[str, Any]:
    """Where the time of our iteration goes."""
    device, precision = inputs.images.device, form["precision"]
    eager = ours(case, inputs, **{**form, "compile": False})[0]
    flop = convolutions.convolution_flop(lambda: eager(0))
    best = convolutions.best_rate(precision, device)
    with _seen_by_the_profiler():
        augmented = ours(case, inputs, **form)[0]
        augmented(0)
        spent = convolutions.shares(lambda: augmented(0), flop, device)
    return {"profile": spent.to_json(best["best"]), "machine_gflops": best}


@contextlib.contextmanager
def _seen_by_the_profiler() -> Iterator[None]:
    """Compiled code calls operators from Python: called from C++, or in a CUDA graph, they have no
    names."""
    torch._dynamo.reset()
    with mock.patch.dict(compiling.FORMS, {"cpu": {}, "cuda": {}}):
        yield
    torch._dynamo.reset()


def twin_profile(case: Case, inputs: Inputs) -> dict[str, Any]:
    """Where the twin's time goes."""
    their = theirs(case, inputs)
    their(0)
    flop = convolutions.convolution_flop(lambda: their(0))
    best = convolutions.best_rate("float32", inputs.images.device)
    spent = convolutions.shares(lambda: their(0), flop, inputs.images.device)
    return {"case": case.name, "profile": spent.to_json(best["best"]), "machine_gflops": best}


# -- memory --------------------------------------------------------------------------------------


def memory_job(
    case: dict[str, Any],
    who: str,
    device: str,
    precision: str = "float32",
    compile: bool = False,
) -> Callable[[], object]:
    """For harness.peak_of: one iteration of `who`, a method of ours or "twin".

    Before that a tiny one is run, so that libraries loaded on first use are not counted; and a
    compiled form is called once, so that the compiler's own memory is not.
    """
    sizes = Case(**case)
    inputs = Inputs.draw(sizes, torch.device(device))
    tiny = Inputs.draw(SMALL, torch.device(device))
    if who == "twin":
        theirs(SMALL, tiny)(0)
        their = theirs(sizes, inputs)
        return lambda: their(0)
    ours(SMALL, tiny, method="auto", precision=precision)[0](0)
    # "auto" measures a graph to decide; that is part of what it needs, so it is not run before.
    if not compile:
        return lambda: ours(sizes, inputs, method=who, precision=precision)[0](0)
    our, _ = ours(sizes, inputs, method=who, precision=precision, compile=True)
    our(0)
    return lambda: our(0)


def peak(
    case: Case,
    who: str,
    args: argparse.Namespace,
    *,
    precision: str = "float32",
    compile: bool = False,
) -> float:
    """MB above base of one iteration, in its own process."""
    found = harness.peak_of(
        "benchmarks.unroll:memory_job",
        threads=args.threads,
        case=asdict(case),
        who=who,
        device=args.device,
        precision=precision,
        compile=compile,
    )
    return found.above_mb


def twin_peak(case: Case, args: argparse.Namespace) -> tuple[float, str]:
    """The twin's peak in MB and how it was found: measured, or where it would not fit, from two
    shorter walks on the line through them."""
    short, longer = max(1, case.steps // 10), max(2, case.steps // 5)
    low, high = (peak(replace(case, steps=n), "twin", args) for n in (short, longer))
    slope = (high - low) / (longer - short)
    whole = low + slope * (case.steps - short)
    if whole * harness.MIB < FIT * machine.free_bytes():
        return peak(case, "twin", args), f"measured at N {case.steps}"
    free = machine.free_bytes() / 2**30
    return whole, (
        f"N {case.steps} would need {whole / 1024:.0f} GB and {free:.0f} are free: on the line "
        f"through N {short} ({low:.0f} MB) and N {longer} ({high:.0f} MB)"
    )


def memory_rows(case: Case, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Peaks of the twin and of each of our methods for one case."""
    wanted, how = twin_peak(case, args)
    rows = []
    for precision in machine.precisions(args.precision, torch.device(args.device)):
        for method in args.methods:
            for compile in args.compile:
                harness.say(f"memory: {case.name} {method} {precision} {_form(compile)}")
                mb = peak(case, method, args, precision=precision, compile=compile)
                rows.append(
                    {
                        "case": case.name,
                        "method": method,
                        "precision": precision,
                        "compile": compile,
                        "sizes": asdict(case),
                        "ours_mb": mb,
                        "twin_mb": wanted,
                        "twin_how": how,
                        "ratio": mb / wanted,
                    }
                )
    return rows


def long_row(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Method reverse over a long walk: against the twin, and against a walk a fifth as long."""
    harness.say(f"memory: {case.words()}")
    fifth = replace(case, steps=max(1, case.steps // 5))
    compile = args.compile[-1]
    long, short = (peak(c, "reverse", args, compile=compile) for c in (case, fifth))
    vectors = (case.steps - fifth.steps) * case.spec.parameters() * 4 / harness.MIB
    wanted, how = twin_peak(case, args)
    return {
        "case": case.name,
        "method": "reverse",
        "precision": "float32",
        "compile": compile,
        "sizes": asdict(case),
        "ours_mb": long,
        "twin_mb": wanted,
        "twin_how": how,
        "ratio": long / wanted,
        "short_steps": fifth.steps,
        "short_mb": short,
        "stored_vectors_mb": vectors,
        "ratio_to_short": long / (short + vectors),
    }


# -- the table -----------------------------------------------------------------------------------


def _form(compile: bool) -> str:
    return "compiled" if compile else "eager"


def _name(row: dict[str, Any]) -> str:
    return f"{row['case']} {row['method']} {row['precision']} {_form(row['compile'])}"


def _profile_cells(profile: dict[str, Any] | None) -> list[str]:
    if profile is None:
        return ["", "", ""]
    share, of_best = profile["convolution_share"], profile["of_best"]
    return [f"{share:.0%}", f"{profile['gflops']:.0f}", f"{of_best:.0%}"]


def show(found: dict[str, Any]) -> str:
    """The tables of a result."""
    times = [
        [
            _name(row),
            *harness.timing_cells(row),
            *_profile_cells(row.get("profile")),
            *(f"{row[key]:,.0f}" if key in row else "" for key in ("ours_gpu_mb", "twin_gpu_mb")),
        ]
        for row in found["times"]
    ]
    head = [*harness.TIMING_HEAD, "in conv", "GFLOP/s", "of best", "GPU MB", "twin's"]
    text = [machine.words(found["machine"]), "", harness.table(head, times)]
    if found["memory"]:
        peaks = [
            [_name(row), f"{row['ours_mb']:.0f}", f"{row['twin_mb']:.0f}", f"{row['ratio']:.3f}"]
            for row in found["memory"]
        ]
        text += ["", harness.table(["peak above base", "ours MB", "twin MB", "ratio"], peaks)]
        hows = {row["case"]: row["twin_how"] for row in found["memory"]}
        text += [f"  {case}: twin {how}" for case, how in hows.items()]
        text += [
            f"  {row['case']}: N {row['sizes']['steps']} needs {row['ratio_to_short']:.2f}x of "
            f"N {row['short_steps']} plus {row['stored_vectors_mb']:.0f} MB of vectors"
            for row in found["memory"]
            if "ratio_to_short" in row
        ]
    return "\n".join(text)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    made = harness.parser("unroll", __doc__)
    known = {**CASES, **PUBLISHED_SIZES}
    made.add_argument("--cases", nargs="+", choices=[*known, "long"], default=[*CASES, "long"])
    made.add_argument("--methods", nargs="+", choices=EXACT, default=list(EXACT))
    made.add_argument("--precision", nargs="+", choices=("float32", "bf16", "tf32"))
    made.add_argument("--compile", choices=("no", "yes", "both"), default="both")
    made.add_argument("--least", type=float, default=10.0, help="seconds of pairs, at least (10)")
    made.add_argument("--no-profile", action="store_true", help="leave out where the time goes")
    args = made.parse_args(argv)
    if args.no_profile and args.out is None:
        made.error("--no-profile is no result of this machine's README; give it an --out")
    args.compile = {"no": [False], "yes": [True], "both": [False, True]}[args.compile]
    device = harness.begin(args)
    cases = {name: known[name] for name in args.cases if name in known}
    if args.quick:
        cases = {name: replace(case, **_TINY[name]) for name, case in cases.items()}
    long = replace(LONG, images=10, depth=2, width=16, size=16, steps=10) if args.quick else LONG

    found: dict[str, Any] = {"machine": machine.describe(device), "quick": args.quick}
    found["agreement"] = agreement()
    found["times"], found["twins"], found["memory"] = [], [], []
    for case in cases.values():
        inputs = Inputs.draw(case, device)
        harness.say(f"time: {case.words()}")
        if not args.no_profile:
            found["twins"].append(twin_profile(case, inputs))
        for precision in machine.precisions(args.precision, device):
            for compile in args.compile:
                for method in args.methods:
                    harness.say(f"time: {case.name} {method} {precision} {_form(compile)}")
                    row = time_row(
                        case, inputs, args, method=method, precision=precision, compile=compile
                    )
                    found["times"].append(row)
                    harness.write(args, "unroll", found, partial=True)
        if not args.no_memory:
            found["memory"] += memory_rows(case, args)
    if "long" in args.cases and not args.no_memory:
        found["memory"].append(long_row(long, args))
    assert all(math.isfinite(row["ratio"]["median"]) for row in found["times"])
    print(show(found))
    harness.write(args, "unroll", found)
    return found


_TINY = {
    "iteration": {"width": 8, "size": 16, "images": 4, "steps": 3},
    "digits": {"width": 8, "images": 4, "steps": 3},
    "ipc1": {"width": 8, "size": 16, "images": 4, "steps": 3},
    "ipc10": {"width": 8, "size": 16, "images": 6, "steps": 3, "batch_syn": 4},
}

if __name__ == "__main__":
    main()

"""The parts of gpu.sh that are no benchmark: what is installed, the tests, CIFAR-10, the summary.

    python -m benchmarks.gpu_run check --device cuda --work FOLDER --out OUT
    python -m benchmarks.gpu_run tests --device cuda --out OUT/tests.json
    python -m benchmarks.gpu_run cifar --data PATH --device cuda --work FOLDER --out OUT/cifar.json
    python -m benchmarks.gpu_run record --out OUT --step NAME --exit 0 --seconds 1.5 -- COMMAND ...

Nothing here needs the command line's parser (tyro), and the tests run without the packages that
check shapes and draw examples.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NEEDED = (
    "torch", "numpy", "PIL", "safetensors", "sklearn", "threadpoolctl", "rich", "xxhash",
    "filelock", "platformdirs", "pytest",
)  # fmt: skip
"""Modules without which some step cannot run."""
CHECKERS = ("jaxtyping", "beartype", "hypothesis")
"""Modules that tests/conftest.py imports."""
SHARE = 0.75
"""Of the step's time, the budget of the CIFAR-10 run: the rest is for imports and loading."""
TIMED_OUT = (124, 137)


def absent(names: Sequence[str]) -> list[str]:
    """Those that cannot be imported."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def write(path: Path, values: Any) -> None:
    """Plain JSON, in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(values, indent=1, default=str) + "\n", encoding="utf-8")
    partial.replace(path)


# -- what is here --------------------------------------------------------------------------------


def check(args: argparse.Namespace) -> int:
    """Begin the summary with the machine. 1 where a package or the device is missing."""
    missing = absent(NEEDED)
    if "platformdirs" in missing and not absent(["pip"]):
        stand_in = args.work / "platformdirs.py"
        stand_in.write_text("from pip._vendor.platformdirs import *\n", encoding="utf-8")
        missing.remove("platformdirs")
        print("platformdirs is not installed; pip's own copy is used")
    if missing:
        print(f"missing: {', '.join(missing)}; install them, or put them on PYTHONPATH")
        return 1
    import torch

    from benchmarks import machine

    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here; DEVICE=cpu QUICK=1 runs the same steps on a CPU")
        return 1
    here = {**machine.describe(device), "absent": absent(("tyro", *CHECKERS))}
    if device.type == "cuda":
        here["gpu_mb"] = torch.cuda.mem_get_info(device)[1] // 2**20
        here["capability"] = torch.cuda.get_device_capability(device)
    print(machine.words(here))
    write(args.out / "summary.json", {"machine": here, "quick": args.quick, "steps": []})
    return 0


# -- the summary ---------------------------------------------------------------------------------


def record(args: argparse.Namespace) -> int:
    """Add a step to the summary; one that was not run has a reason and no exit code."""
    path = args.out / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    words = args.command[1:] if args.command[:1] == ["--"] else args.command
    step = {"step": args.step, "command": " ".join(words), "exit": args.exit}
    step |= {"seconds": args.seconds, "result": args.result}
    if args.reason:
        step["skipped"] = args.reason
    if args.exit in TIMED_OUT:
        step["timed_out"] = True
    summary["steps"].append({name: value for name, value in step.items() if value is not None})
    write(path, summary)
    return 0


def show(args: argparse.Namespace) -> int:
    """Print the summary; 1 where a step failed."""
    steps = json.loads((args.out / "summary.json").read_text(encoding="utf-8"))["steps"]
    for step in steps:
        state = "ended: out of time" if "timed_out" in step else f"exit {step.get('exit')}"
        state = f"not run: {step['skipped']}" if "skipped" in step else state
        print(f"{step['step']:<14} {step.get('seconds', 0):7.1f} s  {state}")
    return int(any(step.get("exit") for step in steps))


# -- tests ---------------------------------------------------------------------------------------


class Outcomes:
    """A pytest plugin that keeps how each test ended, and writes it after each."""

    def __init__(self, out: Path, checked: bool) -> None:
        self.out = out
        self.found: dict[str, Any] = {"shapes_checked": checked, "counts": {}, "tests": []}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" and report.passed:
            return
        counts = self.found["counts"]
        counts[report.outcome] = counts.get(report.outcome, 0) + 1
        test = {"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration}
        if not report.passed:
            test["why"] = report.longreprtext[-6000:] or str(report.longrepr)
        self.found["tests"].append(test)
        write(self.out, self.found)


def tests(args: argparse.Namespace) -> int:
    """pytest -m gpu over the files of such tests; without tests/conftest.py where what it imports
    is not installed. Warnings are shown and are no errors: torch's own differ by version.

    On a GPU four processes share them, where pytest-xdist is installed: most of their time is the
    compiler's. quick: without those that compile.
    """
    import pytest

    files = sorted(str(path) for path in (ROOT / "tests").rglob("test_*_gpu.py"))
    options = ["-m", "gpu", "-v", "-W", "default", "-p", "no:cacheprovider", "--durations=10"]
    missing = absent(CHECKERS)
    if missing:
        print(f"{', '.join(missing)} not installed: the tests run without checks of shapes")
        options.append("--noconftest")
    if args.quick:
        options += ["-k", "not compiled"]
    elif args.device.startswith("cuda") and not absent(["xdist"]):
        options += ["-n", "4"]
    folder = str(ROOT / "tests")  # their helpers', which conftest.py would bring
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
    os.environ["TRAJMATCH_GPU_TESTS_ON"] = args.device
    write(args.out, {"tests": [], "files": files})
    return int(pytest.main([*options, *files], plugins=[Outcomes(args.out, not missing)]))


# -- CIFAR-10 ------------------------------------------------------------------------------------


class Kept:
    """An observer that writes what a run reports as it goes, so that one that is ended early leaves
    how far it came, and when."""

    def __init__(self, out: Path) -> None:
        self.out, self.began = out, time.perf_counter()
        self.found: dict[str, Any] = {"reached": {}, "reported": []}

    def update(self, task: str, done: int, total: int, **values: Any) -> None:
        self.found["reached"][task] = {"done": done, "total": total, "at": self._at(), **values}

    def message(self, text: str) -> None:
        print(f"{self._at():7.1f} s  {text}")
        self._keep(message=text)

    def event(self, name: str, **values: Any) -> None:
        self._keep(event=name, **values)

    def _keep(self, **values: Any) -> None:
        self.found["reported"].append({"at": self._at(), **values})
        write(self.out, {"partial": True, **self.found})

    def _at(self) -> float:
        return round(time.perf_counter() - self.began, 2)


def data_words(path: Path) -> dict[str, str]:
    """How `DataConfig` names what lies at `path`: the published files, or pictures by class."""
    root = path.parent if path.name.startswith("cifar-10-") else path
    if [*root.glob("cifar-10-*"), *root.glob("*/cifar-10-*")]:
        return {"data": "cifar10", "data_root": str(root)}
    return {"data": str(path)}


def cifar(args: argparse.Namespace) -> int:
    """One image per class of CIFAR-10 within a budget, by the network and whitening of the recipe
    cifar10-ipc1; the other settings follow from the pilot, the experts and the time."""
    kept = Kept(args.out)
    from trajmatch.config import DataConfig, EvaluateConfig, NetworkConfig
    from trajmatch.pipeline.auto import run_within
    from trajmatch.pipeline.recipe import Recipe, load_recipe
    from trajmatch.runtime.resources import Resources

    published = load_recipe("cifar10-ipc1")
    whitening = "normalize" if args.quick else published.data.whitening
    network = NetworkConfig("convnet", depth=2, width=8) if args.quick else published.network
    evaluate = EvaluateConfig(n=2, epochs=20) if args.quick else EvaluateConfig()
    start = Recipe(
        name="cifar10-ipc1-gpu",
        data=DataConfig(**data_words(args.data), size=32, whitening=whitening),
        network=network,
        evaluate=evaluate,
    )
    fixed = ["data.whitening", "data.size", "network.network", "network.depth", "network.width"]
    fixed += ["distill.ipc", *(["evaluate.n", "evaluate.epochs"] if args.quick else [])]
    work = Path(tempfile.mkdtemp(prefix="cifar-", dir=args.work))
    budget = SHARE * args.seconds - (time.perf_counter() - kept.began)
    result = run_within(
        budget, start, work, fixed=fixed, resources=Resources(args.device), progress=kept
    )
    found = {"budget": budget, "took": time.perf_counter() - kept.began, "result": result}
    found["plan"] = json.loads((work / "plan.json").read_text(encoding="utf-8"))
    found["published_accuracy"] = published.published.accuracy
    write(args.out, {**found, **kept.found})
    for score in result["scores"]:
        print(f"{score['method']:<8} {score['mean']:.1f} +- {score['sd']:.1f} %, n {score['n']}")
    return 0


# -- command line --------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = made.add_subparsers(dest="name", required=True)
    parts = {
        function.__name__: commands.add_parser(function.__name__, help=function.__doc__)
        for function in (check, record, show, tests, cifar)
    }
    for part in parts.values():
        part.add_argument("--out", type=Path, required=True)
    for name in ("check", "tests", "cifar"):
        parts[name].add_argument("--device", default="cuda")
        parts[name].add_argument("--quick", action="store_true")
    for name in ("check", "cifar"):
        parts[name].add_argument("--work", type=Path, required=True, help="for passing files")
    parts["cifar"].add_argument("--data", type=Path, required=True)
    seconds = float(os.environ.get("STEP_SECONDS", 100))
    parts["cifar"].add_argument("--seconds", type=float, default=seconds, help="($STEP_SECONDS)")
    parts["record"].add_argument("--step", required=True)
    parts["record"].add_argument("--exit", type=int)
    parts["record"].add_argument("--seconds", type=float)
    parts["record"].add_argument("--result", help="file of the step's JSON")
    parts["record"].add_argument("--reason", help="why the step was not run")
    parts["record"].add_argument("command", nargs=argparse.REMAINDER)
    args = made.parse_args(argv)
    steps = {"check": check, "record": record, "show": show, "tests": tests, "cifar": cifar}
    return steps[args.name](args)


if __name__ == "__main__":
    sys.exit(main())

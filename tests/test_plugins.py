"""A package of somebody else: installed with entry points, or importable and named by a path."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
import trajmatch
from trajmatch.cli.values import networks_of
from trajmatch.data import fit_whitening, load_whitening
from trajmatch.errors import FileFormatError, MismatchError, SettingError
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import METHODS, Estimate, Method, Problem, SyntheticParameters
from trajmatch.networks import NETWORKS
from trajmatch.networks.spec import network_for
from trajmatch.pipeline.checks import require_fit
from trajmatch.pipeline.distill import Untrained
from trajmatch.pipeline.experts import train_experts
from trajmatch.plugins import Registry
from trajmatch.report import write_report
from trajmatch.runtime.resources import Resources
from trajmatch.storage import read_log, read_result
from trajmatch.storage.files import open_tensors
from trajmatch.synthetic import SyntheticSet

ROOT = Path(__file__).parents[1]

# The package, file by file. To add a kind: its module, a line in FILES and one in ENTRY_POINTS.

ENTRY_POINTS = {
    "trajmatch.methods": {"means": "stripes_plugin.means:Means"},
    "trajmatch.networks": {"tinynet": "stripes_plugin.network:TinyNet"},
    "trajmatch.sources": {"stripes": "stripes_plugin.data:STRIPES"},
    "trajmatch.whitenings": {"halve": "stripes_plugin.whitening:Halve"},
}

PROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "stripes-plugin"
version = "1.0"

[tool.setuptools]
packages = ["stripes_plugin"]
"""

NETWORK = '''\
"""One hidden layer."""

from torch import nn

from trajmatch.networks import Network


class TinyNet(Network):
    def __init__(self, *, channels, classes, size, width=12):
        super().__init__(channels=channels, classes=classes, size=size, options={"width": width})
        _, height, breadth = self.image_shape
        self.features = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * height * breadth, width), nn.ReLU()
        )
        self.classifier = nn.Linear(width, classes)
'''

DATA = '''\
"""Noisy stripes, horizontal or vertical."""

import torch

from trajmatch.data import ImageDataset
from trajmatch.data.sources import Source


def load_stripes(request):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 2
    wave = 160 * (torch.arange(8) % 2).expand(80, 1, 8, 8)
    noise = torch.randint(0, 90, wave.shape, generator=generator)
    images = (torch.where(labels.view(-1, 1, 1, 1) == 1, wave, wave.mT) + noise).to(torch.uint8)
    return ImageDataset.from_arrays(
        images[:60], labels[:60], images[60:], labels[60:],
        classes=["across", "down"], name="stripes",
    )


STRIPES = Source(load_stripes, "stripes of 8x8, horizontal or vertical")
'''

WHITENING = '''\
"""Half the distance from the mean image."""

from trajmatch.data import Whitening, to_float


class Halve(Whitening):
    @classmethod
    def fit(cls, split):
        return cls({"mean": to_float(split.images).mean(0)})

    @classmethod
    def read(cls, file):
        return cls({"mean": file.read("mean")})

    def transform(self, images):
        return (images - self.tensors["mean"].to(images)) / 2

    def invert(self, images):
        return images * 2 + self.tensors["mean"].to(images)
'''

MEANS = '''\
"""Class means in the embedding of random networks."""

from dataclasses import dataclass

import torch

from trajmatch.methods import Estimate, Method


@dataclass(frozen=True, kw_only=True)
class Means(Method):
    """The mean embedding of each class's synthetic images is moved to that of real ones."""

    name = "means"
    title = "matching of class means"
    objective = "squared distance of class means"
    lr_img: float = 1.0
    """Learning rate of the pixels."""
    batch_real: int = 64
    """Real images of each class per iteration."""

    def estimate(self, problem, parameters, iteration):
        network = problem.fresh("means", iteration).requires_grad_(False)
        images = parameters.images.detach().requires_grad_()
        losses = []
        for label in range(problem.spec.classes):
            draw = problem.stream("means", iteration, label)
            real = network.embed(problem.of_class(label, self.batch_real, draw)).mean(0)
            synthetic = network.embed(images[parameters.classes == label]).mean(0)
            losses.append((real - synthetic).square().sum())
        loss = torch.stack(losses).sum()
        (gradient,) = torch.autograd.grad(loss, images)
        return Estimate(loss.detach(), gradient)
'''

FILES = {
    "stripes_plugin/means.py": MEANS,
    "stripes_plugin/__init__.py": "",
    "stripes_plugin/network.py": NETWORK,
    "stripes_plugin/data.py": DATA,
    "stripes_plugin/whitening.py": WHITENING,
}
BY_PATH = {
    "data": "stripes_plugin.data:STRIPES",
    "network": "stripes_plugin.network:TinyNet",
    "whitening": "stripes_plugin.whitening:Halve",
}
INSTALLED = {"data": "stripes", "network": "tinynet", "whitening": "halve"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's folder, as its author has it: nothing is installed."""
    folder = tmp_path_factory.mktemp("source")
    write_files(folder)
    tables = [
        f'[project.entry-points."{group}"]\n' + "".join(f'{n} = "{p}"\n' for n, p in points.items())
        for group, points in ENTRY_POINTS.items()
    ]
    (folder / "pyproject.toml").write_text("\n".join([PROJECT, *tables]))
    return folder


@pytest.fixture(scope="module")
def site(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages: by pip where it is there, else laid out as pip does."""
    folder = tmp_path_factory.mktemp("site")
    if find_spec("pip") and find_spec("setuptools"):
        words = "install -q --no-build-isolation --no-deps --no-index --no-cache-dir --target"
        command = [sys.executable, "-m", "pip", *words.split(), str(folder), str(source)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return folder
    write_files(folder)
    info = folder / "stripes_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stripes-plugin\nVersion: 1.0\n")
    tables = [
        f"[{group}]\n" + "".join(f"{name} = {path}\n" for name, path in points.items())
        for group, points in ENTRY_POINTS.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(tables))
    return folder


def write_files(folder: Path) -> None:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def run(*words: str, path: Path | None = None, cwd: Path | None = None) -> tuple[int, str, str]:
    """A Python process that finds trajmatch, and packages in `path`."""
    folders = [str(ROOT / "src"), *([str(path)] if path else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "PYTHONWARNINGS": ""}
    environment.pop("TRAJMATCH_CHECK_SHAPES", None)
    ended = subprocess.run(
        [sys.executable, *words], env=environment, cwd=cwd, capture_output=True, text=True
    )
    return ended.returncode, ended.stdout, ended.stderr


def experts(
    out: Path, names: dict[str, str], *more: str, **places: Path | None
) -> tuple[int, str, str]:
    flags = [word for name, value in names.items() for word in (f"--{name}", value)]
    fixed = f"-m trajmatch experts --experts 2 --epochs 1 --device cpu --out {out}".split()
    return run(*fixed, *flags, *more, **places)


@pytest.fixture(scope="module")
def by_path(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of the package's network, data and whitening, named by paths; trained by two
    processes from the package's own folder."""
    out = tmp_path_factory.mktemp("path") / "experts"
    code, _, errors = experts(out, BY_PATH, "--workers", "2", cwd=source)
    assert code == 0, errors
    return out


def recorded(library: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((library / "library.json").read_text())["made"]
    return made


OPEN = """\
import sys
import trajmatch
library = trajmatch.open_experts(sys.argv[1])
print(library.spec.name, library.spec.describe(), library.whitening.name, len(library.experts))
"""


@pytest.mark.slow
def test_an_installed_package_is_found_by_its_names(site: Path, tmp_path: Path) -> None:
    library = tmp_path / "experts"
    code, printed, errors = experts(library, INSTALLED, "--workers", "1", path=site)
    assert code == 0, errors
    assert "2 experts in" in printed
    made = recorded(library)
    assert (made["network"]["name"], made["whitening"]["name"]) == ("tinynet", "halve")
    assert (made["data"]["name"], made["data"]["classes"]) == ("stripes", ["across", "down"])
    code, printed, errors = run("-c", OPEN, str(library), path=site)
    assert (code, printed.strip()) == (0, "tinynet TinyNet width=12 halve 2"), errors
    # Where the package is not installed, the library says what is missing.
    with pytest.raises(FileFormatError, match="unknown network 'tinynet'"):
        ExpertLibrary.open(library)


@pytest.mark.slow
def test_a_misspelled_name_of_an_installed_package_is_suggested(site: Path, tmp_path: Path) -> None:
    code, _, errors = experts(tmp_path / "x", {**INSTALLED, "whitening": "halves"}, path=site)
    assert code == 2
    assert "unknown whitening 'halves'; did you mean 'halve'?" in errors
    assert errors.count("\n") == 1


@pytest.mark.slow
def test_a_package_on_the_path_is_found_without_entry_points(by_path: Path) -> None:
    made = recorded(by_path)
    assert made["network"]["name"] == BY_PATH["network"]
    assert made["whitening"]["name"] == BY_PATH["whitening"]


@pytest.mark.slow
def test_a_library_never_imports_by_a_path(
    by_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(source))  # importing would succeed
    named = r"'stripes_plugin.network:TinyNet'; it belongs to another package; give network="
    with pytest.raises(FileFormatError, match=named):
        ExpertLibrary.open(by_path)
    with pytest.raises(FileFormatError, match=r"give whitening='stripes_plugin.whitening:Halve'"):
        load_whitening(by_path / "whitening.safetensors")
    assert not [name for name in sys.modules if name.startswith("stripes_plugin")]


@pytest.mark.slow
def test_the_command_line_opens_it_where_the_person_gives_the_paths(
    by_path: Path, source: Path, tmp_path: Path
) -> None:
    settings = "--iterations 1 --ipc 1 --syn-steps 1 --expert-epochs 1 --max-start-epoch 1"
    judging = "--eval-every 1 --eval-networks 1 --evaluate.n 1 --evaluate.epochs 1 --device cpu"
    data = f"--data {BY_PATH['data']} --out {tmp_path / 'run'}"
    line = f"-m trajmatch distill --experts {by_path} {settings} {judging} {data}".split()
    code, _, errors = run(*line, cwd=source)
    assert code == 2
    assert "give --network stripes_plugin.network:TinyNet to load it" in errors
    paths = [f"--{name}={BY_PATH[name]}" for name in ("network", "whitening")]
    code, _, errors = run(*line, *paths, cwd=source)
    assert code == 0, errors


@pytest.mark.slow
def test_it_goes_through_the_checks_of_our_own(site: Path) -> None:
    """The lists of tests/networks, tests/data/test_whiten.py and tests/methods/test_conformance.py
    run over the registries."""
    names = ("networks", "data/test_whiten.py", "methods/test_conformance.py")
    lists = [str(ROOT / "tests" / name) for name in names]
    chosen = "tinynet or halve or (means and test_conformance)"
    options = ["-v", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", chosen]
    code, printed, errors = run("-m", "pytest", *options, *lists, path=site, cwd=ROOT)
    assert code == 0, printed + errors
    passed = re.findall(r"^\S+\[(\S+)\] PASSED", printed, re.MULTILINE)
    for name in ("tinynet", "halve", "means"):
        assert sum(name in word.split("-") for word in passed) >= 5, printed


# -- a method ------------------------------------------------------------------------------------

MEANS_WORDS = f"--method means {tiny.NETWORK_WORDS} --data digits --ipc 1 --lr-img 2 --batch-real 8"
LOOP_WORDS = "--eval-every 2 --eval-networks 1 --checkpoint-every 1"
FLAT = f"{tiny.SCORE_WORDS} --device cpu"
TABLES = """\
[data]
data = "digits"
[network]
network = "convnet"
depth = 2
width = 4
[experts]
experts = 2
epochs = 1
[distill]
iterations = 4
eval_every = 2
eval_networks = 1
syn_steps = 3
expert_epochs = 1
max_start_epoch = 1
[evaluate]
n = 2
epochs = 2
workers = 1
[methods.means]
batch_real = 9
iterations = 2
"""
LINES = {
    "half": f"distill {MEANS_WORDS} {LOOP_WORDS} {FLAT} --iterations 2 --out parts",
    "whole": f"distill {MEANS_WORDS} {LOOP_WORDS} {FLAT} --iterations 4 --out whole",
    "help": "distill --method means --help",
    "refused": "distill --method means --syn-steps 3 --out refused",
}
LATER = {"continued": LINES["half"].replace("--iterations 2", "--iterations 4")}
PAGES = {
    "run": "run tables.toml --method means --lr-img 3 --device cpu --workers 1 --out run",
    "compare": "compare --methods random,means --config tables.toml --experts run/experts "
    "--workers 1 --device cpu --out compared",
    "report": "report whole",
}
PROCESS = """\
import contextlib, io, json, os, sys
from trajmatch.cli import main
os.fsync = lambda descriptor: None
ended = {}
for name, line in json.load(sys.stdin).items():
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = main(line.split())
    ended[name] = (code, out.getvalue(), errors.getvalue())
json.dump(ended, sys.stdout)
"""
Ended = dict[str, tuple[int, str, str]]
"""Exit status, stdout and stderr of each command."""


def run_lines(lines: dict[str, str], site: Path, cwd: Path) -> Ended:
    """The commands, one after the other, in one process in which the package is installed."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(site)]),
        "TRAJMATCH_CACHE": str(cwd / "cache"),
        "COLUMNS": "160",
    }
    environment.pop("TRAJMATCH_CHECK_SHAPES", None)
    ended = subprocess.run(
        [sys.executable, "-c", PROCESS], input=json.dumps(lines), env=environment, cwd=cwd,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return {name: (code, out, err) for name, (code, out, err) in json.loads(ended.stdout).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The current folder of the commands."""
    folder = tmp_path_factory.mktemp("means")
    (folder / "tables.toml").write_text(TABLES)
    return folder


@pytest.fixture(scope="module")
def ended(site: Path, folder: Path) -> Ended:
    return {**run_lines(LINES, site, folder), **run_lines(LATER, site, folder)}


@pytest.fixture(scope="module")
def pages(ended: Ended, site: Path, folder: Path) -> Ended:
    """Of the commands that draw pages, after those of `ended`."""
    return run_lines(PAGES, site, folder)


@pytest.mark.slow
def test_its_method_distills(ended: Ended, folder: Path) -> None:
    code, printed, errors = ended["whole"]
    assert code == 0, errors
    assert "the set is in whole/best" in printed
    result = read_result(folder / "whole")
    given = {"method": "means", "lr_img": 2.0, "batch_real": 8, "iterations": 4}
    assert {name: result["settings"]["distill"][name] for name in given} == given
    assert "syn_steps" not in result["settings"]["distill"]
    assert result["scores"][0]["method"] == "means"
    assert result["library"] is None
    log = read_log(folder / "whole" / "log.jsonl")
    validations = {line["step"]: line["val_mean"] for line in log if "val_mean" in line}
    assert list(validations) == [0, 2, 4]
    best = max(validations, key=lambda step: validations[step])  # the first of equal ones
    assert result["best_iteration"] == best
    assert result["best_validation"]["mean"] == validations[best]
    distilled = SyntheticSet.load(folder / "whole" / "best")
    assert (distilled.info["method"], distilled.step_size) == ("means", None)
    losses = [line["loss"] for line in log if "loss" in line]
    assert len(losses) == 4
    first, last = (
        open_tensors(folder / f"whole/snapshots/{step}.safetensors", kind="snapshot", version=1)
        for step in ("000000", "000004")
    )
    assert not torch.equal(first.read("images"), last.read("images"))


@pytest.mark.slow
def test_a_run_of_its_method_continues_to_the_same_bits(ended: Ended, folder: Path) -> None:
    """Two iterations, then in another process the rest, against four at once."""
    assert (ended["half"][0], ended["continued"][0]) == (0, 0), ended["continued"][2]
    assert [line["step"] for line in read_log(folder / "parts/log.jsonl") if "loss" in line] == [
        1, 2, 3, 4,
    ]  # fmt: skip
    for name in ("last", "best"):
        whole, parts = (SyntheticSet.load(folder / out / name) for out in ("whole", "parts"))
        assert torch.equal(whole.images, parts.images)
    one, other = (
        open_tensors(folder / out / "checkpoint.safetensors", kind="checkpoint", version=1)
        for out in ("whole", "parts")
    )
    assert one.names == other.names
    assert all(torch.equal(one.read(name), other.read(name)) for name in one.names)


@pytest.mark.slow
def test_its_method_has_flags_of_its_own(ended: Ended, folder: Path) -> None:
    code, printed, _ = ended["help"]
    assert code == 0
    assert "--lr-img" in printed
    assert "Real images of each class per iteration." in printed
    assert "--syn-steps" not in printed
    code, _, errors = ended["refused"]
    assert code == 2
    assert "--syn-steps is a setting of mtt, dd, ld; leave it out, or use --method mtt" in errors
    assert errors.count("\n") == 1
    assert not (folder / "refused").exists()


@pytest.mark.slow
def test_its_method_is_compared(pages: Ended, folder: Path) -> None:
    code, printed, errors = pages["compare"]
    assert code == 0, errors
    rows = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("| ")]
    assert "means" in rows, printed
    page = (folder / "compared" / "report.html").read_text(encoding="utf-8")
    assert re.search(r">\s*means\s*<", page)


@pytest.mark.slow
def test_its_method_runs_a_recipe(pages: Ended, folder: Path) -> None:
    code, printed, errors = pages["run"]
    assert code == 0, errors
    assert "means matches no experts; 2 are trained for herding" in printed
    settings = read_result(folder / "run")["settings"]["distill"]
    # The table's, the line's, the recipe's outer loop.
    assert (settings["method"], settings["batch_real"], settings["iterations"]) == ("means", 9, 2)
    assert (settings["lr_img"], settings["eval_every"]) == (3.0, 2)
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    assert "matching of class means" in page


@pytest.mark.slow
def test_the_page_of_its_run(pages: Ended, folder: Path) -> None:
    assert pages["report"][0] == 0, pages["report"][2]
    page = (folder / "whole" / "report.html").read_text(encoding="utf-8")
    assert "matching of class means" in page
    assert "squared distance of class means" in page
    assert "means" not in METHODS  # as where the package is not installed: the set has the title
    page = write_report(folder / "whole").read_text(encoding="utf-8")
    assert "matching of class means" in page


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nearest(Method):
    """Pixels move to the mean image of their class. Nothing is drawn; registered nowhere."""

    name = "nearest"
    title = "class means"
    objective = "squared distance from the class mean"
    lr_img: float = 1.0
    """Learning rate of the pixels."""

    def estimate(
        self, problem: Problem, parameters: SyntheticParameters, iteration: int
    ) -> Estimate:
        means = torch.stack([problem.images[places].mean(0) for places in problem.members])
        away = parameters.images - means[parameters.classes]
        return Estimate(away.square().sum(), 2 * away)


def test_a_method_of_a_script_distills(tmp_path: Path) -> None:
    """The class is registered nowhere."""
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    method = Nearest(lr_img=0.1)
    with pytest.raises(KeyboardInterrupt):
        tiny.distill(parts, method, stop=2)
    outcome = tiny.distill(parts, method)
    assert torch.equal(outcome.last.images, tiny.distill(whole, method).last.images)
    assert outcome.best.info["method"] == "nearest"
    losses = [line["loss"] for line in read_log(parts / "log.jsonl") if "loss" in line]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.5 * losses[0]
    assert "nearest" not in METHODS
    with pytest.raises(MismatchError, match="lr_img"):
        tiny.distill(parts, Nearest(lr_img=0.2))


def test_its_method_is_given_as_an_object(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(source))
    means = import_module("stripes_plugin.means")
    monkeypatch.delitem(sys.modules, "stripes_plugin.means")
    monkeypatch.delitem(sys.modules, "stripes_plugin")
    outcome = trajmatch.distill(
        tiny.digits(), means.Means(lr_img=2.0), Untrained(tiny.NETWORK), tmp_path,
        config=tiny.DISTILL, evaluation=tiny.EVALUATE,
    )  # fmt: skip
    assert outcome.iterations == tiny.DISTILL.iterations
    assert outcome.best.info["method"] == "means"
    with pytest.raises(SettingError, match="lr_img is -1"):
        means.Means(lr_img=-1.0)


# -- objects in Python ---------------------------------------------------------------------------


def test_objects_stand_where_names_do(tmp_path: Path) -> None:
    train = tiny.digits().train
    zca = fit_whitening("zca", train.take(torch.arange(600)))
    config = dataclasses.replace(tiny.EXPERTS, experts=1, epochs=1)
    spec = network_for(tiny.digits(), tiny.NETWORK)
    for _ in range(2):  # the second call finds the library complete
        library = train_experts(
            tiny.digits(),
            tmp_path,
            network=spec,
            whitening=zca,
            config=config,
            resources=Resources(workers=1),
        )
    assert (library.spec, library.whitening.checksum) == (spec, zca.checksum)
    require_fit(library, tiny.digits(), network=spec, whitening=zca)
    with pytest.raises(MismatchError, match=r"another 'zca' whitening \(checksum"):
        require_fit(library, tiny.digits(), whitening=fit_whitening("zca", train))
    with pytest.raises(MismatchError, match=r"whitening 'zca' and this asks for 'normalize'"):
        require_fit(library, tiny.digits(), whitening=fit_whitening("normalize", train))
    with pytest.raises(MismatchError, match="this asks for mlp"):
        require_fit(library, tiny.digits(), network=NETWORKS["mlp"])


def test_networks_of_a_command_are_names_or_paths_each_with_a_norm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(NETWORKS, "_entries", dict(NETWORKS.items()))  # for this test alone
    first, second = networks_of("resnet18:batch, trajmatch.networks.mlp:MLP:none")
    assert (first.network, first.norm) == ("resnet18", "batch")
    assert (second.network, second.norm) == ("trajmatch.networks.mlp:MLP", "none")
    with pytest.raises(SettingError, match=r"'builtins:KeyError' is .* not a network"):
        networks_of("builtins:KeyError")


# -- the registry by itself ----------------------------------------------------------------------


@pytest.fixture
def registry() -> Registry[type]:
    def is_error(entry: object) -> bool:
        return isinstance(entry, type) and issubclass(entry, ArithmeticError)

    return Registry("error", "trajmatch.no-such-group", is_error, {"zero": ZeroDivisionError})


def test_an_object_has_the_name_it_is_registered_under(registry: Registry[type]) -> None:
    assert registry.name_of(ZeroDivisionError) == "zero"
    assert registry.name_of(OverflowError) == "builtins:OverflowError"
    assert registry.known("builtins:OverflowError") is OverflowError
    with pytest.raises(SettingError, match=r"<class 'KeyError'> is not a error"):
        registry.name_of(KeyError)


def test_a_person_imports_by_a_path_and_a_file_does_not(registry: Registry[type]) -> None:
    with pytest.raises(SettingError, match="it belongs to another package; give error="):
        registry.known("builtins:OverflowError")
    assert registry.find("builtins:OverflowError") is OverflowError
    assert list(registry) == ["zero", "builtins:OverflowError"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("zeros", r"unknown error 'zeros'; did you mean 'zero'\?"),
        ("no_such_module:X", r"cannot load error 'no_such_module:X': No module named"),
        ("builtins:NoSuch", r"cannot load error 'builtins:NoSuch': module 'builtins' has no"),
        ("builtins:KeyError", r"'builtins:KeyError' is <class 'KeyError'>, which is not a error"),
    ],
)
def test_mistakes_are_one_line(registry: Registry[type], name: str, said: str) -> None:
    with pytest.raises(SettingError, match=said) as caught:
        registry.find(name)
    assert "\n" not in str(caught.value)


# -- docs/extending.md ---------------------------------------------------------------------------


@pytest.mark.slow
def test_the_code_of_the_page_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    if not find_spec("datasets"):
        blocks = [block for block in blocks if "from datasets import" not in block]
    (tmp_path / "page.py").write_text("\n".join(blocks))
    code, printed, errors = run("page.py", cwd=tmp_path)
    assert code == 0, errors
    promised = re.findall(r"^print\(.*\)  # (.*)$", "\n".join(blocks), re.MULTILINE)
    assert printed.splitlines() == promised
    assert len(promised) == 3

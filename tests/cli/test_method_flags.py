"""Methods on the command line: a method's own flags and no other's, optimizers, methods of one's
own from a file in the current folder."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import tiny
from trajmatch import cli
from trajmatch.cli.distill import Flags
from trajmatch.cli.flags import parse
from trajmatch.config import Adam, Cosine, Decay, DistillConfig, TorchOptimizer
from trajmatch.errors import SettingError
from trajmatch.methods import DM, METHODS, MTT, Method
from trajmatch.methods.registry import method_class, setting_names
from trajmatch.pipeline.recipe import load_recipe
from trajmatch.storage import read_result
from trajmatch.storage.files import read_json
from trajmatch.synthetic import SyntheticSet

LOOP_WORDS = "--iterations 4 --eval-every 2 --checkpoint-every 1"
DISTILL = f"distill --device cpu {tiny.SCORE_WORDS}"


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk would take most of the time, and is for what no test here does."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty current folder."""
    monkeypatch.setenv("TRAJMATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


Mistake = Callable[[list[str]], str]


@pytest.fixture
def mistake(here: Path, capsys: pytest.CaptureFixture[str]) -> Mistake:
    """Run a line that is refused; give the one line on stderr."""

    def refused(words: list[str]) -> str:
        capsys.readouterr()
        assert cli.main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"trajmatch {words[0]}: ")
        assert said.count("\n") == 1
        assert said.endswith("\n")
        assert not (here / "runs").exists()
        return said

    return refused


def settings(line: list[str]) -> tuple[DistillConfig, Method]:
    """What a line would distill with."""
    flags = parse(Flags, line, program="trajmatch distill", description="")
    assert flags is not None
    assert isinstance(flags.settings, Method)
    return flags.distill, flags.settings


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


# -- a method's own flags ------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_help_shows_the_methods_own_flags_and_no_others(
    method: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert cli.main(["distill", "--method", method, "--help"]) == 0
    words = capsys.readouterr().out.replace(",", " ").split()
    own = set(setting_names(METHODS[method]))
    every = {name for kind in METHODS.values() for name in setting_names(kind)}
    assert {name for name in every if option(name) in words} == own
    assert all(option(name) in words for name in setting_names(DistillConfig))


OF_MTT_ALONE = [name for name in setting_names(MTT) if name not in setting_names(DM)]


@pytest.mark.parametrize("name", OF_MTT_ALONE)
@pytest.mark.parametrize("form", ["spaced", "joined", "underscored"])
def test_a_flag_of_another_method_is_refused_by_name(
    mistake: Mistake, name: str, form: str
) -> None:
    value = "3"
    words = {
        "spaced": [option(name), value],
        "joined": [f"{option(name)}={value}"],
        "underscored": [f"--{name}", value],
    }[form]
    said = mistake(["distill", "--method", "dm", *words])
    assert f"{option(name)} is a setting of mtt" in said
    assert "leave it out, or use --method mtt" in said


def test_a_misspelled_flag_is_still_a_misspelled_flag(mistake: Mistake) -> None:
    said = mistake(["distill", "--method", "dm", "--batch-reel", "3"])
    assert "unknown option --batch-reel; did you mean --batch-real?" in said


def test_a_flag_of_an_earlier_version_says_its_name_now(mistake: Mistake, here: Path) -> None:
    said = mistake(["distill", "--method", "dd", "--window", "3"])
    assert "--window is called --bptt-steps now, a setting of dd, ld" in said
    Path("mine.toml").write_text('[distill]\nmethod = "ld"\nwindow = 3\n')
    said = mistake(["distill", "--config", "mine.toml"])
    assert "distill.window is no setting of ld; it is called bptt_steps now" in said


def test_an_unknown_method(mistake: Mistake) -> None:
    said = mistake(["distill", "--method", "dmm"])
    assert "unknown method 'dmm'; did you mean 'dm'?" in said


def test_values_reach_the_loop_and_the_method() -> None:
    line = ["--method", "dm", "--batch-real", "7", "--augment", "none", "--iterations", "9"]
    assert settings(line) == (DistillConfig(iterations=9), DM(batch_real=7, augment=None))
    assert settings([]) == (DistillConfig(), MTT())


# -- settings from a file ------------------------------------------------------------------------


def test_a_file_gives_the_method_and_the_line_another(here: Path) -> None:
    Path("mine.toml").write_text(
        '[distill]\nmethod = "dm"\nbatch_real = 9\niterations = 8\n[methods.dc]\nlr_net = 0.5\n'
    )
    assert settings(["--config", "mine.toml"]) == (DistillConfig(iterations=8), DM(batch_real=9))
    loop, method = settings(["--config", "mine.toml", "--method", "dc", "--iterations", "7"])
    assert loop == DistillConfig(iterations=7)
    assert method == METHODS["dc"](lr_net=0.5)  # batch_real is that of dm: not taken over


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '[distill]\nmethod = "dm"\nsyn_steps = 3\n',
            ["distill.syn_steps is no setting of dm", "of mtt, dd, ld", "use method mtt"],
        ),
        (
            "[methods.dm]\nskip_loss = 2.0\n",
            ["methods.dm.skip_loss is no setting of dm", "of mtt", "leave it out"],
        ),
        (
            "[methods.mtt.ipc10]\nbptt_steps = 2\n",
            ["methods.mtt.ipc10.bptt_steps is no setting of mtt", "of dd, ld"],
        ),
        ('[distill]\nmethod = "dsaa"\n', ["unknown method 'dsaa'", "did you mean 'dsa'?"]),
        ("[distill]\nsyn_step = 3\n", ["distill.syn_step", "did you mean 'syn_steps'?"]),
        ('[distill]\noptimizer = "adma"\n', ["distill.optimizer", "'adma' is unknown"]),
        ("[distill]\noptimizer = 3\n", ["distill.optimizer", "3"]),
        (
            '[distill.schedule]\nname = "cosine"\nstart = 1.0\n',
            ["distill.schedule", "cosine has no option 'start'", "end"],
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_the_file(
    mistake: Mistake, text: str, words: list[str]
) -> None:
    Path("mine.toml").write_text(text)
    said = mistake(["distill", "--config", "mine.toml"])
    assert [word for word in ["mine.toml: ", *words] if word not in said] == [], said


# -- optimizers and schedules --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "optimizer", "schedule"),
    [
        ("", None, None),
        ('optimizer = "adam"', Adam(), None),
        ('optimizer = "adam(betas=(0.5, 0.9))"', Adam(betas=(0.5, 0.9)), None),
        ('optimizer = {name = "adam", betas = [0.5, 0.9]}', Adam(betas=(0.5, 0.9)), None),
        (
            'optimizer = "AdamW(weight_decay=0.1)"',
            TorchOptimizer("AdamW", (("weight_decay", 0.1),)),
            None,
        ),
        ('schedule = "decay(to=0.5, at=0.75)"', None, Decay(to=0.5, at=0.75)),
        ('schedule = {name = "cosine", end = 0.25}', None, Cosine(end=0.25)),
    ],
)
def test_an_optimizer_in_a_file(here: Path, text: str, optimizer: object, schedule: object) -> None:
    Path("mine.toml").write_text(f"[distill]\n{text}\n")
    config = load_recipe("mine.toml").distill
    assert (config.optimizer, config.schedule) == (optimizer, schedule or DistillConfig().schedule)
    assert settings(["--config", "mine.toml"])[0] == config


def test_adam_on_the_command_line(here: Path) -> None:
    words = f"{DISTILL} {tiny.DISTILL_WORDS} --experts {tiny.library().path} --out run".split()
    words += ["--optimizer", "adam(betas=(0.5, 0.9))", "--schedule", "cosine"]
    assert cli.main(words) == 0
    written = read_result("run")["settings"]["distill"]
    assert written["optimizer"] == "adam(betas=(0.5, 0.9))"
    assert written["schedule"] == "cosine"
    assert cli.main([*words[:-4], "--out", "plain"]) == 0
    adam, plain = (SyntheticSet.load(Path(name) / "last") for name in ("run", "plain"))
    assert not torch.equal(adam.images, plain.images)
    assert adam.info["settings"]["optimizer"] == "adam(betas=(0.5, 0.9))"


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--optimizer", "adma", ["'adma' is unknown", "adam"]),
        ("--optimizer", "adam(beta=0.5)", ["adam has no option 'beta'", "betas"]),
        ("--optimizer", "sgd(momentum=1.5)", ["momentum is 1.5", "below 1"]),
        ("--optimizer", "adam(0.5)", ["'adam(0.5)' cannot be read", "key=1.0"]),
        ("--optimizer", "AdamW(lr=1)", ["lr"]),
        ("--schedule", "cosin", ["'cosin' is unknown", "did you mean 'cosine'?"]),
        ("--schedule", "cosine(end=2)", ["end is 2.0", "at least 0 and at most 1"]),
        ("--schedule", "cosine(end='x')", ["end", " is 'x'; it must be"]),
        ("--optimizer", "adam(betas=0.9)", ["betas", " is 0.9; it must be"]),
    ],
)
def test_an_optimizer_that_cannot_be(
    mistake: Mistake, flag: str, value: str, words: list[str]
) -> None:
    said = mistake(["distill", flag, value])
    assert [word for word in [flag, *words] if word not in said] == [], said


# -- a method of one's own -----------------------------------------------------------------------

OWN = '''
import dataclasses

import torch

from trajmatch.methods import Estimate, Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mean(Method):
    """The squared distance of class means in pixels."""

    name = "mean-of-mine"
    title = "means of my own"
    objective = "squared distance of class means"

    lr_img: float = 0.1
    batch_mean: int = 16
    """Real images of each class."""

    def estimate(self, problem, parameters, iteration):
        gradient, losses = torch.zeros_like(parameters.images), []
        for label in range(problem.spec.classes):
            draw = problem.stream("mean", iteration, label)
            places = (parameters.classes == label).nonzero().flatten()
            real = problem.of_class(label, self.batch_mean, draw).mean(0)
            gap = parameters.images[places].mean(0) - real
            gradient[places] = 2 * gap / len(places)
            losses.append(gap.square().sum())
        return Estimate(torch.stack(losses).sum(), gradient)


class Plain(Mean):
    pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nameless(Method):
    def estimate(self, problem, parameters, iteration): ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unfinished(Method):
    name, title, objective = "unfinished", "unfinished", "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taken(Mean):
    name = "dm"


NUMBER = 3
'''
MODULE = "a_module_of_mine"


@pytest.fixture
def own(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The path of a method in a file in the current folder; afterwards nobody knows it."""
    (here / f"{MODULE}.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))
    yield f"{MODULE}:Mean"
    sys.modules.pop(MODULE, None)


def test_a_method_of_ones_own_is_distilled_with_continued_and_drawn(
    own: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = f"{DISTILL} {tiny.NETWORK_WORDS} {LOOP_WORDS} --method {own} --batch-mean 8 --out run"
    assert cli.main(words.split()) == 0
    result = read_result("run")
    assert [score["method"] for score in result["scores"]] == ["mean-of-mine", "random"]
    distill = result["settings"]["distill"]
    assert (distill["method"], distill["batch_mean"]) == ("mean-of-mine", 8)
    assert "syn_steps" not in distill

    shutil.copytree("run", "whole")
    assert cli.main([*words.replace("run", "whole").split(), "--iterations", "6"]) == 0
    assert "continuing after iteration 4 of 6" in capsys.readouterr().out
    longer = words.replace("--out run", "--out long --iterations 6")
    assert cli.main(longer.split()) == 0
    one, other = (SyntheticSet.load(Path(name) / "last") for name in ("whole", "long"))
    assert torch.equal(one.images, other.images)

    pytest.importorskip("jinja2")
    monkeypatch.setattr(METHODS, "_entries", {"mtt": MTT})  # as in a process of its own
    assert cli.main(["report", "run"]) == 0
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert "means of my own" in page


def test_a_method_of_ones_own_has_its_own_flags(
    own: str, mistake: Mistake, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["distill", "--method", own, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--batch-mean" in shown
    assert "Real images of each class." in shown
    assert "--syn-steps" not in shown
    said = mistake(["distill", "--method", own, "--syn-steps", "3"])
    assert "--syn-steps is a setting of mtt" in said


def test_a_method_of_ones_own_in_a_file(own: str) -> None:
    Path("mine.toml").write_text(
        f'[distill]\nmethod = "{own}"\nbatch_mean = 5\niterations = 3\n[methods.big]\n'
        f'method = "{own}"\nbatch_mean = 50\n'
    )
    recipe = load_recipe("mine.toml")
    assert (recipe.method.name, recipe.method.batch_mean) == ("mean-of-mine", 5)
    assert recipe.by("big").method.batch_mean == 50
    assert recipe.by("mean-of-mine") == recipe == recipe.by(own)
    words = f"{DISTILL} {tiny.NETWORK_WORDS} --config mine.toml --out run"
    assert cli.main(words.split()) == 0
    assert read_result("run")["settings"]["distill"]["batch_mean"] == 5
    assert read_result("run")["last_iteration"] == 3


def test_a_method_of_ones_own_is_compared(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jinja2")
    Path("plain.toml").write_text('name = "plain"\n')
    words = (
        f"compare --methods random,{own} --experts {tiny.library().path} --out compared "
        f"--config plain.toml --device cpu {tiny.SCORE_WORDS} --distill.iterations 2"
    ).split()
    assert cli.main(words) == 0
    cells = read_json(Path("compared/result.json"))["cells"]
    assert [(cell["variant"], cell["at"]["method"]) for cell in cells] == [
        ("random-ipc1", "random"),
        ("mean-of-mine-ipc1", "mean-of-mine"),
    ]
    assert "| mean-of-mine |" in capsys.readouterr().out
    assert cli.main(["report", "compared"]) == 0
    assert "mean-of-mine" in Path("compared/report.html").read_text(encoding="utf-8")
    assert cli.main(["report", "compared/mean-of-mine-ipc1/seed0"]) == 0
    page = Path("compared/mean-of-mine-ipc1/seed0/report.html").read_text(encoding="utf-8")
    assert "means of my own" in page


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (f"{MODULE}:Meen", ["cannot load method", "Meen"]),
        ("no_module_of_mine:Mean", ["cannot load method", "no_module_of_mine"]),
        (f"{MODULE}:NUMBER", ["not a method"]),
        (f"{MODULE}:Plain", ["is not a dataclass", "@dataclass(frozen=True, kw_only=True)"]),
        (f"{MODULE}:Nameless", ["has no name"]),
        (f"{MODULE}:Unfinished", ["does not define estimate"]),
        (f"{MODULE}:Taken", ["has the name 'dm'", "another method's"]),
    ],
)
def test_what_is_no_method_of_ones_own(
    own: str, mistake: Mistake, path: str, words: list[str]
) -> None:
    for line in (["distill"], ["compare", "--ipc", "1"]):
        flag = "--methods" if line[0] == "compare" else "--method"
        said = mistake([*line, flag, path])
        assert [word for word in words if word not in said] == [], said


def test_a_method_is_found_by_its_path_and_its_name(own: str) -> None:
    kind = method_class(own)
    assert METHODS["mean-of-mine"] is kind is method_class("mean-of-mine")
    assert dataclasses.is_dataclass(kind)
    with pytest.raises(SettingError, match="unknown method 'mean-of-yours'; did you mean 'mean-of"):
        method_class("mean-of-yours")

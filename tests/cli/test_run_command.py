"""`trajmatch run`: a recipe from its name to its page, whatever is changed of it on the line."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny
from trajmatch.cli import distill
from trajmatch.cli import run as command
from trajmatch.cli.flags import parse
from trajmatch.cli.frame import Command, dispatch
from trajmatch.config import NetworkConfig, PublishedConfig
from trajmatch.config.recipes import recipe_names
from trajmatch.methods import DM, METHODS
from trajmatch.networks import NETWORKS
from trajmatch.pipeline.cost import estimate as cost
from trajmatch.pipeline.cost.iteration import Iteration
from trajmatch.pipeline.cost.measure import Speeds
from trajmatch.pipeline.recipe import Recipe, load_recipe
from trajmatch.storage import read_log, read_result

COMMANDS = {
    "run": Command(command.Flags, command.run, "run it", "trajmatch run cifar10-ipc1 --dry-run")
}
EXPERT_WORDS = " ".join(
    f"--experts.{word[2:]}" if word.startswith("--") else word
    for word in tiny.EXPERT_WORDS.removesuffix(" --workers 1").split()
)
LOOP_WORDS = "--iterations 4 --eval-every 2 --checkpoint-every 1"
SMALL = (
    f"{tiny.NETWORK_WORDS} {EXPERT_WORDS} {LOOP_WORDS} {tiny.SCORE_WORDS} --workers 1 --device cpu"
)
TINY = f"{SMALL} {tiny.DISTILL_WORDS}"


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each test in a folder of its own, without data, and without waiting for the disk."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.delenv("TRAJMATCH_DATA", raising=False)
    monkeypatch.setenv("TRAJMATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def known_speeds(recipe: Recipe, *given: object) -> Speeds:
    """In the place of measuring, which takes seconds to minutes."""
    name = recipe.method.name
    words = f"{name}'s own, timed on noise, 25 % of one"
    return Speeds(image=1e-3, evaluation=0.01, iteration=Iteration(0.5, 10**6, False, words))


@pytest.fixture(autouse=True)
def _known_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    known = functools.partial(cost.estimate, measure=known_speeds)
    monkeypatch.setattr(cost, "estimate", known)


Line = Callable[[str], list[str]]


@pytest.fixture
def succeed(capsys: pytest.CaptureFixture[str]) -> Line:
    """Carry out a line; give what it said, line by line."""

    def carry_out(line: str) -> list[str]:
        capsys.readouterr()
        assert dispatch(COMMANDS, line.split()) == 0, capsys.readouterr().err
        said = capsys.readouterr().out.splitlines()
        # Without the counts of each class, which test_data_lines.py tests.
        return [line for line in said if not line.endswith("validation/test)")]

    return carry_out


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Carry out a line that is refused; give the one line on stderr."""

    def refused(line: str) -> str:
        capsys.readouterr()
        assert dispatch(COMMANDS, line.split()) == 2
        said = capsys.readouterr().err
        assert said.startswith("trajmatch run: ")
        assert said.count("\n") == 1
        return said

    return refused


def settings(line: str) -> Recipe:
    """What a line would run."""
    flags = parse(command.Flags, line.split(), program="trajmatch run", description="")
    assert flags is not None
    return command.with_flags(load_recipe(flags.recipe), flags)


# -- what is run ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_alone_is_run_as_it_is(name: str) -> None:
    assert settings(name) == load_recipe(name)
    assert settings(f"--seed 3 {name}").seed == 3


def test_the_line_wins_over_the_recipe() -> None:
    recipe = load_recipe("cifar10-ipc1")
    run = settings(
        "--dry-run --lr-img 300 cifar10-ipc1 --experts.epochs=4 --iterations 9 --evaluate.n 2 "
        "--depth 2 --data photos --no-soft-labels"
    )
    assert (run.method.lr_img, run.distill.iterations, run.experts.epochs) == (300, 9, 4)
    assert (run.evaluate.n, run.network.depth, run.data.data) == (2, 2, "photos")
    # All else is the recipe's.
    assert (run.method.syn_steps, run.experts.experts) == (50, 200)
    assert (run.network.width, run.data.size, run.data.whitening) == (128, 32, "zca")
    assert run.name == recipe.name


@pytest.mark.parametrize("name", NETWORKS)
def test_another_network_than_the_recipes_has_its_own_defaults(name: str, succeed: Line) -> None:
    """The recipe's depth and width are those of its ConvNet."""
    recipe = load_recipe("cifar10-ipc1").network
    asked = settings(f"cifar10-ipc1 --network={name} --norm none").network
    options = {"depth": 3, "width": 128} if name == recipe.network else {}
    assert asked == NetworkConfig(network=name, norm="none", **options)
    succeed(f"run cifar10-ipc1 --network {name} --dry-run --device cpu")


def test_what_is_published_holds_for_the_recipe_alone() -> None:
    published = load_recipe("cifar10-ipc1").published
    assert published.accuracy == 46.3
    assert settings("cifar10-ipc1 --data-root somewhere --seed 7").published == published
    assert settings("cifar10-ipc1 --iterations 10").published == PublishedConfig()
    assert settings("cifar10-ipc1 --data photos").published == PublishedConfig()


def test_the_folder_is_named_after_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[distill]\niterations = 3\n")
    for words, folder in (
        ("cifar10-ipc1", "cifar10-ipc1"),
        ("cifar10-ipc1 --method mtt", "cifar10-ipc1"),
        ("cifar10-ipc1 --method dm", "cifar10-ipc1-dm"),
        (f"{tmp_path}/mine.toml", "mine"),
    ):
        flags = parse(command.Flags, words.split(), program="trajmatch run", description="")
        assert flags.out == Path("runs") / folder
    flags = parse(command.Flags, ["mine.toml", "--out", "x"], program="", description="")
    assert flags.out == Path("x")


def test_a_method_takes_its_table_of_the_recipe_and_the_line_wins() -> None:
    recipe = load_recipe("digits-ipc1")
    assert settings("digits-ipc1 --method mtt") == recipe
    run = settings("digits-ipc1 --method=dm")
    assert (run.method, run.distill) == (recipe.by("dm").method, recipe.by("dm").distill)
    assert (run.method, run.distill.iterations) == (DM(lr_img=1.0), 200)
    run = settings("--method dm digits-ipc1 --lr-img 3")
    assert (run.method, run.distill.iterations) == (DM(lr_img=3.0), 200)
    assert settings("cifar10-ipc1 --method dm").published == PublishedConfig()


def test_distill_takes_a_methods_table_as_well(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[distill]\nipc = 3\n[methods.dm]\nlr_img = 4.5\n")
    for words, lr_img in (("--method dm", 4.5), ("--method dm --lr-img 6", 6.0), ("", 0.03)):
        line = f"--config mine.toml {words}".split()
        flags = parse(distill.Flags, line, program="trajmatch distill", description="")
        assert flags is not None
        assert (flags.distill.ipc, flags.settings.lr_img) == (3, lr_img)


def test_a_methods_table_for_a_number_of_images(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[methods.dm.ipc10]\nlr_img = 4.5\n")
    for words, lr_img in (("--ipc 10", 4.5), ("--ipc 10 --lr-img 6", 6.0), ("--ipc 2", 1.0)):
        line = f"--config mine.toml --method dm {words}".split()
        flags = parse(distill.Flags, line, program="trajmatch distill", description="")
        assert flags is not None
        assert (str(flags.distill.ipc), flags.settings.lr_img) == (words.split()[1], lr_img)


def test_without_a_walk_beside_them_few_experts_are_trained() -> None:
    """Herding and the experts' accuracy need as many as networks judge, not mtt's library."""
    recipe = load_recipe("cifar10-ipc1")
    assert recipe.experts.experts > recipe.evaluate.n
    run = settings("cifar10-ipc1 --method dm")
    assert run.experts == dataclasses.replace(recipe.experts, experts=recipe.evaluate.n)
    assert settings("cifar10-ipc1 --method dm --experts.experts 9").experts.experts == 9
    assert settings("cifar10-ipc1 --method mtt").experts == recipe.experts


def test_a_table_may_give_other_settings_of_a_method_a_name(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[methods.slow]\nmethod = "dm"\niterations = 77\n')
    run = settings("mine.toml --method slow --ipc 2")
    assert (run.method, run.distill.iterations, run.distill.ipc) == (DM(), 77, 2)


# -- what it costs -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_says_what_it_costs(name: str, succeed: Line, tmp_path: Path) -> None:
    said = succeed(f"run {name} --dry-run --data-root {tmp_path} --out out --device cpu")
    if name == "digits-ipc1":
        assert said[0].startswith("digits: 1295 training")
    else:
        assert said[0].startswith("data not found: ")
        assert load_recipe(name).data.data in said[0]
    assert said[1].startswith("estimated cost on this machine (cpu)")
    assert [line.split()[0] for line in said[2:]] == ["experts", "distillation", "evaluation", "in"]
    recipe = load_recipe(name)
    assert f"{recipe.experts.experts} experts x {recipe.experts.epochs} epochs" in said[2]
    assert f"{recipe.distill.iterations:,} iterations" in said[3]
    assert sorted(path.name for path in tmp_path.iterdir()) in ([], ["cache"])


@pytest.mark.parametrize("there", [True, False], ids=["data", "no data"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--expert-epochs 16", "segments reach epoch 16"),
        ("--batch-syn 11", "batch_syn is 11"),
        ("--depth 9", "depth"),
        ("--augment colr", "did you mean 'color'?"),
        ("--evaluate.augment colr", "did you mean 'color'?"),
        ("--texture --whitening zca", "--texture learns"),
        ("--method kipp", "unknown method 'kipp'; did you mean 'kip'"),
        ("--method dm --texture", "--texture is a setting of mtt"),
        ("--method dm --soft-labels", "--soft-labels is a setting of mtt, dd, kip"),
        ("--method dc --ipc 3", "dc has published loops for"),
    ],
)
def test_a_dry_run_refuses_what_a_run_would(
    there: bool, words: str, said: str, mistake: Callable[[str], str]
) -> None:
    data = "digits" if there else "mnist --data-root ."
    line = f"run digits-ipc1 --data {data} {words} --device cpu"
    for dry in ("", " --dry-run") if there else (" --dry-run",):
        assert said in mistake(line + dry)
        assert not Path("runs").exists()


def test_a_dry_run_refuses_what_is_known_of_the_data_alone(mistake: Callable[[str], str]) -> None:
    assert "unknown data 'photos'" in mistake("run cifar10-ipc1 --data photos --dry-run")
    assert "training images" in mistake("run digits-ipc1 --ipc 1000 --dry-run")
    assert "canvas is 4" in mistake("run digits-ipc1 --texture --canvas 4 --dry-run")


def test_a_method_is_told_of_and_its_own_iteration_counted(succeed: Line) -> None:
    told = "dm matches no experts; 5 are trained for herding and to compare with"
    said = succeed("run digits-ipc1 --method dm --dry-run --device cpu")
    assert said[0] == told
    assert "200 iterations, 0.5 s each; dm's own, timed on noise, 25 % of one" in said[4]
    said = succeed("run cifar10-ipc1 --method dm --dry-run --device cpu --data-root .")
    assert said[0].startswith(
        "the recipe has no [methods.dm]: what is not given here has dm's own defaults"
    )
    assert said[1] == told
    said = succeed("run digits-ipc1 --method mtt --dry-run --device cpu")
    assert said[0].startswith("digits: ")


def test_a_run_that_cannot_fit_on_the_disk_is_refused_and_a_dry_run_warns(
    succeed: Line, mistake: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"run digits-ipc1 {TINY} --out out"
    monkeypatch.setattr("shutil.disk_usage", lambda path: (10**9, 10**9 - 1000, 1000))
    assert re.match(
        r"  warning: the experts need 0\.\d+ MB of disk and 0\.001 MB are free in out$",
        succeed(f"{line} --dry-run")[-1],
    )
    said = mistake(line)
    assert "of disk and 0.001 MB are free in out; give another --out or fewer --experts." in said
    assert not Path("out").exists()


# -- running -------------------------------------------------------------------------------------


def test_a_run_goes_all_the_way_and_continues(succeed: Line, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    line = f"run digits-ipc1 {TINY} --out out --seed 2"
    said = succeed(line)
    assert said[0].startswith("digits: ")
    assert said[1].startswith("estimated cost on this machine (cpu)")
    assert said[-1].endswith("the page: out/report.html")
    assert not [one for one in said if one.startswith("published")]
    out = tmp_path / "out"
    result = read_result(out)
    assert [score["method"] for score in result["scores"]] == [
        "mtt", "random", "herding", "experts",
    ]  # fmt: skip
    assert (result["command"], result["seed"]) == ("run", 2)
    assert result["settings"]["name"] == "digits-ipc1"
    assert result["settings"]["distill"]["iterations"] == result["last_iteration"] == 4
    assert result["settings"]["distill"]["lr_img"] == 10.0
    assert result["settings"]["data"]["whitening"] == "normalize"
    assert "<html" in (out / "report.html").read_text()

    # A dry run in between counts what is left and changes nothing.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    said = succeed(f"{line} --iterations 6 --dry-run")
    assert "what is left (2 experts and 4 iterations are there)" in said[1]
    assert "0 experts" in said[2]
    assert "2 iterations" in said[3]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before

    succeed(f"{line} --iterations 6")
    assert read_result(out)["last_iteration"] == 6
    experts = [path for path in before if path.name.startswith("expert_")]
    assert [path.stat().st_mtime_ns for path in experts] == [before[path] for path in experts]


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=[] if name == "dm" else pytest.mark.slow)
        for name in sorted(set(METHODS) - {"mtt"})
    ],
)
def test_every_method_goes_all_the_way(method: str, succeed: Line, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    values = {"syn-steps": 3, "bptt-steps": "none", "batch-real": 16}
    own = {field.name.replace("_", "-") for field in dataclasses.fields(METHODS[method])}
    words = " ".join(f"--{name} {value}" for name, value in values.items() if name in own)
    line = f"run digits-ipc1 {SMALL} --method {method} {words} --out out"
    succeed(line)
    out = tmp_path / "out"
    result = read_result(out)
    assert [score["method"] for score in result["scores"]] == [
        method, "random", "herding", "experts",
    ]  # fmt: skip
    assert (result["last_iteration"], result["library"]["experts"]) == (4, 2)
    page = (out / "report.html").read_text()
    learns = METHODS[method].learns_step_size
    assert ("distilled.step_size" in page) == learns
    iterations = [entry for entry in read_log(out / "log.jsonl") if "loss" in entry]
    assert [("step_size" in entry) == learns for entry in iterations] == [True] * 4


@pytest.mark.slow
def test_nothing_is_left_of_a_finished_run(succeed: Line, tmp_path: Path) -> None:
    line = f"run digits-ipc1 {TINY} --out out"
    succeed(line)
    nothing = "nothing is left to do: 2 experts, 4 iterations and the test are there"
    for words in ("", " --evaluate.workers 2", " --data-root .", " --evaluate.n 1"):
        assert succeed(f"{line}{words} --dry-run")[1:] == [nothing]
    assert nothing in succeed(line)
    # Five networks for each of three sets, of which two are there.
    assert "9 networks" in succeed(f"{line} --evaluate.n 5 --dry-run")[4]
    assert "6 networks" in succeed(f"{line} --evaluate.epochs 3 --dry-run")[4]
    assert "6 networks" in succeed(f"{line} --lr-img 3 --dry-run")[4]
    assert "8 networks" in succeed(f"{line} --iterations 5 --dry-run")[4]
    (tmp_path / "out" / "result.json").unlink()
    assert "6 networks" in succeed(f"{line} --dry-run")[4]


@pytest.mark.parametrize("splits", [(("train", 6), ("test", 3)), (("", 8),)], ids=["", "plain"])
def test_any_recipe_runs_on_data_of_ones_own(
    splits: tuple[tuple[str, int], ...], succeed: Line, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0)
    for split, count in splits:
        for kind in ("cat", "dog"):
            folder = tmp_path / "photos" / split / kind
            folder.mkdir(parents=True)
            for number in range(count):
                picture = pixels.integers(0, 256, (12, 14, 3), dtype=np.uint8)
                Image.fromarray(picture).save(folder / f"{number}.png")
    words = TINY.replace("--batch 128", "--batch 4")
    said = succeed(f"run cifar10-ipc1 --data photos --size 8 {words} --out out")
    tested = 6 if len(splits) == 2 else 4
    counts = f"photos: 10 training, 2 validation, {tested} test images of 8 pixels, 2 classes"
    assert said[0] == counts
    result = read_result(tmp_path / "out")
    if len(splits) == 1:
        assert said[1].startswith(
            "  no test/ folder: a fifth of the images of each class set aside"
        )
        assert result["data"]["note"] == said[1].strip()
        assert said[1].strip() in (tmp_path / "out" / "report.html").read_text()
    else:
        assert said[2].startswith("estimated cost")  # after where images are cached
    assert result["data"]["classes"] == ["cat", "dog"]
    assert result["settings"]["data"]["whitening"] == "zca"
    assert result["settings"]["published"]["accuracy"] is None


def test_a_file_of_ones_own_is_run(succeed: Line, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\nseed = 5\n[published]\naccuracy = 12.5\nsource = "somewhere"\n'
        "[network]\nwidth = 4\ndepth = 2\n"
        "[experts]\nexperts = 1\nepochs = 2\nbatch = 256\n"
        "[distill]\niterations = 1\nsyn_steps = 2\nexpert_epochs = 1\nmax_start_epoch = 2\n"
        "[evaluate]\nn = 1\nepochs = 1\n"
    )
    said = succeed("run mine.toml --workers 1 --device cpu")
    result = read_result(tmp_path / "runs" / "mine")
    assert (result["settings"]["name"], result["seed"], result["last_iteration"]) == ("mine", 5, 1)
    assert "published for these settings: 12.5 % (somewhere)" in said


@pytest.mark.slow
def test_without_what_draws_the_page_the_work_is_not_lost(
    succeed: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trajmatch.errors import MissingExtraError

    def no_page(*given: object) -> Path:
        raise MissingExtraError("the page", "report")

    monkeypatch.setattr("trajmatch.report.write_report", no_page)
    said = succeed(f"run digits-ipc1 {TINY} --out out --iterations 1")
    assert "no page: the page needs an optional dependency" in said[-1]
    assert "trajmatch report out" in said[-1]
    assert read_result(Path("out"))["last_iteration"] == 1


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run", ["neither a RECIPE nor --data"]),
        ("run --dry-run", ["neither a RECIPE nor --data"]),
        ("run cifar10-ipc3", ["unknown recipe 'cifar10-ipc3'", "did you mean"]),
        ("run absent.toml", ["cannot read settings from absent.toml"]),
        ("run cifar10-ipc1 --lr-imgs 3", ["unknown option --lr-imgs", "--lr-img?"]),
        ("run cifar10-ipc1 --epochs 3", ["unknown option --epochs", "epochs?"]),
        ("run cifar10-ipc1 cifar10-ipc10", ["'cifar10-ipc10' is one value too many"]),
        ("run cifar10-ipc1 --config mine.toml", ["--config is mine.toml", "run mine.toml"]),
        ("run cifar10-ipc1 --data-root .", ["no files of cifar10 under ."]),
        ("run digits-ipc1 --precision bf17", ["bf16"]),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    line: str, words: list[str], mistake: Callable[[str], str], tmp_path: Path
) -> None:
    said = mistake(line)
    assert [word for word in words if word not in said] == [], said
    assert not (tmp_path / "runs").exists()

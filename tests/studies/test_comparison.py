"""Methods side by side: which cells there are, whose settings, and the command."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from tests import tiny

from trajmatch.cli import compare, main
from trajmatch.cli.flags import parse
from trajmatch.cli.study import base_of
from trajmatch.config import DistillConfig, NetworkConfig, read_toml
from trajmatch.errors import SettingError
from trajmatch.evaluation import batch
from trajmatch.evaluation.ranking import augmentation_robust, label_robust
from trajmatch.methods import DM, METHODS, MTT
from trajmatch.methods.coresets import CORESETS
from trajmatch.pipeline.recipe import Recipe, load_recipe
from trajmatch.runtime.progress import SILENT
from trajmatch.runtime.resources import Resources
from trajmatch.storage.files import read_json
from trajmatch.studies import running
from trajmatch.studies.cell import Cell
from trajmatch.studies.comparison import comparison, known
from trajmatch.studies.scores import add_ranking
from trajmatch.studies.study import Study, Variant
from trajmatch.studies.table import quick

BASE = Recipe(
    distill=tiny.DISTILL,
    method=tiny.METHOD,
    methods={"mtt": {"lr_img": 3.0}, "mtt-soft": {"method": "mtt", "soft_labels": True}},
)


def test_a_cell_for_each_method_and_number_of_images() -> None:
    variants = comparison(["random", "mtt", "mtt-soft"], [1, 2]).variants(BASE)
    assert [(v.name, v.source, v.config.distill.ipc) for v in variants] == [
        ("random-ipc1", "random", 1),
        ("mtt-ipc1", "mtt", 1),
        ("mtt-soft-ipc1", "mtt", 1),
        ("random-ipc2", "random", 2),
        ("mtt-ipc2", "mtt", 2),
        ("mtt-soft-ipc2", "mtt", 2),
    ]
    assert variants[4].at == {"ipc": 2, "method": "mtt"}
    plain, soft = (variants[i].config for i in (1, 2))
    assert plain.method == dataclasses.replace(tiny.METHOD, lr_img=3.0)
    assert soft.method == dataclasses.replace(tiny.METHOD, soft_labels=True)
    assert plain.distill == soft.distill == tiny.DISTILL


def test_everything_there_is_can_be_compared() -> None:
    assert known(BASE) == [*CORESETS, *METHODS, "mtt-soft"]
    variants = comparison(known(BASE), [1]).variants(BASE)
    assert len({variant.name for variant in variants}) == len(known(BASE))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_told_of(name: str) -> None:
    assert name.upper() in METHODS[name].title
    assert METHODS[name].objective
    assert METHODS[name].name == name


@pytest.mark.parametrize(
    ("methods", "ipcs", "said"),
    [
        (["randon"], [1], "unknown method 'randon'; did you mean 'random'"),
        ([], [1], "nothing to compare"),
        (["mtt"], [], "nothing to compare"),
        (["mtt", "mtt"], [1], "method mtt stands twice"),
        (["mtt"], [1, 10, 1], "ipc 1 stands twice"),
        (["mtt"], [0, 1], "ipc is 0"),
    ],
)
def test_what_cannot_be_compared(methods: list[str], ipcs: list[int], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        comparison(methods, ipcs).variants(BASE)


def test_a_table_of_an_unknown_method() -> None:
    with pytest.raises(SettingError, match=r"methods\.own: unknown method 'own'.*method = "):
        dataclasses.replace(BASE, methods={"own": {"lr_img": 3.0}})
    with pytest.raises(SettingError, match=r"methods\.own: unknown method 'mt'; did you mean"):
        dataclasses.replace(BASE, methods={"own": {"method": "mt"}})


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        (
            {"dm": {"lr_imgs": 1.0}},
            r"methods\.dm\.lr_imgs is no setting of dm; did you mean 'lr_img'",
        ),
        ({"dm": {"lr_img": -1.0}}, "lr_img is -1.0"),
        (
            {"dm": {"syn_steps": 3}},
            r"methods\.dm\.syn_steps is no setting of dm; it is a setting of mtt, dd, ld",
        ),
        ({"dm": 3}, "'methods.dm' is a table"),
        (3, "'methods' is a table"),
    ],
)
def test_tables_of_methods_are_checked_when_they_are_read(tables: object, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Recipe.from_dict({"methods": tables})


def test_tables_of_methods_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("[distill]\niterations = 7\n[methods.dm]\nlr_img = 1\n", encoding="utf-8")
    found = read_toml(path, Recipe.from_dict)
    dm, mtt = found.by("dm"), found.by("mtt", ipc=3)
    assert (dm.distill, dm.method) == (DistillConfig(iterations=7), DM(lr_img=1.0))
    assert (mtt.distill, mtt.method) == (DistillConfig(iterations=7, ipc=3), MTT())


def test_another_method_begins_with_its_own_defaults() -> None:
    """Settings of the outer loop carry over; those of the method only to the same method."""
    changed = BASE.by("dm")
    assert (changed.distill, changed.method) == (tiny.DISTILL, DM())
    assert BASE.by("mtt").method == dataclasses.replace(tiny.METHOD, lr_img=3.0)


def test_settings_of_a_method_for_a_number_of_images(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(
        "[distill]\niterations = 7\n[methods.dm]\nlr_img = 1\n[methods.dm.ipc10]\nlr_img = 5\n",
        encoding="utf-8",
    )
    found = read_toml(path, Recipe.from_dict)
    ten, two = found.by("dm", ipc=10), found.by("dm", ipc=2)
    assert (ten.distill, ten.method) == (DistillConfig(iterations=7, ipc=10), DM(lr_img=5.0))
    assert (two.distill, two.method) == (DistillConfig(iterations=7, ipc=2), DM(lr_img=1.0))
    path.write_text("[methods.dm.ipc10]\nlr_imgs = 5\n", encoding="utf-8")
    with pytest.raises(SettingError, match=r"own\.toml: methods\.dm\.ipc10\.lr_imgs is no setting"):
        read_toml(path, Recipe.from_dict)
    path.write_text("[methods.dm]\nipc10 = 5\n", encoding="utf-8")
    with pytest.raises(SettingError, match=r"'methods\.dm\.ipc10' is a table"):
        read_toml(path, Recipe.from_dict)


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice: the second finds every cell where the first left it."""
    out, plain = tmp_path / "compared", tmp_path / "plain.toml"
    plain.write_text('name = "plain"\n', encoding="utf-8")
    words = (
        f"compare --methods random,mtt --ipc 1,2 --networks mlp --experts {tiny.library().path} "
        f"--out {out} --config {plain} --device cpu {tiny.SCORE_WORDS} "
        "--distill.iterations 4 --distill.eval-every 2 --distill.checkpoint-every 1 "
        "--settings.syn-steps 3 --settings.expert-epochs 1 --settings.max-start-epoch 2 "
        "--settings.lr-img 10 --settings.lr-lr 1e-6 --distill.optimizer sgd --distill.ema 0"
    ).split()
    texts = []
    for _ in range(2):
        assert main(words) == 0
        result = read_json(out / "result.json")
        texts.append((out / "report.html").read_text(encoding="utf-8"))
    cells = result["cells"]
    assert [(cell["at"]["method"], cell["at"]["ipc"]) for cell in cells] == [
        ("random", 1), ("mtt", 1), ("random", 2), ("mtt", 2),
    ]  # fmt: skip
    assert all(cell["n"] == 2 and cell["making_seconds"] >= 0 for cell in cells)
    assert [cell["makes"] for cell in cells] == [False, True, False, True]
    assert all(cell["making_bytes"] is None or cell["making_bytes"] >= 0 for cell in cells)
    for cell in cells:
        scores, found = cell["scores"], cell["ranking"]
        assert scores["hard"]["mean"] == cell["mean"]
        assert ", no augmentation" in scores["plain"]["protocol"]
        assert [score["model"][:3] for score in cell["networks"]] == ["MLP"]
        assert cell["own"] == "hard"
        assert 0 < found["lrs"] < found["ars"] < 100
        assert (scores["soft"] is not None) == (not cell["makes"])
        assert (out / cell["variant"] / "seed0" / "best" / "distilled.json").exists()
    random = cells[0]
    assert random["ranking"]["ars"] == pytest.approx(100 / (math.e + 1))
    assert random["scores"]["soft"]["values"] != random["scores"]["hard"]["values"]
    assert {cell["ipc"] for cell in cells} == {1, 2}
    table = capsys.readouterr().out
    assert "\n| random | " in table
    assert "\n| mtt | " in table
    assert "images per class" in texts[0]
    losses = [read_json(out / f"mtt-ipc{ipc}" / "seed0" / "cell.json") for ipc in (1, 2)]
    assert [one["key"]["distill"]["ipc"] for one in losses] == [1, 2]
    for text in texts:
        assert text.count('<g class="heat') == 4


def test_other_networks_are_known_before_anything_is_made() -> None:
    with pytest.raises(SettingError, match="unknown network 'resnet81'; did you mean 'resnet18'"):
        comparison(["mtt"], [1], [NetworkConfig(network="resnet81")])


def test_a_quick_look_makes_fewer_iterations_by_every_method() -> None:
    tables = {"dm": {"iterations": 200, "lr_img": 1.0, "ipc10": {"iterations": 40, "ema": 0.5}}}
    base = dataclasses.replace(BASE, methods=tables)
    cut = quick(base)
    assert cut.by("dm").distill.iterations == 50
    ten = cut.by("dm", ipc=10).distill
    assert (ten.iterations, ten.ema) == (10, 0.5)
    assert cut.by("mtt").distill.iterations == max(1, tiny.DISTILL.iterations // 4)
    flags = parse(compare.Flags, ["--quick"], program="trajmatch compare", description="")
    assert flags is not None
    assert base_of(flags).methods == quick(load_recipe("digits-ipc1")).methods


# -- the scores of DD-Ranking --------------------------------------------------------------------


def test_scores_of_a_set_by_hand() -> None:
    """exp(0) is what random images that recover all of the data come to."""
    at = 100 * (1 - math.exp(-1)) / (math.e - math.exp(-1))
    assert label_robust(full=90.0, hard=90.0, own=20.0, random=20.0) == pytest.approx(at)
    assert augmentation_robust(own=30.0, random=30.0, plain=7.0, plain_random=7.0) == pytest.approx(
        at
    )
    # 0.5 * 0.30 - 0.5 * 0.40 = -0.05
    low = 100 * (math.exp(-0.05) - math.exp(-1)) / (math.e - math.exp(-1))
    assert label_robust(full=90.0, hard=50.0, own=60.0, random=30.0) == pytest.approx(low)
    # 0.5 * 0.20 + 0.5 * 0.10 = 0.15
    high = 100 * (math.exp(0.15) - math.exp(-1)) / (math.e - math.exp(-1))
    found = augmentation_robust(own=50.0, random=30.0, plain=40.0, plain_random=30.0)
    assert found == pytest.approx(high)


def test_scores_stand_beside_random_images_of_the_same_seed() -> None:
    """A set with soft labels stands beside random images with soft labels."""

    def cell(method: str, seed: int, own: str, **means: float) -> dict[str, Any]:
        scores = {name.replace("_", " "): {"mean": mean} for name, mean in means.items()}
        return {"at": {"ipc": 1, "method": method}, "seed": seed, "own": own, "scores": scores}

    random = cell("random", 0, "hard", hard=30.0, soft=50.0, plain=20.0, plain_soft=35.0)
    hard = cell("mtt", 0, "hard", hard=60.0, plain=45.0)
    soft = cell("ld", 0, "soft", hard=55.0, soft=70.0, plain=40.0)
    alone = cell("mtt", 1, "hard", hard=60.0, plain=45.0)
    failed = {"at": {"ipc": 1, "method": "dm"}, "seed": 0, "error": "diverged"}
    library = tiny.library()
    add_ranking([random, hard, soft, alone, failed], library)
    full = library.summary()["accuracy_mean"]
    assert hard["ranking"] == {
        "lrs": label_robust(full=full, hard=60.0, own=60.0, random=30.0),
        "ars": augmentation_robust(own=60.0, random=30.0, plain=45.0, plain_random=20.0),
    }
    assert soft["ranking"] == {
        "lrs": label_robust(full=full, hard=55.0, own=70.0, random=50.0),
        "ars": augmentation_robust(own=70.0, random=50.0, plain=40.0, plain_random=35.0),
    }
    assert alone["ranking"] is None
    assert "ranking" not in failed


# -- a sweep -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_of_several_settings_validation_chooses_the_one_that_is_tested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice; then another setting is better on validation images and takes the test."""
    pytest.importorskip("jinja2")
    looked_at: list[str] = []
    original = batch.split_of

    def spy(data: Any, name: str) -> Any:
        looked_at.append(name)
        return original(data, name)

    monkeypatch.setattr(batch, "split_of", spy)
    tables = "".join(
        f'[methods.{name}]\nmethod = "dm"\nlr_img = {rate}\nbatch_real = 8\n'
        for name, rate in (("low", 0.001), ("high", 1.0))
    )
    out, path = tmp_path / "out", tmp_path / "sweep.toml"
    path.write_text(tables, encoding="utf-8")
    words = (
        f"compare --methods random,low,high --experts {tiny.library().path} --out {out} "
        f"--config {path} --device cpu {tiny.SCORE_WORDS} --distill.iterations 2 "
        "--distill.eval-every 1"
    ).split()
    assert main(words) == 0
    # val: every set, and the chosen one once more; test: random in 4 ways and the chosen in 2
    assert (looked_at.count("val"), looked_at.count("test")) == (4, 6)
    result = read_json(out / "result.json")
    random, *settings = result["cells"]
    best = max(settings, key=lambda cell: cell["validated"]["mean"])
    (other,) = [cell for cell in settings if cell is not best]
    assert best["validated"]["split"] == random["validated"]["split"] == "val"
    assert best["scores"]["hard"]["split"] == best["split"] == "test"
    assert best["ranking"] is not None
    assert other.keys().isdisjoint({"scores", "mean", "values", "protocol", "error", "ranking"})
    assert other["making_seconds"] >= 0
    assert [score["split"] for score in result["scores"]] == ["test", "test"]
    (alone,) = read_json(out / other["variant"] / "seed0" / "result.json")["scores"]
    assert (alone["split"], alone["mean"]) == ("val", other["validated"]["mean"])
    table = capsys.readouterr().out
    (line,) = [one for one in table.splitlines() if one.startswith(f"| {other['at']['method']} |")]
    assert "| not tested |" in line
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "of several settings of one method, the one that was tested" in page
    assert "Highest on validation images" in page

    del looked_at[:]
    assert main(words) == 0
    assert looked_at == []
    cells = read_json(out / "result.json")["cells"]
    assert [{**cell, "making_seconds": 0} for cell in cells] == [
        {**cell, "making_seconds": 0} for cell in result["cells"]
    ]


def cells_of(study: Study, variants: list[Variant]) -> list[Cell]:
    return [Cell(study, one, 0, Path(), tiny.digits(), tiny.library()) for one in variants]


def test_the_choice_is_by_the_mean_over_seeds() -> None:
    variants = comparison(["mtt", "mtt-soft", "dm", "random"], [1]).variants(BASE)
    cells = cells_of(comparison(["mtt"], [1]), variants)
    swept = running._swept(cells)
    assert swept == {"mtt-ipc1", "mtt-soft-ipc1"}

    def rows(*means: float) -> list[list[dict[str, Any]]]:
        return [[{"validated": {"mean": mean}}] for mean in means]

    one, other = rows(50.0, 70.0), rows(62.0, 61.0)
    found = {("mtt-ipc1", seed): one[seed] for seed in (0, 1)}
    found |= {("mtt-soft-ipc1", seed): other[seed] for seed in (0, 1)}
    assert running._chosen(variants, swept, found) == {"mtt-soft-ipc1"}
    found["mtt-soft-ipc1", 0] = [{"error": "diverged"}]
    assert running._chosen(variants, swept, found) == {"mtt-soft-ipc1"}
    found["mtt-soft-ipc1", 1] = rows(60.0)[0]
    assert running._chosen(variants, swept, found) == {"mtt-ipc1"}  # equal: the first
    assert running._chosen(variants, swept, {key: [{"error": "x"}] for key in found}) == set()


def test_every_setting_is_tested_where_that_is_wanted() -> None:
    study = comparison(["mtt", "mtt-soft"], [1], test_all=True)
    assert running._swept(cells_of(study, study.variants(BASE))) == set()
    assert "Of several settings of one method, all are tested." in study.rule(BASE)


# -- flags and tables ----------------------------------------------------------------------------


def base_with(words: str, path: Path) -> Recipe:
    path.write_text(
        "[distill]\niterations = 7\n"
        "[methods.dm]\nlr_img = 4.5\niterations = 9\n"
        "[methods.mtt]\nlr_img = 3.0\n[methods.mtt.ipc10]\nlr_img = 30.0\neval_every = 5\n"
        '[methods.soft]\nmethod = "mtt"\nsoft_labels = true\nlr_img = 6.0\n',
        encoding="utf-8",
    )
    line = ["--config", str(path), *words.split()]
    flags = parse(compare.Flags, line, program="trajmatch compare", description="")
    assert flags is not None
    return base_of(flags)


def test_flags_win_over_tables(tmp_path: Path) -> None:
    """Those of the loop for all methods, those of the base's method for its tables alone."""
    base = base_with("--ipc 1,10", tmp_path / "mine.toml")
    assert [base.by(name).method.lr_img for name in ("dm", "mtt", "soft")] == [4.5, 3.0, 6.0]
    base = base_with(
        "--ipc 1,10 --distill.iterations=7 --settings.lr-img 2 --settings.no-soft-labels",
        tmp_path / "mine.toml",
    )
    assert [base.by(name).method.lr_img for name in ("dm", "mtt", "soft")] == [4.5, 2.0, 2.0]
    assert base.by("mtt", ipc=10).method.lr_img == 2.0
    assert base.by("mtt", ipc=10).distill.eval_every == 5
    assert base.by("dm").distill.iterations == 7
    assert not base.by("soft").method.soft_labels


def test_the_bases_method_is_not_checked_where_it_is_not_compared(tmp_path: Path) -> None:
    """mtt's segments reach beyond these experts; dm reads none."""
    base = dataclasses.replace(
        BASE, method=dataclasses.replace(tiny.METHOD, max_start_epoch=9), evaluate=tiny.EVALUATE
    )
    given = tiny.library()
    study, rest = comparison(["random", "dm"], [1]), (Resources(), SILENT)
    assert [one.name for one in running._checked(study, base, tiny.digits(), given, *rest)] == [
        "random-ipc1", "dm-ipc1",
    ]  # fmt: skip
    with pytest.raises(SettingError, match="these experts have 3"):
        running._checked(comparison(["random", "mtt"], [1]), base, tiny.digits(), given, *rest)
    colored = dataclasses.replace(
        base, evaluate=dataclasses.replace(base.evaluate, augment="colour")
    )
    with pytest.raises(SettingError, match="did you mean 'color'"):
        running._checked(study, colored, tiny.digits(), given, *rest)

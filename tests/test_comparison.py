"""Methods side by side: which cells there are, whose settings, and the command."""

import dataclasses
from pathlib import Path

import pytest
from tests import tiny

from trajmatch.cli import main
from trajmatch.config import DistillConfig, RunConfig, from_dict, read_toml
from trajmatch.coresets import CORESETS
from trajmatch.distillation import MAKERS
from trajmatch.errors import SettingError
from trajmatch.files import read_json
from trajmatch.studies.comparison import comparison, known

BASE = RunConfig(
    distill=tiny.DISTILL,
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
    plain, soft = (variants[i].config.distill for i in (1, 2))
    assert plain == dataclasses.replace(tiny.DISTILL, lr_img=3.0)
    assert soft == dataclasses.replace(tiny.DISTILL, soft_labels=True)


def test_everything_there_is_can_be_compared() -> None:
    assert known(BASE) == [*CORESETS, *MAKERS, "mtt-soft"]
    variants = comparison(known(BASE), [1]).variants(BASE)
    assert len({variant.name for variant in variants}) == len(known(BASE))


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
    base = dataclasses.replace(BASE, methods={"own": {"lr_img": 3.0}})
    with pytest.raises(SettingError, match=r"methods\.own is of method 'own'"):
        comparison(["own"], [1]).variants(base)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"dm": {"lr_imgs": 1.0}}, "unknown setting 'methods.dm.lr_imgs'; did you mean 'lr_img'"),
        ({"dm": {"lr_img": -1.0}}, "lr_img is -1.0"),
        ({"dm": 3}, "'methods.dm' is a table"),
        (3, "'methods' is a table"),
    ],
)
def test_tables_of_methods_are_checked_when_they_are_read(tables: object, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        from_dict(RunConfig, {"methods": tables})


def test_tables_of_methods_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("[distill]\niterations = 7\n[methods.dm]\nlr_img = 1\n", encoding="utf-8")
    found = read_toml(path, RunConfig)
    assert found.by("dm") == DistillConfig(method="dm", iterations=7, lr_img=1.0)
    assert found.by("mtt", ipc=3) == DistillConfig(iterations=7, ipc=3)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice: the second finds every cell where the first left it."""
    out = tmp_path / "compared"
    words = (
        f"compare --methods random,mtt --ipc 1,2 --experts {tiny.library().path} --out {out} "
        f"--device cpu {tiny.JUDGE_WORDS} " + tiny.DISTILL_WORDS.replace("--", "--distill.")
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
    assert {cell["ipc"] for cell in cells} == {1, 2}
    table = capsys.readouterr().out
    assert "method random" in table
    assert "method mtt" in table
    assert "images per class" in texts[0]
    losses = [read_json(out / f"mtt-ipc{ipc}" / "seed0" / "cell.json") for ipc in (1, 2)]
    assert [one["key"]["distill"]["ipc"] for one in losses] == [1, 2]
    for text in texts:
        assert text.count('<g class="heat') == 4

"""`trajmatch tune`: its flags are those of `run`, and mistakes are one line before any work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import tiny
from trajmatch.cli import main, tune
from trajmatch.cli.flags import option_names, parse
from trajmatch.cli.run import Flags as RunFlags
from trajmatch.storage import read_result

pytest.importorskip("optuna")

SMALL = (
    f"digits-ipc1 {tiny.NETWORK_WORDS} --iterations 2 --eval-every 1 --eval-networks 1 "
    f"--syn-steps 2 --expert-epochs 1 --max-start-epoch 2 {tiny.SCORE_WORDS} --device cpu"
)


def test_flags_are_those_of_run() -> None:
    """Without testing, tracking and dry runs."""
    own, others = set(option_names(tune.Flags)), set(option_names(RunFlags))
    assert own - others == {"--trials", "--search"}
    assert others - own == {"--test", "--no-test", "--track", "--dry-run", "--no-dry-run"}
    flags = parse(
        tune.Flags,
        ["digits-ipc1", "--method", "dm", "--budget", "2h"],
        program="trajmatch tune",
        description="",
    )
    assert flags is not None
    assert flags.out == Path("runs/digits-ipc1-dm-tuned")
    assert (flags.settings.lr_img, flags.tune.seconds) == (1.0, 7200.0)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--search lr_imgs=1..2", "'lr_imgs', no number among mtt's settings; did you mean"),
        ("--search lr_img=2..1", "from high to low"),
        ("--search expert_epochs=1..99", "the experts have 10 epochs"),
        ("--budget 90", "write 90s, 45m, 2h or 1h30m"),
        ("--trials 0", "trials is 0"),
        ("--test", "--test"),
    ],
)
def test_mistakes_are_one_line_before_any_work(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuned"
    assert main(["tune", *SMALL.split(), *words.split(), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not out.exists()


def test_without_optuna(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["tune", *SMALL.split(), "--out", str(tmp_path / "tuned")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("pip install 'trajmatch[tune]'")


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice, the second with more trials; then the recipe it wrote gives the set it found."""
    out, more = tmp_path / "tuned", tmp_path / "more"
    words = ["tune", *SMALL.split(), *["--experts.experts", "2", "--experts.epochs", "3"]]
    words += ["--out", str(out), "--workers", "1"]
    assert main([*words, "--trials", "2"]) == 0
    assert main([*words, "--trials", "4"]) == 0
    said = capsys.readouterr().out
    assert "2 trials are done already" in said
    assert "4 trials, 0 of them stopped early; best: trial" in said
    result = read_result(out)
    assert [row["number"] for row in result["trials"]] == [0, 1, 2, 3]
    page = (out / "index.html").read_text(encoding="utf-8")
    assert f"trajmatch run {out}/best.toml --experts {out}/experts" in page
    run = ["run", str(out / "best.toml"), "--experts", str(out / "experts"), "--out", str(more)]
    assert main([*run, "--device", "cpu"]) == 0
    best = out / "trials" / f"{result['best']:04d}" / "best"
    name = "distilled.safetensors"
    assert (more / "best" / name).read_bytes() == (best / name).read_bytes()

"""What can be refused without data is refused before they are read, let alone used."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trajmatch import cli
from trajmatch.errors import MissingExtraError, require_extra


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run digits-ipc1 --track wandb", "--track wandb needs an optional dependency: pip"),
        ("distill --track tensorboard", "'trajmatch[tensorboard]'"),
        ("run digits-ipc1 --dry-run --track tensorboard", "'trajmatch[tensorboard]'"),
        ("run digits-ipc1 --experts.augment dizzy", "unknown augmentation 'dizzy'"),
        ("run digits-ipc1 --evaluate.augment dizzy", "unknown augmentation 'dizzy'"),
        ("distill --method dm --augment dizzy", "unknown augmentation 'dizzy'"),
        ("experts --augment dizzy", "unknown augmentation 'dizzy'"),
        ("study init --train.augment dizzy", "unknown augmentation 'dizzy'"),
        ("select --evaluate.augment dizzy", "unknown augmentation 'dizzy'"),
        ("select --method nearest", "unknown coreset 'nearest'"),
        ("evaluate digits-ipc1 --augment dizzy", "unknown augmentation 'dizzy'"),
        ("evaluate digits-ipc1 --networks convent", "did you mean 'convnet'?"),
        ("compare --networks convent", "did you mean 'convnet'?"),
    ],
)
def test_it_is_found_before_the_data_are_read(
    line: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    for module in ("wandb", "tensorboard"):  # as where they are not installed
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    assert cli.main([*line.split(), "--data", "no-such-folder", "--out", "out"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_data_of_no_name_are_not_the_current_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["select", "--method", "random", "--data", "", "--out", "out"]) == 2
    assert "data is ''; give a name (digits" in capsys.readouterr().err


def test_a_page_that_cannot_be_drawn_is_announced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = f"demo --out {tmp_path / 'out'}"
    monkeypatch.setattr("trajmatch.pipeline.load", _stop)
    with pytest.raises(EOFError):
        cli.main(line.split())
    assert capsys.readouterr().out == (
        "warning: no page will be drawn: the page needs an optional dependency: "
        "pip install 'trajmatch[report]'\n"
    )


def _stop(*arguments: object, **keywords: object) -> None:
    raise EOFError


def test_an_extra_is_found_without_importing_it() -> None:
    require_extra("x", "x", "json", "trajmatch")
    with pytest.raises(MissingExtraError, match=r"x needs .* 'trajmatch\[y\]'"):
        require_extra("x", "y", "json", "no_such_module")


def test_paths_in_commands_to_copy_are_quoted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings = tmp_path / "my settings.toml"
    settings.write_text("[experts]\nexperts = 2\n")
    assert cli.main(["run", "digits-ipc1", "--config", str(settings)]) == 2
    assert f"trajmatch run '{settings}'" in capsys.readouterr().err

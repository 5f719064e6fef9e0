"""An altered value in a JSON object is noticed; objects of earlier versions have no digest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trajmatch.errors import FileFormatError
from trajmatch.storage.digest import digest_of, read_with_digest, with_digest, without_digest
from trajmatch.storage.files import DEPTH, parse_json, read_json, write_json

VALUES = {"key": {"seed": 0}, "rows": [{"mean": 10.3, "n": 2, "name": "é\udcff", "sd": None}]}


def test_a_digest_goes_through_a_file_and_is_of_everything_else(tmp_path: Path) -> None:
    path = tmp_path / "cell.json"
    write_json(path, with_digest(VALUES))
    assert read_with_digest(path) == VALUES
    assert digest_of({"a": 0.1, "b": -0.0}) == "80685464913f94b0"
    assert len({digest_of({"a": value}) for value in (1, 1.0, True, "1", None, [1])}) == 6


@pytest.mark.parametrize(
    ("old", "new"), [("10.3", "90.3"), ("2", "3"), ("null", "1.5"), ('"seed"', '"sead"')]
)
def test_what_was_altered_is_refused(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "cell.json"
    write_json(path, with_digest(VALUES))
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(FileFormatError, match=r"cell\.json was altered \(its digest differs\)"):
        read_with_digest(path)


def test_an_object_of_an_earlier_version_has_none() -> None:
    assert without_digest(VALUES, "it", "mend it") == VALUES


@pytest.mark.parametrize("levels", [DEPTH + 1, 500, 990, 100_000])
@pytest.mark.parametrize("brackets", ["[]", '{"a":}'])
def test_deep_nesting_is_refused(tmp_path: Path, levels: int, brackets: str) -> None:
    path = tmp_path / "deep.json"
    path.write_text(brackets[:-1] * levels + "1" + brackets[-1] * levels)
    with pytest.raises(FileFormatError, match=r"deep\.json is not .*nested more than 100 levels"):
        read_json(path)


def test_nesting_up_to_the_limit_is_read() -> None:
    text = "[" * DEPTH + "1" + "]" * DEPTH
    assert json.dumps(parse_json(text)) == text

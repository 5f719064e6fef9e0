"""A digest within a JSON object, over everything else in it: an altered number is noticed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trajmatch.errors import FileFormatError
from trajmatch.storage.checksum import xxh3
from trajmatch.storage.files import read_json

ENTRY = "digest"


def digest_of(values: Mapping[str, Any]) -> str:
    """16 hex digits of an object of plain values, in whatever order its entries stand.

    Examples:
        >>> digest_of({"a": 1, "b": 2.0}) == digest_of({"b": 2.0, "a": 1})
        True
        >>> digest_of({"a": 1}) == digest_of({"a": 2})
        False
    """
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return f"{xxh3(memoryview(text.encode())):016x}"


def with_digest(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with their digest as the last entry."""
    return {**values, ENTRY: digest_of(values)}


def without_digest(values: Mapping[str, Any], name: str, mend: str) -> dict[str, Any]:
    """`values` as they were before `with_digest`; those of earlier versions, without one, as they
    are.

    Raises FileFormatError, which begins with `name` and ends with `mend`, where the digest differs.

    Examples:
        >>> without_digest(with_digest({"percent": 10.3}), "line 1", "delete it")
        {'percent': 10.3}
    """
    rest = {key: value for key, value in values.items() if key != ENTRY}
    if ENTRY in values and values[ENTRY] != digest_of(rest):
        raise FileFormatError(f"{name} was altered (its digest differs); {mend}")
    return rest


def read_with_digest(path: Path) -> dict[str, Any]:
    """The object in a JSON file, without its digest.

    Raises FileFormatError for a file that cannot be read, holds no object, or was altered.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise FileFormatError(f"{path} does not hold a JSON object; delete it")
    return without_digest(values, str(path), "delete it")

"""A page from its template: everything escaped, nothing undefined, no file but the one written."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trajmatch.errors import MissingExtraError
from trajmatch.storage.files import atomic_write


def render(template: str, context: Mapping[str, Any]) -> str:
    """The text of `template`, a file in templates/. Raises MissingExtraError without jinja2."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError("report", "report") from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trajmatch.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # A page's policy allows its one script by its hash, so injected scripts do not run.
    environment.filters["sha256"] = lambda text: base64.b64encode(
        hashlib.sha256(str(text).encode()).digest()
    ).decode()
    return environment.get_template(template).render(context)


def write_page(html: str, folder: Path, out: Path | str | None) -> Path:
    """Write `html`, whole or not at all, to `out` (default: report.html in `folder`)."""
    out = folder / "report.html" if out is None else Path(out)
    out = out / "report.html" if out.is_dir() else out
    with atomic_write(out) as partial:
        # A path may hold bytes that are not UTF-8, which no page can.
        partial.write_text(html, encoding="utf-8", errors="replace")
    return out

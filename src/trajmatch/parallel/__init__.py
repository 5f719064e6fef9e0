"""Where work runs."""

from __future__ import annotations

from trajmatch.parallel.local import emit, run_tasks

__all__ = ["emit", "run_tasks"]

"""Where work runs."""

from __future__ import annotations

from trajmatch.parallel.local import emit, limited_threads, run_tasks

__all__ = ["emit", "limited_threads", "run_tasks"]

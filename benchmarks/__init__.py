"""What trajmatch costs, beside a plain twin of the same work: see benchmarks/README.md."""

from __future__ import annotations

"""KIP: kernel inducing points, and the kernels of infinitely wide networks it stands on."""

from __future__ import annotations

from trajmatch.methods.kip.kip import KIP

__all__ = ["KIP"]

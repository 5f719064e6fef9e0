"""What a small set is worth: an accuracy, its spread, and how it was found."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple


class Trained(NamedTuple):
    """What one network came to."""

    percent: float
    """Accuracy."""
    finite: bool
    """Whether its parameters are finite numbers; False after a training that diverged."""


@dataclasses.dataclass(frozen=True)
class Score:
    """A number with what is needed to believe it."""

    method: str
    model: str
    ipc: int | None
    n: int
    """Networks trained, each from its own initialization."""
    mean: float
    """Accuracy in percent."""
    sd: float | None
    """Over the networks, with ddof=1; None for one network."""
    protocol: str
    """How they were trained, in full."""
    split: str
    """What they were tested on: val or test."""
    values: tuple[float, ...]
    """The accuracy of each, in order."""
    diverged: int = 0
    """Networks whose training ended in non-finite numbers; they count, at what they score."""
    brief: str = ""
    """The protocol in a few words, for `str`."""
    lr: float | None = None
    """The learning rate they began with."""
    lr_origin: str = ""
    """How that rate was found, as the protocol says it; empty for the set's own or a given one."""
    parameters: int | None = None
    """Of one network."""

    @classmethod
    def of(cls, values: Sequence[float], **known: Any) -> Score:
        """A score of these accuracies; `known` are the other fields but n, mean and sd."""
        sd = statistics.stdev(values) if len(values) > 1 else None
        mean = statistics.fmean(values)
        return cls(n=len(values), mean=mean, sd=sd, values=tuple(values), **known)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**dataclasses.asdict(self), "values": list(self.values)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Score:
        """The score that `to_json` wrote; entries added by others are left out."""
        names = {field.name for field in dataclasses.fields(cls)}
        known = {name: value for name, value in values.items() if name in names}
        return cls(**{**known, "values": tuple(known["values"])})

    def __str__(self) -> str:
        """For example `63.1 +- 0.4 (n=5, ConvNet-D3 width 128 instance, ZCA, DSA, 1000 epochs)`."""
        spread = "" if self.sd is None else f" +- {self.sd:.1f}"
        about = [f"n={self.n}", self.model, self.brief or self.protocol]
        if self.diverged:
            about.append(f"{self.diverged} diverged")
        return f"{self.mean:.1f}{spread} ({', '.join(about)})"

"""An accuracy with its spread and how it was measured."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trajmatch.storage.results.fields import Fields


class Trained(NamedTuple):
    """The result of training and testing one network."""

    percent: float
    """Accuracy."""
    finite: bool
    """Whether its parameters are finite numbers; False after a training that diverged."""


@dataclasses.dataclass(frozen=True)
class Score:
    """Mean accuracy of several networks, with the protocol under which they were trained.

    Examples:
        >>> known = dict(method="mtt", model="ConvNet", ipc=1, protocol="500 epochs", split="test")
        >>> print(Score.of([62.0, 64.0], **known))
        63.0 +- 1.4 (n=2, ConvNet, 500 epochs)
        >>> Score.of([62.0, 64.0], **known)
        Score(63.0 +- 1.4 (n=2, ConvNet, 500 epochs), mtt, test)
    """

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
    """Networks whose training ended in non-finite numbers; included in the mean."""
    brief: str = ""
    """The protocol in a few words, for `str`."""
    lr: float | None = None
    """The learning rate at the start of training."""
    lr_origin: str = ""
    """How that rate was found, as the protocol says it; empty for the set's own or a given one."""
    parameters: int | None = None
    """Of one network."""

    def __repr__(self) -> str:
        return f"Score({self}, {self.method}, {self.split})"

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
    def from_json(
        cls, values: Mapping[str, Any], file: str = "the score", place: str = ""
    ) -> Score:
        """The score that `to_json` wrote; other entries are ignored.

        Texts may be absent (results of version 0.1 were published abridged), mean and n may not.
        Raises FileFormatError, beginning with `file` and `place`, for a wrong type or range.
        """
        return cls.read(Fields.of(values, file, place))

    @classmethod
    def read(cls, fields: Fields) -> Score:
        """As `from_json`."""
        return cls(
            method=fields.text("method"),
            model=fields.network("model"),
            ipc=fields.count("ipc", 1),
            n=fields.require_count("n", 1),
            mean=fields.require_number("mean", 0, 100),
            sd=fields.number("sd", 0),
            protocol=fields.text("protocol"),
            split=fields.text("split", "test"),
            values=fields.numbers("values", 0, 100),
            diverged=fields.count("diverged") or 0,
            brief=fields.text("brief"),
            lr=fields.number("lr"),
            lr_origin=fields.text("lr_origin"),
            parameters=fields.count("parameters"),
        )

    def __str__(self) -> str:
        """For example `63.1 +- 0.4 (n=5, ConvNet-D3 width 128 instance, ZCA, DSA, 1000 epochs)`."""
        spread = "" if self.sd is None else f" +- {self.sd:.1f}"
        about = [f"n={self.n}", self.model, self.brief or self.protocol]
        if self.diverged:
            about.append(f"{self.diverged} diverged")
        return f"{self.mean:.1f}{spread} ({', '.join(about)})"

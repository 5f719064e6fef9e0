"""An accuracy with its spread and how it was measured."""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trajmatch.storage.results.classes import is_imbalanced, majority, present
from trajmatch.storage.results.fields import Fields

EXPERTS = "experts"
"""`Score.method` of a library's experts: all training images, for the experts' few epochs."""
CEILING = "ceiling"
"""`Score.method` of networks trained to the end on all training images."""
_EXPERTS_BEFORE = "full data"
"""What version 0.1 called `EXPERTS`."""


class Trained(NamedTuple):
    """The result of training and testing one network."""

    percent: float
    """Accuracy."""
    finite: bool
    """Whether its parameters are finite numbers; False after a training that diverged."""
    correct: tuple[int, ...] | None = None
    """Images of each class that it classified correctly; None in logs of version 0.1."""


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
    tests: tuple[int, ...] = ()
    """Images of each class that they were tested on; empty where that was not recorded."""
    per_class: tuple[float | None, ...] = ()
    """Accuracy on each class in percent, the mean over the networks; None for a class without test
    images, empty where not recorded."""
    balanced: float | None = None
    """Balanced accuracy in percent: the mean over the classes that have test images, and over the
    networks; None where not recorded."""
    balanced_sd: float | None = None
    """Of the balanced accuracy over the networks, with ddof=1."""

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
        lists = {name: list(getattr(self, name)) for name in ("values", "tests", "per_class")}
        return {**dataclasses.asdict(self), **lists}

    @property
    def label(self) -> str:
        """`method` as tables and pages show it: of experts with the epochs they were trained for.

        Examples:
            >>> known = dict(model="ConvNet", ipc=None, split="test")
            >>> Score.of([38.6], method="experts", protocol="4 epochs on all training images", \
**known).label
            'experts (4 epochs)'
        """
        if self.method == CEILING:
            return "all training images"
        epochs = re.match(r"(\d+) epochs?\b", self.protocol)
        if self.method != EXPERTS or epochs is None:
            return self.method
        return f"{EXPERTS} ({epochs[1]} epoch{'s' if epochs[1] != '1' else ''})"

    @property
    def is_imbalanced(self) -> bool:
        """Whether the classes differ enough in test images that the mean does not describe them."""
        return is_imbalanced(self.tests)

    @property
    def caveats(self) -> tuple[str, ...]:
        """What a reader of the mean has to know of the images tested on: that classes have none, or
        how large the largest class is where they differ much. Usually empty."""
        if not self.tests:
            return ()
        found, notes = present(self.tests), []
        if found < len(self.tests):
            notes.append(f"{self.split} images of {found} of {len(self.tests)} classes")
        if self.is_imbalanced:
            notes.append(f"largest class {majority(self.tests):.1f} % of the {self.split} images")
        return tuple(notes)

    @property
    def notes(self) -> tuple[str, ...]:
        """The caveats; of an imbalanced split also the balanced accuracy.

        Examples:
            >>> known = dict(method="dm", model="ConvNet", ipc=1, protocol="9 epochs", split="test")
            >>> Score.of([97.6], tests=(200, 5, 0), balanced=50.0, **known).notes
            ('test images of 2 of 3 classes', 'largest class 97.6 % of the test images', \
'balanced accuracy 50.0')
        """
        if not self.is_imbalanced or self.balanced is None:
            return self.caveats
        return (*self.caveats, f"balanced accuracy {_spread(self.balanced, self.balanced_sd)}")

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
        method, tests = fields.text("method"), fields.counts("tests")
        per_class = fields.numbers_or_none("per_class", 0, 100)
        if per_class and len(per_class) != len(tests):
            fields.refuse("per_class", f"a list of {len(tests)} numbers, one a class,")
        return cls(
            method=EXPERTS if method == _EXPERTS_BEFORE else method,
            model=fields.network("model"),
            ipc=fields.count("ipc", 1),
            n=fields.require_count("n", 1),
            mean=fields.require_number("mean", 0, 100),
            sd=fields.number("sd", 0, 100),
            protocol=fields.text("protocol"),
            split=fields.text("split", "test"),
            values=fields.numbers("values", 0, 100),
            diverged=fields.count("diverged") or 0,
            brief=fields.text("brief"),
            lr=fields.number("lr"),
            lr_origin=fields.text("lr_origin"),
            parameters=fields.count("parameters"),
            tests=tests,
            per_class=per_class,
            balanced=fields.number("balanced", 0, 100),
            balanced_sd=fields.number("balanced_sd", 0, 100),
        )

    def __str__(self) -> str:
        """For example `63.1 +- 0.4 (n=5, ConvNet-D3 width 128 instance, ZCA, DSA, 1000 epochs)`."""
        about = [f"n={self.n}", self.model, self.brief or self.protocol]
        if self.diverged:
            about.append(f"{self.diverged} diverged")
        return f"{_spread(self.mean, self.sd)} ({', '.join([*about, *self.notes])})"


def _spread(mean: float, sd: float | None) -> str:
    return f"{mean:.1f}" if sd is None else f"{mean:.1f} +- {sd:.1f}"

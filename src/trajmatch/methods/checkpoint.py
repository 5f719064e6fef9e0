"""The checkpoint of a run: one tensor file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trajmatch.errors import MismatchError
from trajmatch.storage.files import TensorFile, open_tensors, save_tensors
from trajmatch.types import Tensor

CHECKPOINT = "checkpoint.safetensors"
KIND, VERSION = "checkpoint", 1
_PARAMETERS, _BEST, _STATE, _AVERAGE = "learned.", "best.", "carried.", "average"
# Origins that version 0.1 wrote lack what could not be set in it, and have one older name.
_FIXED_IN_0_1 = {
    "optimizer": "sgd",
    "schedule": "constant",
    "inner": "sgd",
    "lr_log_step_size": 0.02,
    "discrimination_weight": 0.01,
    "accuracies": 10,
    "settled": 0.04,
    "moved": 0.03,
    "max_epochs": 20,
    "batch_query": 128,
    "numbers_at_a_time": 2**20,
}
_RENAMED_SINCE_0_1 = {"window": "bptt_steps"}


@dataclass(frozen=True)
class Checkpoint:
    """What a run continues from. Tensors of parameters and optimizer are flat in the file."""

    parameters: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    """By `slot.parameter`, such as `momentum.images`."""
    state: dict[str, Tensor]
    """`Problem.state`."""
    average: Tensor
    values: dict[str, Any]
    """origin, resolved, iteration, armed, skipped_in_a_row, best, final, written, seconds,
    validated."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """The parameters of the set in best; empty in checkpoints of version 0.1."""

    def save(self, out: Path) -> None:
        """Write to the folder `out`, beside and renamed."""
        tensors = {f"{_PARAMETERS}{n}": part.reshape(-1) for n, part in self.parameters.items()}
        tensors |= {f"{_BEST}{name}": part.reshape(-1) for name, part in self.best.items()}
        tensors |= {name: _flat(part, self._owner(name)) for name, part in self.optimizer.items()}
        tensors |= {f"{_STATE}{name}": part for name, part in self.state.items()}
        tensors[_AVERAGE] = self.average.reshape(-1)
        save_tensors(out / CHECKPOINT, tensors, kind=KIND, version=VERSION, metadata=self.values)

    def _owner(self, name: str) -> Tensor:
        return self.parameters[name.rpartition(".")[2]]

    @classmethod
    def load(
        cls, out: Path, like: Mapping[str, Tensor], origin: Mapping[str, Any] | None = None
    ) -> Checkpoint | None:
        """The checkpoint in `out`, its tensors shaped and placed as the parameters `like`; None
        where there is none.

        origin: what the run must have begun with (None: anything). It is compared before shapes
        are, which follow from it.

        Raises FileFormatError for a damaged file, MismatchError for a run of another origin.
        """
        path = out / CHECKPOINT
        if not path.exists():
            return None
        file = open_tensors(path, kind=KIND, version=VERSION)
        values = _values(file)
        if origin is not None:
            _require_origin(values["origin"], origin, out)
        found = cls({}, {}, {}, file.read(_AVERAGE).reshape(like["images"].shape), values)
        for name in file.names:
            if name.startswith(_PARAMETERS):
                part = name.removeprefix(_PARAMETERS)
                found.parameters[part] = _shaped(file.read(name), like[part])
            elif name.startswith(_BEST):
                part = name.removeprefix(_BEST)
                found.best[part] = _shaped(file.read(name), like[part])
            elif name.startswith(_STATE):
                state = file.read(name).to(like["images"].device)
                found.state[name.removeprefix(_STATE)] = state
            elif name != _AVERAGE:
                found.optimizer[name] = _shaped(file.read(name), like[name.rpartition(".")[2]])
        return found


def checkpoint_values(out: Path) -> dict[str, Any] | None:
    """`Checkpoint.values` of the run in `out`; None without a checkpoint."""
    path = out / CHECKPOINT
    return _values(open_tensors(path, kind=KIND, version=VERSION)) if path.exists() else None


def checkpoint_iteration(out: Path) -> int:
    """Iterations that a run in `out` has done by its last checkpoint; 0 without one."""
    values = checkpoint_values(out)
    return 0 if values is None else int(values["iteration"])


def _require_origin(found: Mapping[str, Any], origin: Mapping[str, Any], out: Path) -> None:
    """Raises MismatchError with the first difference where a run's origin is not `origin`."""
    for name, value in origin.items():
        if found.get(name) != value:
            raise MismatchError(
                f"{out} holds a run with {name}={found.get(name)}, this one has {name}={value}; "
                "give the same to continue it, or another --out"
            )


def _shaped(flat: Tensor, like: Tensor) -> Tensor:
    """A tensor of a parameter's size in its shape, on its device; a single number, such as a step
    count, as a scalar; any other as it was saved."""
    if flat.numel() == like.numel():
        return flat.reshape(like.shape).to(like.device)
    return (flat.reshape(()) if flat.numel() == 1 else flat).to(like.device)


def _flat(part: Tensor, like: Tensor) -> Tensor:
    return part.reshape(-1) if part.numel() in (1, like.numel()) else part


def _values(file: TensorFile) -> dict[str, Any]:
    """The values of a checkpoint, those of version 0.1 in today's form."""
    values = dict(file.metadata)
    if "decisions" in values:
        origin = {_RENAMED_SINCE_0_1.get(name, name): v for name, v in values["origin"].items()}
        values |= {"resolved": values.pop("decisions"), "origin": {**_FIXED_IN_0_1, **origin}}
    # Free memory in words, which earlier versions kept among what determines the numbers.
    values["resolved"] = {k: v for k, v in values["resolved"].items() if k != "reason"}
    return values

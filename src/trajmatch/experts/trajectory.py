"""An expert's trajectory: its parameters after every epoch, in a file that is read row by row.

Row 0 is the initialization, row e the parameters after epoch e, each flattened in the order of
`parameter_vector`. A finished trajectory and the state of an unfinished training are two kinds of
file, so neither is mistaken for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trajmatch.errors import FileFormatError, SettingError
from trajmatch.storage.files import open_tensors, save_tensors
from trajmatch.types import Float, Tensor

KIND = "trajectory"
UNFINISHED = "unfinished trajectory"
VERSION = 1


@dataclass(frozen=True, eq=False)
class TrainingState:
    """An expert's training up to the end of an epoch: all that resuming to the same bits needs."""

    parameters: Float[Tensor, "epochs params"]
    """The rows up to this epoch, on the CPU, in the dtype of the file."""
    vector: Float[Tensor, "params"]
    """The last row in full precision."""
    velocity: Float[Tensor, "params"] | None
    """SGD's momentum buffer; None without momentum."""
    metrics: list[dict[str, int | float]]
    """Per epoch: epoch (from 1), train_loss, train_accuracy (percent, augmented), seconds."""

    @property
    def epochs(self) -> int:
        """Epochs trained."""
        return len(self.metrics)

    def save(self, path: Path, *, index: int, library: str) -> None:
        """Write the state of expert `index` of the library with digest `library`, atomically."""
        tensors = {"parameters": self.parameters, "vector": self.vector}
        if self.velocity is not None:
            tensors["velocity"] = self.velocity
        metadata = {"index": index, "library": library, "metrics": self.metrics}
        save_tensors(path, tensors, kind=UNFINISHED, version=VERSION, metadata=metadata)

    @classmethod
    def load(cls, path: Path, *, index: int, library: str) -> TrainingState:
        """Read what `save` wrote. Raises FileFormatError if the file is absent, altered, or of
        another expert or library."""
        file = open_tensors(path, kind=UNFINISHED, version=VERSION)
        saved_index, saved_library = file.metadata.get("index"), file.metadata.get("library")
        if (saved_index, saved_library) != (index, library):
            raise FileFormatError(
                f"{path} is the state of expert {saved_index} of library {saved_library}, not of "
                f"expert {index} of {library}; delete it"
            )
        velocity = file.read("velocity") if "velocity" in file.names else None
        parameters, vector = file.read("parameters"), file.read("vector")
        return cls(parameters, vector, velocity, file.metadata["metrics"])


def save_trajectory(
    path: Path,
    state: TrainingState,
    *,
    seed: int | None,
    index: int,
    library: str = "",
    val_accuracy: float | None = None,
    test_accuracy: float | None = None,
) -> None:
    """Write a finished expert, atomically. Accuracies are percent after the last epoch.

    seed: None if it is unknown (imported experts).
    library: digest of the library it belongs to.
    """
    metadata = {
        "seed": seed,
        "index": index,
        "library": library,
        "metrics": state.metrics,
        "val_accuracy": val_accuracy,
        "test_accuracy": test_accuracy,
    }
    tensors = {"parameters": state.parameters}
    save_tensors(path, tensors, kind=KIND, version=VERSION, metadata=metadata)


class Trajectory:
    """A finished expert's file: the header in memory, rows read on request.

    Raises FileFormatError when the file is not a complete, unaltered trajectory. A row of 320,010
    parameters takes 0.07 ms from the system's cache, a sixth of it for the checksum; new memory
    for it may cost another 0.5 ms.
    """

    def __init__(self, path: Path) -> None:
        self._file = open_tensors(path, kind=KIND, version=VERSION)
        self.path = path
        try:
            metadata = self._file.metadata
            rows, self.params = self._file.shape("parameters")
            self.seed: int | None = metadata["seed"]
            self.index: int = metadata["index"]
            self.library: str = metadata["library"]
            self.metrics: list[dict[str, Any]] = metadata["metrics"]
            self.val_accuracy: float | None = metadata["val_accuracy"]
            self.test_accuracy: float | None = metadata["test_accuracy"]
        except (KeyError, ValueError, SettingError) as error:
            raise FileFormatError(
                f"{path} lacks what a trajectory holds ({error}); delete it and train it again"
            ) from error
        self.epochs = rows - 1

    @property
    def storage(self) -> torch.dtype:
        """The dtype of the rows on disk."""
        return self._file.dtype("parameters")

    def row(
        self, epoch: int, out: Float[Tensor, "params"] | None = None
    ) -> Float[Tensor, "params"]:
        """The parameters after `epoch` epochs. As `rows`, of one epoch."""
        return self.rows((epoch,), None if out is None else out.unsqueeze(0))[0]

    def rows(
        self, epochs: Sequence[int], out: Float[Tensor, "rows params"] | None = None
    ) -> Float[Tensor, "rows params"]:
        """The parameters after each of these numbers of epochs, as float32 whatever the storage.

        out: a contiguous float32 tensor on the CPU to read into; None: new memory.

        Raises SettingError for an epoch that was not recorded, FileFormatError for an altered row.
        """
        for epoch in epochs:
            if not 0 <= epoch <= self.epochs:
                raise SettingError(
                    f"{self.path} holds epochs 0 to {self.epochs}, not {epoch}; use one of those, "
                    "or train experts for more epochs"
                )
        if out is None or self.storage == out.dtype:
            return self._file.rows("parameters", epochs, out).float()
        return out.copy_(self._file.rows("parameters", epochs))

    def verify(self) -> None:
        """Read and check every row. Memory: one row."""
        self._file.verify()

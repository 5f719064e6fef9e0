"""Expert buffers of the released code: `replay_buffer_0.pt`, `replay_buffer_1.pt`, ...

A buffer is a list of experts, an expert is a list of its parameters at the start and after every
epoch, and these are a list of tensors in the order of `module.parameters()`. How the experts were
trained is not recorded.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trajmatch.data import ImageDataset
from trajmatch.data.dataset import Split
from trajmatch.data.whiten import Whitening
from trajmatch.errors import FileFormatError, MismatchError, SettingError, spelled
from trajmatch.experts import ExpertLibrary, TrainingState, save_trajectory
from trajmatch.experts.library import expert_path, write_library
from trajmatch.experts.train import expert_accuracy
from trajmatch.networks import NetworkSpec, require_stateless, split_vector
from trajmatch.networks.base import height_width
from trajmatch.runtime.progress import SILENT, Progress
from trajmatch.storage.files import read_json
from trajmatch.storage.folder import claim
from trajmatch.synthetic.formats.archive import read_pt, save_pt
from trajmatch.synthetic.formats.publish import publish
from trajmatch.types import Float, Tensor

ORIGIN = (
    "imported from replay buffers of the released code; seeds and training settings are not known, "
    "and all training images were trained on, those set aside for validation here included"
)
"""The entry `imported` of library.json."""

PER_FILE = 10
"""Experts per buffer, as in the released code."""

Epochs = list[list[Tensor]]
"""One expert of a buffer: per epoch, the tensors of `module.parameters()`."""


@dataclasses.dataclass(frozen=True)
class Imported:
    """The import of one buffer."""

    file: str
    first: int
    """Number of its first expert in the library; the others follow."""
    experts: int
    added: int
    """Experts written by this import; the others were in the library already."""
    accuracy: float
    """Test accuracy in percent of its first expert after the last epoch."""
    chance: float
    """Accuracy of always predicting the most frequent class."""

    @property
    def suspicious(self) -> bool:
        """Whether the accuracy is less than a tenth of the way from chance to 100 %. Then
        whitening, class order or network are probably not those of the expert."""
        return self.accuracy < self.chance + (100 - self.chance) / 10

    def lines(self) -> list[str]:
        """One line on the import, and a warning where it is suspicious."""
        already = "" if self.added else ", all there already"
        lines = [
            f"{self.file}: experts {self.first} to {self.first + self.experts - 1}{already}; test "
            f"accuracy of expert {self.first} after its last epoch: {self.accuracy:.1f} % (n=1)"
        ]
        if self.suspicious:
            lines.append(
                f"warning: hardly better than chance ({self.chance:.1f} %); --data, --whitening "
                "(or --mean, --std) or the network are probably not those of these experts"
            )
        return [spelled(line) for line in lines]


def import_buffers(
    files: Sequence[Path],
    out: str | Path,
    data: ImageDataset,
    spec: NetworkSpec,
    whitening: Whitening,
    *,
    device: str = "cpu",
    progress: Progress = SILENT,
) -> ExpertLibrary:
    """Add the experts of buffers to the library in `out`, which is created if there is none.

    Experts are numbered after those already there; of a file that was imported before (recognized
    by its contents) only missing experts are added. Memory: one expert. The whitening must be that
    of the experts' training, which the test accuracy of each file's first expert shows.

    progress: per file `update("experts", done, total, file=...)`, then the lines of its `Imported`
        as messages and its fields as `event("imported", ...)`.

    Raises FileFormatError for a file that is no buffer, MismatchError when its parameters are not
    those of the network or the library is of other experts.
    """
    out = Path(out)
    require_stateless(spec.build(seed=0))
    with claim(out, "import"):
        for file in files:
            buffer = read_buffer(file, spec)
            library, first = _enter(file, buffer, out, data, spec, whitening)
            accuracy = expert_accuracy(
                spec,
                _vector(buffer[0][-1]).to(device),
                library.whitening.apply_split(data.test, device),
                data.test.labels.to(device),
            )
            added = 0
            for place, expert in enumerate(buffer):
                path = expert_path(out, first + place)
                if not path.exists():
                    _write(path, expert, first + place, library.digest, None if place else accuracy)
                    added += 1
                progress.update("experts", place + 1, len(buffer), file=file.name)
            chance = 100 * float(data.test.labels.bincount().max()) / len(data.test)
            imported = Imported(file.name, first, len(buffer), added, accuracy, chance)
            for line in imported.lines():
                progress.message(line)
            progress.event("imported", **dataclasses.asdict(imported))
    return ExpertLibrary.open(out)


def read_buffer(file: Path, spec: NetworkSpec) -> list[Epochs]:
    """The experts of one file, memory-mapped, checked to be of the network `spec`.

    Raises FileFormatError for a file that is no buffer, for experts of different lengths and for
    experts whose parameters never change; MismatchError naming the first parameter whose shape
    differs.
    """
    buffer: list[Epochs] = read_pt(file)
    lists = isinstance(buffer, list) and all(isinstance(expert, list) for expert in buffer)
    if not lists or not all(isinstance(epoch, list) for expert in buffer for epoch in expert):
        raise FileFormatError(
            f"{file} is not a buffer of experts (a list of experts, each a list of epochs, each a "
            "list of parameters); give a replay_buffer_*.pt"
        )
    lengths = sorted({len(expert) for expert in buffer})
    if len(lengths) != 1 or lengths[0] < 2:
        epochs = ", ".join(str(length - 1) for length in lengths) or "no"
        raise FileFormatError(
            f"{file} has experts of {epochs} epochs; all must have the same number, at least 1"
        )
    shapes = {name: p.shape for name, p in spec.build(seed=0).named_parameters()}
    for number, expert in enumerate(buffer):
        for epoch, parts in enumerate(expert):
            _require_shapes(f"{file}, expert {number}, epoch {epoch}", parts, shapes, spec)
        if all(torch.equal(a, b) for a, b in zip(expert[0], expert[-1], strict=True)):
            raise FileFormatError(
                f"expert {number} of {file} has the same parameters after every epoch, as the "
                "released code records them on a CPU; make the buffer again on a GPU"
            )
    return buffer


def export_buffers(library: ExpertLibrary, out: str | Path) -> list[str]:
    """Write a library as replay_buffer_0.pt, ... of ten experts each; returns the file names.

    Memory: ten experts in float32, also where the library stores bf16. Raises SettingError for a
    library without experts, DataError when the files exist.
    """
    out, module = Path(out), library.spec.build(seed=0)
    if not library.experts:
        raise SettingError(
            f"the library {library.path} holds no finished experts; nothing to write"
        )
    starts = range(0, len(library.experts), PER_FILE)
    names = [f"replay_buffer_{number}.pt" for number in range(len(starts))]

    def write(folder: Path) -> None:
        for name, start in zip(names, starts, strict=True):
            buffer: list[Epochs] = []
            for expert in library.experts[start : start + PER_FILE]:
                trajectory = library.trajectory(expert)
                rows = (trajectory.row(epoch) for epoch in range(library.epochs + 1))
                buffer.append([[p.clone() for p in split_vector(module, r).values()] for r in rows])
            save_pt(folder / name, buffer)

    publish(out, names, write)
    return names


def _require_shapes(
    where: str, parts: list[Any], shapes: dict[str, torch.Size], spec: NetworkSpec
) -> None:
    network = f"{spec.name} ({', '.join(f'{k}={v}' for k, v in spec.options.items())})"
    mend = "give the --network, --depth, --width and --norm they were trained with"
    for place, (name, shape) in enumerate(shapes.items()):
        if place >= len(parts):
            break
        tensor = parts[place]
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise FileFormatError(f"{where}: parameter {place} is no float tensor; give a buffer")
        if tensor.shape != shape:
            theirs, ours = ("x".join(map(str, s)) or "one number" for s in (tensor.shape, shape))
            raise MismatchError(
                f"{where}: parameter {place} is {theirs}, and {name} of {network} on images of "
                f"{_size(spec)} is {ours}; {mend}"
            )
    if len(parts) != len(shapes):
        raise MismatchError(
            f"{where} has {len(parts)} parameters and {network} has {len(shapes)}; {mend}"
        )


def _enter(
    file: Path,
    buffer: list[Epochs],
    out: Path,
    data: ImageDataset,
    spec: NetworkSpec,
    whitening: Whitening,
) -> tuple[ExpertLibrary, int]:
    """Add a file to library.json; the library, and the number of the file's first expert."""
    epochs = len(buffer[0]) - 1
    with file.open("rb") as opened:
        contents = hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    if (out / "library.json").exists():
        _require_same(ExpertLibrary.open(out), epochs, data, spec, whitening)
        document = read_json(out / "library.json")
        origin, entries = document["made"], document.get("files", [])
    else:
        origin = {
            "seed": None,
            "settings": {"epochs": epochs, "storage": "float32"},
            "network": spec.to_json(),
            "whitening": whitening.summary(),
            "data": data.summary(),
            "imported": ORIGIN,
        }
        entries = []
    for entry in entries:
        if entry["contents"] == contents:
            return ExpertLibrary.open(out), entry["first"]
    # Added before its experts are written, so that an interrupted import can be continued.
    first = sum(entry["experts"] for entry in entries)
    entry = {"name": file.name, "contents": contents, "first": first, "experts": len(buffer)}
    return write_library(out, origin, whitening, files=[*entries, entry]), first


def _require_same(
    library: ExpertLibrary,
    epochs: int,
    data: ImageDataset,
    spec: NetworkSpec,
    whitening: Whitening,
) -> None:
    """Refuse to mix experts whose epochs, data, network or whitening differ."""
    mend = "give another --out"
    few = Split(data.test.images[:8], data.test.labels[:8])
    pairs = {
        "epochs": (library.epochs, epochs),
        "data with fingerprint": (library.data["fingerprint"], data.fingerprint),
        "network": (library.spec, spec),
        "whitening": (library.whitening.name, whitening.name),
    }
    for what, (was, now) in pairs.items():
        if was != now:
            raise MismatchError(
                f"the experts in {library.path} have {what} {was}, not {now}; {mend}"
            )
    # The same whitening fitted on another machine may differ in the last bits.
    if not torch.allclose(
        library.whitening.apply_split(few), whitening.apply_split(few), rtol=1e-3, atol=1e-3
    ):
        raise MismatchError(
            f"the experts in {library.path} have whitening {library.whitening.checksum}, not "
            f"{whitening.checksum}; give the --mean and --std of the first import, or {mend}"
        )


def _vector(parts: list[Tensor]) -> Float[Tensor, "params"]:
    return torch.cat([part.detach().reshape(-1).float() for part in parts])


def _write(path: Path, expert: Epochs, index: int, library: str, accuracy: float | None) -> None:
    rows = torch.stack([_vector(parts) for parts in expert])
    if not bool(rows.isfinite().all()):
        raise FileFormatError(
            f"expert {index} holds NaN or infinity: its training diverged; leave its file out"
        )
    state = TrainingState(rows, rows[-1], None, [])
    save_trajectory(path, state, seed=None, index=index, library=library, test_accuracy=accuracy)


def _size(spec: NetworkSpec) -> str:
    height, width = height_width(spec.size)
    return f"{spec.channels}x{height}x{width}"

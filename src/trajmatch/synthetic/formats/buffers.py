"""Expert buffers of the released code: `replay_buffer_0.pt`, `replay_buffer_1.pt`, ...

A buffer is a list of experts; an expert a list of what its parameters were at the start and after
every epoch; those a list of tensors in the order of `module.parameters()`. Nothing in it says how
the experts were made.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from trajmatch.data import ImageDataset
from trajmatch.data.dataset import Split
from trajmatch.data.whiten import Whitening
from trajmatch.errors import FileFormatError, MismatchError, SettingError
from trajmatch.experts import ExpertLibrary, TrainingState, save_trajectory
from trajmatch.experts.library import expert_path, write_library
from trajmatch.experts.train import expert_accuracy
from trajmatch.networks import NetworkSpec, require_stateless, split_vector
from trajmatch.storage.files import read_json
from trajmatch.synthetic.formats.released import read_pt, require_absent, save_pt
from trajmatch.types import Float, Tensor

ORIGIN = (
    "imported from replay buffers of the released code; seeds and training settings are not known, "
    "and all training images were trained on, those set aside for validation here included"
)
"""What library.json says of imported experts."""

PER_FILE = 10
"""Experts per buffer, as in the released code."""

Epochs = list[list[Tensor]]
"""One expert as it lies in a buffer: per epoch, the tensors of `module.parameters()`."""


@dataclasses.dataclass(frozen=True)
class Imported:
    """What became of one buffer."""

    file: str
    first: int
    """Number of its first expert in the library; the others follow."""
    experts: int
    added: int
    """How many were written now; the others were there from an earlier import."""
    accuracy: float
    """Percent of test images that its first expert classifies rightly after its last epoch."""
    chance: float
    """Percent that always saying the most frequent class would."""

    @property
    def suspicious(self) -> bool:
        """Whether the expert knows next to nothing of these images: less than a tenth of the way
        from chance to all. Then whitening, class order or network are probably not its own."""
        return self.accuracy < self.chance + (100 - self.chance) / 10


def import_buffers(
    files: Sequence[Path],
    out: str | Path,
    data: ImageDataset,
    spec: NetworkSpec,
    whitening: Whitening,
    *,
    device: str = "cpu",
    on_expert: Callable[[int, int], None] | None = None,
    on_file: Callable[[Imported], None] | None = None,
) -> ExpertLibrary:
    """Add the experts of buffers to the library in `out`, which is founded if there is none.

    Experts are numbered on from those already there; a file that was imported before (known by its
    contents) adds only what is missing of it. Memory is that of one expert. The pixels must be
    whitened as they were for the experts: the test accuracy of each file's first expert shows it.

    on_expert: called with how many experts of the file are done, and how many it has.
    on_file: called after each file.

    Raises FileFormatError for a file that is no buffer, MismatchError when its parameters are not
    those of the network or the library is of other experts.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise SettingError(f"{out} is a file; give a folder for the library as --out")
    require_stateless(spec.build(seed=0))
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one import at a time; freed by the end of the process
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
                if on_expert is not None:
                    on_expert(place + 1, len(buffer))
            if on_file is not None:
                chance = 100 * float(data.test.labels.bincount().max()) / len(data.test)
                on_file(Imported(file.name, first, len(buffer), added, accuracy, chance))
    return ExpertLibrary.open(out)


def read_buffer(file: Path, spec: NetworkSpec) -> list[Epochs]:
    """The experts of one file, mapped, after checking that all are of the network `spec`.

    Raises FileFormatError for a file that is no buffer, for experts of different lengths and for
    experts that never move, MismatchError naming the first parameter of another shape.
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
    wanted = {name: p.shape for name, p in spec.build(seed=0).named_parameters()}
    for number, expert in enumerate(buffer):
        for epoch, parts in enumerate(expert):
            _require_shapes(f"{file}, expert {number}, epoch {epoch}", parts, wanted, spec)
        if all(torch.equal(a, b) for a, b in zip(expert[0], expert[-1], strict=True)):
            raise FileFormatError(
                f"expert {number} of {file} has the same parameters after every epoch, as the "
                "released code records them on a CPU; make the buffer again on a GPU"
            )
    return buffer


def export_buffers(library: ExpertLibrary, out: str | Path) -> list[str]:
    """Write a library as replay_buffer_0.pt, ... of ten experts each; returns their names.

    Memory: ten experts, in float32 whatever the library stores. Raises SettingError for a library
    without experts, DataError when such a file is there already.
    """
    out, module = Path(out), library.spec.build(seed=0)
    if not library.experts:
        raise SettingError(
            f"the library {library.path} holds no finished experts; nothing to write"
        )
    starts = range(0, len(library.experts), PER_FILE)
    names = [f"replay_buffer_{number}.pt" for number in range(len(starts))]
    require_absent(out, names)
    for name, start in zip(names, starts, strict=True):
        buffer: list[Epochs] = []
        for expert in library.experts[start : start + PER_FILE]:
            rows = (library.trajectory(expert).row(epoch) for epoch in range(library.epochs + 1))
            buffer.append([[p.clone() for p in split_vector(module, r).values()] for r in rows])
        save_pt(out / name, buffer)
    return names


def _require_shapes(
    where: str, parts: list[Any], wanted: dict[str, torch.Size], spec: NetworkSpec
) -> None:
    network = f"{spec.name} ({', '.join(f'{k}={v}' for k, v in spec.options.items())})"
    mend = "give the --network, --depth, --width and --norm they were trained with"
    for place, (name, shape) in enumerate(wanted.items()):
        if place >= len(parts):
            break
        found = parts[place]
        if not isinstance(found, Tensor) or not found.is_floating_point():
            raise FileFormatError(f"{where}: parameter {place} is no float tensor; give a buffer")
        if found.shape != shape:
            theirs, ours = ("x".join(map(str, s)) or "one number" for s in (found.shape, shape))
            raise MismatchError(
                f"{where}: parameter {place} is {theirs}, and {name} of {network} on images of "
                f"{_size(spec)} is {ours}; {mend}"
            )
    if len(parts) != len(wanted):
        raise MismatchError(
            f"{where} has {len(parts)} parameters and {network} has {len(wanted)}; {mend}"
        )


def _enter(
    file: Path,
    buffer: list[Epochs],
    out: Path,
    data: ImageDataset,
    spec: NetworkSpec,
    whitening: Whitening,
) -> tuple[ExpertLibrary, int]:
    """Enter a file into library.json; the library, and the number of the file's first expert."""
    epochs = len(buffer[0]) - 1
    with file.open("rb") as opened:
        contents = hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    if (out / "library.json").exists():
        _require_same(ExpertLibrary.open(out), epochs, data, spec, whitening)
        document = read_json(out / "library.json")
        made, entered = document["made"], document.get("files", [])
    else:
        made = {
            "seed": None,
            "settings": {"epochs": epochs, "storage": "float32"},
            "network": spec.to_json(),
            "whitening": whitening.summary(),
            "data": data.summary(),
            "imported": ORIGIN,
        }
        entered = []
    for entry in entered:
        if entry["contents"] == contents:
            return ExpertLibrary.open(out), entry["first"]
    # Entered before its experts are written: an import that is killed goes on where it stopped.
    first = sum(entry["experts"] for entry in entered)
    entry = {"name": file.name, "contents": contents, "first": first, "experts": len(buffer)}
    return write_library(out, made, whitening, files=[*entered, entry]), first


def _require_same(
    library: ExpertLibrary,
    epochs: int,
    data: ImageDataset,
    spec: NetworkSpec,
    whitening: Whitening,
) -> None:
    """Refuse to mix experts that were not made alike, as far as it can be known."""
    mend = "give another --out"
    if library.imported is None:
        raise MismatchError(f"the experts in {library.path} were trained by trajmatch; {mend}")
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
    # Fitted on another machine it differs in the last bits, and that is no other whitening.
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
    recording = TrainingState(rows, rows[-1], None, [])
    save_trajectory(
        path, recording, seed=None, index=index, library=library, test_accuracy=accuracy
    )


def _size(spec: NetworkSpec) -> str:
    height, width = spec.size if isinstance(spec.size, tuple) else (spec.size, spec.size)
    return f"{spec.channels}x{height}x{width}"

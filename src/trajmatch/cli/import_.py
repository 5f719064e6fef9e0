"""`trajmatch import`: experts and sets that other programs made."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajmatch.cli.flags import Common, Flat, Positional, pick_device
from trajmatch.config import DataConfig, NetworkConfig
from trajmatch.errors import FileFormatError, SettingError

if TYPE_CHECKING:
    from trajmatch.data import ImageDataset
    from trajmatch.data.whiten import Whitening
    from trajmatch.synthetic.formats.released import Contents


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Read files of released code: replay_buffer_*.pt become (or extend) an expert library;
    images_*.pt with labels_*.pt, a pair (images, labels), or the {"data": [[images, labels], ...]}
    of DC, DSA and DM a distilled set. Also a distilled.npz of `trajmatch export`.

    The .pt files say nothing of data, whitening and network, so --data, --whitening and, for
    buffers, the network's options must be those they were made with. For buffers it shows: the
    test accuracy of each file's first expert is printed. Released files made without ZCA need the
    released code's constants as --mean and --std (for CIFAR 0.4914,0.4822,0.4465 and
    0.2023,0.1994,0.2010). images_zca_*.pt are pictures; give the images_*.pt beside them.
    """

    files: Positional[tuple[Path, ...]]
    """One or more replay_buffer_*.pt, one .pt file of a set, or one distilled.npz."""
    out: Path = Path("runs/imported")
    """Folder of the library or the set."""
    labels: Path | None = None
    """Labels of an images_*.pt: class indices, probabilities or logits. None: labels_*.pt beside
    it."""
    number: int | None = None
    """Which set of a file with several (one an experiment), from 0. None: the last."""
    step_size: str | None = None
    """The set's learned step size: a number, or a .pt or text file that holds one."""
    data: Flat[DataConfig] = DataConfig()
    network: Flat[NetworkConfig] = NetworkConfig()
    mean: str | None = None
    """Per channel, separated by commas, of images in [0, 1]: instead of fitted statistics."""
    std: str | None = None
    """The same for standard deviations."""


def run(flags: Flags) -> None:
    import time

    from trajmatch.cli import shown
    from trajmatch.synthetic import formats as export

    began = time.perf_counter()
    device = pick_device(flags.device)
    if not flags.files:
        raise SettingError("no files are given; for example: trajmatch import replay_buffer_0.pt")
    first = flags.files[0]
    if first.suffix == ".npz":
        data, imported = _import_npz(flags)
    else:
        value = export.read_pt(first)
        contents = export.set_contents(value)
        if contents is not None:
            data, imported = _import_set(flags, contents)
        elif isinstance(value, list):
            data, imported = _import_buffers(flags, device)
        else:
            raise FileFormatError(f"{first} holds no set and no experts; {export.EXPECTED}")
    shown.log_event(flags.out, "imported", imported)
    shown.result(flags, "import", data, began, device=device, extra=imported)


Imported = tuple[dict[str, Any] | None, dict[str, Any]]
"""The data's summary, and what was imported, for result.json."""


def _import_npz(flags: Flags) -> Imported:
    from trajmatch.synthetic import formats as export

    path = _only_one(flags)
    distilled = export.read_npz(path)
    distilled.save(flags.out)
    print(f"{len(distilled)} images of {len(distilled.classes)} classes are in {flags.out}")
    return distilled.info.get("data"), {"files": [path.name], "images": len(distilled)}


def _import_set(flags: Flags, contents: Contents) -> Imported:
    from trajmatch import pipeline
    from trajmatch.cli import shown
    from trajmatch.synthetic import formats as export

    path = _only_one(flags)
    labels = _labels(flags, path, contents)
    step_size = None if flags.step_size is None else export.read_number(flags.step_size)
    data = shown.load(flags.data)
    given = flags.network != NetworkConfig()
    network = pipeline.network_for(data, flags.network).to_json() if given else None
    distilled = export.read_released(
        path,
        labels,
        data=data,
        whitening=_whitening(flags, data),
        number=flags.number,
        step_size=step_size,
        info={"network": network} if network else {},
    )
    distilled.save(flags.out)
    print(f"{len(distilled)} images of {len(distilled.classes)} classes are in {flags.out}")
    if "number" in distilled.info:
        print(
            f"they are set {distilled.info['number']} of 0 to {len(contents.sets) - 1} in the file "
            "(--number)"
        )
    if "labels" in distilled.info:
        print("the labels are no probabilities: their softmax was taken, as of logits")
    if step_size is None:
        print(
            "without --step-size: evaluate takes 0.01 (the released code logs the learned one as "
            "Synthetic_LR)"
        )
    imported = {
        "files": distilled.info["files"],
        "images": len(distilled),
        "step_size": step_size,
    }
    return data.summary(), imported


def _labels(flags: Flags, path: Path, contents: Contents) -> Path | None:
    """The file of the labels; None where they are beside the images."""
    if contents.has_labels:
        if flags.labels is not None:
            raise SettingError(f"{path} holds its labels; leave --labels out")
        return None
    labels = flags.labels or path.with_name(path.name.replace("images", "labels", 1))
    if labels == path or not labels.is_file():
        raise SettingError(
            f"there are no labels of {path} in {labels}; give their file as --labels"
        )
    return labels


def _import_buffers(flags: Flags, device: str) -> Imported:
    from trajmatch import pipeline
    from trajmatch.cli import shown
    from trajmatch.runtime.display import running as task
    from trajmatch.synthetic import formats as export

    if any(given is not None for given in (flags.labels, flags.step_size, flags.number)):
        raise SettingError(
            "--labels, --step-size and --number belong to a set; leave them out for buffers"
        )
    data = shown.load(flags.data)
    spec = pipeline.network_for(data, flags.network)
    with task("files", len(flags.files)) as bar:
        progress = shown.ImportProgress(bar)
        library = export.import_buffers(
            flags.files,
            flags.out,
            data,
            spec,
            _whitening(flags, data),
            device=device,
            progress=progress,
        )
    print(f"{len(library.experts)} experts of {library.epochs} epochs are in {flags.out}")
    return data.summary(), {"files": progress.files, "library": library.summary()}


def _only_one(flags: Flags) -> Path:
    if len(flags.files) > 1:
        raise SettingError(
            f"{len(flags.files)} files are given and the first is a set; import one set at a time"
        )
    return flags.files[0]


def _whitening(flags: Flags, data: ImageDataset) -> Whitening:
    from trajmatch.synthetic import formats as export

    return export.fit_released_whitening(
        data,
        flags.data.whitening,
        mean=_numbers("mean", flags.mean),
        std=_numbers("std", flags.std),
    )


def _numbers(name: str, text: str | None) -> list[float] | None:
    """`0.49,0.48,0.45` as numbers."""
    try:
        return None if text is None else [float(word) for word in text.split(",")]
    except ValueError:
        raise SettingError(f"--{name} is '{text}'; give numbers separated by commas") from None

"""`trajmatch export`: a set, or a library of experts, as files that other programs read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trajmatch.cli.flags import Common, Positional
from trajmatch.errors import SettingError

if TYPE_CHECKING:
    from trajmatch.evaluation import Score
    from trajmatch.synthetic import SyntheticSet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Write a set in another format, and never over a file that is there.

    pt: images_best.pt, labels_best.pt, syn_lr.pt, as the method's released code has them. npz: one
    NumPy file with all there is to know. folder: 8-bit pictures in train/<class>/, which lose what
    lies outside of [0, 1]. hub: a data set folder for the Hugging Face hub, with its card.

    An expert library goes --to pt as well: replay_buffer_*.pt of ten experts each.
    """

    set: Positional[Path]
    """Folder of a set (or the name of a shipped one, see `trajmatch zoo`), or of a library."""
    to: Literal["pt", "folder", "npz", "hub"]
    """The format."""
    out: Path = Path("runs/exported")
    """Folder to write to."""
    title: str = ""
    """Heading of the hub's card."""


def run(flags: Flags) -> None:
    import time

    from trajmatch.cli import shown
    from trajmatch.experts import ExpertLibrary
    from trajmatch.synthetic import formats as export
    from trajmatch.synthetic import load_distilled

    began = time.perf_counter()
    written: dict[str, Any]
    if (flags.set / "library.json").is_file():
        if flags.to != "pt":
            raise SettingError(f"experts cannot be exported to {flags.to}; give --to pt")
        library = ExpertLibrary.open(flags.set)
        data: dict[str, Any] | None = library.data
        score = None
        written = {
            "files": export.export_buffers(library, flags.out),
            "experts": len(library.experts),
        }
    else:
        distilled = load_distilled(str(flags.set))
        data, score = distilled.info.get("data"), _score(flags.set, distilled)
        accuracy = str(score) if score else _shipped_accuracy(flags.set)
        written = export.export_set(
            distilled, flags.to, flags.out, title=flags.title, accuracy=accuracy
        )
    shown.log_event(flags.out, "exported", {"to": flags.to, **written})
    scores = [] if score is None else [score]
    shown.result(flags, "export", data, began, scores=scores, extra={"exported": written})
    print(f"{', '.join(written['files'])} are in {flags.out}")
    if written.get("largest_clipped_share"):
        share = 100 * written["largest_clipped_share"]
        print(f"warning: 8 bits cut off up to {share:.1f} % of the values of a picture")
    if flags.to == "hub":
        print("upload the folder without result.json and log.jsonl, which name paths of yours")


def _score(folder: Path, distilled: SyntheticSet) -> Score | None:
    """What the set scored on test images at the end of its run, where it lies in its run."""
    from trajmatch.errors import FileFormatError
    from trajmatch.evaluation import Score
    from trajmatch.storage import read_result

    if folder.name != "best" or not (folder.parent / "result.json").is_file():
        return None
    try:
        scores = read_result(folder.parent)["scores"]
    except FileFormatError:
        return None
    own = [
        s for s in scores if s["split"] == "test" and s["method"] == distilled.info.get("method")
    ]
    return Score.from_json(own[0]) if own else None


def _shipped_accuracy(folder: Path) -> str:
    """The same of a set that was given by its name in the zoo; empty for any other."""
    from trajmatch.synthetic import zoo

    if folder.exists() or str(folder) not in zoo.names():
        return ""
    card = zoo.card(str(folder))
    return f"{zoo.accuracy_words(card)} (n={card['accuracy']['n']}, {card['protocol']})"

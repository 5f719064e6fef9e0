"""A set as an image folder, train/<class>/<number>.png: what every image tool reads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from trajmatch.storage.files import atomic_write
from trajmatch.synthetic.formats.released import require_absent
from trajmatch.synthetic.pictures import save_pictures
from trajmatch.synthetic.set import SyntheticSet
from trajmatch.types import Float, Tensor

FOLDER, NOTE = "train", "README.txt"


def write_pictures(made: SyntheticSet, out: Path) -> dict[str, Any]:
    """train/<class>/*.png in plain colors, and README.txt, which says what they lack.

    Returns with the files' names the largest share of an image that 8 bits could not hold. Raises
    DataError when `out` has either already.
    """
    require_absent(out, [FOLDER, NOTE])
    largest = float(clipped_shares(made).max())
    partial = out / f"{FOLDER}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    out.mkdir(parents=True, exist_ok=True)
    save_pictures(made.pixels(), made.hard_labels.tolist(), made.classes, partial)
    partial.rename(out / FOLDER)
    with atomic_write(out / NOTE) as note:
        note.write_text(_note(made, largest), encoding="utf-8")
    return {"files": [FOLDER, NOTE], "images": len(made), "largest_clipped_share": largest}


def clipped_shares(made: SyntheticSet) -> Float[Tensor, "n"]:
    """Share of an image's values that a picture cuts off: over half a gray level outside [0, 1]."""
    plain = made.whitening.invert(made.images).flatten(1)
    half = 0.5 / 255
    return ((plain < -half) | (plain > 1 + half)).float().mean(1)


def _note(made: SyntheticSet, largest: float) -> str:
    step = "none" if made.step_size is None else f"{made.step_size:.6g}"
    soft = "The labels are probabilities; a picture lies in the folder of its most likely class.\n"
    return (
        f"{len(made)} distilled images of {len(made.classes)} classes, as plain 8-bit pictures: "
        f"whitening\n({made.whitening.name}) is undone.\n\n"
        "What they were trained as is not limited to what a picture can show. Values outside "
        "[0, 1]\nwere cut off, and the rest was rounded to 256 levels. In the picture that lost "
        f"most, {100 * largest:.1f} %\nof the values were cut off. Expect networks trained on the "
        "pictures to score lower than networks\ntrained on the set itself (--to pt, --to npz), "
        f"the more so the more was cut off.\n\nStep size of plain SGD: {step}\n"
        f"{soft if made.is_soft else ''}"
    )

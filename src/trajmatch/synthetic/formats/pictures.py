"""A set as an image folder, train/<class>/<number>.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trajmatch.synthetic.formats.publish import publish
from trajmatch.synthetic.pictures import save_pictures
from trajmatch.synthetic.set import SyntheticSet
from trajmatch.types import Float, Tensor

FOLDER, NOTE = "train", "README.txt"


def write_pictures(distilled: SyntheticSet, out: Path) -> dict[str, Any]:
    """Write train/<class>/*.png with whitening undone, and README.txt about what 8 bits lose.

    Returns the files, the number of images and the largest share of an image that was clipped.
    Raises DataError when `out` has both already.
    """
    largest = float(clipped_shares(distilled).max())

    def write(folder: Path) -> None:
        labels = distilled.hard_labels.tolist()
        save_pictures(distilled.pixels(), labels, distilled.classes, folder / FOLDER)
        (folder / NOTE).write_text(_note(distilled, largest), encoding="utf-8")

    publish(out, [FOLDER, NOTE], write)
    return {"files": [FOLDER, NOTE], "images": len(distilled), "largest_clipped_share": largest}


def clipped_shares(distilled: SyntheticSet) -> Float[Tensor, "n"]:
    """Share of each image's values that 8 bits clip: over half a gray level outside [0, 1]."""
    plain = distilled.whitening.invert(distilled.images).flatten(1)
    half = 0.5 / 255
    return ((plain < -half) | (plain > 1 + half)).float().mean(1)


def _note(distilled: SyntheticSet, largest: float) -> str:
    step = "none" if distilled.step_size is None else f"{distilled.step_size:.6g}"
    count, classes = len(distilled), len(distilled.classes)
    soft = "The labels are probabilities; a picture lies in the folder of its most likely class.\n"
    return (
        f"{count} distilled images of {classes} classes, as plain 8-bit pictures: "
        f"whitening\n({distilled.whitening.name}) is undone.\n\n"
        "What they were trained as is not limited to what a picture can show. Values outside "
        "[0, 1]\nwere cut off, and the rest was rounded to 256 levels. In the picture that lost "
        f"most, {100 * largest:.1f} %\nof the values were cut off. Expect networks trained on the "
        "pictures to score lower than networks\ntrained on the set itself (--to pt, --to npz), "
        f"the more so the more was cut off.\n\nStep size of plain SGD: {step}\n"
        f"{soft if distilled.is_soft else ''}"
    )

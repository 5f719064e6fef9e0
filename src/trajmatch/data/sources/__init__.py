"""Name or path -> ImageDataset, one short file a kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trajmatch.data.dataset import ImageDataset
from trajmatch.data.sources.digits import load_digits
from trajmatch.errors import DataError, SettingError, suggest

SOURCES: dict[str, Callable[[], ImageDataset]] = {"digits": load_digits}
"""What can be loaded by name alone."""

Progress = Callable[[int, int], None]
"""Called with how many images are decoded and how many there are."""


def load_data(
    data: str | Path = "digits",
    *,
    size: int | None = None,
    val_fraction: float = 0.1,
    cache: bool = True,
    progress: Progress | None = None,
) -> ImageDataset:
    """Load images by name ("digits"), or from a folder or .zip of class folders.

    `size` brings all images to that side in pixels: shorter side resized, then center-cropped.
    `val_fraction` of each class's training images becomes the validation split, always the same
    ones, unless the data set brings its own. `cache` keeps decoded images for the next time (see
    `sources.folder`). A name wins over a folder of that name; write "./digits" for the folder.

    Raises DataError for what cannot be found or read, SettingError for a setting out of range.
    """
    if size is not None and size < 1:
        raise SettingError(f"size is {size}; it must be at least 1 pixel")
    if not 0 < val_fraction < 1:
        raise SettingError(f"val_fraction is {val_fraction}; it must be between 0 and 1")
    if isinstance(data, str) and data in SOURCES:
        dataset = SOURCES[data]()
        return (dataset if size is None else dataset.resized(size)).with_validation(val_fraction)
    path = Path(data).expanduser()
    if not path.exists():
        looks_like_path = isinstance(data, Path) or len(path.parts) > 1 or path.suffix
        what = "no such file or folder" if looks_like_path else "unknown data"
        raise DataError(
            f"{what} '{data}'; {suggest(str(data), SOURCES)}; or give a folder or .zip that holds "
            "train/<class>/ and test/<class>/"
        )
    from trajmatch.data.sources.folder import load_folder  # Pillow: only when there is work for it

    dataset = load_folder(path, size=size, cache=cache, progress=progress)
    return dataset.with_validation(val_fraction)

"""Name or path -> ImageDataset, one short file a kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from trajmatch.data.dataset import ImageDataset
from trajmatch.data.sources.arrays import restricted
from trajmatch.data.sources.cifar import load_cifar10, load_cifar100
from trajmatch.data.sources.digits import load_digits
from trajmatch.data.sources.mnist import load_fashion_mnist, load_mnist
from trajmatch.data.sources.source import Progress, Request, Source
from trajmatch.data.sources.svhn import load_svhn
from trajmatch.errors import DataError, SettingError, suggest

HUB = "hf:"
"""What begins with this is the name of a data set on the Hugging Face hub."""


def load_data(
    data: str | Path = "digits",
    *,
    size: int | None = None,
    val_fraction: float = 0.1,
    cache: bool = True,
    progress: Progress | None = None,
    data_root: str | Path | None = None,
    classes: str | Sequence[str] | None = None,
) -> ImageDataset:
    """Load images by name ("cifar10", "hf:NAME"), or from a folder or .zip of class folders.

    `size` brings all images to that side in pixels: shorter side resized, then center-cropped.
    `val_fraction` of each class's training images becomes the validation split, always the same
    ones, unless the data set brings its own. `cache` keeps decoded images for the next time (see
    `sources.folder`). `data_root` is the folder that named data sets lie in, TRAJMATCH_DATA's when
    left out; nothing but "hf:NAME" is ever downloaded. `classes` ("cat,dog", or a list) leaves all
    others out; its order numbers them. A name wins over a folder of that name; write "./digits"
    for the folder.

    Raises DataError for what cannot be found or read, SettingError for a setting out of range.
    """
    if size is not None and size < 1:
        raise SettingError(f"size is {size}; it must be at least 1 pixel")
    if not 0 < val_fraction < 1:
        raise SettingError(f"val_fraction is {val_fraction}; it must be between 0 and 1")
    root = None if data_root is None else Path(data_root)
    request = Request(root, size, cache, progress, _chosen(classes))
    dataset = _named(data, request) if isinstance(data, str) else None
    if dataset is None:
        dataset = _at_path(data, request)
    if size is not None:
        dataset = dataset.resized(size)
    return dataset.with_validation(val_fraction)


def _named(name: str, request: Request) -> ImageDataset | None:
    """The data set of that name; None when there is none."""
    if name in SOURCES:
        return SOURCES[name].load(request)
    if name.startswith(HUB):
        from trajmatch.data.sources.hub import load_hub

        return load_hub(name, request)
    return None


def _at_path(data: str | Path, request: Request) -> ImageDataset:
    path = Path(data).expanduser()
    if not path.exists():
        looks_like_path = isinstance(data, Path) or len(path.parts) > 1 or path.suffix
        what = "no such file or folder" if looks_like_path else "unknown data"
        raise DataError(
            f"{what} '{data}'; {suggest(str(data), SOURCES)}; or give {HUB}NAME of a data set on "
            "the Hugging Face hub, or a folder or .zip of class folders"
        )
    from trajmatch.data.sources.folder import load_folder  # Pillow: only when there is work for it

    return load_folder(
        path,
        size=request.size,
        cache=request.cache,
        progress=request.progress,
        classes=request.classes,
    )


def _chosen(classes: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if classes is None:
        return None
    words = classes.split(",") if isinstance(classes, str) else classes
    chosen = tuple(word.strip() for word in words)
    if not chosen or not all(chosen):
        raise SettingError(f"classes is {classes!r}; give names with commas between, as cat,dog")
    return chosen


def _digits(request: Request) -> ImageDataset:
    return load_digits()


def _imagenet(name: str, request: Request) -> ImageDataset:
    from trajmatch.data.sources.imagenet import IMAGENET

    return IMAGENET[name].load(request)


def _tiny_imagenet(request: Request) -> ImageDataset:
    from trajmatch.data.sources.tiny_imagenet import load_tiny_imagenet

    return load_tiny_imagenet(request)


def _small(load: Callable[[Request], ImageDataset], about: str) -> Source:
    """A data set that is read whole, whatever classes are asked for."""
    return Source(lambda request: restricted(load(request), request.classes), about)


# Their readers need Pillow and are imported when there is work for them.
_IMAGENET = {
    "imagenet": "all of ImageNet, or the classes chosen",
    "imagenette": "10 easy classes of ImageNet",
    "imagewoof": "10 dogs of ImageNet",
    "imagefruit": "10 fruits of ImageNet",
    "imageyellow": "10 yellow things of ImageNet",
    "imagemeow": "10 cats of ImageNet",
    "imagesquawk": "10 birds of ImageNet",
    "imagenette2": "fast.ai's Imagenette in its own split",
    "imagewoof2": "fast.ai's Imagewoof in its own split",
}

SOURCES: dict[str, Source] = {
    "digits": _small(_digits, "1,797 handwritten digits of 8x8, in scikit-learn: no files needed"),
    "cifar10": _small(
        load_cifar10,
        "10 classes, 32x32; from cifar-10-batches-py/, cifar-10-batches-bin/ or their .tar.gz",
    ),
    "cifar100": _small(
        load_cifar100,
        "100 classes, 32x32; from cifar-100-python/, cifar-100-binary/ or their .tar.gz",
    ),
    "svhn": _small(
        load_svhn, "digits of house numbers, 32x32; from train_32x32.mat and test_32x32.mat"
    ),
    "mnist": _small(load_mnist, "handwritten digits, 28x28; from MNIST/raw/ or mnist/"),
    "fashion-mnist": _small(
        load_fashion_mnist, "10 kinds of clothing, 28x28; from FashionMNIST/raw/ or fashion-mnist/"
    ),
    "tiny-imagenet": Source(
        _tiny_imagenet, "200 classes, 64x64; from tiny-imagenet-200/ or tiny-imagenet-200.zip"
    ),
    **{name: Source(partial(_imagenet, name), about) for name, about in _IMAGENET.items()},
}
"""What can be loaded by name alone."""

"""Several sets as one, and a set in another whitening."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from trajmatch.data.whiten import Whitening
from trajmatch.errors import DataError, MismatchError
from trajmatch.synthetic.set import SyntheticSet
from trajmatch.types import Float, Int, Tensor


def merge(sets: Iterable[SyntheticSet], *, whitening: Whitening | None = None) -> SyntheticSet:
    """All images of several sets as one set, as continual learning collects the sets of its tasks.

    Classes are united in the order in which they appear; those of equal names are one. Where any
    set has soft labels, all labels become probabilities, which are 0 for classes that a set does
    not have. The step size is the mean of the sets', None where one has none. Crops of a texture
    become plain images. `info` records the parts.

    whitening: to bring all images to, exactly (see `rewhiten`). None: the sets' own, which must be
        one and the same.

    Raises DataError for no sets or anything else than sets, MismatchError for images of different
    shapes or whitenings.

    Examples:
        >>> import trajmatch
        >>> data = trajmatch.load_data("digits")
        >>> first, last = (
        ...     trajmatch.select_coreset("random", trajmatch.load_data("digits", classes=names), 2)
        ...     for names in ("0,1", "7,8,9")
        ... )
        >>> merged = trajmatch.merge([first, last], whitening=first.whitening)
        >>> merged
        SyntheticSet(10 images of 1x8x8, 5 classes, ipc 2, merged)
        >>> merged.classes
        ('0', '1', '7', '8', '9')
    """
    sets = _checked(sets)
    if whitening is None:
        whitening = sets[0].whitening
        _require_same_whitening(sets)
    _require_same_shape(sets)
    parts = [rewhiten(part, whitening) for part in sets]
    classes = tuple(dict.fromkeys(name for part in parts for name in part.classes))
    soft = any(part.is_soft for part in parts)
    steps = [part.step_size for part in parts if part.step_size is not None]
    return SyntheticSet(
        images=torch.cat([part.images for part in parts]),
        labels=torch.cat([_labels(part, classes, soft) for part in parts]),
        classes=classes,
        whitening=whitening,
        step_size=statistics.fmean(steps) if len(steps) == len(parts) else None,
        info=_info(sets, classes),
    )


def rewhiten(distilled: SyntheticSet, whitening: Whitening) -> SyntheticSet:
    """The same pictures in another whitening: its own is undone, without clipping, and the other
    applied. Exact up to rounding; a set whitened like that already is returned as it is."""
    if distilled.whitening.checksum == whitening.checksum:
        return distilled

    def converted(images: Tensor) -> Tensor:
        return whitening.transform(distilled.whitening.invert(images))

    canvases = distilled.canvases
    if canvases is not None and not whitening.any_size:
        canvases = None  # larger than the images that the whitening is for
    return dataclasses.replace(
        distilled,
        images=converted(distilled.images),
        canvases=None if canvases is None else converted(canvases),
        whitening=whitening,
    )


def _checked(given: Iterable[SyntheticSet]) -> list[SyntheticSet]:
    sets = list(given)
    if not sets:
        raise DataError("there are no sets to merge; give at least one")
    for number, part in enumerate(sets):
        if not isinstance(part, SyntheticSet):
            raise DataError(
                f"set {number} is of type {type(part).__name__}; give sets, as load_distilled and "
                "select_coreset return them"
            )
    return sets


def _require_same_whitening(sets: Sequence[SyntheticSet]) -> None:
    first = sets[0].whitening
    for number, part in enumerate(sets):
        if part.whitening.checksum != first.checksum:
            raise MismatchError(
                f"set {number} has whitening {part.whitening.name} {part.whitening.checksum} and "
                f"set 0 {first.name} {first.checksum}; give whitening=sets[0].whitening to bring "
                "all to one"
            )


def _require_same_shape(sets: Sequence[SyntheticSet]) -> None:
    for number, part in enumerate(sets):
        own, first = (tuple(one.images.shape[1:]) for one in (part, sets[0]))
        if own != first:
            theirs, ours = ("x".join(map(str, shape)) for shape in (own, first))
            raise MismatchError(
                f"set {number} has images of {theirs} and set 0 of {ours} (channels x height x "
                "width); merge sets of one shape"
            )


def _labels(
    part: SyntheticSet, classes: tuple[str, ...], soft: bool
) -> Int[Tensor, "n"] | Float[Tensor, "n classes"]:
    """The labels of a part as those of all `classes`."""
    place = torch.tensor([classes.index(name) for name in part.classes])
    if not soft:
        return place[part.labels]
    labels = torch.zeros(len(part), len(classes))
    if part.is_soft:
        labels[:, place] = part.labels
    else:
        labels[torch.arange(len(part)), place[part.labels]] = 1
    return labels


def _info(sets: Sequence[SyntheticSet], classes: tuple[str, ...]) -> dict[str, Any]:
    info: dict[str, Any] = {
        "method": "merged",
        "title": "merged sets",
        "parts": [
            {
                "classes": list(part.classes),
                "images": len(part),
                "step_size": part.step_size,
                "fingerprint": part.fingerprint,
                "info": part.info,
            }
            for part in sets
        ],
    }
    networks = [part.info.get("network") for part in sets]
    networks = [network and {**network, "classes": len(classes)} for network in networks]
    if networks[0] and all(network == networks[0] for network in networks):
        info["network"] = networks[0]
    data = [part.info["data"] for part in sets if "data" in part.info]
    if len(data) == len(sets) and all(one == data[0] for one in data):
        info["data"] = data[0]
    elif data:
        # Of several data sets nobody knows whose validation images are among the others' images.
        names = dict.fromkeys(str(one["name"]) for one in data)
        info["data"] = {"name": " + ".join(names), "fingerprint": "unknown"}
    return info

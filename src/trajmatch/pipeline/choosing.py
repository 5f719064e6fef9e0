"""Chosen sets: what a coreset looks at is made here, and the images are picked."""

from __future__ import annotations

from pathlib import Path

from trajmatch import coresets
from trajmatch.data import ImageDataset
from trajmatch.data.whiten import fit_whitening
from trajmatch.errors import SettingError
from trajmatch.experts import ExpertLibrary
from trajmatch.pipeline.checks import require_experts, require_fit
from trajmatch.synthetic import SyntheticSet
from trajmatch.types import Float, Tensor


def select_coreset(
    method: str,
    data: ImageDataset,
    ipc: int,
    *,
    experts: str | Path | ExpertLibrary | None = None,
    whitening: str | None = None,
    seed: int = 0,
) -> SyntheticSet:
    """`ipc` real training images per class, chosen by `method`, a name in `coresets.CORESETS`.

    experts: a library whose first expert gives the features that some methods look at (papers:
    features of a trained network), and whose whitening is used. Without it `whitening` is fitted.
    """
    coreset = coresets.coreset_of(method)
    library = None
    if experts is not None:
        library = (
            experts if isinstance(experts, ExpertLibrary) else ExpertLibrary.open(Path(experts))
        )
        require_fit(library, data, whitening=whitening)
    if coreset.looks_at == "features":
        if library is None:
            raise SettingError(
                f"{method} looks at features of a trained network; give --experts a library"
            )
        require_experts(library)
    coresets.require_enough(data, ipc)
    fitted = library.whitening if library else fit_whitening(whitening or "normalize", data.train)
    evidence: Tensor | None = None
    if library is not None and coreset.looks_at == "features":
        evidence = _features(data, library)
    return coresets.select_coreset(
        method, data, ipc, seed=seed, whitening=fitted, evidence=evidence
    )


def _features(data: ImageDataset, library: ExpertLibrary) -> Float[Tensor, "n features"]:
    """What the first expert, as it was after its last epoch, makes of the training images."""
    vector = library.segment(library.experts[0], 0, library.epochs)[1]
    return coresets.embeddings(library.spec, vector, library.whitening.apply_split(data.train))

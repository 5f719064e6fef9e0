"""Methods side by side: distilled and chosen images, at several numbers per class."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from trajmatch.config import NetworkConfig, require_range, to_dict
from trajmatch.errors import SettingError, suggest
from trajmatch.methods import METHODS
from trajmatch.methods.coresets import CORESETS
from trajmatch.methods.registry import method_class
from trajmatch.networks import NETWORKS
from trajmatch.pipeline.recipe import Recipe
from trajmatch.studies.scores import add_ranking, set_scores, validation_score
from trajmatch.studies.study import Study, Variant


def known(base: Recipe) -> list[str]:
    """What can be compared: coresets, methods, and what `base.methods` gives another name.

    A method of another file counts by its own name, not once more by its path.
    """
    methods = [name for name in METHODS if ":" not in name]
    return list(dict.fromkeys([*CORESETS, *methods, *base.methods]))


def comparison(
    methods: Sequence[str],
    ipcs: Sequence[int],
    networks: Sequence[NetworkConfig] = (),
    *,
    test_all: bool = False,
) -> Study:
    """`methods` at each of `ipcs` images per class, with the settings `Recipe.by` gives them;
    the first seed's images train `networks` as well.

    Of several settings of one method, the one of the highest validation accuracy is tested and the
    others are not: a sweep does not select on test images. test_all: test every one of them, as in
    an ablation that was planned beforehand.

    Raises SettingError for nothing to compare, a number below 1, one that stands twice, or an
    unknown network. Names of methods are checked where the base is known: by `Study.variants`.
    """
    if not methods or not ipcs:
        raise SettingError("there is nothing to compare: give methods and images per class")
    for what, given in (("method", methods), ("ipc", ipcs)):
        twice = sorted({str(one) for one in given if list(given).count(one) > 1})
        if twice:
            raise SettingError(f"{what} {twice[0]} stands twice; name each once")
    for ipc in ipcs:
        require_range("ipc", ipc)
    for network in networks:
        if network.network not in NETWORKS:
            word = str(network.network)
            raise SettingError(f"unknown network '{word}'; {suggest(word, NETWORKS)}")

    def variants(base: Recipe) -> list[Variant]:
        found = [_variant(base, method, ipc) for ipc in ipcs for method in methods]
        return [dataclasses.replace(one, choice="") for one in found] if test_all else found

    return Study(
        name="methods",
        purpose="Which method makes the best images of the same number?",
        rule=lambda base: _rule(base, test_all),
        variants=variants,
        figure="grid",
        axes={"ipc": "images per class", "method": "method"},
        measure=lambda subject: set_scores(subject, networks),
        page="comparison",
        measure_settings={
            "scores": "validation, hard, soft, plain",
            "networks": [to_dict(one) for one in networks],
        },
        validate=validation_score,
        relate=add_ranking,
    )


def _rule(base: Recipe, test_all: bool) -> str:
    fresh = base.evaluate
    chosen = "that of the highest validation accuracy is" if not test_all else "all are"
    return (
        "All methods have the same data, network, experts where they use any, and validation "
        "images to select by, and are tested alike: by fresh networks of their own "
        f"({fresh.n} a seed, {fresh.epochs} epochs), at the learned step size where a method "
        "learns one, else at 0.01. Of several settings of one method, "
        f"{chosen} tested. What each method changes of the settings is listed below. "
        "Time is that of the images alone: experts, which mtt, herding, k-center and k-means use, "
        "are trained once for all, and evaluations on validation images do not count. "
        "Memory is what the process took for it beyond what it held before, at its peak."
    )


def _variant(base: Recipe, name: str, ipc: int) -> Variant:
    if name not in known(base) and ":" not in name:
        raise SettingError(f"unknown method '{name}'; {suggest(name, known(base))}")
    if ":" in name:
        name = method_class(name).name
    place = {"ipc": ipc, "method": name}
    if name in CORESETS:
        distill = dataclasses.replace(base.distill, ipc=ipc)
        chosen = dataclasses.replace(base, distill=distill)
        return Variant(f"{name}-ipc{ipc}", chosen, place, source=name)
    changed = base.by(name, ipc=ipc)
    source = changed.method.name
    choice = f"{source}, {ipc} per class"
    return Variant(f"{name}-ipc{ipc}", changed, place, source=source, choice=choice)

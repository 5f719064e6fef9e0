"""Methods side by side: every way of making or choosing images, at several numbers per class."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from trajmatch.config import DistillConfig, NetworkConfig, RunConfig, to_dict
from trajmatch.errors import SettingError, suggest
from trajmatch.methods import METHODS
from trajmatch.methods.coresets import CORESETS
from trajmatch.networks import NETWORKS
from trajmatch.studies.judged import judged, ranked
from trajmatch.studies.study import Study, Variant


def known(base: RunConfig) -> list[str]:
    """What can be compared: coresets, methods, and what `base.methods` gives another name."""
    return list(dict.fromkeys([*CORESETS, *METHODS, *base.methods]))


def comparison(
    methods: Sequence[str], ipcs: Sequence[int], networks: Sequence[NetworkConfig] = ()
) -> Study:
    """`methods` at each of `ipcs` images per class, with the settings `RunConfig.by` gives them;
    the first seed's images train `networks` as well.

    Raises SettingError for nothing to compare, a number below 1, one that stands twice, or an
    unknown network. Names of methods are checked where the base is known: by `Study.variants`.
    """
    if not methods or not ipcs:
        raise SettingError("there is nothing to compare: give methods and images per class")
    for what, given in (("method", methods), ("ipc", ipcs)):
        twice = sorted({str(one) for one in given if list(given).count(one) > 1})
        if twice:
            raise SettingError(f"{what} {twice[0]} stands twice; name each once")
    if min(ipcs) < 1:
        raise SettingError(f"ipc is {min(ipcs)}; it must be at least 1")
    for asked in networks:
        if asked.network not in NETWORKS:
            word = str(asked.network)
            raise SettingError(f"unknown network '{word}'; {suggest(word, NETWORKS)}")

    def variants(base: RunConfig) -> list[Variant]:
        return [_variant(base, method, ipc) for ipc in ipcs for method in methods]

    return Study(
        question="Which method makes the best images of the same number?",
        rule=_rule,
        variants=variants,
        figure="grid",
        axes={"ipc": "images per class", "method": "method"},
        measure=lambda made: judged(made, networks),
        page="comparison",
        asks={"scores": "hard, soft, plain", "networks": [to_dict(one) for one in networks]},
        relate=ranked,
    )


def _rule(base: RunConfig) -> str:
    judge = base.evaluate
    return (
        "All methods have the same data, network, experts where they look at any, and validation "
        "images to choose by, and are tested alike: by fresh networks of their own "
        f"({judge.n} a seed, {judge.epochs} epochs), at the learned step size where a method "
        "learns one, else at 0.01. What each method changes of the settings is listed below. "
        "Making time is that of the images alone: experts, which mtt, herding, k-center and "
        "k-means look at, are trained once for all, and looks at validation images do not count. "
        "Memory is what making took beyond what the process held before, at its peak."
    )


def _variant(base: RunConfig, name: str, ipc: int) -> Variant:
    if name not in known(base):
        raise SettingError(f"unknown method '{name}'; {suggest(name, known(base))}")
    place = {"ipc": ipc, "method": name}
    if name in CORESETS:
        distill = dataclasses.replace(base.distill, ipc=ipc)
        return Variant(f"{name}-ipc{ipc}", _with(base, distill), place, source=name)
    distill = base.by(name, ipc=ipc)
    if distill.method not in METHODS:
        raise SettingError(
            f"methods.{name} is of method '{distill.method}'; {suggest(distill.method, METHODS)}"
        )
    return Variant(f"{name}-ipc{ipc}", _with(base, distill), place, source=distill.method)


def _with(base: RunConfig, distill: DistillConfig) -> RunConfig:
    return dataclasses.replace(base, distill=distill)

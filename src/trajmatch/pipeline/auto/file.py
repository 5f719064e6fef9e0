"""The plan of a run as a file, OUT/plan.json, with what it was made for and how far the run is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trajmatch.data import ImageDataset
from trajmatch.errors import FileFormatError, MismatchError, SettingError
from trajmatch.pipeline.auto.plan import Plan
from trajmatch.pipeline.recipe import Recipe
from trajmatch.storage.files import read_json, write_json

NAME = "plan.json"
STAGES = ("planned", "trained", "distilled")
"""The plan was made; its experts are trained; its distillation is done."""


def request_of(start: Recipe, data: ImageDataset, fixed: Collection[str]) -> dict[str, Any]:
    """What a plan is made for: data, images per class, seed, and the settings a person fixed."""
    names = sorted({*fixed} - {"data.data", "distill.ipc"})
    given = {f"--{_flag(name)}": str(_value(start, name)) for name in names}
    return {
        "data": data.fingerprint,
        "ipc": start.distill.ipc,
        "seed": start.seed,
        **given,
    }


class Progressed(NamedTuple):
    """A plan, and how far the run is."""

    plan: Plan
    stage: str
    """Of `STAGES`."""
    seconds: float
    """That all calls together took until then."""


def write_plan(out: Path, found: Progressed, request: Mapping[str, Any]) -> None:
    """Write OUT/plan.json."""
    plan = found.plan
    document = {
        "request": dict(request),
        "stage": found.stage,
        "seconds": round(found.seconds, 3),
        "recipe": plan.recipe.to_dict(),
        "reasons": list(plan.reasons),
    }
    write_json(out / NAME, document)


def read_plan(out: Path, request: Mapping[str, Any]) -> Progressed | None:
    """The plan in a folder; None where there is none.

    Raises FileFormatError for a damaged file, MismatchError for a plan of another request.
    """
    path = out / NAME
    if not path.exists():
        return None
    document = read_json(path)
    try:
        plan = Plan(Recipe.from_dict(document["recipe"]), tuple(map(str, document["reasons"])))
        found, stage = dict(document["request"]), STAGES[STAGES.index(document["stage"])]
        seconds = float(document["seconds"])
    except (KeyError, TypeError, ValueError, SettingError) as error:
        raise FileFormatError(
            f"{path} is damaged ({error}); restore it, or give another --out"
        ) from error
    for name in sorted({*found, *request}):
        if found.get(name) != request.get(name):
            raise MismatchError(
                f"{path} was made for {name} {found.get(name)}, and this is {request.get(name)}; "
                "give the same to continue it, or another --out"
            )
    return Progressed(plan, stage, seconds)


def _flag(name: str) -> str:
    """`experts.batch` as its flag has it; `iterations` of `distill.iterations`."""
    part, _, field = name.partition(".")
    word = field.replace("_", "-")
    return f"{part}.{word}" if part in ("experts", "evaluate") else word


def _value(recipe: Recipe, name: str) -> Any:
    """A setting by `part.name`; of the outer loop or the method for `distill`."""
    part, _, field = name.partition(".")
    owner = getattr(recipe, part)
    if part == "distill" and not hasattr(owner, field):
        owner = recipe.method
    return getattr(owner, field)

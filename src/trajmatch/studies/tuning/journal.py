"""The journal of a tuning: Optuna's record of trials, in one file that processes share.

A trial has a place, 0, 1, ..., which is its number in results and the name of its folder. Optuna
counts killed attempts as trials of their own, which are marked failed; a place is tried again, with
the same values, until it is finished. Values are drawn by a sampler whose seed belongs to the
place: a tuning that was interrupted goes on with the same values as one that was not.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajmatch.errors import FileFormatError, MismatchError, MissingExtraError
from trajmatch.rng import derive
from trajmatch.storage.jsonl import jsonable
from trajmatch.storage.locks import lock
from trajmatch.studies.tuning.space import SearchRange
from trajmatch.units import Real

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

FILE = "study.journal"
STARTUP = 5
"""Completed trials before one is compared with their median."""
LEAST = 4
"""Completed trials that the importance of settings is computed from."""


def require_optuna() -> Any:
    """The module, imported; messages of its own are off. Raises MissingExtraError without it."""
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("tuning", "tune") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@dataclasses.dataclass(frozen=True)
class Place:
    """A place whose trial is to be done."""

    number: int
    values: Mapping[str, Real] | None = None
    """Those of the attempt that was killed; None where there was none."""
    reported: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """Validations of that attempt, by iteration."""


@dataclasses.dataclass(frozen=True)
class Journal:
    """The journal in the folder of a tuning. Any number of processes may use one at a time."""

    out: Path
    seed: int
    ranges: Mapping[str, SearchRange]

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Take the journal up, with all that determines its trials.

        Raises MismatchError where it was begun with other settings, FileFormatError where it cannot
        be read.
        """
        study = self.study()
        found, wanted = study.user_attrs.get("settings"), jsonable(settings)
        if found is None:
            study.set_user_attr("settings", wanted)
        elif found != wanted:
            raise MismatchError(
                f"{self.out} holds a tuning with {_difference(found, wanted)}; give another --out, "
                "or the settings it was begun with"
            )

    def study(self, number: int = 0) -> Study:
        """Optuna's study, with the sampler of the place `number`."""
        optuna = require_optuna()
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        sampler = optuna.samplers.TPESampler(
            seed=derive(self.seed, "tune", number) % 2**32, multivariate=False
        )
        try:
            study: Study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(self.out / FILE))),
                sampler=sampler,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=1),
                study_name="tune",
                direction="maximize",
                load_if_exists=True,
            )
            return study
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(
                f"{self.out / FILE} is damaged ({type(error).__name__}: {error!s:.80}); remove it, "
                "and with it the trials, or give another --out"
            ) from error

    def open_places(self, trials: int) -> list[Place]:
        """The places below `trials` that have no finished trial. Attempts that were killed are
        marked failed. No other process may be at work here."""
        from optuna.trial import TrialState

        study = self.study()
        for one in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(one.number, state=TrialState.FAIL)
        killed = {
            one.user_attrs["place"]: one
            for one in study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
            if one.user_attrs.get("begun")
        }
        done = {number for number, _ in self.finished()}
        places = []
        for number in range(trials):
            if number in killed and number not in done:
                one = killed[number]
                places.append(Place(number, one.params, one.intermediate_values))
            elif number not in done:
                places.append(Place(number))
        return places

    def finished(self) -> list[tuple[int, FrozenTrial]]:
        """Every trial that ended, completed or pruned, with its place, in the order of places."""
        from optuna.trial import TrialState

        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        trials = self.study().get_trials(deepcopy=False, states=ended)
        return sorted(((one.user_attrs["place"], one) for one in trials), key=lambda pair: pair[0])

    def draw(self, place: Place, own: Mapping[str, Any]) -> Trial:
        """Begin the trial of a place, with values from the sampler, from the attempt that was
        killed, or, of the place 0, with those of the recipe, `own`, as far as they are numbers in
        their ranges."""
        from optuna.trial import TrialState

        known = place.values
        if known is None and place.number == 0:
            known = {name: own[name] for name in self.ranges if own[name] in self.ranges[name]}
        names = list(self.ranges if known is None else known)
        with lock(self.out / ".journal.lock"):
            study = self.study(place.number)
            if known is not None:
                study.enqueue_trial(dict(known), user_attrs={"place": place.number})
            while True:
                attempt = study.ask({name: _distribution(self.ranges[name]) for name in names})
                if known is None or attempt.user_attrs.get("place") == place.number:
                    break
                study.tell(attempt, state=TrialState.FAIL)  # of a call that was killed before it
            attempt.set_user_attr("place", place.number)
            attempt.set_user_attr("begun", True)
        for iteration, value in place.reported.items():
            attempt.report(value, iteration)
        return attempt

    def importance(self) -> dict[str, float]:
        """The share of each searched setting in how the validation accuracy of completed trials
        varies (fANOVA: Hutter, Hoos, Leyton-Brown 2014), the largest first, 1 in all.

        Empty for fewer than 4 completed trials, and where they are all equal.
        """
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances
        from optuna.trial import TrialState

        study = self.study()
        completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        names = [name for name, one in self.ranges.items() if not one.fixed]
        drawn = [one for one in completed if set(names) <= set(one.params)]
        if not names or len(drawn) < LEAST or len({one.value for one in drawn}) == 1:
            return {}
        evaluator = FanovaImportanceEvaluator(seed=derive(self.seed, "importance") % 2**32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = get_param_importances(study, evaluator=evaluator, params=names)
        return {name: float(value) for name, value in found.items()}


def _distribution(found: SearchRange) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if found.choices:
        return CategoricalDistribution(found.choices)
    if found.integer:
        return IntDistribution(int(found.low), int(found.high), log=found.log)
    return FloatDistribution(float(found.low), float(found.high), log=found.log)


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """`lr_img 10 where this asks for 3`, for the first setting that differs."""
    for name in {**found, **wanted}:
        ours, theirs = found.get(name), wanted.get(name)
        if ours == theirs:
            continue
        if isinstance(ours, dict) and isinstance(theirs, dict):
            return f"{name}.{_difference(ours, theirs)}"
        return f"{name} {json.dumps(ours)[:60]} where this asks for {json.dumps(theirs)[:60]}"
    return "other settings"

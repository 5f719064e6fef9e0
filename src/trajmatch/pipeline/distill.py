"""From real images, and perhaps a library of experts, to a distilled set."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch

from trajmatch.config import Constant, DataConfig, DistillConfig, EvaluateConfig, NetworkConfig
from trajmatch.data import ImageDataset
from trajmatch.data.whiten import Whitening, fit_whitening
from trajmatch.evaluation import Score, TestSet, TrainingSet, evaluate_sets, training_work
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import (
    METHODS,
    MTT,
    Distillation,
    Method,
    Outcome,
    Problem,
    SyntheticParameters,
    run_loop,
)
from trajmatch.methods.calibration import calibration_words
from trajmatch.networks import Network, NetworkSpec
from trajmatch.networks.spec import network_for
from trajmatch.pipeline.checks import (
    conditions_of,
    require_experts,
    require_fit,
    require_sound,
    require_validation,
    starting_set,
)
from trajmatch.pipeline.continuation import (
    as_begun,
    as_calibrated,
    experts_words,
    say_experts,
    threads_of,
)
from trajmatch.pipeline.initial import initial_parameters, recorded_settings
from trajmatch.pipeline.memory_needs import distill_needs
from trajmatch.rng import derive, stream
from trajmatch.runtime.compiling import wanted
from trajmatch.runtime.display import shown_or
from trajmatch.runtime.memory import require_memory
from trajmatch.runtime.progress import Progress
from trajmatch.runtime.resources import Resources
from trajmatch.runtime.threads import limited_threads
from trajmatch.storage.folder import claim
from trajmatch.synthetic import SyntheticSet


@dataclasses.dataclass(frozen=True)
class Untrained:
    """Network and whitening for a method that needs no experts."""

    network: NetworkConfig | NetworkSpec | type[Network] = NetworkConfig()
    whitening: str | Whitening = "normalize"


def experts_or_untrained(
    library: ExpertLibrary | None, data: ImageDataset, network: NetworkConfig, config: DataConfig
) -> ExpertLibrary | Untrained:
    """The library, or without one network and whitening by their settings.

    Raises MismatchError where the library's data, network or whitening are others.
    """
    if library is None:
        return Untrained(network, config.whitening or "normalize")
    given = None if network == NetworkConfig() else network
    require_fit(library, data, network=given, whitening=config.whitening)
    return library


def distill(
    data: ImageDataset,
    method: Method = MTT(),
    experts: str | Path | ExpertLibrary | Untrained = Untrained(),
    out: str | Path = "runs/distilled",
    *,
    config: DistillConfig = DistillConfig(),
    evaluation: EvaluateConfig = EvaluateConfig(),
    seed: int = 0,
    resources: Resources = Resources(),
    progress: Progress | None = None,
) -> Outcome:
    """Learn `config.ipc` images per class by `method`, into the folder `out`.

    Network and whitening are those of `experts`, a library or its folder; a method that matches no
    experts can do with `Untrained`. `out`/best is the set whose fresh networks score best on
    validation images; the test images are not used. A run that is in `out` already is continued,
    to the same bits as if never interrupted (CPU).

    evaluation: how fresh networks are trained for it, `config.eval_networks` at a time.
    progress: an observer beside `out`/log.jsonl, such as `TrackerProgress` for W&B. None: a display
        where a person is looking.

    Raises MismatchError where data are not the experts', SettingError where settings do not fit the
    data, the method lacks the experts it needs, or `out` is another command's or in use.

    Examples:
        >>> data = trajmatch.load_data("digits")  # doctest: +SKIP
        >>> distill(data, MTT(syn_steps=20), "runs/experts", "runs/ipc1")  # doctest: +SKIP
    """
    out = Path(out)
    with claim(out, "distill"):
        method, config = method.completed(config)
        method = as_calibrated(method, out)
        start = starting_set(config, method, data, out)
        experts = _opened(experts, data)
        _require_sound(data, method, experts, config, evaluation, resources)
        problem = _problem(data, experts, out, config, seed, resources.torch_device)
        initial = initial_parameters(
            data, problem.whitening, method, config, seed=seed, start=start
        )
        threads = threads_of(out, resources, method.threads(problem, initial))
        problem.resolved["threads"] = threads
        with limited_threads(threads), shown_or(progress) as observer:
            say_experts(problem.library, experts, observer)
            method, initial = _calibrated(problem, method, initial, observer)
            settings = recorded_settings(config, method, start)
            run = _prepared(problem, method, config, settings, evaluation, initial)
            return run_loop(run, out, progress=observer)


def _calibrated(
    problem: Problem, method: Method, initial: SyntheticParameters, progress: Progress
) -> tuple[Method, SyntheticParameters]:
    """The method with what is left to the experts, and the parameters that it begins with."""
    if method.labels_from_experts:
        logits = problem.teacher_logits(initial.images)
        initial = dataclasses.replace(initial, label_logits=logits)
    calibrated = method.calibrated(problem, initial.to(problem.device))
    for line in calibration_words(problem.resolved.get("calibration", {})):
        progress.message(line)
    return calibrated, initial.stepping(calibrated.first_step_size)


def _prepared(
    problem: Problem,
    method: Method,
    config: DistillConfig,
    settings: dict[str, Any],
    evaluation: EvaluateConfig,
    initial: SyntheticParameters,
) -> Distillation:
    """The run. settings: as sets and checkpoints record them."""
    package = _Package(problem, method, settings, initial)
    few = dataclasses.replace(evaluation, n=config.eval_networks)
    decided = _decided(few, config, package(initial, 0), problem.spec)
    return Distillation(
        method,
        problem,
        initial.to(problem.device),
        config,
        package=package,
        validate=_Validation(problem, method, decided),
        origin=_origin(problem, method, config, settings, few),
    )


def _opened(
    experts: str | Path | ExpertLibrary | Untrained, data: ImageDataset
) -> ExpertLibrary | Untrained:
    """The library of a folder. Raises where the experts are not of `data`, or there are none."""
    if isinstance(experts, Untrained):
        return experts
    library = experts if isinstance(experts, ExpertLibrary) else ExpertLibrary.open(Path(experts))
    require_fit(library, data)
    require_experts(library)
    return library


def _require_sound(
    data: ImageDataset,
    method: Method,
    experts: ExpertLibrary | Untrained,
    config: DistillConfig,
    evaluation: EvaluateConfig,
    resources: Resources,
) -> None:
    """Refuse, before anything is computed, what would fail or not fit into memory later."""
    METHODS.require_own_name(method.name, type(method), type(method).__name__)
    require_validation(data)
    assert data.val is not None
    if isinstance(experts, Untrained):
        spec, whitening, epochs = network_for(data, experts.network), experts.whitening, None
    else:
        spec, whitening, epochs = experts.spec, experts.whitening, experts.epochs
    name = whitening if isinstance(whitening, str) else whitening.name
    require_memory(distill_needs(spec, len(data.val), method, config), resources.torch_device)
    conditions = conditions_of(data, spec, config.ipc, expert_epochs=epochs, whitening=name)
    require_sound(method, conditions, init=config.init, evaluation=evaluation)


def _problem(
    data: ImageDataset,
    experts: ExpertLibrary | Untrained,
    out: Path,
    config: DistillConfig,
    seed: int,
    device: torch.device,
) -> Problem:
    settings: dict[str, Any] = {
        "seed": seed,
        "precision": config.precision,
        "compile": config.compile,
        "iterations": config.iterations,
    }
    if isinstance(experts, Untrained):
        fitted = fit_whitening(experts.whitening, data.train)
        return Problem(data, network_for(data, experts.network), fitted, device, **settings)
    return Problem.of(data, as_begun(experts, out), device, **settings)


class _Package:
    """Parameters as a `SyntheticSet`: canvases as the fewest crops that show every pixel."""

    def __init__(
        self,
        problem: Problem,
        method: Method,
        settings: dict[str, Any],
        initial: SyntheticParameters,
    ) -> None:
        self.problem, self.method = problem, method
        data = problem.data
        self.info: dict[str, Any] = {
            "method": method.name,
            "title": method.title,  # for pages drawn where the method's package is not installed
            "objective": method.objective,
            "ipc": settings["ipc"],
            "seed": problem.seed,
            "settings": settings,
            "network": problem.spec.to_json(),
            "data": data.summary(),
            "threads": problem.resolved["threads"],
        }
        if problem.library is not None:
            self.info["experts"] = problem.library.summary()
        self.cover = None
        canvas = method.canvas_for(*data.train.images.shape[2:])
        if canvas is not None:
            count, _, tall, wide = initial.images.shape
            self.info["texture"] = {"canvas": [tall, wide], "samples": canvas.sampler.samples}
            draw = stream(problem.seed, "texture", "cover")
            self.cover = canvas.sampler.cover(draw, count, tall, wide)

    def __call__(self, parameters: SyntheticParameters, iteration: int) -> SyntheticSet:
        images, labels = parameters.images.detach().cpu(), parameters.labels.detach().cpu()
        canvases = None
        if self.cover is not None:
            canvases, images, labels = images, self.cover.apply(images), self.cover.repeat(labels)
        step_size = float(parameters.step_size) if self.method.learns_step_size else None
        return SyntheticSet(
            images=images,
            labels=labels,
            classes=self.problem.data.classes,
            whitening=self.problem.whitening,
            step_size=step_size,
            info={**self.info, "iteration": iteration},
            canvases=canvases,
        )


class _Validation:
    """Scores a set on the validation split."""

    def __init__(self, problem: Problem, method: Method, config: EvaluateConfig) -> None:
        self.problem, self.method, self.config = problem, method, config

    @functools.cached_property
    def test(self) -> TestSet:
        split, device, whitening = (
            self.problem.data.val,
            self.problem.device,
            self.problem.whitening,
        )
        assert split is not None
        images = whitening.apply_split(split, device)
        return TestSet(images, split.labels.to(device), "val", whitening.name)

    def __call__(self, distilled: SyntheticSet, iteration: int) -> Score:
        problem, device = self.problem, self.problem.device
        images, labels = distilled.images.to(device), distilled.labels.to(device)
        one = TrainingSet(images, labels, distilled.step_size, self.method.name, distilled.ipc)
        (score,) = evaluate_sets(
            [one],
            problem.spec,
            self.config,
            self.test,
            seed=derive(problem.seed, "validate", iteration),
            resources=Resources(device),
        )
        return score


def _origin(
    problem: Problem,
    method: Method,
    config: DistillConfig,
    settings: dict[str, Any],
    evaluation: EvaluateConfig,
) -> dict[str, Any]:
    """All that determines a run's numbers. The number of iterations may grow; how often a
    checkpoint is written, and by how many workers sets are evaluated, changes nothing."""
    settings = dict(settings)
    for free in ("iterations", "checkpoint_every", "texture", "canvas", "samples"):
        settings.pop(free, None)
    if config.schedule != Constant():  # its factor depends on how many iterations there are
        settings["iterations"] = config.iterations
    height, width = problem.data.train.images.shape[2:]
    if (canvas := method.canvas_for(height, width)) is not None:
        settings["ipc"] = (
            f"{config.ipc} (canvases of {canvas.height}x{canvas.width}, "
            f"{canvas.sampler.samples} crops a step)"
        )
    library = problem.library
    return {
        "seed": problem.seed,
        "data": problem.data.fingerprint,
        "network": problem.spec.describe(),
        "whitening": problem.whitening.checksum,
        "experts": experts_words(library) if library else "none",
        **settings,
        **{
            f"evaluate.{key}": value
            for key, value in dataclasses.asdict(evaluation).items()
            if key != "workers"
        },
    }


def _decided(
    evaluation: EvaluateConfig, config: DistillConfig, first: SyntheticSet, spec: NetworkSpec
) -> EvaluateConfig:
    """`evaluation` with `compile` decided: "yes" if it pays for all validations of the run."""
    one = TrainingSet(first.images, first.labels)
    times = -(-config.iterations // config.eval_every)
    work = training_work(spec, evaluation, [one]).times(times)
    return dataclasses.replace(
        evaluation, compile="yes" if wanted(evaluation.compile, work) else "no"
    )

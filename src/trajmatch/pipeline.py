"""From real images to a page: the verbs of the package, each a function of values.

The command line and Python users call the same functions. They put the rooms of the house
together and refuse what does not fit before anything starts; the work is done in the rooms.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trajmatch import coresets
from trajmatch.config import (
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    ExpertConfig,
    NetworkConfig,
    RunConfig,
    to_dict,
)
from trajmatch.data import ImageDataset, load_data
from trajmatch.data.augment import DSA
from trajmatch.data.whiten import fit_whitening
from trajmatch.distillation import Learned, Outcome, TrajectoryMatching, run_loop
from trajmatch.distillation.matching import require_long_enough
from trajmatch.errors import MismatchError, SettingError
from trajmatch.evaluation import Score, evaluate_images
from trajmatch.experts import ExpertLibrary, fill
from trajmatch.networks import NetworkSpec
from trajmatch.parallel import limited_threads
from trajmatch.rng import derive, stream
from trajmatch.synthetic import SyntheticSet
from trajmatch.track import write_result
from trajmatch.types import Tensor

QUICK_EPOCHS = 300
"""Epochs of the quick protocol: what the paper's 1000 give, within a point on small sets."""

WORK_PER_THREAD = 16
"""A second thread is started from a 16th of a cache-sized piece on: half a megabyte."""

Progress = Callable[[Mapping[str, Any]], None]
"""Called with what has just been done, as plain values."""


def load(config: DataConfig, progress: Callable[[int, int], None] | None = None) -> ImageDataset:
    """The data set a config names."""
    return load_data(
        config.data, size=config.size, val_fraction=config.val_fraction, progress=progress
    )


def network_for(data: ImageDataset, config: NetworkConfig) -> NetworkSpec:
    """The network a config names, for images and classes of `data`."""
    return NetworkSpec(
        config.network or "convnet", data.channels, data.num_classes, data.size, config.options()
    )


def train_experts(
    data: ImageDataset,
    out: str | Path,
    *,
    network: NetworkConfig | NetworkSpec = NetworkConfig(),
    config: ExpertConfig = ExpertConfig(),
    whitening: str | None = None,
    seed: int = 0,
    workers: int | None = None,
    device: str = "cpu",
    on_progress: Progress | None = None,
) -> ExpertLibrary:
    """Train `config.experts` networks on `data` and record their trajectories in the folder `out`.

    A library that is there already is continued: only missing experts are trained, and any number
    of processes may do so at once. The result is the same to the bit on the CPU.

    Raises MismatchError when `out` holds experts made otherwise.
    """
    spec = network if isinstance(network, NetworkSpec) else network_for(data, network)
    name, fitted = whitening or "normalize", None
    if (Path(out) / "library.json").exists():  # fitting a ZCA again would take half a minute
        library = ExpertLibrary.open(out)
        require_fit(library, data, whitening=name)
        fitted = library.whitening
    return fill(
        out,
        data,
        spec,
        fitted or fit_whitening(name, data.train),
        config,
        seed=seed,
        workers=workers or (_cores() if device == "cpu" else 1),
        device=device,
        on_progress=on_progress,
    )


def distill(
    data: ImageDataset,
    experts: str | Path | ExpertLibrary,
    out: str | Path,
    *,
    config: DistillConfig = DistillConfig(),
    evaluation: EvaluateConfig = EvaluateConfig(),
    network: NetworkConfig | None = None,
    whitening: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    tracker: str | None = None,
    on_iteration: Callable[[int, Mapping[str, float]], None] | None = None,
) -> Outcome:
    """Make `config.ipc` images per class by matching the experts' trajectories (MTT).

    Network and whitening are the experts'; when given, they must agree. The set kept is the one
    whose fresh networks score best on validation images; the test images are not touched. A run
    that is there already in `out` is continued to the same bits as if never interrupted (CPU).

    Raises MismatchError when data, network or whitening are not the experts', SettingError when
    the experts are too short for the segments asked for.
    """
    library = experts if isinstance(experts, ExpertLibrary) else ExpertLibrary.open(Path(experts))
    require_fit(library, data, network=network, whitening=whitening)
    _require_experts(library)
    _require_sound(config, evaluation, library.epochs, data.num_classes)
    where = torch.device(device)
    method = TrajectoryMatching(library, config, seed=seed, device=where)
    initial = initial_images(data, library, config, seed=seed)
    validation = data.val
    if validation is None:
        raise SettingError("the data have no validation split; use data.with_validation(0.1)")
    val_images = library.whitening.apply_split(validation, where)
    val_labels = validation.labels.to(where)
    quick = _with_networks(evaluation, config.eval_networks)
    info = {
        "method": method.name,
        "ipc": config.ipc,
        "seed": seed,
        "settings": to_dict(config),
        "network": library.spec.to_json(),
        "data": data.summary(),
        "experts": library.summary(),
    }

    def package(learned: Learned, iteration: int) -> SyntheticSet:
        return SyntheticSet(
            images=learned.images.detach().cpu(),
            labels=learned.labels.detach().cpu(),
            classes=data.classes,
            whitening=library.whitening,
            step_size=float(learned.step_size),
            info={**info, "iteration": iteration},
        )

    def validate(made: SyntheticSet, iteration: int) -> Score:
        return evaluate_images(
            made.images.to(where),
            made.labels.to(where),
            library.spec,
            quick,
            val_images,
            val_labels,
            lr=made.step_size,
            seed=derive(seed, "validate", iteration),
            method=method.name,
            ipc=config.ipc,
            split="val",
            whitening=library.whitening.name,
            device=where,
        )

    with limited_threads(threads or _walking_threads(method, initial)):
        return run_loop(
            method,
            Learned(
                initial.images.to(where),
                initial.classes.to(where),
                initial.log_step_size.to(where),
                None if initial.label_logits is None else initial.label_logits.to(where),
            ),
            config,
            Path(out),
            package=package,
            validate=validate,
            origin=_origin(data, library, config, quick, seed),
            tracker=tracker,
            on_iteration=on_iteration,
        )


def require_fit(
    library: ExpertLibrary,
    data: ImageDataset,
    *,
    network: NetworkConfig | None = None,
    whitening: str | None = None,
) -> None:
    """Refuse data, network or whitening that are not those the experts were trained with."""
    made = library.data
    if made["fingerprint"] != data.fingerprint:
        raise MismatchError(
            f"the experts in {library.path} were trained on {_in_words(made)} and this is "
            f"{_in_words(data.summary())}; give the same --data, --size and --val-fraction, or "
            "train experts on these data"
        )
    if whitening is not None and whitening != library.whitening.name:
        raise MismatchError(
            f"the experts in {library.path} were trained with whitening "
            f"'{library.whitening.name}' and this asks for '{whitening}'; use --whitening "
            f"{library.whitening.name}, or train experts with --whitening {whitening}"
        )
    if network is not None:
        asked = network_for(data, network)
        if asked != library.spec:
            raise MismatchError(
                f"the experts in {library.path} are {_spec_words(library.spec)} and this asks for "
                f"{_spec_words(asked)}; leave the network out to take the experts', or train "
                "experts with it"
            )


def _require_experts(library: ExpertLibrary) -> None:
    if not library.experts:
        raise SettingError(
            f"the library {library.path} holds 0 finished experts; run `trajmatch experts --out "
            f"{library.path}` again, with the settings it was begun with, to continue it"
        )


def _require_sound(
    config: DistillConfig, evaluation: EvaluateConfig, epochs: int, classes: int
) -> None:
    """Refuse now what would otherwise come to light in the middle of a run."""
    require_long_enough(epochs, config)
    images = config.ipc * classes
    if config.batch_syn is not None and config.batch_syn > images:
        raise SettingError(
            f"batch_syn is {config.batch_syn} and there are {images} synthetic images; use 1 to "
            f"{images}, or none for all of them"
        )
    for strategy in (config.augment, evaluation.augment):
        if strategy not in (None, "none"):
            DSA(str(strategy))


def initial_images(
    data: ImageDataset, library: ExpertLibrary, config: DistillConfig, *, seed: int
) -> Learned:
    """Where distillation starts: random training images of each class, or noise; whitened."""
    soft = data.num_classes if config.soft_labels else None
    if config.init == "real":
        chosen = coresets.select_coreset(
            "random", data, config.ipc, seed=derive(seed, "initial"), whitening=library.whitening
        )
        return Learned.begin(
            chosen.images, chosen.hard_labels, step_size=config.step_size, soft=soft
        )
    classes = torch.arange(data.num_classes).repeat_interleave(config.ipc)
    shape = (len(classes), *data.train.images.shape[1:])
    images = torch.randn(shape, generator=stream(seed, "initial", "noise"))
    return Learned.begin(images, classes, step_size=config.step_size, soft=soft)


def select_coreset(
    method: str,
    data: ImageDataset,
    ipc: int,
    *,
    experts: str | Path | ExpertLibrary | None = None,
    whitening: str | None = None,
    seed: int = 0,
) -> SyntheticSet:
    """`ipc` real training images per class, chosen by `method`: "random", "herding".

    experts: a library whose first expert gives the features that herding looks at (paper: features
    of a trained network), and whose whitening is used. Without it `whitening` is fitted.
    """
    library = None
    if experts is not None:
        library = (
            experts if isinstance(experts, ExpertLibrary) else ExpertLibrary.open(Path(experts))
        )
        require_fit(library, data, whitening=whitening)
    if method in coresets.NEEDS_FEATURES and library is None:
        raise SettingError(
            f"{method} looks at features of a trained network; give --experts a library"
        )
    fitted = library.whitening if library else fit_whitening(whitening or "normalize", data.train)
    features: Tensor | None = None
    if library is not None and method in coresets.NEEDS_FEATURES:
        _require_experts(library)
        vector = library.segment(library.experts[0], 0, library.epochs)[1]
        features = coresets.embeddings(library.spec, vector, fitted.apply_split(data.train))
    return coresets.select_coreset(
        method, data, ipc, seed=seed, whitening=fitted, features=features
    )


def evaluate(
    small: SyntheticSet | str | Path,
    data: ImageDataset,
    *,
    networks: Sequence[NetworkConfig | NetworkSpec] | None = None,
    config: EvaluateConfig = EvaluateConfig(),
    split: str = "test",
    seed: int = 0,
    device: str = "cpu",
    on_score: Callable[[Score], None] | None = None,
) -> list[Score]:
    """Train fresh networks on a small set alone and test them on `split` of `data`.

    networks: which; None takes the one the set was distilled with (the default ConvNet for a set
    that says nothing). One score each.

    Raises MismatchError when the set's images or classes are not those of `data`.
    """
    made = small if isinstance(small, SyntheticSet) else SyntheticSet.load(Path(small))
    if made.classes != data.classes:
        raise MismatchError(
            f"the set has classes {_some(made.classes)} and the data {_some(data.classes)}; "
            "give the data the set was made from"
        )
    splits = {"train": data.train, "val": data.val, "test": data.test}
    if split not in splits or splits[split] is None:
        raise SettingError(f"unknown split '{split}'; use test or val")
    chosen = splits[split]
    assert chosen is not None
    if networks is None:
        known = made.info.get("network")
        networks = [NetworkSpec.from_json(known)] if known else [NetworkConfig()]
    where = torch.device(device)
    specs = [n if isinstance(n, NetworkSpec) else network_for(data, n) for n in networks]
    if specs and tuple(made.images.shape[1:]) != tuple(data.train.images.shape[1:]):
        raise MismatchError(
            f"the set's images are {_shape(made.images)} and the data's "
            f"{_shape(data.train.images)} (channels x height x width); give the --size it was "
            "made with"
        )
    images = made.whitening.apply_split(chosen, where)
    scores = []
    for spec in specs:
        score = evaluate_images(
            made.images.to(where),
            made.labels.to(where),
            spec,
            config,
            images,
            chosen.labels.to(where),
            lr=made.step_size,
            seed=seed,
            method=str(made.info.get("method", "")),
            ipc=made.ipc,
            split=split,
            whitening=made.whitening.name,
            device=where,
        )
        scores.append(score)
        if on_score is not None:
            on_score(score)
    return scores


def full_data_score(library: ExpertLibrary) -> Score:
    """The experts' own test accuracy after their last epoch: the ceiling of this network."""
    config = library.settings
    words = f"{library.epochs} epochs on all training images, lr {config.lr:g}"
    return Score.of(
        [score for score in library.accuracy("test").values() if score is not None],
        method="full data",
        model=library.spec.describe(),
        ipc=None,
        protocol=f"{words}, batch {config.batch}",
        split="test",
        brief=words,
    )


def run(
    config: RunConfig,
    out: str | Path,
    *,
    device: str = "cpu",
    workers: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    on_progress: Progress | None = None,
    on_iteration: Callable[[int, Mapping[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Experts, distillation, its test accuracy, and random and herding beside it, in one folder.

    `out`/experts is the library; `out` itself is the run that `report` draws. Every stage continues
    where an earlier call stopped. Returns what result.json holds.
    """
    began = time.perf_counter()
    out = Path(out)
    data = load(config.data)
    _require_sound(config.distill, config.evaluate, config.experts.epochs, data.num_classes)
    library = train_experts(
        data,
        out / "experts",
        network=config.network,
        config=config.experts,
        whitening=config.data.whitening,
        seed=config.seed,
        workers=workers,
        device=device,
        on_progress=on_progress,
    )
    ceiling = full_data_score(library)
    say(f"experts: {len(library.experts)} of {library.epochs} epochs, test accuracy {ceiling}")
    outcome = distill(
        data,
        library,
        out,
        config=config.distill,
        evaluation=config.evaluate,
        seed=config.seed,
        device=device,
        on_iteration=on_iteration,
    )
    say(f"distilled: {outcome.iterations} iterations, kept {outcome.best_iteration}")
    scores = compare_on_test(
        outcome.best, data, library, config.evaluate, seed=config.seed, device=device, say=say
    )
    return write_run(
        out,
        command="run",
        settings=to_dict(config),
        seed=config.seed,
        data=data,
        library=library,
        outcome=outcome,
        scores=scores,
        seconds=time.perf_counter() - began,
        device=device,
    )


def compare_on_test(
    made: SyntheticSet,
    data: ImageDataset,
    library: ExpertLibrary,
    config: EvaluateConfig,
    *,
    seed: int,
    device: str,
    say: Callable[[str], None] = lambda line: None,
) -> list[Score]:
    """A made set, random and herding images of the same number, and the full data, on the test
    split, under one protocol."""
    sets = [made]
    for method in coresets.CORESETS:
        chosen = select_coreset(method, data, made.ipc, experts=library, seed=seed)
        sets.append(chosen)
    scores = []
    for one in sets:
        score = evaluate(
            one, data, networks=[library.spec], config=config, seed=seed, device=device
        )[0]
        say(f"{score.method}: {score}")
        scores.append(score)
    return [*scores, full_data_score(library)]


def write_run(
    out: Path,
    *,
    command: str,
    settings: Mapping[str, Any],
    seed: int,
    data: ImageDataset,
    library: ExpertLibrary,
    outcome: Outcome,
    scores: Sequence[Score],
    seconds: float,
    device: str,
) -> dict[str, Any]:
    """result.json of a distillation run."""
    return write_result(
        out,
        command=command,
        settings=settings,
        seed=seed,
        scores=[score.to_json() for score in scores],
        data=data.summary(),
        seconds=seconds,
        device=device,
        extra={
            "network": library.spec.describe(),
            "library": library.summary(),
            "best_iteration": outcome.best_iteration,
            "best_validation": outcome.best_validation,
            "last_iteration": outcome.iterations,
            "distill_seconds": round(outcome.seconds, 3),
            "decisions": outcome.decisions,
        },
    )


def _origin(
    data: ImageDataset,
    library: ExpertLibrary,
    config: DistillConfig,
    evaluation: EvaluateConfig,
    seed: int,
) -> dict[str, Any]:
    """All that determines a run's numbers. The number of iterations may grow; how often a
    checkpoint is written, and by how many workers sets are judged, changes nothing."""
    settings = to_dict(config)
    for free in ("iterations", "checkpoint_every"):
        del settings[free]
    judged = {f"evaluate.{k}": v for k, v in to_dict(evaluation).items() if k != "workers"}
    return {
        "seed": seed,
        "data": data.fingerprint,
        "experts": f"{len(library.experts)} of {library.digest}",
        **settings,
        **judged,
    }


def _walking_threads(method: TrajectoryMatching, initial: Learned) -> int:
    """More than one thread only where there is work enough for each."""
    batch = method.config.batch_syn or len(initial.images)
    return 1 if batch * WORK_PER_THREAD <= method.piece else torch.get_num_threads()


def _cores() -> int:
    """Cores this process may use: a container's share, where the system tells."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _with_networks(config: EvaluateConfig, networks: int) -> EvaluateConfig:
    return EvaluateConfig(**{**to_dict(config), "n": networks})


def _in_words(summary: Mapping[str, Any]) -> str:
    size = summary["size"]
    side = f"{size}x{size}" if isinstance(size, int) else "x".join(map(str, size))
    return (
        f"{summary['name']} ({summary['train']} training images of {side}x{summary['channels']}, "
        f"{len(summary['classes'])} classes, fingerprint {summary['fingerprint']})"
    )


def _spec_words(spec: NetworkSpec) -> str:
    options = ", ".join(f"{k}={v}" for k, v in spec.options.items())
    return f"{spec.name} ({options})"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")


def _shape(images: Tensor) -> str:
    return "x".join(map(str, images.shape[1:]))

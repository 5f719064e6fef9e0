"""Settings: frozen dataclasses, read from TOML and the command line, written as JSON.

Unknown keys and values out of range are refused with the value and a suggestion, before anything
starts. A method's settings are its own class's (`trajmatch.methods`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from trajmatch.config.optimizers import Constant, OuterOptimizer, Schedule
from trajmatch.config.ranges import check_ranges
from trajmatch.errors import SettingError
from trajmatch.units import seconds_of

Precision = Literal["float32", "bf16", "tf32"]
Storage = Literal["float32", "bf16"]
Compile = Literal["auto", "yes", "no"]
OnBadImage = Literal["stop", "skip"]

DSA_STRATEGY = "color_crop_cutout_flip_scale_rotate"
"""The paper's augmentation: one of the six is drawn per batch (Zhao & Bilen 2021)."""


def require(config: Any, name: str, holds: bool, rule: str) -> None:
    """Raises SettingError with the field's name and value unless `holds`; `rule` says what must."""
    if not holds:
        raise SettingError(f"{name} is {getattr(config, name)}; it must be {rule}")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is learned from."""

    data: str = "digits"
    """A folder, .zip or .tar of class folders, in train/ and test/ (or val/) or alone (a fifth of
    each class becomes the test images), or of pictures with a .csv or .parquet of labels; an .npz;
    hf:NAME; or digits, cifar10, cifar100, svhn, mnist, fashion-mnist, imagenet, tiny-imagenet,
    imagenette, imagewoof, imagefruit, imageyellow, imagemeow, imagesquawk, imagenette2, imagewoof2
    (fast.ai's split)."""
    data_root: str | None = None
    """Folder that data sets named above lie in; None: the one in TRAJMATCH_DATA."""
    classes: str | None = None
    """Only these classes, comma separated, in this order: names, or class ids of imagenet."""
    size: int | None = None
    """Side in pixels; images are resized and center-cropped to it. None keeps their own size."""
    val_fraction: float = 0.1
    """Share of the training images set aside for choosing, by class, when there is no val/."""
    on_bad_image: OnBadImage = "stop"
    """At a picture that cannot be decoded: stop, or skip it and count such pictures."""
    whitening: str | None = None
    """normalize: mean 0, sd 1 per channel; zca: the paper's; zca-compact: zca in a small file; or
    another package's: package.module:NAME. None: the experts', if any."""

    def __post_init__(self) -> None:
        if self.whitening in ("none", "None"):
            object.__setattr__(self, "whitening", None)
        check_ranges(self)
        require(self, "size", self.size is None or self.size >= 4, "at least 4 pixels")


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """What is trained."""

    network: str | None = None
    """convnet, resnet18, vgg11, alexnet, lenet, mlp, vit. None: the experts', else convnet.
    Another than a recipe's has its own defaults."""
    depth: int | None = None
    """Blocks of a ConvNet. None: 3 at 32 pixels, 4 at 64, 5 at 128, 2 below 23."""
    width: int | None = None
    """Filters per block of a ConvNet (None: 128)."""
    norm: str | None = None
    """instance, group, layer, none (batch in evaluate only). None: the network's default."""
    activation: str | None = None
    """relu, leakyrelu, sigmoid. None: relu."""
    pooling: str | None = None
    """avg, max, none. None: avg."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def options(self) -> dict[str, Any]:
        """The options a person set, as keywords for `build_network`."""
        names = ("depth", "width", "norm", "activation", "pooling")
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}


@dataclasses.dataclass(frozen=True)
class ExpertConfig:
    """How experts are trained (paper, section 3.2 and appendix)."""

    experts: int = 10
    """How many experts the library should hold."""
    epochs: int = 50
    """Epochs to record. A recipe reads up to max_start_epoch - 1 + expert_epochs and no more."""
    batch: int = 256
    """Real images per SGD step."""
    steps_per_epoch: int | None = None
    """SGD steps of an epoch, after which parameters are recorded. None: one pass over the images.
    """
    lr: float = 0.01
    """Learning rate, constant."""
    momentum: float = 0.0
    """SGD momentum; the paper's experts have none."""
    weight_decay: float = 0.0
    """SGD weight decay; the paper's experts have none."""
    augment: str | None = DSA_STRATEGY
    """DSA strategy: names joined by _, one is drawn per batch; or none. Leave flip out where a
    mirrored image is of another class or of none: letters, digits, signs."""
    storage: Storage = "float32"
    """bf16 halves the files and rounds parameters to 8 bits of mantissa."""
    precision: Precision = "float32"
    """Of convolutions and matrix products; parameters, norms and losses stay float32."""
    compile: Compile = "auto"
    """In the fastest form: C++ operators for the ConvNet on a CPU, else through torch.compile,
    which takes a minute at the start. auto: where it pays."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def images_per_epoch(self, images: int) -> int:
        """How many of a training split of `images` images an epoch goes through.

        >>> ExpertConfig().images_per_epoch(1000)
        1000
        >>> ExpertConfig(batch=64, steps_per_epoch=50).images_per_epoch(1000)  # 3 passes, 2 steps
        3128
        """
        per_pass = -(-images // self.batch)
        complete, rest = divmod(self.steps_per_epoch or per_pass, per_pass)
        return complete * images + rest * self.batch


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """The outer loop that all methods share. What a method adds is in its own class."""

    ipc: int = 1
    """Images per class."""
    iterations: int = 300
    """Updates of the synthetic images."""
    init: str = "real"
    """Start from real training images, from noise, or from an existing set: its folder, or the name
    of a shipped one. The set has the same classes, size and ipc; its images are brought to this
    run's whitening, and its labels are taken where the method learns labels."""
    optimizer: OuterOptimizer | None = None
    """Of images, labels and step size: sgd(momentum=0.5) as published, adam(betas=(0.9, 0.999)), or
    a class of torch.optim such as AdamW(weight_decay=0.01). The rates are the method's lr_img,
    lr_log_step_size and lr_label. None: the method's own, adam(betas=(0.5, 0.9)) for mtt, sgd for
    the others."""
    schedule: Schedule = Constant()
    """Factor on these rates: constant, cosine(end=0.0), decay(to=0.1, at=0.5)."""
    ema: float | None = None
    """Decay of an exponential average of the images; the average is what is kept. 0: off. None: the
    method's own, 0.95 for mtt, 0 for the others."""
    precision: Precision = "float32"
    """Of convolutions and matrix products; parameters, norms and losses stay float32."""
    compile: Compile = "auto"
    """In the fastest form: C++ operators for the ConvNet on a CPU, else through torch.compile,
    which takes a minute at the start. auto: where it pays."""
    eval_every: int = 50
    """Iterations between evaluations on the validation split, from the set it begins with on. The
    last set is evaluated as well; where that is off this schedule, a longer run drops it again."""
    eval_networks: int = 2
    """Fresh networks per such evaluation."""
    checkpoint_every: int = 10
    """Iterations between checkpoints."""

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self, "init", self.init != "", "real, noise, or the folder of a set")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """How a set is evaluated: by fresh networks trained on it alone."""

    n: int = 5
    """Fresh networks, each with its own initialization."""
    epochs: int = 1000
    """Passes over the small set; the learning rate drops to a tenth at the middle."""
    lr: float | None = None
    """None: the set's own learned step size (0.01 for a set that has none); for another network
    than it was made with, the best of 0.0003 to 0.03 on validation images."""
    momentum: float = 0.9
    """SGD momentum."""
    weight_decay: float = 5e-4
    """SGD weight decay."""
    batch: int = 256
    """Images per SGD step; the whole set where it has fewer."""
    augment: str | None = DSA_STRATEGY
    """DSA strategy, or none. Without flip for letters, digits and signs, as the experts'."""
    precision: Precision = "float32"
    """bf16 rounds the inputs of convolutions in training, which is about twice as fast where the
    processor has AVX512_BF16; networks are tested in float32."""
    compile: Compile = "auto"
    """In its fastest form, where the network is the field's ConvNet. auto: where that pays."""
    workers: int | None = None
    """Processes of one thread. None: one on a GPU; on the CPU one per core where that pays."""

    def __post_init__(self) -> None:
        check_ranges(self)


LATER = {"precision": "float32"}
"""Settings of an evaluation that came later, with the value that every score before them had."""


def determining(evaluate: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an evaluation as part of a key: without later ones that have the value of
    before, so that what was measured then is found.

    Examples:
        >>> determining({"epochs": 300, "precision": "float32"})
        {'epochs': 300}
    """
    missing = object()
    return {k: v for k, v in evaluate.items() if v != LATER.get(k, missing)}


@dataclasses.dataclass(frozen=True)
class TuneConfig:
    """How long better settings are searched for, and where."""

    trials: int = 30
    """Distillations in all, those of earlier calls included; the first has the settings given."""
    budget: str | None = None
    """Time of this call, such as 90s, 45m, 2h or 1h30m, the training of experts included: when it
    is used no further trial begins (the first of a call always does). None: no limit."""
    search: str = ""
    """Other ranges than the usual ones, separated by commas: NAME=LOW..HIGH, a choice NAME=A|B|C,
    or NAME=VALUE for one that all but the first trial have, as in
    lr_img=0.01..1,syn_steps=10..60,ema=0. NAME is any number among the method's settings, or ema.
    """

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.budget is not None:
            try:
                seconds_of(self.budget)
            except SettingError as error:
                raise SettingError(f"budget: {error}") from error

    @property
    def seconds(self) -> float | None:
        """The budget; None for no limit."""
        return None if self.budget is None else seconds_of(self.budget)


@dataclasses.dataclass(frozen=True)
class PublishedConfig:
    """What the authors of a recipe's settings report for them. To be read; no run depends on it."""

    accuracy: float | None = None
    """Percent of the test images, the mean over fresh networks."""
    source: str = ""
    """The paper, and where in it."""

    def __post_init__(self) -> None:
        check_ranges(self)

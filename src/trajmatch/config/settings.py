"""What a person may set: frozen dataclasses, read from TOML, written as JSON.

Unknown keys and values out of range are refused with the value and a suggestion, before anything
starts. Defaults are the digits demo's where a data set matters, the paper's elsewhere.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

from trajmatch.config.toml import from_dict, table_of, to_dict
from trajmatch.errors import SettingError

WhiteningName = Literal["normalize", "zca"]
Precision = Literal["float32", "bf16", "tf32"]
Storage = Literal["float32", "bf16"]
Gradient = Literal["auto", "stored", "reverse", "tesla"]
Initial = Literal["real", "noise"]
InitialLabels = Literal["one-hot", "experts"]
Compile = Literal["auto", "yes", "no"]

DSA_STRATEGY = "color_crop_cutout_flip_scale_rotate"
"""The paper's augmentation: one of the six is drawn per batch (Zhao & Bilen 2021)."""


def _check(config: Any, name: str, holds: bool, rule: str) -> None:
    if not holds:
        raise SettingError(f"{name} is {getattr(config, name)}; it must be {rule}")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is learned from."""

    data: str = "digits"
    """A folder or .zip of class folders, in train/ and test/ (or val/) or alone (a fifth of each
    class becomes the test images), hf:NAME, or digits, cifar10, cifar100, svhn, mnist,
    fashion-mnist, imagenet, tiny-imagenet, imagenette, imagewoof, imagefruit, imageyellow,
    imagemeow, imagesquawk, imagenette2, imagewoof2 (fast.ai's split)."""
    data_root: str | None = None
    """Folder that data sets named above lie in; None: the one in TRAJMATCH_DATA."""
    classes: str | None = None
    """Only these classes, comma separated, in this order: names, or class ids of imagenet."""
    size: int | None = None
    """Side in pixels; images are resized and center-cropped to it. None keeps their own size."""
    val_fraction: float = 0.1
    """Share of the training images set aside for choosing, by class, when there is no val/."""
    whitening: WhiteningName | None = None
    """normalize: mean 0, sd 1 per channel; zca: the paper's. None: the experts', if any."""

    def __post_init__(self) -> None:
        _check(self, "val_fraction", 0 < self.val_fraction < 1, "between 0 and 1, not including")
        _check(self, "size", self.size is None or self.size >= 4, "at least 4 pixels")


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
    lr: float = 0.01
    """Learning rate, constant."""
    momentum: float = 0.0
    """SGD momentum; the paper's experts have none."""
    weight_decay: float = 0.0
    """SGD weight decay; the paper's experts have none."""
    augment: str | None = DSA_STRATEGY
    """DSA strategy: names joined by _, one is drawn per batch; or none."""
    storage: Storage = "float32"
    """bf16 halves the files and rounds parameters to 8 bits of mantissa."""
    precision: Precision = "float32"
    """Of convolutions and matrix products; parameters, norms and losses stay float32."""
    compile: Compile = "auto"
    """Through torch.compile: a minute at the start, less time after that. auto: where it pays."""

    def __post_init__(self) -> None:
        for name in ("experts", "epochs", "batch"):
            _check(self, name, getattr(self, name) >= 1, "at least 1")
        _check(self, "lr", self.lr > 0, "above 0")
        _check(self, "momentum", 0 <= self.momentum < 1, "at least 0 and below 1")
        _check(self, "weight_decay", self.weight_decay >= 0, "at least 0")


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """How the images are made (paper, algorithm 1)."""

    method: str = "mtt"
    """How images are made. mtt: trajectories of experts are matched. dd: a walk from a fresh start
    should end well on real images; ld: the same of soft labels for real images that stay. dc:
    gradients of fresh networks; dsa: dc, augmented on both sides. dm: mean embeddings in random
    networks. cafe: features of every layer in networks that train along. kip: kernel inducing
    points, for which no network is trained."""
    ipc: int = 1
    """Images per class."""
    iterations: int = 300
    """Updates of the images."""
    syn_steps: int = 20
    """N: student steps on the synthetic images per iteration."""
    expert_epochs: int = 2
    """M: how many expert epochs those N steps should reach."""
    max_start_epoch: int = 6
    """T+: segments start at an epoch in {0, ..., T+ - 1}."""
    lr_img: float = 10.0
    """Learning rate of the pixels (SGD, momentum 0.5)."""
    lr_lr: float = 1e-6
    """Learning rate of the step size in the published unit; lr_lr / step_size^2 on its log."""
    step_size: float = 0.01
    """alpha_0: the student's learning rate at the start; learned as log(alpha)."""
    batch_syn: int | None = None
    """Synthetic images (of a texture: canvases) per student step. None: all of them."""
    init: Initial = "real"
    """Start from real training images or from noise."""
    soft_labels: bool = False
    """Learn the labels as well, by the same exact gradient. ld always does."""
    init_labels: InitialLabels = "one-hot"
    """Learned labels begin one-hot (smoothed), or as experts' mean logits on the first images."""
    lr_label: float = 1.0
    """Learning rate of the label logits where they are learned."""
    texture: bool = False
    """Learn canvases that wrap around, seen in crops: tiles without seams. Best with init noise."""
    canvas: int | None = None
    """Side of a texture's canvas in pixels. None: twice the image's."""
    samples: int = 1
    """Crops of each canvas of a texture per student step."""
    augment: str | None = DSA_STRATEGY
    """DSA strategy inside the student's walk, or none."""
    skip_loss: float = 1.0
    """Skip an update whose loss exceeds this: the student ended farther away than it began."""
    ema: float = 0.0
    """Decay of an exponential average of the images; the average is what is kept. 0: off."""
    segments: int = 1
    """Segments averaged per update."""
    gradient: Gradient = "auto"
    """Of a student's walk. reverse: graph of one step whatever N is. stored: the whole graph. auto:
    what fits. All three are exact; tesla leaves second-order terms out (Cui et al. 2023)."""
    precision: Precision = "float32"
    """Of convolutions and matrix products; parameters, norms and losses stay float32."""
    compile: Compile = "auto"
    """Through torch.compile: a minute at the start, less time after that. auto: where it pays."""
    eval_every: int = 50
    """Iterations between evaluations on the validation split."""
    eval_networks: int = 2
    """Fresh networks per such evaluation."""
    checkpoint_every: int = 10
    """Iterations between checkpoints."""
    batch_real: int = 256
    """Real images per iteration that methods without experts look at: of each class (dc, dsa, cafe,
    dm) or of all together (dd, ld, kip)."""
    lr_net: float = 0.01
    """dc, dsa, cafe: learning rate of the network that trains along on the images."""
    outer_loop: int | None = None
    """dc, dsa, cafe: updates of the images for one network. None: published for --ipc (1, 10, 50);
    cafe: until its accuracy on real images has settled."""
    inner_loop: int | None = None
    """dc, dsa, cafe: the network's steps between two of them. None: published for --ipc (1, 50,
    10); cafe: until its accuracy has moved."""
    window: int | None = None
    """dd, ld: the last steps of a walk that are differentiated through. None: all."""

    def __post_init__(self) -> None:
        for name in (
            "ipc", "iterations", "syn_steps", "expert_epochs", "max_start_epoch", "segments",
            "samples", "eval_every", "eval_networks", "checkpoint_every", "batch_real",
        ):  # fmt: skip
            _check(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("lr_img", "step_size", "skip_loss", "lr_label", "lr_net"):
            _check(self, name, getattr(self, name) > 0, "above 0")
        _check(self, "lr_lr", self.lr_lr >= 0, "at least 0 (0 keeps the step size fixed)")
        _check(self, "ema", 0 <= self.ema < 1, "at least 0 and below 1")
        for name in ("batch_syn", "outer_loop", "inner_loop", "window"):
            value = getattr(self, name)
            _check(self, name, value is None or value >= 1, "at least 1")
        steps = self.syn_steps
        _check(self, "window", (self.window or 1) <= steps, f"at most syn_steps ({steps})")
        if not self.texture:
            mend = "without --texture, which learns canvases"
            _check(self, "canvas", self.canvas is None, f"none {mend}")
            _check(self, "samples", self.samples == 1, f"1 {mend}")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """How a small set is judged: fresh networks trained on it alone."""

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
    """DSA strategy, or none."""
    compile: Compile = "auto"
    """Through torch.compile, where the network is the field's ConvNet. auto: where it pays."""
    workers: int | None = None
    """Processes of one thread. None: one on a GPU; on the CPU one per core where that pays."""

    def __post_init__(self) -> None:
        for name in ("n", "epochs", "batch"):
            _check(self, name, getattr(self, name) >= 1, "at least 1")
        _check(self, "lr", self.lr is None or self.lr > 0, "above 0")


@dataclasses.dataclass(frozen=True)
class PublishedConfig:
    """What the authors of a recipe's settings report for them. To be read; no run depends on it."""

    accuracy: float | None = None
    """Percent of the test images, the mean over fresh networks."""
    source: str = ""
    """The paper, and where in it."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything from real images to a page: what a recipe holds."""

    name: str = "digits"
    about: str = ""
    """One line for the list of recipes."""
    seed: int = 0
    published: PublishedConfig = PublishedConfig()
    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    experts: ExpertConfig = ExpertConfig()
    distill: DistillConfig = DistillConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    methods: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """What methods change of `distill` where they are asked for, by name: [methods.dm] in TOML, and
    [methods.dm.ipc10] for ten images per class alone. A table of another name gives its own
    `method`."""

    def __post_init__(self) -> None:
        for name, table in self.methods.items():
            self.by(name)
            for key in table:
                if ipc := re.fullmatch(r"ipc(\d+)", key):
                    self.by(name, ipc=int(ipc[1]))

    def by(self, name: str, *, ipc: int | None = None) -> DistillConfig:
        """`distill` with what `methods` says of one of them, for so many images per class. Raises
        SettingError for settings that there are not."""
        table = self.methods.get(name, {})
        ipc = ipc or table.get("ipc") or self.distill.ipc
        few = table_of(table.get(f"ipc{ipc}", {}), f"methods.{name}.ipc{ipc}")
        own = {key: value for key, value in table.items() if not re.fullmatch(r"ipc\d+", key)}
        whole = {**to_dict(self.distill), "method": name, **own, **few, "ipc": ipc}
        return from_dict(DistillConfig, whole, f"methods.{name}.")

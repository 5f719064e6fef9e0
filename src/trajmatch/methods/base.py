"""What a method is: its own settings, and an estimate of a loss and its gradients.

A method is a frozen dataclass. Its fields are its settings, all of them and no other method's; its
class says what is true of it whatever the settings are. It keeps nothing between iterations: what
one iteration hands to the next is in `Problem.state`, which checkpoints hold.

    @dataclass(frozen=True, kw_only=True)
    class MeanMatching(Method):
        name = "mean"
        title = "mean matching"
        objective = "squared distance of class means"
        lr_img: float = 1.0

        def estimate(self, problem, parameters, iteration): ...
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import ClassVar, Literal, get_args, get_origin, get_type_hints

import torch

from trajmatch.config import SGD, DistillConfig, OuterOptimizer, check_ranges, require
from trajmatch.data.augment import Augmentation
from trajmatch.data.canvas import CropSampler
from trajmatch.errors import SettingError
from trajmatch.methods.parameters import Estimate, SyntheticParameters
from trajmatch.methods.problem import Problem
from trajmatch.networks import NetworkSpec
from trajmatch.runtime.memory import Need


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What a method has to work with, as far as it is known before anything starts."""

    spec: NetworkSpec
    ipc: int
    expert_epochs: int | None = None
    """Epochs that the experts record; None: there are no experts."""
    whitening: str | None = None
    """Name of the whitening; None: not known yet."""
    fewest: tuple[str, int] | None = None
    """The class with the fewest training images, and how many; None: not known yet."""

    @property
    def images(self) -> int:
        """Synthetic images in all."""
        return self.ipc * self.spec.classes


@dataclasses.dataclass(frozen=True)
class Canvas:
    """Synthetic images larger than the network's input, of which it is shown crops."""

    sampler: CropSampler
    height: int
    width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """An estimate of a loss and its gradients, iteration by iteration.

    An estimate is a function of the settings, the problem's seed, the parameters, `problem.state`
    and the iteration's number: every draw comes from `problem.stream(..., iteration)`. So a run
    that was killed continues to the same bits.
    """

    name: ClassVar[str]
    """What `--method` and results call it."""
    title: ClassVar[str]
    """What pages call it."""
    objective: ClassVar[str]
    """What its loss is, in a few words."""
    reference: ClassVar[str] = ""
    """The paper."""
    needs_experts: ClassVar[bool] = False
    """Whether it cannot do without an expert library."""
    learns_step_size: ClassVar[bool] = False
    """Whether the student's step size is learned; a set of another method has none."""
    labels_alone: ClassVar[bool] = False
    """Whether labels are learned for real images that stay as they are."""
    normalized: ClassVar[bool] = False
    """Whether a loss above `skip_loss` says that the update would do harm."""
    default_optimizer: ClassVar[OuterOptimizer] = SGD()
    """The outer optimizer where none is given; the default rates are meant for it."""
    default_ema: ClassVar[float] = 0.0
    """The decay of the average of the images where none is given."""
    calibrates: ClassVar[tuple[str, ...]] = ()
    """Settings that `calibrated` finds where they are None."""

    def __post_init__(self) -> None:
        check_settings(self)

    @abstractmethod
    def estimate(
        self, problem: Problem, parameters: SyntheticParameters, iteration: int
    ) -> Estimate:
        """The loss of one iteration and its gradients."""

    def check(self, conditions: Conditions) -> None:
        """Raises SettingError where the settings do not fit what there is to work with."""
        if self.needs_experts and conditions.expert_epochs is None:
            raise SettingError(
                f"{self.name} matches experts; give --experts a library of "
                "`trajmatch experts` (train_experts)"
            )
        if self.labels_from_experts and not self.learns_labels:
            raise SettingError(
                "init_labels is experts and no labels are learned; add --soft-labels=true"
            )
        if self.labels_from_experts and conditions.expert_epochs is None:
            raise SettingError(
                f"init_labels is experts and {self.name} has none; give --experts a library of "
                "`trajmatch experts`, or leave it out"
            )
        augmentation_of(getattr(self, "augment", None))  # refuses an unknown strategy

    @property
    def learns_labels(self) -> bool:
        """Whether soft labels are learned."""
        return False

    @property
    def labels_from_experts(self) -> bool:
        """Whether learned labels begin as the experts' mean logits on the first images."""
        return bool(getattr(self, "init_labels", "one-hot") == "experts")

    @property
    def last_epoch(self) -> int:
        """The last expert epoch that is read; 0 for a method that matches no experts."""
        return 0

    @property
    def first_step_size(self) -> float:
        """alpha_0, the student's step size before the first iteration."""
        return 0.01

    @property
    def augmentation(self) -> Augmentation | None:
        """The strategy in `augment`, ready to be drawn from; None for a method without."""
        return augmentation_of(getattr(self, "augment", None))

    @property
    def rates(self) -> dict[str, float]:
        """The outer learning rate of each learned tensor, by the names of
        `SyntheticParameters.tensors`."""
        fields = {"images": "lr_img", "label_logits": "lr_label"}
        return {n: getattr(self, field) for n, field in fields.items() if hasattr(self, field)}

    def canvas_for(self, height: int, width: int) -> Canvas | None:
        """The canvases to learn for a network of that input size; None: plain images."""
        return None

    def completed(self, config: DistillConfig) -> tuple[Method, DistillConfig]:
        """This method and the outer loop's settings, with the method's own optimizer and ema where
        none are given. Raises SettingError where rates and optimizer do not fit each other."""
        optimizer = self.default_optimizer if config.optimizer is None else config.optimizer
        ema = self.default_ema if config.ema is None else config.ema
        return self, dataclasses.replace(config, optimizer=optimizer, ema=ema)

    def assumed(self) -> Method:
        """This method with customary values where it calibrates them: for estimates of cost, before
        there are experts."""
        return self

    def calibrated(self, problem: Problem, parameters: SyntheticParameters) -> Method:
        """This method with what was left to be calibrated from the data and the experts; itself
        where nothing was. Numbers and reasons go into `problem.resolved`."""
        return self

    def scaled_down(self, images: int) -> tuple[Method, float]:
        """A method whose iteration on `images` synthetic images does a part of this one's work, and
        how many times as much this one's does; (self, 1.0) where there is no smaller part.

        Cost estimates measure a smaller iteration where this one is long.
        """
        return self, 1.0

    def memory_needs(self, spec: NetworkSpec, images: int) -> list[Need]:
        """What an iteration on so many synthetic images takes at the least, beside the images and
        the network. A run that needs more than is free is refused before it starts."""
        return []

    def threads(self, problem: Problem, parameters: SyntheticParameters) -> int:
        """How many threads there is work for on a CPU."""
        return torch.get_num_threads()


def augmentation_of(strategy: str | None) -> Augmentation | None:
    """The augmentation of a strategy's name; None for None or "none"."""
    return None if strategy in (None, "none") else Augmentation(str(strategy))


def check_settings(method: Method) -> None:
    """Numbers are in the range of their name, and a Literal is one of its values.

    Raises SettingError with the field, its value and the rule.
    """
    check_ranges(method)
    hints = get_type_hints(type(method))
    for field in dataclasses.fields(method):
        value, hint = getattr(method, field.name), hints[field.name]
        if value is not None and get_origin(hint) is Literal:
            choices = get_args(hint)
            require(method, field.name, value in choices, f"one of {', '.join(map(str, choices))}")

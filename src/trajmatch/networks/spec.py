"""Networks by name, and a network as a value: what must be known to build it again."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch

from trajmatch.config import NetworkConfig
from trajmatch.data import ImageDataset
from trajmatch.errors import SettingError, suggest
from trajmatch.networks.alexnet import AlexNet
from trajmatch.networks.base import Network, height_width
from trajmatch.networks.convnet import ConvNet
from trajmatch.networks.lenet import LeNet
from trajmatch.networks.mlp import MLP
from trajmatch.networks.resnet import ResNet18
from trajmatch.networks.vgg import VGG11
from trajmatch.networks.vit import ViT
from trajmatch.types import Size

NETWORKS: dict[str, type[Network]] = {
    "convnet": ConvNet,
    "mlp": MLP,
    "lenet": LeNet,
    "alexnet": AlexNet,
    "vgg11": VGG11,
    "resnet18": ResNet18,
    "vit": ViT,
}
"""Every network that `build_network` knows, by name."""


def build_network(
    name: str,
    *,
    channels: int,
    classes: int,
    size: Size,
    seed: int | None = None,
    **options: Any,
) -> Network:
    """A freshly initialized network.

    name: one of NETWORKS. size: side of square images in pixels, or (height, width).
    seed: the initialization is drawn on the CPU with this seed and torch's global generator stays
        untouched, so one seed is one network on every device; None draws from the global generator.
    options: the keywords of the network's class, for example depth=3, width=128, norm="instance".
        An option that is None is left at its default.

    Raises SettingError for an unknown name, option or choice, and for a size it cannot take.
    """
    if name not in NETWORKS:
        raise SettingError(f"unknown network '{name}'; {suggest(name, NETWORKS)}")
    kind = NETWORKS[name]
    known = option_names(kind)
    for option in options:
        if option not in known:
            mend = suggest(option, known) if known else "it has no options"
            raise SettingError(f"{name} has no option '{option}'; {mend}")
    given = {option: value for option, value in options.items() if value is not None}
    if seed is None:
        return kind(channels=channels, classes=classes, size=size, **given)
    device = torch.get_default_device()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return kind(channels=channels, classes=classes, size=size, **given).to(device)


def option_names(kind: type[Network]) -> tuple[str, ...]:
    """The options of a network class: what its constructor takes beyond channels, classes, size."""
    common = ("self", "channels", "classes", "size")
    return tuple(n for n in inspect.signature(kind.__init__).parameters if n not in common)


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """A network as a value: equal specs build the same network.

    Defaults are written out on construction (a ConvNet's depth for its size, too), so a spec on
    disk does not change its meaning when a default does. A spec that exists can be built: every
    SettingError of `build_network` is raised here.
    """

    name: str
    channels: int
    classes: int
    size: Size
    """Side of square images in pixels, or (height, width); (32, 32) is kept as 32."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        height, width = height_width(self.size)
        object.__setattr__(self, "size", height if height == width else (height, width))
        object.__setattr__(self, "options", dict(self._sketch().options))

    def build(self, seed: int | None = None) -> Network:
        """The network, freshly initialized: see `build_network` about the seed."""
        return build_network(
            self.name,
            channels=self.channels,
            classes=self.classes,
            size=self.size,
            seed=seed,
            **self.options,
        )

    def describe(self) -> str:
        """A few words for tables and pages, for example `ConvNet-D3 width 128 instance`."""
        return self._sketch().describe()

    def parameters(self) -> int:
        """P, the length of the network's parameter vector."""
        return sum(p.numel() for p in self._sketch().parameters())

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = dataclasses.asdict(self)
        values["size"] = list(self.size) if isinstance(self.size, tuple) else self.size
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> NetworkSpec:
        """The spec that `to_json` wrote. Raises SettingError for missing or unknown entries."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            raise SettingError(
                f"a network is described by {', '.join(sorted(names))}, "
                f"not by {', '.join(sorted(values)) or 'nothing'}"
            )
        size, options = values["size"], values["options"]
        if not isinstance(options, Mapping):
            raise SettingError(f"the options of a network are a table, not {options!r}")
        size = tuple(size) if isinstance(size, list) else size
        return cls(**{**values, "size": size, "options": dict(options)})

    def _sketch(self) -> Network:
        """The network without numbers: milliseconds and no memory, whatever its width."""
        with torch.device("meta"):
            return self.build()


def network_for(data: ImageDataset, config: NetworkConfig) -> NetworkSpec:
    """The network a config names, for images and classes of `data`."""
    return NetworkSpec(
        config.network or "convnet", data.channels, data.num_classes, data.size, config.options()
    )

"""Networks by name, and a network as a value that can be built again (`NetworkSpec`)."""

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
from trajmatch.plugins import Registry
from trajmatch.types import Size


def _is_network(entry: Any) -> bool:
    return isinstance(entry, type) and issubclass(entry, Network) and entry is not Network


NETWORKS: Registry[type[Network]] = Registry(
    "network",
    "trajmatch.networks",
    _is_network,
    {
        "convnet": ConvNet,
        "mlp": MLP,
        "lenet": LeNet,
        "alexnet": AlexNet,
        "vgg11": VGG11,
        "resnet18": ResNet18,
        "vit": ViT,
    },
)
"""Every network by name; other packages add theirs (docs/extending.md)."""


def build_network(
    network: str | type[Network],
    *,
    channels: int,
    classes: int,
    size: Size,
    seed: int | None = None,
    **options: Any,
) -> Network:
    """A freshly initialized network.

    network: a name in NETWORKS, `package.module:Name`, or the class itself.
    size: side of square images in pixels, or (height, width).
    seed: of the initialization, which is drawn on the CPU and leaves torch's global generator
        untouched, so that one seed gives one network on every device; None draws from the global
        generator.
    options: keywords of the network's class, for example depth=3, width=128, norm="instance".
        An option that is None takes its default.

    Raises SettingError for an unknown name, option or choice, and for a size it cannot take.

    Examples:
        >>> from trajmatch import build_network
        >>> network = build_network("convnet", channels=1, classes=10, size=8, width=16, seed=0)
        >>> network.describe()
        'ConvNet-D2 width 16 instance'
    """
    name = network if isinstance(network, str) else NETWORKS.name_of(network)
    kind = NETWORKS.find(name)
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
    """The options of a network class: its keywords besides channels, classes and size."""
    common = ("self", "channels", "classes", "size")
    return tuple(n for n in inspect.signature(kind.__init__).parameters if n not in common)


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """A network as a value: equal specs build the same network.

    Construction fills in the defaults (a ConvNet's depth follows from its size), so that a spec on
    disk keeps its meaning when a default changes. Raises every SettingError of `build_network`, so
    that a spec that exists can be built.

    Examples:
        >>> from trajmatch.networks import NetworkSpec
        >>> spec = NetworkSpec("convnet", channels=3, classes=10, size=32)
        >>> spec.describe(), spec.parameters()
        ('ConvNet-D3 width 128 instance', 320010)
        >>> NetworkSpec.from_json(spec.to_json()) == spec
        True
    """

    name: str
    """In NETWORKS, or `package.module:Name`."""
    channels: int
    classes: int
    size: Size
    """Side of square images in pixels, or (height, width); (32, 32) becomes 32."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        height, width = height_width(self.size)
        object.__setattr__(self, "size", height if height == width else (height, width))
        object.__setattr__(self, "options", dict(self._shapes_only().options))

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
        return self._shapes_only().describe()

    def parameters(self) -> int:
        """P, the length of the network's parameter vector."""
        return sum(p.numel() for p in self._shapes_only().parameters())

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = dataclasses.asdict(self)
        values["size"] = list(self.size) if isinstance(self.size, tuple) else self.size
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> NetworkSpec:
        """The spec that `to_json` wrote.

        Raises SettingError for missing or unknown entries, and for a network that is neither
        registered nor installed: a name in a file is never imported by a path.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            raise SettingError(
                f"a network is described by {', '.join(sorted(names))}, "
                f"not by {', '.join(sorted(values)) or 'nothing'}"
            )
        size, options = values["size"], values["options"]
        if not isinstance(options, Mapping):
            raise SettingError(f"the options of a network are a table, not {options!r}")
        NETWORKS.known(str(values["name"]))
        size = tuple(size) if isinstance(size, list) else size
        return cls(**{**values, "size": size, "options": dict(options)})

    def _shapes_only(self) -> Network:
        """The network on the meta device: milliseconds and no memory, whatever its width."""
        with torch.device("meta"):
            return self.build()


def network_for(
    data: ImageDataset, network: NetworkConfig | NetworkSpec | type[Network]
) -> NetworkSpec:
    """The network for the images and classes of `data`: by its config, or with the default options
    of its class. A spec is returned unchanged."""
    if isinstance(network, NetworkSpec):
        return network
    if isinstance(network, NetworkConfig):
        name, options = network.network or "convnet", network.options()
    else:
        name, options = NETWORKS.name_of(network), {}
    return NetworkSpec(name, data.channels, data.num_classes, data.size, options)

"""What every network shares: images in, features, logits out; and the checks on its settings."""

from __future__ import annotations

from torch import nn

from trajmatch.config import require_range
from trajmatch.errors import SettingError, suggest
from trajmatch.types import Float, Size, Tensor


class Network(nn.Module):
    """A classifier in two parts: `features`, then one linear `classifier`.

    A subclass sets both and passes its resolved options to this constructor; class, channels,
    classes, size and options then determine the network. A network that is to be an expert or a
    student is a function of its parameters alone (`require_stateless`), in operations that can be
    differentiated twice.

    Raises SettingError when called with images of another shape than it was built for.
    """

    features: nn.Sequential
    classifier: nn.Linear
    ends: tuple[type[nn.Module], ...] = (nn.ReLU, nn.LeakyReLU, nn.Sigmoid)
    """Modules of `features` that end a block; what follows (pooling) belongs to the next one."""

    def __init__(
        self, *, channels: int, classes: int, size: Size, options: dict[str, int | str]
    ) -> None:
        super().__init__()
        require_range("channels", channels)
        require_range("classes", classes)
        self.image_shape = (channels, *height_width(size))
        self.options = options

    def describe(self) -> str:
        """A few words for tables: the class, and each option that tells networks of it apart."""
        return " ".join([type(self).__name__, *(f"{k}={v}" for k, v in self.options.items())])

    def embed(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """The input of the classifier, one row per image."""
        self._require_shape(images)
        features: Tensor = self.features(images).flatten(1)
        return features

    def layers(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> list[Float[Tensor, "batch ..."]]:
        """The output of each block, before pooling; the last is that of `embed`.

        Where nothing follows the last block, its output is the embedding and appears once. Takes
        the time of `embed`; all outputs stay in memory.
        """
        self._require_shape(images)
        outputs: list[Tensor] = []
        features = images
        for module in self.features:
            features = module(features)
            if isinstance(module, self.ends):
                outputs.append(features)
        if outputs and outputs[-1] is features:
            outputs.pop()
        return [*outputs, features.flatten(1)]

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        logits: Tensor = self.classifier(self.embed(images))
        return logits

    def _require_shape(self, images: Tensor) -> None:
        if tuple(images.shape[1:]) != self.image_shape:
            raise SettingError(
                f"images are {_shape(*images.shape[1:])} (channels x height x width) and the "
                f"network was built for {_shape(*self.image_shape)}; build the network with the "
                "images' channels and size, or resize the images"
            )


def height_width(size: Size) -> tuple[int, int]:
    """(height, width) of a size. Raises SettingError unless both are whole numbers above 0."""
    if not isinstance(size, int) and not (isinstance(size, tuple) and len(size) == 2):
        raise SettingError(f"size is {size!r}; it must be pixels a side, or (height, width)")
    height, width = (size, size) if isinstance(size, int) else size
    require_range("size", height)
    require_range("size", width)
    return height, width


def require_pixels(network: str, height: int, width: int, least: int) -> None:
    """Raises SettingError unless the shorter side has `least` pixels."""
    if min(height, width) < least:
        raise SettingError(
            f"{network} needs images of at least {least}x{least} pixels, not {height}x{width}; "
            "resize them, or use the network 'mlp'"
        )


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises SettingError, with the nearest choice, unless `value` is one of `choices`."""
    if value not in choices:
        raise SettingError(f"unknown {name} '{value}'; {suggest(str(value), choices)}")


def _shape(*sides: int) -> str:
    return "x".join(str(side) for side in sides)

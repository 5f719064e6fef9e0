"""The passes of the field's ConvNet, written out: the gradient, and its derivative along v.

The network is a chain of blocks x -> h = conv(x) -> norm, ReLU, average of 2x2 -> next x, and one
linear layer. Its gradient g is one pass forward and one back. The derivative of <g, v> with respect
to parameters and images is the derivative of the gradient along v, so a second pass forward and
back carries tangents (marked d_) through the same chain; it reads what the first pair kept, and
each block of it is two convolutions each way and one fused loop over what lies between.

    forward          h = conv(x, w)                  d_h = conv(x, d_w) + conv(d_x, w)
    instance norm    z = (h - mean h) s              d_z = s (d_h - mean d_h - z mean(z d_h))
    output           a = scale z + shift             next x = pool(a where a > 0)
    back             e = gradient at a               h' = scale s (e - mean e - z mean(e z))
                     w' = conv_w(h', x)              x' = conv_x(h', w)

What autograd and the compiler make of the same network reads and writes memory several times as
often: seen on one core in bf16, N 20, 10 images, width 128: see benchmarks/README.md.

A bias before an instance norm changes nothing, so its gradient is zero here; autograd gives
rounding noise. The functions are pure and work eagerly, in float64 too; they are meant for
torch.compile, in channels-last layout.

Source of the derivative along v: Pearlmutter, Fast exact multiplication by the Hessian, Neural
Computation 1994.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from trajmatch.networks.convnet import ConvNet
from trajmatch.types import Float, Shaped, Tensor
from trajmatch.unroll.convolution import convolve, gradient_at_filters, gradient_at_images

EPS = 1e-5
"""Of the instance norm, as in torch."""

SavedTensors = list[Tensor]
"""What the way back reads, in the order of `_Block`s, then of the `_Head`."""


@dataclass(frozen=True)
class _Layer:
    """The parameters of one block, or tangents or gradients in their place."""

    weight: Tensor
    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class ConvNetGradient:
    """Passes for one network.

    `rounded` is the type of convolutions' inputs (None: the vector's own); everything else is in
    float32 or wider.
    """

    shapes: tuple[torch.Size, ...]
    depth: int
    rounded: torch.dtype | None

    @staticmethod
    def of(module: nn.Module, rounded: torch.dtype | None = None) -> ConvNetGradient | None:
        """The chain of `module`; None where it is another kind of network."""
        published = {"norm": "instance", "activation": "relu", "pooling": "avg"}
        if not isinstance(module, ConvNet):
            return None
        if any(module.options[option] != value for option, value in published.items()):
            return None
        shapes = tuple(parameter.shape for parameter in module.parameters())
        return ConvNetGradient(shapes, int(module.options["depth"]), rounded)

    def logits(
        self,
        vector: Float[Tensor, "params"],
        images: Float[Tensor, "batch channels height width"],
    ) -> Float[Tensor, "batch classes"]:
        """The network's scores."""
        layers, (weight, bias) = self._split(vector)
        x = self._round(images)
        for layer in layers:
            x, _, _ = _norm_relu_pool(convolve(x, layer.weight), layer)
        return F.linear(x.to(vector.dtype).flatten(1), weight, bias)

    def grad(
        self,
        vector: Float[Tensor, "params"],
        images: Float[Tensor, "batch channels height width"],
        labels: Shaped[Tensor, "batch ..."],
    ) -> tuple[Float[Tensor, "params"], SavedTensors]:
        """The gradient of the mean cross-entropy, and what `back` needs of its making."""
        layers, (weight, bias) = self._split(vector)
        x = self._round(images)
        blocks: list[SavedTensors] = []
        for layer in layers:
            h = convolve(x, layer.weight)
            following, mean, scale = _norm_relu_pool(h, layer)
            blocks.append([x, h, mean, scale])
            x = following
        features = x.to(vector.dtype).flatten(1)
        logits = F.linear(features, weight, bias)
        share, total = _shares(labels, logits)
        probabilities = logits.softmax(1)
        error = (probabilities * total - share) / len(images)
        gradients = [error.mT @ features, error.sum(0)]
        e = self._round((error @ weight).view(x.shape))
        for n in reversed(range(self.depth)):
            layer, (x, h, mean, scale) = layers[n], blocks[n]
            back, g_scale, g_shift = _norm_relu_pool_back(h, mean, scale, layer, e)
            blocks[n] = [x, h, mean, scale, e, back]
            filters = gradient_at_filters(back, x, layer.weight).to(vector.dtype)
            gradients = [filters, torch.zeros_like(g_shift), g_scale, g_shift, *gradients]
            if n > 0:
                e = gradient_at_images(back, x, layer.weight)
        kept = [tensor for block in blocks for tensor in block]
        return _join(gradients), [*kept, features, probabilities, error]

    def grad_vjp(
        self,
        vector: Float[Tensor, "params"],
        labels: Shaped[Tensor, "batch ..."],
        kept: SavedTensors,
        v: Float[Tensor, "params"],
    ) -> tuple[
        Float[Tensor, "params"],
        Float[Tensor, "batch channels height width"],
        Float[Tensor, "batch classes"] | None,
    ]:
        """The derivatives of <g, v> with respect to parameters, images and soft labels."""
        layers, (weight, _) = self._split(vector)
        d_layers, (d_weight, d_bias) = self._split(v)
        *tensors, features, probabilities, error = kept
        blocks = [tensors[6 * n : 6 * n + 6] for n in range(self.depth)]
        tangents: list[tuple[Tensor | None, Tensor, Tensor, Tensor]] = []
        d_x: Tensor | None = None
        for layer, d_layer, (x, h, mean, scale, _, _) in zip(layers, d_layers, blocks, strict=True):
            d_h = convolve(x, d_layer.weight)
            if d_x is not None:
                d_h = d_h + convolve(d_x, layer.weight)
            following, d_mean, along = _norm_relu_pool_tangent(h, mean, scale, layer, d_h, d_layer)
            tangents.append((d_x, d_h, d_mean, along))
            d_x = following
        assert d_x is not None
        d_features = d_x.to(v.dtype).flatten(1)
        d_logits = F.linear(d_features, weight) + F.linear(features, d_weight, d_bias)
        centered = d_logits - (probabilities * d_logits).sum(1, keepdim=True)
        _, total = _shares(labels, d_logits)
        d_error = probabilities * centered * total / len(labels)
        products = [d_error.mT @ features + error.mT @ d_features, d_error.sum(0)]
        d_e = self._round((d_error @ weight + error @ d_weight).view(d_x.shape))
        for n in reversed(range(self.depth)):
            layer, d_layer, (x, h, mean, scale, e, back) = layers[n], d_layers[n], blocks[n]
            d_x, d_h, d_mean, along = tangents[n]
            d_back, p_scale, p_shift = _norm_relu_pool_back_tangent(
                h, mean, scale, layer, e, d_h, d_mean, along, d_layer, d_e
            )
            filters = gradient_at_filters(d_back, x, layer.weight).to(v.dtype)
            if d_x is not None:
                filters = filters + gradient_at_filters(back, d_x, layer.weight).to(v.dtype)
            products = [filters, torch.zeros_like(p_shift), p_scale, p_shift, *products]
            d_e = gradient_at_images(d_back, x, layer.weight) + gradient_at_images(
                back, x, d_layer.weight
            )
        d_labels = -centered / len(labels) if labels.is_floating_point() else None
        return _join(products), d_e.to(v.dtype), d_labels

    def _split(self, vector: Tensor) -> tuple[list[_Layer], tuple[Tensor, Tensor]]:
        sizes = [shape.numel() for shape in self.shapes]
        parts = [
            part.view(shape)
            for part, shape in zip(torch.split(vector, sizes), self.shapes, strict=True)
        ]
        *blocks, weight, bias = parts
        layers = [
            _Layer(self._round(blocks[4 * n]), blocks[4 * n + 2], blocks[4 * n + 3])
            for n in range(self.depth)
        ]
        return layers, (weight, bias)

    def _round(self, tensor: Tensor) -> Tensor:
        """As an input of a convolution."""
        tensor = tensor if self.rounded is None else tensor.to(self.rounded)
        return tensor.contiguous(memory_format=torch.channels_last)


def _join(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def _shares(labels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor | float]:
    """The labels as probabilities, and the sum of each."""
    if labels.is_floating_point():
        return labels, labels.sum(1, keepdim=True)
    # Not one_hot, which makes a GPU's host wait for the largest label.
    classes = torch.arange(logits.shape[1], device=labels.device)
    return (labels[:, None] == classes).to(logits.dtype), 1.0


# -- between two convolutions --------------------------------------------------------------------


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def _channel(x: Tensor) -> Tensor:
    return x.view(1, -1, 1, 1)


def _pool(x: Tensor) -> Tensor:
    """Means of 2x2; what is left over at an odd border is dropped."""
    batch, channels, height, width = x.shape
    half, breadth = height // 2, width // 2
    squares = x[:, :, : 2 * half, : 2 * breadth].reshape(batch, channels, half, 2, breadth, 2)
    return squares.mean((3, 5))


def _unpool(e: Tensor, height: int, width: int) -> Tensor:
    """The gradient of `_pool` at its inputs of `height` x `width`."""
    batch, channels, half, breadth = e.shape
    spread = (e * 0.25).view(batch, channels, half, 1, breadth, 1).expand(-1, -1, -1, 2, -1, 2)
    spread = spread.reshape(batch, channels, 2 * half, 2 * breadth)
    return F.pad(spread, (0, width - 2 * breadth, 0, height - 2 * half))


def _norm_relu_pool(h: Tensor, layer: _Layer) -> tuple[Tensor, Tensor, Tensor]:
    """(next x, mean of h, 1 / deviation of h)."""
    wide = _wide(h)
    mean = _mean(wide)
    centered = wide - mean
    scale = torch.rsqrt(_mean(centered * centered) + EPS)
    a = centered * (scale * _channel(layer.scale)) + _channel(layer.shift)
    return _pool(a.relu()).to(h.dtype), mean, scale


def _norm_relu_pool_tangent(
    h: Tensor, mean: Tensor, scale: Tensor, layer: _Layer, d_h: Tensor, d_layer: _Layer
) -> tuple[Tensor, Tensor, Tensor]:
    """(tangent of the next x, mean of d_h, mean of z d_h)."""
    z = (_wide(h) - mean) * scale
    a = z * _channel(layer.scale) + _channel(layer.shift)
    d_wide = _wide(d_h)
    d_mean, along = _mean(d_wide), _mean(z * d_wide)
    d_z = scale * (d_wide - d_mean - z * along)
    d_a = d_z * _channel(layer.scale) + z * _channel(d_layer.scale) + _channel(d_layer.shift)
    return _pool(torch.where(a > 0, d_a, 0)).to(h.dtype), d_mean, along


def _norm_relu_pool_back(
    h: Tensor, mean: Tensor, scale: Tensor, layer: _Layer, e: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient at h, at the scale, at the shift), `e` being the gradient at the next x."""
    height, width = h.shape[2:]
    z = (_wide(h) - mean) * scale
    a = z * _channel(layer.scale) + _channel(layer.shift)
    e = torch.where(a > 0, _unpool(_wide(e), height, width), 0)
    e_mean, e_along = _mean(e), _mean(e * z)
    back = (scale * _channel(layer.scale)) * (e - e_mean - z * e_along)
    pixels = height * width
    return back.to(h.dtype), (e_along * pixels).sum((0, 2, 3)), (e_mean * pixels).sum((0, 2, 3))


def _norm_relu_pool_back_tangent(
    h: Tensor,
    mean: Tensor,
    scale: Tensor,
    layer: _Layer,
    e: Tensor,
    d_h: Tensor,
    d_mean: Tensor,
    along: Tensor,
    d_layer: _Layer,
    d_e: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The tangents of what `_norm_relu_pool_back` gives."""
    height, width = h.shape[2:]
    z = (_wide(h) - mean) * scale
    a = z * _channel(layer.scale) + _channel(layer.shift)
    e = torch.where(a > 0, _unpool(_wide(e), height, width), 0)
    d_e = torch.where(a > 0, _unpool(_wide(d_e), height, width), 0)
    d_z = scale * (_wide(d_h) - d_mean - z * along)
    d_scale = -scale * scale * along
    e_mean, e_along = _mean(e), _mean(e * z)
    d_e_mean, d_e_along = _mean(d_e), _mean(d_e * z) + _mean(e * d_z)
    factor = scale * _channel(layer.scale)
    d_factor = scale * _channel(d_layer.scale) + d_scale * _channel(layer.scale)
    d_back = d_factor * (e - e_mean - z * e_along) + factor * (
        d_e - d_e_mean - d_z * e_along - z * d_e_along
    )
    pixels = height * width
    return (
        d_back.to(h.dtype),
        (d_e_along * pixels).sum((0, 2, 3)),
        (d_e_mean * pixels).sum((0, 2, 3)),
    )

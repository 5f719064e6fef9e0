"""The gradient of the field's ConvNet and its vector-Jacobian product, derived by hand.

The network is a sequence of blocks x -> h = conv(x) -> norm, ReLU, average of 2x2 -> next x, and
one linear layer. Its gradient g is one forward and one backward pass. The derivative of <g, v> with
respect to parameters and images is the derivative of the gradient along v: a second forward and
backward pass through the same blocks, for tangents (marked d_), which reads what the first pair
saved. Each block of it is two convolutions each way and one fused loop over what lies between them.

    forward          h = conv(x, w)                  d_h = conv(x, d_w) + conv(d_x, w)
    instance norm    z = (h - mean h) s              d_z = s (d_h - mean d_h - z mean(z d_h))
    output           a = scale z + shift             next x = pool(a where a > 0)
    backward         e = gradient at a               h' = scale s (e - mean e - z mean(e z))
                     w' = conv_w(h', x)              x' = conv_x(h', w)

with s = 1 / deviation of h, and a prime for the gradient at a tensor. What autograd and the
compiler make of the same network reads and writes memory several times as often; times for one
core, bf16, N 20, 10 images and width 128 are in benchmarks/README.md.

A bias before an instance norm changes nothing, so its gradient is zero here; autograd gives
rounding noise. The functions are pure and run eagerly too, also in float64; they are meant for
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
from trajmatch.unroll.convolution import (
    MATMUL_LIMIT,
    convolve,
    gradient_at_filters,
    gradient_at_images,
)
from trajmatch.unroll.norm_relu_pool import (
    Block,
    Layer,
    Tangents,
    norm_relu_pool,
    norm_relu_pool_grad,
    norm_relu_pool_grad_tangent,
    norm_relu_pool_tangent,
)

SavedTensors = list[Float[Tensor, "..."]]
"""What `grad_vjp` reads: the fields of each `Block`, then features, logits, error."""

LOGITS = -2
"""Where the logits are in them."""


@dataclass(frozen=True)
class ConvNetGradient:
    """Logits, gradient and its vector-Jacobian product of one network.

    `rounded` is the type of convolutions' inputs (None: the vector's own); everything else is in
    float32 or wider. `matmul_limit` is that of `convolution.convolve`.
    """

    shapes: tuple[torch.Size, ...]
    depth: int
    rounded: torch.dtype | None
    matmul_limit: int = MATMUL_LIMIT

    @staticmethod
    def of(
        module: nn.Module,
        rounded: torch.dtype | None = None,
        matmul_limit: int = MATMUL_LIMIT,
    ) -> ConvNetGradient | None:
        """The functions of `module`; None where it is another kind of network.

        Examples:
            >>> from trajmatch.networks import build_network
            >>> ConvNetGradient.of(build_network("convnet", channels=1, classes=3, size=8)).depth
            2
            >>> ConvNetGradient.of(build_network("mlp", channels=1, classes=3, size=8)) is None
            True
        """
        published = {"norm": "instance", "activation": "relu", "pooling": "avg"}
        if not isinstance(module, ConvNet):
            return None
        if any(module.options[option] != value for option, value in published.items()):
            return None
        shapes = tuple(parameter.shape for parameter in module.parameters())
        return ConvNetGradient(shapes, int(module.options["depth"]), rounded, matmul_limit)

    def logits(
        self,
        vector: Float[Tensor, "params"],
        images: Float[Tensor, "batch channels height width"],
    ) -> Float[Tensor, "batch classes"]:
        """The network's output."""
        layers, (weight, bias) = self._split(vector)
        x = self._round(images)
        for layer in layers:
            x, _, _ = norm_relu_pool(convolve(x, layer.weight, self.matmul_limit), layer)
        return F.linear(x.to(vector.dtype).flatten(1), weight, bias)

    def grad(
        self,
        vector: Float[Tensor, "params"],
        images: Float[Tensor, "batch channels height width"],
        labels: Shaped[Tensor, "batch ..."],
    ) -> tuple[Float[Tensor, "params"], SavedTensors]:
        """The gradient of the mean cross-entropy, and the tensors that `grad_vjp` needs of it."""
        layers, (weight, bias) = self._split(vector)
        x = self._round(images)
        forward: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for layer in layers:
            h = convolve(x, layer.weight, self.matmul_limit)
            following, mean, s = norm_relu_pool(h, layer)
            forward.append((x, h, mean, s))
            x = following
        features = x.to(vector.dtype).flatten(1)
        logits = F.linear(features, weight, bias)
        targets, total = _targets(labels, logits)
        error = (logits.softmax(1) * total - targets) / len(images)
        gradients = [error.mT @ features, error.sum(0)]
        e = self._round((error @ weight).view(x.shape))
        saved: SavedTensors = [features, logits, error]
        for n in reversed(range(self.depth)):
            layer, (x, h, mean, s) = layers[n], forward[n]
            h_grad, scale_grad, shift_grad = norm_relu_pool_grad(h, mean, s, layer, e)
            saved = [*Block(x, h, mean, s, e, h_grad), *saved]
            filters = gradient_at_filters(h_grad, x, layer.weight, self.matmul_limit)
            bias_grad = torch.zeros_like(shift_grad)
            gradients = [filters.to(vector.dtype), bias_grad, scale_grad, shift_grad, *gradients]
            if n > 0:
                e = gradient_at_images(h_grad, x, layer.weight, self.matmul_limit)
        return _join(gradients), saved

    def grad_vjp(
        self,
        vector: Float[Tensor, "params"],
        labels: Shaped[Tensor, "batch ..."],
        saved: SavedTensors,
        v: Float[Tensor, "params"],
    ) -> tuple[
        Float[Tensor, "params"],
        Float[Tensor, "batch channels height width"],
        Float[Tensor, "batch classes"] | None,
    ]:
        """The derivatives of <g, v> with respect to parameters, images and soft labels, from what
        `grad` saved."""
        layers, (weight, _) = self._split(vector)
        d_layers, (d_weight, d_bias) = self._split(v)
        *tensors, features, logits, error = saved
        blocks = [Block(*tensors[6 * n : 6 * n + 6]) for n in range(self.depth)]
        tangents, d_x = self._tangents(layers, d_layers, blocks)
        d_features = d_x.to(v.dtype).flatten(1)
        d_logits = F.linear(d_features, weight) + F.linear(features, d_weight, d_bias)
        probabilities = logits.softmax(1)
        centered = d_logits - (probabilities * d_logits).sum(1, keepdim=True)
        _, total = _targets(labels, d_logits)
        d_error = probabilities * centered * total / len(labels)
        products = [d_error.mT @ features + error.mT @ d_features, d_error.sum(0)]
        d_e = self._round((d_error @ weight + error @ d_weight).view(d_x.shape))
        for n in reversed(range(self.depth)):
            block, tangent, layer, d_layer = blocks[n], tangents[n], layers[n], d_layers[n]
            d_h_grad, d_scale_grad, d_shift_grad = norm_relu_pool_grad_tangent(
                block, tangent, layer, d_layer, d_e
            )
            filters = self._filters(d_h_grad, block.x, layer).to(v.dtype)
            if tangent.x is not None:
                filters = filters + self._filters(block.h_grad, tangent.x, layer).to(v.dtype)
            d_bias_grad = torch.zeros_like(d_shift_grad)
            products = [filters, d_bias_grad, d_scale_grad, d_shift_grad, *products]
            d_e = self._images(d_h_grad, block.x, layer) + self._images(
                block.h_grad, block.x, d_layer
            )
        d_labels = -centered / len(labels) if labels.is_floating_point() else None
        return _join(products), d_e.to(v.dtype), d_labels

    def _tangents(
        self, layers: list[Layer], d_layers: list[Layer], blocks: list[Block]
    ) -> tuple[list[Tangents], Float[Tensor, "batch out half breadth"]]:
        """The forward pass for tangents: those of each block, and that of the features."""
        tangents: list[Tangents] = []
        d_x: Tensor | None = None
        for layer, d_layer, block in zip(layers, d_layers, blocks, strict=True):
            d_h = convolve(block.x, d_layer.weight, self.matmul_limit)
            if d_x is not None:
                d_h = d_h + convolve(d_x, layer.weight, self.matmul_limit)
            following, mean, along = norm_relu_pool_tangent(block, layer, d_layer, d_h)
            tangents.append(Tangents(d_x, d_h, mean, along))
            d_x = following
        assert d_x is not None
        return tangents, d_x

    def _filters(
        self,
        h_grad: Float[Tensor, "batch out height width"],
        x: Float[Tensor, "batch in height width"],
        layer: Layer,
    ) -> Float[Tensor, "out in 3 3"]:
        return gradient_at_filters(h_grad, x, layer.weight, self.matmul_limit)

    def _images(
        self,
        h_grad: Float[Tensor, "batch out height width"],
        x: Float[Tensor, "batch in height width"],
        layer: Layer,
    ) -> Float[Tensor, "batch in height width"]:
        return gradient_at_images(h_grad, x, layer.weight, self.matmul_limit)

    def _split(
        self, vector: Float[Tensor, "params"]
    ) -> tuple[list[Layer], tuple[Float[Tensor, "classes features"], Float[Tensor, "classes"]]]:
        """The parameters of each block, and those of the linear layer. A block's bias, which has no
        effect, is left out."""
        sizes = [shape.numel() for shape in self.shapes]
        parts = [
            part.view(shape)
            for part, shape in zip(torch.split(vector, sizes), self.shapes, strict=True)
        ]
        *blocks, weight, bias = parts
        layers = [
            Layer(self._round(blocks[4 * n]), blocks[4 * n + 2], blocks[4 * n + 3])
            for n in range(self.depth)
        ]
        return layers, (weight, bias)

    def _round(self, tensor: Float[Tensor, "_ _ _ _"]) -> Float[Tensor, "_ _ _ _"]:
        """`tensor` as an input of a convolution."""
        tensor = tensor if self.rounded is None else tensor.to(self.rounded)
        return tensor.contiguous(memory_format=torch.channels_last)


def _join(parts: list[Float[Tensor, "..."]]) -> Float[Tensor, "params"]:
    return torch.cat([part.reshape(-1) for part in parts])


def _targets(
    labels: Shaped[Tensor, "batch ..."], logits: Float[Tensor, "batch classes"]
) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch 1"] | float]:
    """The labels as class probabilities, and the sum of each image's."""
    if labels.is_floating_point():
        return labels, labels.sum(1, keepdim=True)
    # Not one_hot, which makes a GPU's host wait for the largest label.
    classes = torch.arange(logits.shape[1], device=labels.device)
    return (labels[:, None] == classes).to(logits.dtype), 1.0

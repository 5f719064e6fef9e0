"""The plain twin: the same work written the way the published code writes it.

Written from knowledge of that code, and kept as plain: layers are modules, a network with given
parameters is a functional call on a flat vector, every step's graph is kept by create_graph=True
and one backward goes through all of them; real images come sample by sample through a DataLoader;
augmentation builds its matrices image by image in Python; trajectories are pickled lists. It takes
our draws (which change, with what numbers), so that both do the same work and can be compared.

George Cazenavette et al., CVPR 2022; Bo Zhao and Hakan Bilen, ICML 2021: the code of the papers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from trajmatch.data.augment import Augmentation, Draw
from trajmatch.types import Tensor


class TwinConvNet(nn.Module):
    """ConvNet-D: convolution, GroupNorm with a group a channel, ReLU in place, average pooling."""

    def __init__(self, channels: int, classes: int, size: int, depth: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [
                nn.Conv2d(channels, width, kernel_size=3, padding=1),
                nn.GroupNorm(width, width, affine=True),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(kernel_size=2, stride=2),
            ]
            channels, size = width, size // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * size * size, classes)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.features(images)
        logits: Tensor = self.classifier(out.flatten(1))
        return logits


def with_flat(module: nn.Module, vector: Tensor, images: Tensor) -> Tensor:
    """`module` with its parameters taken from one flat vector."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    parts = vector.split([p.numel() for p in parameters])
    shaped = {n: v.view(p.shape) for n, v, p in zip(names, parts, parameters, strict=True)}
    logits: Tensor = functional_call(module, shaped, (images,))
    return logits


def augment(images: Tensor, draw: Draw, dsa: Augmentation) -> Tensor:
    """One draw of DSA, each change as the published code computes it."""
    v = draw.values
    match draw.name:
        case "color":
            return _color(images, v["brightness"], v["saturation"], v["contrast"])
        case "crop":
            return _crop(images, v["rows"], v["columns"])
        case "cutout":
            return _cutout(images, v["top"], v["left"], dsa.cutout)
        case "flip":
            return torch.where(v["flipped"].view(-1, 1, 1, 1), images.flip(3), images)
        case "scale":
            theta = [
                [[v["horizontal"][i], 0, 0], [0, v["vertical"][i], 0]] for i in range(len(images))
            ]
        case _:
            a = v["angle"]
            theta = [
                [[torch.cos(a[i]), torch.sin(-a[i]), 0], [torch.sin(a[i]), torch.cos(a[i]), 0]]
                for i in range(len(images))
            ]
    matrices = torch.tensor(theta, dtype=images.dtype)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=True).to(images.device)
    return F.grid_sample(images, grid, align_corners=True)


def _color(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    brightness, saturation, contrast = (
        value.to(images).view(-1, 1, 1, 1) for value in (brightness, saturation, contrast)
    )
    images = images + brightness
    mean = images.mean(dim=1, keepdim=True)
    images = (images - mean) * saturation + mean
    mean = images.mean(dim=[1, 2, 3], keepdim=True)
    return (images - mean) * contrast + mean


def _crop(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    batch, _, height, width = images.shape
    index, y, x = _grid(batch, height, width, images.device)
    # One pixel of zeros all around: where what is shifted in comes from.
    y = torch.clamp(y + rows.to(images.device).view(-1, 1, 1) + 1, 0, height + 1)
    x = torch.clamp(x + columns.to(images.device).view(-1, 1, 1) + 1, 0, width + 1)
    padded = F.pad(images, [1, 1, 1, 1])
    return padded.permute(0, 2, 3, 1).contiguous()[index, y, x].permute(0, 3, 1, 2)


def _cutout(images: Tensor, top: Tensor, left: Tensor, share: float) -> Tensor:
    batch, _, height, width = images.shape
    tall, wide = int(height * share + 0.5), int(width * share + 0.5)
    index, y, x = _grid(batch, tall, wide, images.device)
    y = torch.clamp(y + top.to(images.device).view(-1, 1, 1), 0, height - 1)
    x = torch.clamp(x + left.to(images.device).view(-1, 1, 1), 0, width - 1)
    mask = torch.ones(batch, height, width, dtype=images.dtype, device=images.device)
    mask[index, y, x] = 0
    return images * mask.unsqueeze(1)


def _grid(batch: int, height: int, width: int, device: torch.device) -> tuple[Tensor, ...]:
    sides = (torch.arange(side, device=device) for side in (batch, height, width))
    return torch.meshgrid(*sides, indexing="ij")


def unrolled(
    module: nn.Module,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    step_size: Tensor,
    steps: int,
    draw: Callable[[], Draw] | None,
    dsa: Augmentation,
    batches: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, d loss / d images, d loss / d step size) by one backward through all the steps.

    batches: indices of the images of each step; None: all of them.
    """
    images = images.detach().requires_grad_()
    step_size = step_size.detach().requires_grad_()
    walked = [start.detach().clone().requires_grad_()]
    for n in range(steps):
        if batches is None:
            x, y = images[torch.arange(len(images), device=images.device)], labels
        else:
            x, y = images[batches[n]], labels[batches[n]]
        if draw is not None:
            x = augment(x, draw(), dsa)
        loss = F.cross_entropy(with_flat(module, walked[-1], x), y)
        (gradient,) = torch.autograd.grad(loss, walked[-1], create_graph=True)
        walked.append(walked[-1] - step_size * gradient)
    distance = F.mse_loss(walked[-1], target, reduction="sum")
    distance = distance / F.mse_loss(start, target, reduction="sum")
    grad_images, grad_step_size = torch.autograd.grad(distance, (images, step_size))
    return distance.detach(), grad_images, grad_step_size


def train(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Iterable[Sequence[Tensor]],
    draw: Callable[[int], Draw] | None,
    dsa: Augmentation,
    device: torch.device,
) -> tuple[float, float]:
    """One epoch: (mean loss, share right), read after every batch."""
    total, right, count = 0.0, 0.0, 0
    module.train()
    for x, y in loader:
        x, y = x.to(device), y.long().to(device)
        if draw is not None:
            x = augment(x, draw(len(x)), dsa)
        logits = module(x)
        loss = F.cross_entropy(logits, y)
        right += (logits.detach().cpu().argmax(1) == y.cpu()).sum().item()
        total += loss.item() * len(y)
        count += len(y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return total / count, right / count


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels, given out one by one."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


def loader(
    images: Tensor, labels: Tensor, batch: int, order: Sequence[int] | None = None
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Samples collated to batches; in `order` if there is one (shuffling costs the same)."""
    data = Samples(images, labels)
    return DataLoader(data, batch_size=batch, sampler=order, num_workers=0)


def train_small(
    module: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    lr: float,
    epochs: int,
    momentum: float,
    weight_decay: float,
    batch: int,
    order: Callable[[int], Sequence[int]],
    draw: Callable[[int], Draw] | None,
    dsa: Augmentation,
) -> None:
    """A fresh network on a small set; a tenth of the rate, by a new optimizer, from the middle.

    `order`: the samples' of each epoch.
    """
    device = next(module.parameters()).device

    def sgd(rate: float) -> torch.optim.SGD:
        return torch.optim.SGD(
            module.parameters(), lr=rate, momentum=momentum, weight_decay=weight_decay
        )

    optimizer = sgd(lr)
    for epoch in range(epochs):
        batches = loader(images, labels, batch, order(epoch))
        train(module, optimizer, batches, draw, dsa, device)
        if epoch == epochs // 2:
            optimizer = sgd(lr / 10)


def percent_right(module: nn.Module, images: Tensor, labels: Tensor, batch: int = 256) -> float:
    """Percent of images that the network gives their label, through a DataLoader."""
    device = next(module.parameters()).device
    module.eval()
    right = 0
    with torch.no_grad():
        for x, y in loader(images, labels, batch):
            right += int((module(x.to(device)).cpu().argmax(1) == y).sum())
    return 100 * right / len(labels)


Trajectories = list[list[list[Tensor]]]
"""Experts, epochs, parameters: as the published code pickles them."""


def save_trajectories(path: Path, experts: Sequence[Tensor], shapes: Sequence[torch.Size]) -> None:
    """Pickle rows [epochs + 1, P] as lists of lists of lists of tensors of the given shapes."""
    sizes = [shape.numel() for shape in shapes]

    def parts(row: Tensor) -> list[Tensor]:
        split = zip(row.split(sizes), shapes, strict=True)
        return [part.view(shape).clone() for part, shape in split]

    torch.save([[parts(row) for row in rows] for rows in experts], path)


def load_trajectories(paths: Iterable[Path]) -> Trajectories:
    """All files, whole.

    By the full unpickler, which was the default when the published code was written: the safe one
    takes twice as long and would flatter us. Only for files this benchmark has written itself.
    """
    experts: Trajectories = []
    for path in paths:
        experts += torch.load(path, weights_only=False)
    return experts


def segment(experts: Trajectories, expert: int, start: int, length: int) -> tuple[Tensor, Tensor]:
    """Two of an expert's points, each joined to a flat vector."""
    rows = (experts[expert][start], experts[expert][start + length])
    first, last = (torch.cat([part.reshape(-1) for part in row], 0) for row in rows)
    return first, last

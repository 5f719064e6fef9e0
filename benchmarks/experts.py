"""One epoch of an expert: SGD over real images with augmentation, batch 256.

Ours: trajmatch.experts.train_expert, one call whose epochs are timed one by one. The twin: a
DataLoader that collates sample by sample, a module, torch.optim.SGD, augmentation matrices image by
image. Both see the same order and draws; before anything is timed, an epoch of each is compared in
float64. Images are random: time does not depend on what is in them.

    python -m benchmarks.experts                     # what issue 3 asks for
    python -m benchmarks.experts --images 5120 --precision float32
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import harness, machine, twin
from trajmatch.config import ExpertConfig, from_dict, to_dict
from trajmatch.data.augment import Augmentation
from trajmatch.experts.train import expert_epochs, train_expert
from trajmatch.networks import NetworkSpec, load_parameter_vector, parameter_vector
from trajmatch.rng import derive, stream
from trajmatch.types import Tensor

SEED, INDEX, CLASSES = 0, 0, 10


def network(size: int, width: int) -> NetworkSpec:
    return NetworkSpec("convnet", 3, CLASSES, size, {"width": width})


def real_images(count: int, size: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Whitened images as far as time can tell, and labels."""
    drawn = stream(SEED, "benchmark", "real")
    images = torch.randn((count, 3, size, size), generator=drawn)
    labels = torch.randint(CLASSES, (count,), generator=drawn)
    return images.to(device), labels.to(device)


class TwinExpert:
    """The twin's training of the same expert, epoch by epoch, with our order and draws."""

    def __init__(
        self, spec: NetworkSpec, images: Tensor, labels: Tensor, config: ExpertConfig
    ) -> None:
        options = spec.options
        assert isinstance(spec.size, int)
        self.module = twin.TwinConvNet(
            spec.channels, spec.classes, spec.size, options["depth"], options["width"]
        ).to(images)
        start = parameter_vector(spec.build(seed=derive(SEED, "expert", INDEX, "init")))
        load_parameter_vector(self.module, start.to(images))
        self.device = images.device
        # The published code keeps the data set on the CPU and moves batch by batch.
        self.images, self.labels, self.config = images.cpu(), labels.cpu(), config
        self.optimizer = torch.optim.SGD(
            self.module.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )

    def epoch(self, number: int) -> None:
        """Train epoch `number`."""
        shuffle = stream(SEED, "expert", INDEX, "shuffle", number)
        draws = stream(SEED, "expert", INDEX, "augment", number)
        order = torch.randperm(len(self.images), generator=shuffle).tolist()
        dsa, (height, width) = Augmentation(), self.images.shape[2:]
        twin.train(
            self.module,
            self.optimizer,
            twin.loader(self.images, self.labels, self.config.batch, order),
            lambda count: dsa.draw(draws, count, height, width),
            dsa,
            self.device,
        )


def settings(batch: int, precision: str) -> ExpertConfig:
    """One epoch, compiled, as the library would decide for the tens of minutes of real experts;
    not where batches are of a --quick size."""
    compile = "yes" if batch >= 256 else "no"
    values = {"epochs": 1, "batch": batch, "precision": precision, "compile": compile}
    return from_dict(ExpertConfig, values)


def agreement() -> float:
    """|ours - twin| / |way|, where an expert of two epochs ends, in float64. Raises RuntimeError
    when it is not rounding."""
    with harness.default_dtype(torch.float64):
        spec, config = network(8, 4), ExpertConfig(epochs=2, batch=8, lr=0.05)
        images, labels = (t.double() if t.is_floating_point() else t for t in _few())
        state = train_expert(spec, images, labels, config, seed=SEED, index=INDEX)
        theirs = TwinExpert(spec, images, labels, config)
        start = parameter_vector(theirs.module)
        for number in range(config.epochs):
            theirs.epoch(number)
        end = parameter_vector(theirs.module)
        apart = float((state.vector - end).norm() / (end - start).norm())
    if not apart < 1e-9:
        raise RuntimeError(f"ours and the twin do not train the same, nothing is timed: {apart}")
    return apart


def _few() -> tuple[Tensor, Tensor]:
    return real_images(30, 8, "cpu")


def time_row(
    spec: NetworkSpec,
    images: Tensor,
    labels: Tensor,
    config: ExpertConfig,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Epochs of ours and of the twin in turns: the twin's run between two epochs of ours."""
    config = dataclasses.replace(config, epochs=args.warmup + args.repeats)
    theirs = TwinExpert(spec, images, labels, config)
    pairs = harness.Pairs()
    device = images.device
    began = harness.now(device)
    for state in expert_epochs(spec, images, labels, config, seed=SEED, index=INDEX):
        harness.synchronize(device)
        ours = time.perf_counter() - began
        number = state.epochs - 1
        spent = harness.seconds(theirs.epoch, number, device)
        pairs.add(ours, spent, warm=number >= args.warmup)
        began = harness.now(device)
    rate = len(images) / harness.Spread.of(pairs.ours).median
    return {
        "settings": to_dict(config),
        "precision": config.precision,
        "images": len(images),
        "network": spec.describe(),
        **pairs.to_json(),
        "ours_images_per_s": rate,
    }


def memory_job(
    who: str, count: int, size: int, width: int, batch: int, precision: str, device: str
) -> Callable[[], object]:
    """For harness.peak_of: one epoch of "ours" or "twin", after a tiny one of the same."""
    if size > 8:
        memory_job(who, 8, 8, 4, 4, precision, device)()
    spec = network(size, width)
    images, labels = real_images(count, size, device)
    config = settings(batch, precision)
    if who == "twin":
        theirs = TwinExpert(spec, images, labels, config)
        return lambda: theirs.epoch(0)
    plain = dataclasses.replace(config, augment=None)
    few = images[: 2 * batch], labels[: 2 * batch]
    train_expert(spec, *few, plain, seed=SEED, index=INDEX)  # the compiler's memory is not counted
    return lambda: train_expert(spec, images, labels, config, seed=SEED, index=INDEX)


def show(found: dict[str, Any]) -> str:
    """The table of a result."""
    rows = []
    for row in found["times"]:
        peaks = harness.peak_cells(row)
        rate = f"{row['ours_images_per_s']:.0f}"
        name = f"epoch of {row['images']} {row['precision']}"
        rows.append([name, *harness.timing_cells(row), rate, *peaks])
    head = [*harness.TIMING_HEAD, "images/s", "ours MB", "twin MB"]
    return "\n".join([machine.words(found["machine"]), "", harness.table(head, rows)])


def main(argv: list[str] | None = None) -> dict[str, Any]:
    made = harness.parser("experts", __doc__, repeats=5)
    made.add_argument("--images", type=int, default=2560, help="of an epoch (2560)")
    made.add_argument("--batch", type=int, default=256)
    made.add_argument("--width", type=int, default=128)
    made.add_argument("--precision", nargs="+", choices=("float32", "bf16", "tf32"))
    args = made.parse_args(argv)
    device = harness.begin(args)
    size = 32
    if args.quick:
        args.images, args.batch, args.width, size = 48, 16, 8, 16
    spec = network(size, args.width)
    images, labels = real_images(args.images, size, device)
    found: dict[str, Any] = {"machine": machine.describe(device), "quick": args.quick}
    found["agreement"] = agreement()
    found["times"] = []
    for precision in machine.precisions(args.precision, device):
        harness.say(f"time: epoch of {args.images} images in {precision}")
        config = settings(args.batch, precision)
        row = time_row(spec, images, labels, config, args)
        for who in () if args.no_memory else ("ours", "twin"):
            row[f"{who}_mb"] = harness.peak_of(
                "benchmarks.experts:memory_job",
                threads=args.threads,
                who=who,
                count=args.images,
                size=size,
                width=args.width,
                batch=args.batch,
                precision=precision,
                device=args.device,
            ).above_mb
        found["times"].append(row)
        harness.write(args, "experts", found, partial=True)
    print(show(found))
    harness.write(args, "experts", found)
    return found


if __name__ == "__main__":
    main()

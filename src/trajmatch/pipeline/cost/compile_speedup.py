"""What the compiler is taken to gain, for the stages of a run that will be compiled.

It is not probed: compiling takes about a minute for each of them.
"""

from __future__ import annotations

import torch

from trajmatch.config import RunConfig
from trajmatch.evaluation import TrainingSet, training_work
from trajmatch.experts.train import expert_work
from trajmatch.methods import method_class
from trajmatch.methods.coresets import BASELINES
from trajmatch.methods.unrolled import UnrolledMethod, unroll_work
from trajmatch.networks import NetworkSpec
from trajmatch.runtime.compiling import wanted
from trajmatch.unroll.convnet import ConvNetGradient

GAIN = 1.5
"""How many times as fast compiled work is taken to be: a round number at the low end of what was
seen on one core (Zen 5) with the paper's ConvNet, width 128, 32 pixels. Iterations were 1.5 times
as fast in float32 and 1.8 times in bf16 (benchmarks/README.md), experts 1.8 and 2.6, fresh networks
of ten images 1.4."""


def known(spec: NetworkSpec, device: str) -> bool:
    """Whether anything was seen of what the compiler gains there."""
    return device == "cpu" and ConvNetGradient.of(spec.build(seed=0)) is not None


def compiled_stages(spec: NetworkSpec, config: RunConfig, images: int) -> list[str]:
    """Which of experts, distillation and evaluation a run on the CPU will compile; `images` are
    those that experts are trained on. Of methods without a walk nothing was seen."""
    module, cpu = spec.build(seed=0), torch.device("cpu")
    experts, distill, judge = config.experts, config.distill, config.evaluate
    count = distill.ipc * spec.classes
    batch = min(distill.batch_syn or count, count) * distill.samples
    small = TrainingSet(torch.empty(count, 0, 0, 0), torch.empty(count, dtype=torch.int64))
    stages = {
        "experts": (experts.compile, expert_work(module, experts, images, cpu)),
        "distillation": (distill.compile, unroll_work(module, distill, batch, cpu)),
        "evaluation": (judge.compile, training_work(spec, judge, [small] * (1 + len(BASELINES)))),
    }
    if not issubclass(method_class(distill.method), UnrolledMethod):
        del stages["distillation"]
    return [stage for stage, (choice, work) in stages.items() if wanted(choice, work)]

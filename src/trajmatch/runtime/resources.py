"""What a computation may use of the machine, as one value."""

from __future__ import annotations

import dataclasses

import torch

from trajmatch.config import check_ranges
from trajmatch.runtime.threads import cores


@dataclasses.dataclass(frozen=True)
class Resources:
    """Device, processes and threads. The default is one CPU process per core where that pays.

    The numbers that a computation produces do not depend on `workers`.
    """

    device: str | torch.device = "cpu"
    """cpu, cuda or cuda:i."""
    workers: int | None = None
    """Processes of one thread for work of many parts (experts, fresh networks). None: one per core
    on the CPU where that pays, one on a GPU."""
    threads: int | None = None
    """Threads of one computation on the CPU (a distillation). None: one for small work, else one
    per core; a run that is continued keeps its number."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def on_cpu(self) -> bool:
        return self.torch_device.type == "cpu"

    def worker_count(self, tasks: int) -> int:
        """Processes for so many tasks: `workers`, or one per core on the CPU and one on a GPU."""
        count = self.workers or (cores() if self.on_cpu else 1)
        return max(1, min(count, tasks))

"""Named random streams: every draw belongs to a seed and a name, never to a global generator.

`stream(seed, "distill", "start-epoch", 17)` gives the same numbers whatever ran before it, in
whichever process, with however many workers. That is what makes a killed run resumable to the same
bits: nothing about a generator's state has to be saved, only the iteration's number.
"""

from __future__ import annotations

import hashlib

import torch

Name = str | int


def derive(seed: int, *names: Name) -> int:
    """A 63-bit seed that depends on `seed` and on every name, in order."""
    text = "/".join([str(int(seed)), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def stream(seed: int, *names: Name) -> torch.Generator:
    """A CPU generator for one named purpose. Draw on the CPU, then move: the numbers are then the
    same on every device."""
    return torch.Generator().manual_seed(derive(seed, *names))

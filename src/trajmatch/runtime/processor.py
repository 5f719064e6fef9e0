"""What the processor computes in hardware."""

from __future__ import annotations

import torch


def computes_bf16(device: torch.device) -> bool:
    """Whether products of bfloat16 are computed by instructions of their own (AVX512_BF16 or AMX on
    a CPU, compute capability 8.0 on a GPU); elsewhere they are slower than those of float32.

    Examples:
        >>> computes_bf16(torch.device("cpu")) in (True, False)
        True
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    found = (getattr(torch.cpu, name, None) for name in names)  # private to torch
    return any(supported is not None and supported() for supported in found)

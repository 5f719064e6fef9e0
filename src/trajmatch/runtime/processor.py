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
    return _supports("avx512_bf16") or multiplies_tiles()


def multiplies_tiles() -> bool:
    """Whether the CPU multiplies tiles of bfloat16 (AMX)."""
    return _supports("amx_tile")


def processor_kind() -> str:
    """By what its products are computed: "amx_bf16", "avx512_bf16", "avx512", "avx2" or "other".

    Examples:
        >>> processor_kind() in ("amx_bf16", "avx512_bf16", "avx512", "avx2", "other")
        True
    """
    if multiplies_tiles():
        return "amx_bf16"
    if _supports("avx512_bf16"):
        return "avx512_bf16"
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return capability if capability in ("avx512", "avx2") else "other"


def _supports(instructions: str) -> bool:
    supported = getattr(torch.cpu, f"_is_{instructions}_supported", None)  # private to torch
    return supported is not None and bool(supported())

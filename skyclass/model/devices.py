"""Devices, precision and threads of torch in this process."""

from __future__ import annotations

import torch

from ..errors import ConfigError

PRECISIONS = ("auto", "fp32", "bf16")


def resolve_device(device: str) -> str:
    """Return cpu, cuda or cuda:N; auto means CUDA if there is a device. Raises `ConfigError`."""
    if device == "auto":
        return "cuda" if has_cuda() else "cpu"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ConfigError(f"device = {device!r}: choose auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        n = torch.cuda.device_count()
        raise ConfigError(f"device = {device!r}: torch sees {n} CUDA devices; choose cpu")
    return device


def has_cuda() -> bool:
    """Return whether torch sees a CUDA device in this process."""
    return torch.cuda.is_available()


def resolve_precision(device: str, precision: str) -> str:
    """Return fp32 or bf16; auto means bf16 where the hardware multiplies it, else fp32. Raises `ConfigError`.

    The hardware multiplies bf16 on CUDA from compute capability 8.0 on, and on CPUs with AVX512-BF16 or AMX.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision = {precision!r}: choose {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # absent before torch 2.11
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def set_threads(n: int) -> None:
    """Let torch use `n` CPU threads in this process. Importing this module sets nothing."""
    torch.set_num_threads(max(1, n))

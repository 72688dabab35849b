"""The process group that the ranks of a plan talk through."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

__all__ = ["BACKENDS", "join_group"]

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
"""what tensors travel by, for each type of device"""


def join_group(device: torch.device, timeout_seconds: float) -> None:
    """Makes the default process group from torchrun's environment, for tensors on ``device``."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        BACKENDS[device.type],
        timeout=timedelta(seconds=timeout_seconds),
        device_id=device if device.type == "cuda" else None,
    )

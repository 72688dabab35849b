"""Move one tensor to another device, differentiably: the gradient travels back the same way."""

from __future__ import annotations

import torch

__all__ = ["transfer"]


def transfer(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on ``device``; itself if it is there already.

    A copy between CUDA devices is asynchronous: torch orders it after the work queued so far on the source's current
    stream and before what is queued next on the target's.  From pageable host memory it returns when the memory has
    been read, so the caller may go on writing there.
    """
    return tensor.to(device, non_blocking=tensor.device.type == "cuda" and device.type == "cuda")

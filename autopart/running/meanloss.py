"""Whether a loss is a mean over samples, without which micro-batches' losses do not average to that of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = ["checked_loss"]

LossFunction = Callable[..., torch.Tensor]

TOLERANCE = 1e-3
COARSE_TOLERANCE = 3e-2
"""of a loss that is computed in 16 bits"""


def checked_loss(
    loss_fn: LossFunction, output: Any, targets: tuple[Any, ...], num_samples: int
) -> tuple[torch.Tensor, str]:
    """The loss of a micro-batch and, in a sentence, that it is not the mean of that of its halves; empty if it is.

    The halves come first, so that they need no more memory than the loss itself.  One sample has no halves.

    Args:
        loss_fn: called with output and targets.
        output: of a micro-batch.
        targets: of a micro-batch.
        num_samples: of a micro-batch; what has them as its first dimension is halved.
    """
    if num_samples < 2:
        return loss_fn(output, *targets), ""
    try:
        halves = _mean_of_halves(loss_fn, output, targets, num_samples)
    except Exception as error:  # the user's own code, that is made for whole micro-batches
        return loss_fn(output, *targets), (
            f"Whether loss_fn is a mean over samples, as micro-batches need it, is not known: of half a micro-batch it "
            f"raises {type(error).__name__}."
        )
    loss = loss_fn(output, *targets)
    return loss, _why_no_mean(loss, halves) if isinstance(loss, torch.Tensor) and not loss.dim() else ""


def _mean_of_halves(loss_fn: LossFunction, output: Any, targets: tuple[Any, ...], num_samples: int) -> float:
    cut = num_samples // 2

    def part(rows: slice) -> float:
        mine = pytree.tree_map(lambda leaf: leaf[rows] if _is_batched(leaf, num_samples) else leaf, (output, targets))
        return float(loss_fn(mine[0], *mine[1]))

    with torch.no_grad(), torch.random.fork_rng(_cuda_devices((output, targets))):
        return (cut * part(slice(cut)) + (num_samples - cut) * part(slice(cut, None))) / num_samples


def _why_no_mean(loss: torch.Tensor, halves: float) -> str:
    whole = float(loss.detach())
    tolerance = TOLERANCE if loss.dtype in (torch.float32, torch.float64) else COARSE_TOLERANCE
    if not abs(whole - halves) > tolerance * max(abs(whole), abs(halves)):  # nor if they are no numbers
        return ""
    return (
        f"loss_fn is no mean over samples: of the first micro-batch it is {whole:.4g}, the mean of its halves is "
        f"{halves:.4g}; so loss and gradients are not those of the unsplit batch. Divide by the number of samples "
        f"(a sum), by a fixed number of tokens (a mean that leaves some out), or plan with --microbatches 1."
    )


def _is_batched(leaf: Any, num_samples: int) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and leaf.shape[0] == num_samples


def _cuda_devices(tree: Any) -> list[torch.device]:
    found = (leaf.device for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor))
    return list({device: None for device in found if device.type == "cuda"})

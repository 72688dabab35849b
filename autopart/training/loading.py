"""A checkpoint into a plain model and a plain optimizer, whatever plan it was written under."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn, optim

from autopart.errors import FileFormatError
from autopart.schema.training import Progress
from autopart.training import checkpoints

__all__ = ["load_checkpoint"]


def load_checkpoint(
    directory: str | Path, model: nn.Module, optimizer: optim.Optimizer | None = None
) -> Progress:
    """Fills a model, and its optimizer if one is given, from a checkpoint; says where the training stood.

    Args:
        directory: a checkpoint, or a directory of checkpoints, of which the latest is taken.
        model: the one that was trained, built anew, on any devices; its tensors are filled in place.
        optimizer: of its parameters, of the kind that it was trained with.

    Raises:
        FileFormatError: there is no checkpoint, or it is of another model or optimizer.
    """
    found = checkpoints.latest(directory) or Path(directory)
    progress = checkpoints.progress_of(found)
    state = {
        f"model.{key}": value.detach() for key, value in model.state_dict(keep_vars=True).items()
        if isinstance(value, torch.Tensor)
    }  # fmt: skip
    with torch.no_grad():
        checkpoints.load_into(found, state)
        if optimizer is not None:
            _load_optimizer(found, progress, model, optimizer)
    return progress


def _load_optimizer(found: Path, progress: Progress, model: nn.Module, optimizer: optim.Optimizer) -> None:
    ours = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    named = {name: parameter for name, parameter in model.named_parameters() if id(parameter) in ours}
    if len(named) != len(ours):
        raise FileFormatError("the optimizer has parameters that are not the model's; give the optimizer of this model")
    for name, parameter in named.items():
        fields = checkpoints.empty_state(found, name, parameter.device)
        checkpoints.load_into(found, {f"optimizer.state.{name}.{field}": value for field, value in fields.items()})
        if fields:
            optimizer.state[parameter] = {
                field: value.item() if field in progress.numbers else value for field, value in fields.items()
            }

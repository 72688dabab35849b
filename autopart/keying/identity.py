"""Which model it is: a hash of its architecture."""

from __future__ import annotations

import hashlib

from torch import nn

__all__ = ["fingerprint"]


def fingerprint(model: nn.Module) -> str:
    """A hash of the architecture: every module's name and type, every weight's name, shape and data type."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        digest.update(f"{name}:{type(module).__qualname__}\n".encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}\n".encode())
    return digest.hexdigest()[:16]

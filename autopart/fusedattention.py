"""torch's fused attention for inference, which no trace contains.

Without gradients ``nn.MultiheadAttention`` and ``nn.TransformerEncoder`` take other operators than in training, but not
while they are traced.  The results are equal but for rounding, and for what an encoder makes of padding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

__all__ = ["attention_in_parts", "encoders", "fusing"]


@contextlib.contextmanager
def attention_in_parts() -> Iterator[None]:
    """Within, torch's attention modules do without the fused operators.

    On fake tensors these give an empty tensor in place of None, and nobody knows their FLOPs.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def fusing(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that may take the fused operators in inference."""
    if not torch.backends.mha.get_fastpath_enabled():
        return ()
    modules = model.named_modules()
    return tuple(name for name, each in modules if isinstance(each, nn.MultiheadAttention) and _may_fuse(each))


def encoders(model: nn.Module) -> tuple[str, ...]:
    """Names of the encoders, whose fused form puts zeros where there is padding."""
    return tuple(name for name, each in model.named_modules() if isinstance(each, nn.TransformerEncoder))


def _may_fuse(module: nn.MultiheadAttention) -> bool:
    return module.batch_first and module._qkv_same_embed_dim and module.bias_k is None

"""Which data type to compute in."""

from __future__ import annotations

import warnings

import torch

from autopart.errors import UsageError
from autopart.schema.training import Precision

__all__ = ["autocast_dtype"]

_DTYPES: dict[Precision, torch.dtype | None] = {"full": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The type for autocast on a device; None for the model's own types.

    Raises:
        UsageError: the device cannot compute in it; torch would go on in float32 with a warning.
    """
    dtype = _DTYPES[precision]
    if dtype is None:
        return None
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            torch.autocast(device.type, dtype)
        except RuntimeError as error:
            raise UsageError(f"{device} has no {precision}: {error}; give --precision full") from error
    if told:
        raise UsageError(f"{device} has no {precision}: {told[0].message}; give --precision full")
    return dtype

"""Codecs for tensors that travel over slow links: a tensor in, a smaller floating tensor out, and back.

What is on the wire is an ordinary floating tensor, so that whatever sends tensors sends it: bytes and places are packed
into float32 columns, bit by bit.  Nothing may calculate with it on the way.  Whatever bits a wire holds, decoding gives
a tensor of the right shape and never raises: schedules that run a stage on uninitialised memory first survive it.

========  ==========================  ================================================================
codec     bytes (of 4 per element)    error of an element x of a row with largest magnitude m
========  ==========================  ================================================================
fp16      2                           |x| / 2^11 (2^-25 near 0); beyond 65504 it becomes 65504
bf16      2                           |x| / 2^8
int8      1, and 4 per row            m / 252
topk      0.4                         |x| / 2^8 for a tenth of the row, |x| for the others, which become 0
========  ==========================  ================================================================

NaN and infinities come out as they went in (of more than a tenth of a row ``topk`` keeps a tenth), so that an overflow
is still seen on the other side; a finite value never becomes infinite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional

from autopart.schema.codec import CodecName, layout, num_kept

__all__ = ["CODECS", "Codec"]

_STEPS = 126
"""of an int8 code to each side of 0: 127 stands for an infinity, -128 for NaN"""
_INFINITE, _NAN = 127, -128


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """How a tensor is made smaller, and made from that again."""

    encode: Callable[[torch.Tensor], torch.Tensor]
    """a floating tensor of any shape and layout to a contiguous one of fewer bytes"""
    decode: Callable[[torch.Tensor, Sequence[int], torch.dtype], torch.Tensor]
    """what ``encode`` made, with shape and data type of what it made it of"""
    feeds_back: bool = False
    """what is lost has to be added to what is sent next, or training goes astray"""


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """In a narrower data type, where finite values stay finite."""
    narrow = tensor.to(dtype).contiguous()
    infinite = torch.tensor(torch.inf, dtype=dtype).view(torch.int16).item()
    overflown = (narrow.view(torch.int16) & 0x7FFF) == infinite  # isinf() takes ten times as long
    if _may_be_any(overflown):
        most = torch.finfo(dtype).max
        narrow = torch.where(overflown & tensor.isfinite(), narrow.clamp(-most, most), narrow)
    return narrow


def _may_be_any(flags: torch.Tensor) -> bool:
    """Whether a flag is set; where the answer would have to be waited for, that one may be."""
    return flags.device.type != "cpu" or bool(flags.any())


def _uncast(wire: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return wire.to(dtype).reshape(tuple(shape))


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """The elements in rows, float32; zeros fill up the last."""
    num_rows, length = layout(tensor.shape)
    flat = tensor.reshape(-1).float()
    missing = num_rows * length - flat.numel()
    return (functional.pad(flat, (0, missing)) if missing else flat).view(num_rows, length)


def _unrows(rows: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    num_elements = torch.Size(shape).numel()
    return rows.reshape(-1)[:num_elements].reshape(tuple(shape)).to(dtype)


def _encode_int8(tensor: torch.Tensor) -> torch.Tensor:
    """Rows of codes, four to a float32 column, and a last column with the row's scale.

    The scale of a row in which not all is finite is negative.
    """
    rows = _rows(tensor)
    largest = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True) if rows.numel() else rows[:, :1]
    unusual = ~largest.isfinite()
    if not _may_be_any(unusual):
        scale = _scale(largest)
        codes = (rows / scale).round_().to(torch.int8)
    else:
        size = _scale(rows.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs().amax(1, keepdim=True))
        codes = (rows / size).round_().clamp_(-_INFINITE, _INFINITE).nan_to_num_(nan=_NAN).to(torch.int8)
        scale = torch.where(unusual, -size, size)
    codes = functional.pad(codes, (0, -codes.shape[1] % 4))
    return torch.cat([codes.view(torch.float32), scale], dim=1)


def _scale(largest: torch.Tensor) -> torch.Tensor:
    """Of rows with these largest magnitudes."""
    return (largest / _STEPS).clamp(min=torch.finfo(torch.float32).tiny)


def _decode_int8(wire: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    _, length = layout(shape)
    codes = wire[:, :-1].contiguous().view(torch.int8)[:, :length].float()
    scale = wire[:, -1:]
    unusual = scale < 0
    if not _may_be_any(unusual):
        return _unrows(codes.mul_(scale), shape, dtype)
    not_finite = torch.where(codes == _NAN, torch.nan, codes * torch.inf)
    rows = torch.where(codes.abs() > _STEPS, not_finite, codes * scale.abs())
    return _unrows(rows, shape, dtype)


def _encode_topk(tensor: torch.Tensor) -> torch.Tensor:
    """Of every row its largest magnitudes, a float32 column each: the value as bfloat16, then its place."""
    rows = _rows(tensor)
    places = rows.abs().topk(num_kept(rows.shape[1]), dim=1, sorted=False).indices  # NaN counts as the largest
    values = _cast(rows.gather(1, places), torch.bfloat16)
    pairs = torch.stack([values.view(torch.int16), places.to(torch.int16)], dim=2)
    return pairs.view(torch.float32).squeeze(2).clone()


def _decode_topk(wire: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    _, length = layout(shape)
    pairs = wire.contiguous().unsqueeze(2).view(torch.int16)
    values = pairs[:, :, 0].contiguous().view(torch.bfloat16).float()
    places = pairs[:, :, 1].long().clamp(0, length - 1)
    rows = torch.zeros(wire.shape[0], length, device=wire.device).scatter_(1, places, values)
    return _unrows(rows, shape, dtype)


CODECS: Mapping[CodecName, Codec] = {
    "fp16": Codec(encode=partial(_cast, dtype=torch.float16), decode=_uncast),
    "bf16": Codec(encode=partial(_cast, dtype=torch.bfloat16), decode=_uncast),
    "int8": Codec(encode=_encode_int8, decode=_decode_int8),
    "topk": Codec(encode=_encode_topk, decode=_decode_topk, feeds_back=True),
}
"""all but ``none``"""

"""The codecs of values that cross a cut, and how many bytes they make of them; the codecs themselves need torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from autopart.schema.graph import Graph, Value

__all__ = ["CODEC_NAMES", "KEPT_SHARE", "CodecName", "is_compressible", "layout", "num_kept", "wire_bytes"]

CodecName = Literal["none", "fp16", "bf16", "int8", "topk"]
"""none: as it is; fp16 and bf16: cast; int8: a byte each and a scale per row; topk: the largest of every row"""

CODEC_NAMES: tuple[CodecName, ...] = get_args(CodecName)

KEPT_SHARE = 0.1
"""of a row, what ``topk`` keeps"""

_LEAST_ROW, _LONGEST_ROW = 64, 2**15
"""a row's scale is four bytes, an element's place in it two"""


def layout(shape: Sequence[int]) -> tuple[int, int]:
    """Number of rows, and elements of each, that a tensor is encoded in; the last row is filled up.

    A row is the last dimension, with as many before it as make 64 elements, but not the first, the samples; at most
    32,768 elements.

    >>> layout((4, 128, 768)), layout((8, 256, 14, 14)), layout((0, 5))
    ((512, 768), (2048, 196), (0, 5))
    """
    length = 1
    for size in reversed(shape[1:] if len(shape) > 1 else shape):
        if length >= _LEAST_ROW:
            break
        length *= size
    length = max(1, min(length, _LONGEST_ROW))
    return math.ceil(math.prod(shape) / length), length


_LEAST_ELEMENTS = 256
"""of a value that is worth a codec's time"""
_WIDTHS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def is_compressible(value: Value, graph: Graph, codec: CodecName) -> bool:
    """Whether a codec is meant for a value: a floating one with a row for every sample, and in training a gradient.

    Masks, rotary tables, indices and scalars cross as they are: they are small, and must be exact.
    """
    narrower = _WIDTHS.get(value.dtype, 0) > (2 if codec in ("fp16", "bf16") else 1)
    of_samples = len(value.shape) > 1 and value.shape[0] == graph.batch_size
    large = math.prod(value.shape) >= _LEAST_ELEMENTS
    return codec != "none" and narrower and of_samples and large and (value.differentiable or not graph.training)


def num_kept(length: int) -> int:
    """Elements that ``topk`` keeps of a row.

    >>> num_kept(768), num_kept(3)
    (77, 1)
    """
    return max(1, round(KEPT_SHARE * length))


def wire_bytes(codec: CodecName, shape: Sequence[int], element_bytes: int) -> int:
    """Bytes that a tensor takes on the wire.

    >>> [wire_bytes(name, (4, 128, 768), 4) for name in CODEC_NAMES]
    [1572864, 786432, 786432, 395264, 157696]

    Args:
        codec: what encodes it.
        shape: of the tensor.
        element_bytes: of one of its elements.
    """
    num_rows, length = layout(shape)
    if codec == "int8":
        return num_rows * (4 * math.ceil(length / 4) + 4)
    if codec == "topk":
        return num_rows * num_kept(length) * 4
    return math.prod(shape) * (element_bytes if codec == "none" else 2)

"""Measured training times of whole transformer layers, with the operators that they run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autopart.profiling.calibrating.calibrationdata import SAILOR_WIDTHS, make_work, read_rows
from autopart.schema.graph import Work

__all__ = ["TrainingBlock", "training_blocks"]

SAILOR_SEQUENCE = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBlock:
    """One transformer layer in training, on one card."""

    kind: str
    works: tuple[Work, ...]
    parameter_bytes: int
    forward_seconds: float
    backward_seconds: float


def training_blocks(folder: Path) -> tuple[TrainingBlock, ...]:
    """Transformer layers on one card in float32, TF32 on where the card has it (layers_sailor_train.csv)."""
    return tuple(
        TrainingBlock(
            kind=row["gpu"].lower(),
            works=_block(row["model"], int(row["mbs"]), "tf32" if row["gpu"].startswith("A100") else "float32"),
            parameter_bytes=4 * 12 * SAILOR_WIDTHS[row["model"]] ** 2,
            forward_seconds=float(row["fwd_ms"]) / 1e3,
            backward_seconds=float(row["bwd_ms"]) / 1e3,
        )
        for row in read_rows(folder, "layers_sailor_train.csv")
        if row["layer"] == "block" and row["tp"] == "1"
    )


def _block(model: str, samples: int, dtype: str) -> tuple[Work, ...]:
    """The forward operators of a layer as transformers writes it, attention in plain operators.

    GPT-Neo has 20 heads, masks by ``where`` and spells its GELU out; OPT has 16 heads, scales the queries, adds the
    mask, takes the maximum with the smallest number, and has dropout after each half and ReLU.
    """
    width, neo = SAILOR_WIDTHS[model], model.startswith("GPT-Neo")
    heads = 20 if neo else 16
    tokens = samples * SAILOR_SEQUENCE
    scores, hidden, batch = samples * heads * SAILOR_SEQUENCE**2, tokens * width, samples * heads

    def product(batch: int, m: int, n: int, k: int) -> Work:
        traffic = 4 * batch * (m * k + k * n + m * n)
        operator = "bmm" if batch > 1 else "linear"
        return make_work("gemm", operator, dtype, (batch, m, n, k), 2 * batch * m * n * k, traffic)

    def vector(operator: str, elements: int, num_read: int = 1) -> Work:
        traffic = 4 * elements * (num_read + 1)
        return make_work("elementwise", operator, "float32", (num_read, elements), 0, traffic)

    def rows(family: str, operator: str, elements: int, length: int) -> Work:
        return make_work(family, operator, "float32", (elements // length, length), 0, 8 * elements)

    norm = rows("normalization", "ln", hidden, width)
    end = (vector("add", hidden, 2),) if neo else (vector("native_dropout", hidden), vector("add", hidden, 2))
    masking = (vector("where", scores),) if neo else (vector("add", scores), vector("maximum", scores))
    gelu = [("pow", 1), ("mul", 1), ("add", 2), ("mul", 1), ("tanh", 1), ("add", 1), ("mul", 1), ("mul", 2)]
    activation = tuple(vector(*(name, 4 * hidden, num)) for name, num in (gelu if neo else [("relu", 1)]))
    return (
        norm,
        *(product(1, tokens, width, width),) * 3,
        *(vector("clone", hidden),) * 3,
        *(() if neo else (vector("mul", hidden),)),
        product(batch, SAILOR_SEQUENCE, SAILOR_SEQUENCE, width // heads),
        *masking,
        rows("softmax", "softmax", scores, SAILOR_SEQUENCE),
        product(batch, SAILOR_SEQUENCE, width // heads, SAILOR_SEQUENCE),
        vector("clone", hidden),
        product(1, tokens, width, width),
        *end,
        norm,
        product(1, tokens, 4 * width, width),
        *activation,
        product(1, tokens, width, 4 * width),
        *end,
    )

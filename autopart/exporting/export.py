"""The formats, by name."""

from __future__ import annotations

from collections.abc import Callable

from autopart.errors import UsageError
from autopart.exporting.accelerate import to_accelerate
from autopart.exporting.graphviz import to_dot
from autopart.exporting.pipelining import to_torch
from autopart.exporting.serving import to_llamacpp, to_vllm
from autopart.exporting.spreadsheet import to_csv
from autopart.exporting.training import to_deepspeed, to_megatron
from autopart.schema.plan import Plan

__all__ = ["FORMATS", "export", "refuse_stage_dtypes"]

PICTURES = frozenset({"dot", "csv"})
"""formats that nothing runs"""

FORMATS: dict[str, Callable[[Plan], str]] = {
    "accelerate": to_accelerate, "torch": to_torch, "vllm": to_vllm, "llamacpp": to_llamacpp,
    "megatron": to_megatron, "deepspeed": to_deepspeed, "dot": to_dot, "csv": to_csv,
}
"""name of a format: what writes a plan in it; ``python`` needs the model too (``to_python``)"""


def export(plan: Plan, to: str) -> str:
    """The text of ``plan`` in the format ``to``.

    Raises:
        UsageError: the format is unknown, or cannot express this plan.
    """
    if to not in FORMATS:
        raise UsageError(f"there is no format {to!r}; give one of {', '.join(FORMATS)}")
    refuse_stage_dtypes(plan, to)
    return FORMATS[to](plan)


def refuse_stage_dtypes(plan: Plan, to: str) -> None:
    """Raise UsageError where stages compute in other types than the model and the format has one type for all."""
    recast = next((stage for stage in plan.stages if stage.dtype), None)
    if recast is not None and to not in PICTURES:
        raise UsageError(
            f"stage {recast.index} computes in {recast.dtype}, which {to} cannot express; plan with --stage-dtype keep"
        )

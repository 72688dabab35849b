"""The formats, by name."""

from __future__ import annotations

from collections.abc import Callable

from autopart.errors import UsageError
from autopart.exporting.accelerate import to_accelerate
from autopart.exporting.pipelining import to_torch
from autopart.exporting.spreadsheet import to_csv
from autopart.schema.plan import Plan

__all__ = ["FORMATS", "export"]

FORMATS: dict[str, Callable[[Plan], str]] = {"accelerate": to_accelerate, "torch": to_torch, "csv": to_csv}
"""name of a format: what writes a plan in it"""


def export(plan: Plan, to: str) -> str:
    """The text of ``plan`` in the format ``to``.

    Raises:
        UsageError: the format is unknown, or cannot express this plan.
    """
    if to not in FORMATS:
        raise UsageError(f"there is no format {to!r}; give one of {', '.join(FORMATS)}")
    return FORMATS[to](plan)

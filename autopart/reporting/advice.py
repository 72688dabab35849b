"""What would make a plan better, and what would change it, in words."""

from __future__ import annotations

from autopart.reporting.tables import heading, percent, table
from autopart.schema.advice import Altered, Sensitivity
from autopart.schema.plan import Plan
from autopart.units import format_bytes, format_rate

__all__ = ["advice_rows", "advice_text", "sensitivity_rows", "unmoved"]

NOTHING = 5e-4
"""a relative change of the step that prints as nothing"""

HEADERS = ("what", "is", "step at half of it", "at twice", "another plan is better")


def advice_text(plan: Plan) -> str:
    """The advice, and the table of what would change the plan; empty if nothing was looked for."""
    rows = sensitivity_rows(plan)
    body = table(HEADERS, rows, words=(0, 2, 3, 4)) if rows else ""
    still = unmoved(plan)
    if still:
        body = "\n".join(filter(None, (body, f"No change by half or twice: {still}")))
    parts = (
        heading("What would help, and what it hangs on", "\n".join(f"  {line}" for line in advice_rows(plan))),
        heading("What would change the plan (solved anew)", body) if plan.sensitivity else "",
    )
    return "\n\n".join(part for part in parts if part)


def advice_rows(plan: Plan) -> list[str]:
    """One line of advice each, with how it was found."""
    return [f"{each.message} ({each.basis})" for each in plan.advice]


def sensitivity_rows(plan: Plan) -> list[tuple[str, str, str, str, str]]:
    """The things of which half or twice changes the step or the plan."""
    base = _base(plan)
    return [
        (f"{each.quantity} of {each.of}" if each.quantity != "bandwidth" else f"bandwidth, {each.of}", _value(each),
         _change(each.halved, base), _change(each.doubled, base), _turns(each))
        for each in plan.sensitivity if not _is_still(each, base)
    ]


def unmoved(plan: Plan) -> str:
    """The other things, in a list."""
    base = _base(plan)
    return ", ".join(f"{each.quantity} of {each.of}" for each in plan.sensitivity if _is_still(each, base))


def _base(plan: Plan) -> float:
    """The plan's own step; of objective latency its objective."""
    return plan.proof.objective_seconds if plan.job.objective == "latency" else plan.prediction.step_seconds


def _is_still(each: Sensitivity, base: float) -> bool:
    seconds = (each.halved.kept_seconds, each.doubled.kept_seconds)
    moves = any(value is None or abs(value / base - 1) > NOTHING for value in seconds)
    return not (moves or each.halved.instead or each.doubled.instead or each.other_below or each.other_above)


def _value(each: Sensitivity) -> str:
    if each.value is None:
        return ""
    return format_rate(each.value) if each.quantity == "bandwidth" else format_bytes(each.value)


def _change(altered: Altered, base: float) -> str:
    kept, best = altered.kept_seconds, altered.best_seconds
    if best is None:
        return "nothing fits"
    own = "does not fit" if kept is None else _percent(kept / base - 1)
    return f"{own}; {_percent(best / base - 1)} if it {altered.instead}" if altered.instead else own


def _percent(change: float) -> str:
    return "as now" if abs(change) <= NOTHING else percent(change, signed=True)


def _turns(each: Sensitivity) -> str:
    parts = [
        f"{word} {_at(each, factor)}"
        for word, factor in (("below", each.other_below), ("above", each.other_above)) if factor is not None
    ]
    return ", ".join(parts) or "nowhere near"


def _at(each: Sensitivity, factor: float) -> str:
    if each.value is None:
        return f"{factor:.2g}x"
    return format_rate(each.value * factor) if each.quantity == "bandwidth" else format_bytes(each.value * factor)

"""What was compared with the unsplit model, in words."""

from __future__ import annotations

from collections.abc import Sequence

from autopart.reporting.tables import facts
from autopart.schema.plan import Check
from autopart.schema.verification import Verification

__all__ = ["checks_text", "verification_text"]


def checks_text(checks: Sequence[Check]) -> str:
    """What was checked of a plan and what came out; says so if nothing was."""
    if not checks:
        return "  none: the split was not compared with the unsplit model (`autopart verify` does it)"
    return facts([(each.name, f"{each.outcome}: {each.detail}") for each in checks])


def verification_text(found: Verification) -> str:
    """What ``autopart verify`` compared."""
    stages = f"{found.num_stages} stage{'s' if found.num_stages != 1 else ''}"
    head = f"{found.model}: {stages} and the unsplit model agree, on a micro-batch of {found.batch}"
    return f"{head}\n{checks_text(found.checks)}"

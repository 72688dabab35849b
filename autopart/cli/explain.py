"""``autopart explain``: the numbers behind a plan; needs neither the model nor torch."""

from __future__ import annotations

from autopart.cli.console import print_result
from autopart.cli.options import JsonOut, PlanFile

__all__ = ["explain"]


def explain(plan_file: PlanFile, json_out: JsonOut = False) -> None:
    """Show where the time and the memory of a plan go, and what each cut costs."""
    from autopart import planning
    from autopart.reporting import explanation_text, plan_text
    from autopart.schema.store import dump, load_plan

    plan = load_plan(plan_file)
    explanation = planning.explain(plan)
    print_result(dump(explanation) if json_out else f"{plan_text(plan)}\n{explanation_text(explanation)}")

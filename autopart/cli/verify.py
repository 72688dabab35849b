"""``autopart verify``: the split model against the unsplit one."""

from __future__ import annotations

from autopart.cli.console import print_result, progress_bar
from autopart.cli.options import JsonOut, ModelText, PlanFile

__all__ = ["verify"]


def verify(plan_file: PlanFile, model: ModelText, json_out: JsonOut = False) -> None:
    """Check that the split model gives the unsplit one's outputs and buffers, and in training its gradients.

    autopart verify plan.json model.py
    """
    from autopart.schema.store import dump, load_plan

    plan = load_plan(plan_file)
    from autopart import api
    from autopart.reporting import verification_text

    source = api.load_source(model, dtype=plan.job.dtype)
    with progress_bar() as progress:
        found = api.verify_source(plan, source, progress=progress)
    print_result(dump(found) if json_out else verification_text(found))

"""``autopart verify``: the split model against the unsplit one."""

from __future__ import annotations

from autopart.cli.console import print_result, progress_bar
from autopart.cli.options import ModelText, PlanFile

__all__ = ["verify"]


def verify(plan_file: PlanFile, model: ModelText) -> None:
    """Check that the split model gives the unsplit one's outputs, and in training its gradients and buffers."""
    from autopart.schema.store import load_plan

    plan = load_plan(plan_file)
    from autopart import api

    source = api.load_source(model, dtype=plan.job.dtype)
    with progress_bar() as progress:
        api.verify_source(plan, source, progress=progress)
    what = "outputs, gradients and buffers" if plan.job.mode == "train" else "outputs"
    print_result(f"{plan.model.name}: {len(plan.stages)} stages and the unsplit model give the same {what}")

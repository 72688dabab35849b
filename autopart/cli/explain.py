"""``autopart explain``: the numbers behind a plan; without MODEL it needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from autopart.cli.console import note, print_result, progress_bar
from autopart.cli.options import JsonOut, OptionalModelText, PlanFile
from autopart.errors import UsageError

if TYPE_CHECKING:
    from autopart.schema.alternatives import CutAlternative, LayerTerms
    from autopart.schema.plan import Plan

__all__ = ["explain"]


def explain(
    plan_file: PlanFile,
    model: OptionalModelText = None,
    stage: Annotated[int | None, typer.Option(min=0, help="of this stage only")] = None,
    layer: Annotated[str | None, typer.Option(
        metavar="NAME", help="of the stage that runs this layer; with MODEL, what the layer itself costs"
    )] = None,
    json_out: JsonOut = False,
) -> None:
    """Show where the time and memory of a plan go, why it is cut there, and with MODEL what other plans would give.

    autopart explain plan.json --stage 1

    autopart explain plan.json model.py --layer lm_head
    """
    from autopart import planning, reporting
    from autopart.pastruns import recall_plan
    from autopart.schema.explanation import FullExplanation
    from autopart.schema.store import dump, load_plan

    plan = load_plan(plan_file)
    chosen = _chosen(plan, stage, layer)
    explanation = planning.explain(plan)
    terms: LayerTerms | None = None
    alternatives: tuple[CutAlternative, ...] = ()
    if model is not None:
        plan, terms, alternatives = _of_the_model(plan, model, chosen, layer)
    if json_out:
        full = FullExplanation(
            explanation=explanation, layer=terms, alternatives=alternatives, advice=plan.advice,
            sensitivity=plan.sensitivity,
        )
        print_result(dump(explanation) if model is None else dump(full))
        return
    if chosen is None:
        text = f"{reporting.plan_text(plan)}\n{reporting.explanation_text(explanation)}"
        ran = reporting.past_runs_text(plan, recall_plan(plan))
        text += f"\n{ran}\n" if ran else ""
    else:
        text = reporting.stage_text(explanation, plan, chosen)
    text += "".join(f"\n{reporting.layer_text(terms)}" if terms else "")
    print_result(text + (f"\n{reporting.alternatives_text(alternatives)}" if alternatives else ""))
    if model is None:
        note("what the next best cut would cost, what a change would give, and a layer's own times take the model: "
             f"autopart explain {plan_file} MODEL")


def _chosen(plan: Plan, stage: int | None, layer: str | None) -> int | None:
    """The stage that is asked about; None: all.

    Raises:
        UsageError: there is no such stage or layer, or the layer is in another stage.
    """
    if stage is not None and stage >= len(plan.stages):
        raise UsageError(f"the plan has stages 0 to {len(plan.stages) - 1}, not {stage}")
    if layer is None:
        return stage
    found = [
        each.index for each in plan.stages if any(n == layer or n.startswith(f"{layer}.") for n in each.layers)
    ]
    if not found:
        raise UsageError(f"the plan has no layer {layer!r}; `autopart export PLAN --to csv` lists them")
    if stage is not None and stage not in found:
        raise UsageError(f"layer {layer} is in stage {found[0]}, not {stage}; leave --stage away")
    return found[0] if stage is None else stage


def _of_the_model(
    plan: Plan, model: str, stage: int | None, layer: str | None
) -> tuple[Plan, LayerTerms | None, tuple[CutAlternative, ...]]:
    """The plan with advice, the layer's terms, and the best plans without its cuts."""
    from autopart import api
    from autopart.explaining import layer_terms, next_best, with_advice

    source = api.load_source(model, dtype=plan.job.dtype)
    ends = range(1, len(plan.stages))
    cuts = [each for each in ends if stage is None or each in (stage, stage + 1)]
    with progress_bar() as progress:
        terms = None if layer is None else layer_terms(plan, source, layer, progress=progress)
        whole = with_advice(plan, source, progress=progress) if stage is None else plan
        return whole, terms, next_best(plan, source, cuts, progress=progress)

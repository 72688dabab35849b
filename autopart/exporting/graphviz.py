"""A plan as a drawing in Graphviz's DOT: a box per stage, its layers in a row, what crosses between them."""

from __future__ import annotations

from autopart.schema.plan import Plan, Stage
from autopart.units import format_bytes, format_seconds

__all__ = ["to_dot"]

_FILLS = ("#cfe8fc", "#fde2c4", "#d5efd3", "#f6d5e5", "#e3dcf5", "#f5eeb8", "#d0ece9", "#e5e0d8")


def to_dot(plan: Plan) -> str:
    """A digraph; ``dot -Tsvg plan.dot > plan.svg`` draws it.  Stages are told apart by number as well as by colour."""
    lines = [
        "digraph plan {", "  rankdir=LR; compound=true; node [shape=box, style=filled, fontname=sans];",
        f"  label={_quoted(f'{plan.model.name}: {format_seconds(plan.prediction.step_seconds)} a step')};",
    ]
    number = 0
    for stage in plan.stages:
        lines += _cluster(stage, number)
        number += len(stage.layers)
    for stage in plan.stages[1:]:
        crossing = [each for each in plan.transfers if each.to_stage == stage.index]
        label = (
            f"{format_bytes(sum(each.bytes for each in crossing))}, {format_seconds(sum(t.seconds for t in crossing))}"
        )
        first = sum(len(each.layers) for each in plan.stages[: stage.index])
        lines.append(f"  n{first - 1} -> n{first} [label={_quoted(label)}, style=bold];")
    return "\n".join((*lines, "}", ""))


def _cluster(stage: Stage, first: int) -> list[str]:
    label = f"stage {stage.index}: {', '.join(stage.devices)}"
    names = range(first, first + len(stage.layers))
    return [
        f"  subgraph cluster_{stage.index} {{", f"    label={_quoted(label)};",
        f"    node [fillcolor={_quoted(_FILLS[stage.index % len(_FILLS)])}];",
        *(f"    n{at} [label={_quoted(layer)}];" for at, layer in zip(names, stage.layers, strict=True)),
        *(f"    n{at - 1} -> n{at};" for at in names[1:]), "  }",
    ]


def _quoted(text: str) -> str:
    """A DOT string: quotes and backslashes escaped, line breaks as spaces."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return '"' + clean.replace("\\", "\\\\").replace('"', '\\"') + '"'

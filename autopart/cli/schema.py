"""``autopart schema``: JSON Schema of the files that autopart writes."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from autopart.cli.console import print_result

__all__ = ["FormatName", "schema"]

FormatName = Literal[
    "plan", "measurement", "profile", "comparison", "trace", "verification", "diagnosis", "explanation", "training",
    "workload-answer",
]


def schema(name: Annotated[FormatName, typer.Argument(metavar="FORMAT", help="which file")]) -> None:
    """Print the JSON Schema of what a command writes: plan, measurement (of run), profile, comparison, trace, ...

    autopart schema plan > plan.schema.json
    """
    from autopart.schema.jsonschema import json_schema

    print_result(json_schema(name))

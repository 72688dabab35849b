"""JSON Schema (draft 2020-12) of every file that autopart writes."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from autopart.schema.comparison import Comparison
from autopart.schema.diagnosis import Diagnosis
from autopart.schema.explanation import Explanation
from autopart.schema.measurement import Measurement
from autopart.schema.plan import Plan
from autopart.schema.profile import Profile
from autopart.schema.tracereport import TraceReport
from autopart.schema.training import Training
from autopart.schema.verification import Verification
from autopart.schema.workload import WorkloadAnswer

__all__ = ["FORMATS", "json_schema"]

FORMATS: dict[str, type[Any]] = {
    "plan": Plan, "measurement": Measurement, "profile": Profile, "comparison": Comparison, "trace": TraceReport,
    "verification": Verification, "diagnosis": Diagnosis, "explanation": Explanation, "training": Training,
    "workload-answer": WorkloadAnswer,
}
"""by the word for the file"""


def json_schema(name: str) -> str:
    """The schema of a format as JSON text: unknown fields are refused, as the reader does.

    Raises:
        KeyError: there is no such format; ``FORMATS`` has their names.
    """
    kind: Any = FORMATS[name]
    # the config of a surrounding tuple is handed down to the dataclasses, see ``store``
    whole = TypeAdapter(tuple[kind], config=ConfigDict(extra="forbid")).json_schema()
    (found,) = whole["prefixItems"]
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"autopart {name}", **found,
        "$defs": whole["$defs"],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"

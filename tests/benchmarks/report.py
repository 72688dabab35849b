"""Size and time of the HTML report, simulation included; the goal is 2 MB and 2 s for 126 layers on 64 devices.

    python -m tests.benchmarks.report [--json]
"""

from __future__ import annotations

import json
import statistics
import sys
import time

from autopart import planning
from autopart.reporting import report_html
from autopart.schema.plan import Plan
from tests.paper import a_plan
from tests.reporting.test_html import a_large_plan

REPEATS = 5


def measured(name: str, plan: Plan) -> dict[str, object]:
    """Bytes, and process seconds: median, least and most."""
    seconds, num_bytes, num_events = [], 0, 0
    for _ in range(REPEATS):
        started = time.process_time()
        timeline = planning.simulate(plan)
        num_bytes = len(report_html(plan, timeline, planning.explain(plan)).encode())
        seconds.append(time.process_time() - started)
        num_events = len(timeline.events)
    return {
        "plan": name, "events": num_events, "bytes": num_bytes, "seconds": statistics.median(seconds),
        "least_seconds": min(seconds), "most_seconds": max(seconds),
    }


def main() -> None:
    """Prints a table, or JSON."""
    rows = [measured("6 layers, 2 devices", a_plan(training=True)), measured("126 layers, 64 devices", a_large_plan())]
    if "--json" in sys.argv:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'plan':24}{'events':>8}{'MB':>8}{'s':>8}  least … most")
    for row in rows:
        print(f"{row['plan']:24}{row['events']:>8}{float(str(row['bytes'])) / 1e6:>8.2f}{row['seconds']:>8.2f}  "
              f"{row['least_seconds']:.2f} … {row['most_seconds']:.2f}")


if __name__ == "__main__":
    main()

"""The answer to a workload as text."""

from __future__ import annotations

from autopart.reporting.tables import percent, table
from autopart.schema.workload import WorkloadAnswer
from autopart.units import format_bytes

__all__ = ["workload_text"]


def workload_text(answer: WorkloadAnswer) -> str:
    """What the answer is, the load of every device, and the proof; times in the workload's own unit."""
    used = sum(load.num_nodes > 0 for load in answer.loads)
    verdict = f"The largest load is {answer.objective:.6g} on {used} of {len(answer.loads)} devices, {answer.mode}."
    rows = [
        [load.device, str(load.num_nodes), f"{load.load:.6g}", format_bytes(load.bytes)] for load in answer.loads
    ]
    distance = "none is better" if answer.gap == 0 else f"none is better by more than {percent(answer.gap, digits=2)}"
    proof = (
        f"{answer.outcome.capitalize()}: {distance} (bound {answer.bound:.6g}: {answer.bound_name}; "
        f"found by {answer.solver}, {answer.solve_seconds:.1f} s)."
    )
    return "\n\n".join((verdict, table(["device", "nodes", "load", "memory"], rows), proof))

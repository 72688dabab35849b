"""From what layers cost to the fastest plan that fits, with a proof of how good it is; no torch here."""

from autopart.planning.check import CheckError, check
from autopart.planning.explain import explain
from autopart.planning.planner import plan
from autopart.planning.simulate import simulate
from autopart.planning.top import Alternative, plan_top
from autopart.planning.workload import plan_workload
from autopart.planning.workloadcheck import check_workload

__all__ = [
    "Alternative", "CheckError", "check", "check_workload", "explain", "plan", "plan_top", "plan_workload", "simulate",
]  # fmt: skip

"""From what layers cost to the fastest plan that fits, with a proof of how good it is; no torch here."""

from autopart.planning.check import CheckError, check
from autopart.planning.explain import explain
from autopart.planning.planner import plan
from autopart.planning.simulate import simulate
from autopart.planning.solvers import SolverState, solvers_here
from autopart.planning.top import plan_top
from autopart.planning.workload import plan_workload
from autopart.planning.workloadcheck import check_workload
from autopart.schema.alternatives import Alternative

__all__ = [
    "Alternative", "CheckError", "SolverState", "check", "check_workload", "explain", "plan", "plan_top",
    "plan_workload", "simulate", "solvers_here",
]  # fmt: skip

"""From what layers cost to the fastest plan that fits, with a proof of how good it is; no torch here."""

from autopart.planning.check import CheckError, check
from autopart.planning.costing.memory import NUM_OPTIMIZER_STATES
from autopart.planning.explain import explain
from autopart.planning.graphs.workload import plan_workload
from autopart.planning.graphs.workloadcheck import check_workload
from autopart.planning.looped import is_looped
from autopart.planning.planner import plan
from autopart.planning.simulating.hiding import hidden, hiding_note
from autopart.planning.simulating.remedies import remedies
from autopart.planning.simulating.simulate import simulate
from autopart.planning.solving.solvers import SolverState, solvers_here
from autopart.planning.top import plan_top
from autopart.planning.variants import best_variant, can_vary, kept_variant, moved_variant
from autopart.schema.alternatives import Alternative

__all__ = [
    "NUM_OPTIMIZER_STATES", "Alternative", "CheckError", "SolverState", "best_variant", "can_vary", "check",
    "check_workload", "explain", "hidden", "hiding_note", "is_looped", "kept_variant", "moved_variant", "plan",
    "plan_top", "plan_workload", "remedies", "simulate", "solvers_here",
]  # fmt: skip

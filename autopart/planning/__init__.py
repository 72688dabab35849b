"""From what layers cost to the fastest plan that fits, with a proof of how good it is; no torch here."""

from autopart.planning.check import CheckError, check
from autopart.planning.explain import explain
from autopart.planning.planner import plan
from autopart.planning.simulate import simulate

__all__ = ["CheckError", "check", "explain", "plan", "simulate"]

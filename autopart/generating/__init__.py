"""What generating text costs: prefill and decode priced apart, then planned as one steady state."""

from autopart.generating.steady import group_counts, plan_generation, requests_of

__all__ = ["group_counts", "plan_generation", "requests_of"]

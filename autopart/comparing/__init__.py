"""Plans side by side: for several sets of devices, or the best few for one set."""

from autopart.comparing.sets import compare_source, mark_pareto, row_of
from autopart.comparing.top import plan_top_source

__all__ = ["compare_source", "mark_pareto", "plan_top_source", "row_of"]

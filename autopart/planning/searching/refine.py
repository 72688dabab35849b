"""Long chains at every legal cut.

The objective of a plan is at least M times its largest stage time, so stages above the incumbent's M-th part are left
out before they are made.
"""

from __future__ import annotations

from autopart.planning.searching.arcs import build_instance
from autopart.planning.searching.instance import Instance
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.problem import Candidate

__all__ = ["refined"]

FINE_BOUNDARIES = 1200


def refined(candidate: Candidate, cluster: Cluster, job: Job, instance: Instance, incumbent: float) -> Instance:
    """The instance at all legal cuts, without the stages that are too long for a plan better than the incumbent.

    ``cluster`` is the real one, the instance's may have its nodes merged.
    """
    return build_instance(
        candidate, instance.cluster, job, instance.schedule, limit=FINE_BOUNDARIES,
        below_seconds=incumbent / (instance.repeats + 1), real=cluster,
    )

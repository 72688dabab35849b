"""What the planner is given: one candidate per micro-batch count, all of the same model and cluster."""

from __future__ import annotations

from dataclasses import dataclass

from autopart.schema.graph import Graph
from autopart.schema.profile import Profile

__all__ = ["Candidate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """The model at one micro-batch size, with its times.

    ``graph`` and ``profile`` are for one micro-batch of ``graph.batch_size`` samples; a step runs
    ``num_microbatches`` of them.
    """

    num_microbatches: int
    graph: Graph
    profile: Profile

    def __post_init__(self) -> None:
        if self.num_microbatches < 1:
            raise ValueError(f"a step needs at least one micro-batch, not {self.num_microbatches}")
        if self.profile.batch_size != self.graph.batch_size or self.profile.fingerprint != self.graph.fingerprint:
            raise ValueError("the profile is of another graph")
        if any(len(kind.forward_seconds) != len(self.graph.layers) for kind in self.profile.kinds):
            raise ValueError("the profile has another number of layers than the graph")

    @property
    def batch(self) -> int:
        """Samples of one step."""
        return self.num_microbatches * self.graph.batch_size

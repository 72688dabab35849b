"""What the memory of every stage depends on, beside the stage: job, schedule and the devices' allocators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from autopart.planning.costing.kvcache import cache_bytes
from autopart.schema.device import Cluster
from autopart.schema.job import Job, Optimizer, ScheduleName

__all__ = ["Rules"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the memory of every stage depends on, beside the stage."""

    training: bool
    schedule: ScheduleName
    num_microbatches: int
    optimizer: Optimizer
    master_weights: bool = False
    multi_tensor: bool = True
    """torch.optim updates all weights at once, as it does on every accelerator, and not one by one (processor)"""
    fragmentation_permille: int = 0
    """of what every step allocates anew, the most that any device's allocator keeps without being able to use it"""
    segment_bytes: int = 0
    """its segments that are in part use at any time"""
    cached_tokens: int = 0
    """tokens whose keys and values are kept, of all sequences together"""

    @staticmethod
    def of(job: Job, schedule: ScheduleName, num_microbatches: int, cluster: Cluster | None = None) -> Rules:
        """The rules of a job once schedule and micro-batches are chosen; without a cluster those of an accelerator."""
        overheads = [device.overhead for device in cluster.devices] if cluster else []
        return Rules(
            training=job.mode == "train", schedule=schedule, num_microbatches=max(1, num_microbatches // job.rounds),
            optimizer=job.optimizer, master_weights=job.master_weights,
            multi_tensor=cluster is None or any(device.backend != "cpu" for device in cluster.devices),
            fragmentation_permille=max((each.fragmentation_permille for each in overheads), default=0),
            segment_bytes=max((each.segment_bytes for each in overheads), default=0),
            cached_tokens=cache_bytes(1, job.cache_tokens, job.cache_sequences),
        )  # fmt: skip

    def fragmented(self, num_bytes: Any) -> Any:
        """What so many bytes, an int or an array, take with the share that the allocator cannot use; rounded up."""
        if not self.fragmentation_permille:
            return num_bytes
        return num_bytes - np.floor_divide(-num_bytes * self.fragmentation_permille, 1000)

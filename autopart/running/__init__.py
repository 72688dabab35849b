"""Running a plan: in one process, as one rank under torchrun, or measured from outside with its own processes."""

from __future__ import annotations

from autopart.running.distributed import DistributedPipeline
from autopart.running.execute import Batch, drop_weights, run_steps
from autopart.running.lifetime import end_with_parent
from autopart.running.local import LocalPipeline
from autopart.running.memory import meter_for
from autopart.running.pipeline import join_group, pipeline
from autopart.running.records import (
    RankFailure,
    RankResult,
    RankSpec,
    failure_path,
    progress_path,
    result_path,
)
from autopart.running.session import best_single_device, run
from autopart.running.stages import stage_device, stage_weights
from autopart.running.stopwatch import stopwatch_for
from autopart.running.unsplit import UnsplitModel

__all__ = [
    "Batch",
    "DistributedPipeline",
    "LocalPipeline",
    "RankFailure",
    "RankResult",
    "RankSpec",
    "UnsplitModel",
    "best_single_device",
    "drop_weights",
    "end_with_parent",
    "failure_path",
    "join_group",
    "meter_for",
    "pipeline",
    "progress_path",
    "result_path",
    "run",
    "run_steps",
    "stage_device",
    "stage_weights",
    "stopwatch_for",
]

"""Program and Plan → SplitModule, and the proof that it does what the model does."""

from __future__ import annotations

from autopart.splitting.checks import check_split, checks_known
from autopart.splitting.devicecheck import check_devices
from autopart.splitting.splitmodule import (
    SplitModule,
    StagePlacement,
    Tracer,
    placements_for,
    side_by_side,
    stage_placements,
    traffic_of,
)
from autopart.splitting.stitch import Placement, Stitched, stitch
from autopart.splitting.verify import verify

__all__ = [
    "Placement",
    "SplitModule",
    "StagePlacement",
    "Stitched",
    "Tracer",
    "check_devices",
    "check_split",
    "checks_known",
    "placements_for",
    "side_by_side",
    "stage_placements",
    "stitch",
    "traffic_of",
    "verify",
]

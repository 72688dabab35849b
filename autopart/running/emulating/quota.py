"""Real throttling of a process: a CPU quota of the kernel's scheduler, where the system lets us set one.

With a quota a process runs at full speed until its share of a period is used up, and then stands still until the next
(Linux, Documentation/scheduler/sched-bwc.rst).  So times of parts shorter than some periods are not those of a slower
device; those of whole steps are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from autopart.errors import RunError, UsageError

__all__ = ["NO_QUOTA", "QuotaRoot", "check_quota", "cpu_quota", "find_quota_root"]

NO_QUOTA = "there is no control group with CPU quotas that this user may write to"
PERIOD_SECONDS = 0.02
"""Shorter ones lose budget where the core is contended; longer ones make steps of some 0.1 s uneven."""

_PREFIX = "autopart-"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaRoot:
    """A control group in which groups of our own may be made."""

    path: Path
    version: int

    def limit(self, group: Path, speed: float) -> None:
        """Gives a group ``speed`` of one core."""
        period, quota = round(PERIOD_SECONDS * 1e6), round(PERIOD_SECONDS * 1e6 * speed)
        if self.version == 2:
            (group / "cpu.max").write_text(f"{quota} {period}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(period))
            (group / "cpu.cfs_quota_us").write_text(str(quota))


def find_quota_root(base: Path = Path("/sys/fs/cgroup")) -> QuotaRoot | None:
    """Where quotas can be set by this user; None if nowhere."""
    for path, version, file in ((base / "cpu", 1, "cpu.cfs_quota_us"), (base, 2, "cgroup.subtree_control")):
        if (path / file).exists() or (version == 1 and (path / "cpu.shares").exists()):
            has_cpu = version == 1 or "cpu" in (path / file).read_text().split()
            if has_cpu and os.access(path, os.W_OK) and os.access(path / "cgroup.procs", os.W_OK):
                return QuotaRoot(path=path, version=version)
    return None


def check_quota() -> None:
    """Raises UsageError where no quota can be set."""
    if find_quota_root() is None:
        raise UsageError(f"--throttle quota: {NO_QUOTA}; leave it out, and slow devices sleep instead")


@contextmanager
def cpu_quota(speed: float, root: QuotaRoot | None = None) -> Iterator[None]:
    """Within, this process and all its threads get ``speed`` of one core.

    Groups that processes which were killed have left behind are removed on the way.

    Args:
        speed: share of a core.
        root: where groups are made; None: ``find_quota_root``.

    Raises:
        RunError: this user may set no quota here.
        OSError: the system does not let us after all.
    """
    root = root or find_quota_root()
    if root is None:
        raise RunError(f"{NO_QUOTA}; emulate with --throttle sleep")
    for left in root.path.glob(f"{_PREFIX}*"):
        if not Path("/proc", left.name.removeprefix(_PREFIX)).exists():
            _remove(left)
    group = root.path / f"{_PREFIX}{os.getpid()}"
    group.mkdir()
    try:
        root.limit(group, speed)
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        (root.path / "cgroup.procs").write_text(str(os.getpid()))
        _remove(group)


def _remove(group: Path) -> None:
    with suppress(FileNotFoundError):  # another rank has tidied up too
        group.rmdir()

"""Every error autopart raises on purpose.

    AutopartError                     exit code 1 if it ever gets out unclassified (it should not)
    ├── UsageError (ValueError)       2  wrong usage or bad input
    │   ├── ModelSourceError          2  the model source could not be read, or its code raised
    │   ├── DeviceError               2  an unknown or absent device, or an unreadable cluster
    │   └── FileFormatError           2  a plan, profile or cluster file that is not ours to read
    ├── InfeasibleError               3  no plan fits in memory
    ├── TracingError                  4  the model could not be traced
    └── RunError                      5  a run failed
        ├── MismatchError             5  the split model and the unsplit one disagree
        └── RankError                 5  a process of the run failed, or hung, or lost its link
            └── OutOfMemoryError      3  its device had less memory than the plan needs

A message is one line: what is wrong, the numbers, what to do next.  ``detail`` holds what may help beyond
that line (the user's own traceback lines, for example) and is printed under it.

    try:
        plan = autopart.plan(model, (x,), devices="2xt4")
    except autopart.InfeasibleError as error:
        print(error)          # which device is short by how much, and the smallest change that would fit
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AutopartError",
    "DeviceError",
    "FileFormatError",
    "InfeasibleError",
    "MismatchError",
    "ModelSourceError",
    "OutOfMemoryError",
    "RankError",
    "RunError",
    "TracingError",
    "UsageError",
]


class AutopartError(Exception):
    """Base of all errors that autopart raises on purpose."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class UsageError(AutopartError, ValueError):
    """Wrong usage or bad input."""

    exit_code = 2


class ModelSourceError(UsageError):
    """The model source could not be read, or the user's code in it raised."""


class DeviceError(UsageError):
    """An unknown or absent device, or a cluster file that makes no sense."""


class FileFormatError(UsageError):
    """A file that is truncated, of another version, or does not follow its schema."""


class InfeasibleError(AutopartError):
    """No plan fits; says which device is short by how much and the smallest change that would fit."""

    exit_code = 3


class TracingError(AutopartError):
    """The model could not be traced at all."""

    exit_code = 4


class RunError(AutopartError):
    """A run failed; the message is the one of the rank that failed first."""

    exit_code = 5


class MismatchError(RunError):
    """The split model's outputs, gradients or buffers differ from the unsplit model's."""

    def __init__(self, message: str, *, detail: str = "", layer: str = "") -> None:
        super().__init__(message, detail=detail)
        self.layer = layer
        """the layer that gives another output, if that is known"""


class RankError(RunError):
    """A process of a run failed, hung, or lost its link to another; the message is of the one that failed first."""

    def __init__(self, message: str, *, detail: str = "", device: str = "", fate: str = "raised") -> None:
        super().__init__(message, detail=detail)
        self.device = device
        """its device in the plan; empty if no device is to blame"""
        self.fate = fate
        """raised, memory, disk, killed, ended, hung, link or unstarted: what happened to it"""


class OutOfMemoryError(RankError):
    """A device had less memory than the plan needs there."""

    exit_code = 3

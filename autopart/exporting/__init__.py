"""A plan in the words of other engines."""

from typing import TYPE_CHECKING, Any

from autopart.exporting.accelerate import to_accelerate
from autopart.exporting.export import FORMATS, export

if TYPE_CHECKING:
    from autopart.exporting.sourcecode import to_python as to_python

__all__ = ["FORMATS", "export", "to_accelerate", "to_python"]


def __getattr__(name: str) -> Any:
    if name != "to_python":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from autopart.exporting.sourcecode import to_python  # alone in this room it needs torch

    return to_python

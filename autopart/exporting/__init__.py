"""A plan in the words of other engines."""

from autopart.exporting.export import FORMATS, export

__all__ = ["FORMATS", "export"]

"""What the rows of the shipped profiles have in common, as pydantic reads them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["FigureRow", "Row"]


class Row(BaseModel):
    """Nothing but the fields that it names."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FigureRow(Row):
    """A figure with the word for its source, and how sure it is."""

    value: str | float
    source: str
    confidence: Literal["high", "medium", "low"]

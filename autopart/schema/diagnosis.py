"""What ``autopart doctor`` found: what is here, what is missing, and how to get it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autopart.schema.device import Device, Link

__all__ = ["Diagnosis", "Finding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked for."""

    area: Literal["torch", "solver", "package", "cache"]
    name: str
    outcome: Literal["here", "missing", "broken"]
    needed: bool
    """False: only some commands use it, ``purpose`` says which"""
    detail: str = ""
    """its version, or what is wrong"""
    purpose: str = ""
    suggestion: str = ""
    """what to type to get it"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """This machine as autopart sees it."""

    format_version: Literal[1] = 1
    autopart: str
    python: str
    platform: str
    findings: tuple[Finding, ...]
    devices: tuple[Device, ...]
    links: tuple[Link, ...]
    """between those devices; assumed unless something was measured before"""

    @property
    def is_well(self) -> bool:
        """Whether all that is needed is here."""
        return all(each.outcome == "here" for each in self.findings if each.needed)

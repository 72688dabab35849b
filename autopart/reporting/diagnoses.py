"""What the doctor found, in words."""

from __future__ import annotations

from autopart.reporting.tables import heading, table
from autopart.schema.diagnosis import Diagnosis
from autopart.units import format_bytes, format_rate, format_seconds

__all__ = ["diagnosis_text"]


def diagnosis_text(found: Diagnosis) -> str:
    """The verdict, what was looked for, the devices and links, and what to do about what is missing."""
    lacking = [each for each in found.findings if each.outcome != "here"]
    findings = [(each.name, each.outcome, each.detail, each.purpose) for each in found.findings]
    devices = [(each.name, each.kind, format_bytes(each.memory_bytes), each.memory_origin) for each in found.devices]
    links = [
        (" - ".join(each.ends), format_rate(each.bandwidth_bytes_per_second), format_seconds(each.latency_seconds),
         each.origin)
        for each in found.links
    ]
    parts = (
        _verdict(found),
        table(("what", "is", "detail", "for"), findings, words=(0, 1, 2, 3)),
        heading("Devices", table(("device", "kind", "memory", "where that comes from"), devices, words=(0, 1, 3))),
        heading("Links", table(("between", "bandwidth", "latency", "is"), links, words=(0, 3)) if links else ""),
        heading("What you can do", "\n".join(f"  {each.name}: {each.suggestion}" for each in lacking)),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdict(found: Diagnosis) -> str:
    where = f"autopart {found.autopart}, Python {found.python}, {found.platform}"
    wrong = [each.name for each in found.findings if each.needed and each.outcome != "here"]
    if wrong:
        return f"{where}: {', '.join(wrong)} must be mended before autopart can plan."
    missing = [each.name for each in found.findings if each.outcome != "here"]
    return f"{where}: all that is needed is here" + (f"; not here: {', '.join(missing)}." if missing else ".")

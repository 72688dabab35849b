"""``autopart doctor``: what is here, what is missing, and how to get it."""

from __future__ import annotations

import typer

from autopart.cli.console import print_result
from autopart.cli.options import JsonOut

__all__ = ["doctor"]

EXIT_NOT_WELL = 2


def doctor(json_out: JsonOut = False) -> None:
    """Show what of torch, solvers, devices, links and optional packages is here, and how to get the rest.

    autopart doctor

    autopart doctor --json
    """
    from autopart.doctor import examine
    from autopart.reporting import diagnosis_text
    from autopart.schema.store import dump

    found = examine()
    print_result(dump(found) if json_out else diagnosis_text(found))
    if not found.is_well:
        raise typer.Exit(EXIT_NOT_WELL)

"""``autopart devices``: what is here, and what the catalogue knows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from autopart.cli.console import print_result
from autopart.cli.options import JsonOut

__all__ = ["app"]

app = typer.Typer(invoke_without_command=True)


@app.callback()
def devices(context: typer.Context, json_out: JsonOut = False) -> None:
    """Show the devices that are here and those of the catalogue; tab-separated where nobody looks.

    autopart devices

    autopart devices show rtx-4090
    """
    if context.invoked_subcommand is not None:
        return
    from autopart import api
    from autopart.reporting import devices_text, devices_tsv
    from autopart.schema.device import DeviceList
    from autopart.schema.store import dump

    own = api.own_kinds(Path())
    names = {kind.name for kind in own}
    known = (*own, *(kind for kind in api.kinds() if kind.name not in names))
    found = DeviceList(here=api.devices_here(), catalogue=known)
    text = devices_text if sys.stdout.isatty() else devices_tsv
    print_result(dump(found) if json_out else text(found.here, found.catalogue))


@app.command()
def show(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="a name of the catalogue, rtx-4090 for example")],
    json_out: JsonOut = False,
) -> None:
    """Show one kind of the catalogue, every figure with its source.

    autopart devices show rtx-4090
    """
    from autopart import api
    from autopart.reporting import kind_text
    from autopart.schema.store import dump

    found = api.kind(kind, api.own_kinds(Path()))
    print_result(dump(found) if json_out else kind_text(found))

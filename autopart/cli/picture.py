"""``--plot FILE``: a picture as SVG or PNG, by the file's ending."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autopart.cli.console import note
from autopart.cli.outputs import writable
from autopart.errors import UsageError

if TYPE_CHECKING:
    from autopart.reporting import Picture

__all__ = ["Plot", "check_picture", "write_picture"]

Plot = Annotated[Path | None, typer.Option(
    "--plot", metavar="FILE", callback=writable, help="draw a picture: FILE.svg or FILE.png"
)]


def check_picture(path: Path | None) -> None:
    """Refuses a name of another kind, before anything is computed.

    Raises:
        UsageError: the name ends in something else.
    """
    if path is not None and path.suffix not in (".svg", ".png"):
        raise UsageError(f"--plot {path} is neither .svg nor .png; give one of those")


def write_picture(picture: Picture, path: Path) -> None:
    """Writes a picture in the format of the file's ending.

    Raises:
        UsageError: the file cannot be written.
    """
    from autopart.reporting import png, svg

    try:
        if path.suffix == ".svg":
            path.write_text(svg(picture), encoding="utf-8")
        else:
            path.write_bytes(png(picture))
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}; give another --plot") from None
    note(f"wrote {path}")

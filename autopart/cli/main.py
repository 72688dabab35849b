"""The command line's door: parses, runs one command, and turns every error into one line and an exit code.

Nothing here imports torch; the commands do when they run, so that ``autopart --help`` is quick.
"""

from __future__ import annotations

import codecs
import importlib.metadata
import io
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
import typer.main

from autopart.cli import (
    compare,
    devices,
    doctor,
    explain,
    export,
    plan,
    profile,
    report,
    run,
    schema,
    trace,
    train,
    verify,
)
from autopart.cli.config import CONFIG_FILE, read_config
from autopart.cli.console import Loudness, complain, loudness, note
from autopart.errors import AutopartError

__all__ = ["app", "main"]

PLAIN = {"…": "...", "→": "->", "·": "|"}
"""what a terminal gets that has not the sign; of others it gets the number"""

EXIT_UNEXPECTED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 128 + 2

app = typer.Typer(
    name="autopart", pretty_exceptions_enable=False,
    help="Plans how a PyTorch model is spread over the devices you have, and runs it.",
    epilog="Exit codes: 0 done, 2 wrong usage or bad input, 3 no feasible plan, 4 not traceable, 5 a run failed.",
)
app.add_typer(devices.app, name="devices")
app.command("trace")(trace.trace)
app.command("profile")(profile.profile)
app.command("plan")(plan.plan)
app.command("compare")(compare.compare)
app.command("explain")(explain.explain)
app.command("verify")(verify.verify)
app.command("run")(run.run)
app.command("train")(train.train)
app.command("export")(export.export)
app.command("report")(report.report)
app.command("doctor")(doctor.doctor)
app.command("schema")(schema.schema)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"autopart {importlib.metadata.version('autopart')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option(
        "--version", callback=_print_version, is_eager=True, help="print the version"
    )] = False,
    show_traceback: Annotated[bool, typer.Option(
        "--traceback", help="show Python's traceback of any error; also AUTOPART_TRACEBACK=1"
    )] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="results and errors only, no notes or progress")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="a line for each step where no bar can be drawn")] = False,
) -> None:
    """Options of all commands; ``main`` has read all but --version before this, wherever they stood."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: the words after ``autopart``; None means the process's own.

    Returns:
        The exit code: 0, what the error's class says (2, 3, 4, 5), 130 after Ctrl-C, 141 if nobody reads the output,
        1 for an error that autopart did not expect.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    show = "--traceback" in words or os.environ.get("AUTOPART_TRACEBACK", "") not in ("", "0")
    level: Loudness = "quiet" if "--quiet" in words else "verbose" if "--verbose" in words else "normal"
    words = [word for word in words if word not in ("--traceback", "--quiet", "--verbose")]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="autopart")
    with warnings.catch_warnings(), loudness(level):
        warnings.showwarning = _show_warning
        try:
            command = typer.main.get_command(app)
            teaching = not words or "--help" in words
            defaults = {} if teaching else read_config(CONFIG_FILE, _options_of(command))
            code = command.main(
                words or ["--help"], prog_name="autopart", standalone_mode=False, default_map=defaults
            )
        except (KeyboardInterrupt, typer.Abort):
            code = EXIT_INTERRUPTED
        except Exception as error:
            return _report(error, show)
    if code == EXIT_INTERRUPTED:  # newer versions of typer return it instead of raising
        complain("autopart: interrupted")
    if not words:
        return EXIT_USAGE
    return code if isinstance(code, int) else 0


def _plainly(error: UnicodeError) -> tuple[str | bytes, int]:
    """Stands in for what an encoding lacks: the error handler "autopart"."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    word = PLAIN.get(error.object[error.start])
    return (word, error.start + 1) if word else codecs.backslashreplace_errors(error)


codecs.register_error("autopart", _plainly)


def _options_of(group: Any) -> dict[str, dict[str, str]]:
    """For each command its options by their long names, with their parameters' names."""
    return {
        name: {
            option.removeprefix("--"): each.name
            for each in command.params for option in each.opts if option.startswith("--") and option != "--help"
        }
        for name, command in group.commands.items()
    }  # fmt: skip


def _report(error: Exception, show: bool) -> int:
    """Tells the user about an error in one line, and what code to exit with."""
    if show:
        traceback.print_exception(error)
    if isinstance(error, AutopartError):
        complain(f"autopart: error: {error}")
        if error.detail:
            complain(error.detail)
        return error.exit_code
    # typer keeps its own copy of click in some versions, so its errors are known by what they can do
    format_message = getattr(error, "format_message", None)
    if callable(format_message):
        message = " ".join(format_message().replace("Value error, ", "").split())
        complain(f"autopart: error: {message}{_help_hint(error)}")
        return EXIT_USAGE
    complain(f"autopart: error: unexpected {type(error).__name__}: {error}; this is a bug in autopart"
             + ("" if show else ", --traceback shows where"))
    return EXIT_UNEXPECTED


def _help_hint(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f" (see `{context.command_path} --help`)" if context is not None else ""


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    note(f"autopart: warning: {' '.join(str(message).split())}")


if __name__ == "__main__":
    sys.exit(main())

"""Running the user's own code: importing their file, calling their functions, and showing their line when it raises."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from autopart.errors import AutopartError, ModelSourceError

__all__ = ["call", "import_file", "import_module", "pip_line"]

_HERE = str(Path(__file__).parent)
_STDLIB = sysconfig.get_paths()["stdlib"]

_DISTRIBUTIONS = {
    "PIL": "pillow", "cv2": "opencv-python", "sklearn": "scikit-learn", "skimage": "scikit-image", "yaml": "PyYAML",
}
"""where the package to install is not called like the module"""


def import_file(path: Path) -> ModuleType:
    """The module that the Python file ``path`` defines, its folder importable as if it were run as a script.

    Raises:
        ModelSourceError: there is no such file, or its code raises.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelSourceError(f"{path} {what}; give a Python file that defines build_model() and example_inputs()")
    _make_importable(path.parent)
    name = f"autopart_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelSourceError(f"{path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    with _their_errors(str(path)):
        spec.loader.exec_module(module)
    return module


def import_module(name: str) -> ModuleType:
    """The module that ``import name`` gives, the working directory importable as for ``python -m``.

    Raises:
        ModelSourceError: there is no such module, or its code raises.
    """
    _make_importable(Path.cwd())
    with _their_errors(name):
        return importlib.import_module(name)


def call(function: Callable[..., Any], *args: Any, what: str, **kwargs: Any) -> Any:
    """What ``function`` returns.

    Args:
        function: the user's.
        *args: its arguments.
        what: how messages call it where it has no line of its own: 'model.py: build_model()'.
        **kwargs: its keyword arguments.

    Raises:
        ModelSourceError: it raises; the message has the user's line, ``detail`` their traceback.
    """
    with _their_errors(what):
        return function(*args, **kwargs)


def pip_line(module: str) -> str:
    """The command that installs the package of a top-level module."""
    return f"pip install {_DISTRIBUTIONS.get(module, module)}"


def _make_importable(folder: Path) -> None:
    text = str(folder.resolve())
    if text not in sys.path:
        sys.path.insert(0, text)


@contextmanager
def _their_errors(what: str) -> Iterator[None]:
    try:
        yield
    except AutopartError:
        raise
    except (Exception, SystemExit) as error:
        raise _explained(error, what) from error


def _explained(error: BaseException, what: str) -> ModelSourceError:
    frames = _their_frames(error)
    detail = "".join([*traceback.format_list(frames), *traceback.format_exception_only(error)]).rstrip()
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        place = f"{_short(error.filename)}:{error.lineno}: `{(error.text or '').strip()}`"
        return ModelSourceError(f"{place} is not Python: {error.msg}", detail=detail)
    place = what
    if frames:
        frame = _own_line(frames)
        place = f"{_short(frame.filename)}:{frame.lineno}: `{frame.line}`"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return ModelSourceError(_missing(error.name, place), detail=detail if frames else "")
    text = " ".join(str(error).split()) or "no message"
    return ModelSourceError(f"{place} raised {type(error).__name__}: {_cut(text)}; mend that line", detail=detail)


def _missing(name: str, place: str) -> str:
    top = name.partition(".")[0]
    if top != name and importlib.util.find_spec(top) is not None:
        return f"{place}: the package {top} has no module {name}; check its version"
    return f"{place}: the package {top} is not installed; {pip_line(top)}"


def _their_frames(error: BaseException) -> list[traceback.FrameSummary]:
    frames = traceback.extract_tb(error.__traceback__)
    return [
        frame for frame in frames
        if not frame.filename.startswith(_HERE) and "importlib" not in frame.filename
    ]


def _own_line(frames: list[traceback.FrameSummary]) -> traceback.FrameSummary:
    """The innermost frame that is not inside an installed package: the line that the user can mend."""
    own = [
        frame for frame in frames
        if "site-packages" not in frame.filename and not frame.filename.startswith((_STDLIB, "<"))
    ]
    return (own or frames)[-1]


def _short(filename: str) -> str:
    try:
        return str(Path(filename).relative_to(Path.cwd()))
    except ValueError:
        return filename


def _cut(text: str, length: int = 300) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"

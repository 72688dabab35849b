from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

import pytest

import autopart
from autopart.profiling.devices.catalogue import kinds

ROOT = Path(autopart.__file__).parent.parent


@pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not a source checkout")
def test_every_package_is_shipped() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "autopart").rglob("__init__.py")}
    assert set(setuptools["packages"]) == found | {"autopart.profiles"}
    assert setuptools["package-dir"] == {"autopart.profiles": "profiles"}
    assert {file.suffix for file in (ROOT / "profiles").iterdir()} <= {".yaml", ".md"}


def test_the_catalogue_is_found() -> None:
    assert len(kinds()) > 0
    assert (resources.files(autopart) / "py.typed").is_file()

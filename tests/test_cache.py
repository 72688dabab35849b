from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from autopart import cache


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOPART_CACHE", str(tmp_path / "own"))
    return tmp_path


def test_reads_what_was_written() -> None:
    cache.write("links", ("a", "b"), b"12\n34")
    assert cache.read("links", ("a", "b")) == b"12\n34"


def test_keys_and_sections_are_apart() -> None:
    cache.write("links", ("a", "b"), b"one")
    assert cache.read("links", ("ab",)) is None and cache.read("layers", ("a", "b")) is None


def test_a_corrupt_entry_is_said_ignored_and_replaced(directory: Path) -> None:
    cache.write("links", ("a",), b"content")
    (entry,) = (directory / "own" / "links").iterdir()
    entry.write_bytes(entry.read_bytes()[:-2])
    with pytest.warns(UserWarning, match="corrupt"):
        assert cache.read("links", ("a",)) is None
    cache.write("links", ("a",), b"content")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.read("links", ("a",)) == b"content"


def test_nothing_is_left_aside(directory: Path) -> None:
    cache.write("links", ("a",), b"content")
    assert len(list((directory / "own" / "links").iterdir())) == 1


def test_an_unwritable_cache_is_a_warning(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / "file").write_text("")
    monkeypatch.setenv("AUTOPART_CACHE", str(directory / "file"))
    with pytest.warns(UserWarning, match="set AUTOPART_CACHE"):
        cache.write("links", ("a",), b"content")


def test_directory_by_precedence(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory / "xdg"))
    assert cache.cache_directory() == directory / "own"
    monkeypatch.delenv("AUTOPART_CACHE")
    assert cache.cache_directory() == directory / "xdg" / "autopart"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(directory))
    assert cache.cache_directory() == directory / ".cache" / "autopart"

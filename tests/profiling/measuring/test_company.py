from __future__ import annotations

import subprocess

import pytest

from autopart.profiling.measuring.company import company


def test_companions_work_while_the_body_runs_and_are_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []
    begin = subprocess.Popen

    def record(*args: object, **kwargs: object) -> subprocess.Popen[str]:
        started.append(begin(*args, **kwargs))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", record)
    with pytest.raises(RuntimeError, match="body"), company(2):
        assert [process.poll() for process in started] == [None, None]
        raise RuntimeError("body")
    assert all(process.poll() is not None for process in started)


def test_no_companions_start_nothing() -> None:
    with company(0):
        assert True

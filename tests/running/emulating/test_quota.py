from __future__ import annotations

import os
from pathlib import Path

import pytest

from autopart.errors import UsageError
from autopart.running.emulating import quota
from autopart.running.emulating.quota import QuotaRoot, check_quota, cpu_quota, find_quota_root


def fake_groups(base: Path, version: int, controllers: str = "cpu memory") -> Path:
    """Files like those of a control group file system."""
    root = base / "cpu" if version == 1 else base
    root.mkdir(exist_ok=True)
    (root / "cgroup.procs").write_text("")
    if version == 1:
        (root / "cpu.cfs_quota_us").write_text("-1")
    else:
        (root / "cgroup.subtree_control").write_text(controllers)
    return root


@pytest.mark.parametrize("version", [1, 2])
def test_where_quotas_can_be_set_is_found(tmp_path: Path, version: int) -> None:
    root = fake_groups(tmp_path, version)
    assert find_quota_root(tmp_path) == QuotaRoot(path=root, version=version)


def test_a_system_without_the_controller_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_quota_root(tmp_path) is None
    fake_groups(tmp_path, 2, "memory pids")
    assert find_quota_root(tmp_path) is None
    monkeypatch.setattr(quota, "find_quota_root", lambda: None)
    with pytest.raises(UsageError, match="--throttle quota: there is no control group"):
        check_quota()


@pytest.mark.parametrize(("version", "files"), [
    (1, {"cpu.cfs_period_us": "20000", "cpu.cfs_quota_us": "5000"}), (2, {"cpu.max": "5000 20000"}),
])  # fmt: skip
def test_the_process_is_in_a_group_of_its_share_and_leaves_it(
    tmp_path: Path, version: int, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fake_groups(tmp_path, version)
    removed: list[str] = []
    monkeypatch.setattr(Path, "rmdir", lambda path: removed.append(path.name))
    stale = root / "autopart-999999999"
    stale.mkdir()
    own = root / f"autopart-{os.getpid()}"
    with cpu_quota(0.25, QuotaRoot(path=root, version=version)):
        assert {name: (own / name).read_text() for name in files} == files
        assert (own / "cgroup.procs").read_text() == str(os.getpid())
        assert removed == [stale.name]
    assert (root / "cgroup.procs").read_text() == str(os.getpid())
    assert removed == [stale.name, own.name]

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autopart.profiling.devices import here


def test_what_is_here_ends_with_the_processor() -> None:
    devices = here.devices_here()
    assert devices[-1].name == "cpu" and devices[-1].torch_device == "cpu"
    assert [device.backend for device in devices] == ["cuda"] * torch.cuda.device_count() + ["cpu"]


def test_a_container_has_no_more_memory_than_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    physical = here.physical_memory_bytes()
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "limit").write_text("1000000\n")
    monkeypatch.setattr(here, "_CGROUP_LIMITS", (str(tmp_path / "max"), str(tmp_path / "absent")))
    assert here.physical_memory_bytes() >= physical
    monkeypatch.setattr(here, "_CGROUP_LIMITS", (str(tmp_path / "max"), str(tmp_path / "limit")))
    assert here.physical_memory_bytes() == 1_000_000


@pytest.mark.parametrize(
    ("torch_name", "slug"),
    [("NVIDIA GeForce GTX 1660 Ti", "gtx-1660-ti"), ("Tesla K80", "k80"), ("AMD Radeon RX 7900 XTX", "rx-7900-xtx")],
)
def test_an_unknown_card_is_called_as_torch_calls_it(torch_name: str, slug: str) -> None:
    assert here._slug(torch_name) == slug

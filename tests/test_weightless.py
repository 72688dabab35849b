from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from autopart.weightless import NeedsWeightsError, Weightless, is_known, remember, weights_left_out


def test_weights_are_on_meta_and_tables_are_not() -> None:
    with Weightless():
        layer, table = nn.Linear(4, 4), torch.linspace(0, 1, 3)
        embedding = nn.Embedding(4, 4)
    assert layer.weight.is_meta and embedding.weight.is_meta and table.tolist() == [0, 0.5, 1]


def test_real_random_numbers_and_warnings_need_weights() -> None:
    with pytest.raises(NeedsWeightsError), weights_left_out():
        torch.randperm(4)
    with pytest.raises(NeedsWeightsError), weights_left_out():
        torch.tensor(0.0).normal_()
    with weights_left_out():
        nn.Linear(4, 4).weight.data.normal_()


def test_the_compiler_is_not_imported_for_numbers_that_nobody_draws() -> None:
    script = (
        "import sys, torch; from autopart.weightless import weights_left_out\n"
        "with weights_left_out(): torch.nn.Embedding(4, 4); torch.nn.Linear(4, 4)\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_file_is_known_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPART_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.py"
    assert not is_known(file)
    file.write_text("x = 1")
    assert not is_known(file)
    remember(file)
    assert is_known(file)
    file.write_text("x = 2")
    assert not is_known(file)

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from autopart.training import fit, load_checkpoint
from tests.training.models import MODELS, data, plain_losses, plan_of, program_of, seeded, source_of
from tests.training.ranks import FIFTY, LONGER, PIECES, REPLICAS, SWITCHES, WORLD

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have trained all cases."""
    directory = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.ranks", str(directory)], cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=500, check=False,
    )
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture(scope="module")
def ranks(directory: Path) -> list[dict[str, Any]]:
    return [torch.load(directory / f"rank{rank}.pt") for rank in range(WORLD)]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_fifty_losses_are_those_of_the_unsplit_model(name: str, ranks: list[dict[str, Any]]) -> None:
    model = seeded(name)
    expected = plain_losses(model, FIFTY, torch.optim.AdamW(model.parameters(), lr=0.01))
    assert len(expected) == 50 and expected[-1] < expected[0]
    for found in ranks:
        assert found["losses"][name] == pytest.approx(expected, rel=1e-5), "and every rank knows them"


@pytest.mark.slow
def test_gradients_are_clipped_by_their_common_norm(ranks: list[dict[str, Any]]) -> None:
    model = seeded("tied")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    assert ranks[0]["pieces"] == pytest.approx(plain_losses(model, PIECES, optimizer), rel=1e-5)
    assert ranks[0]["norms"] == ranks[1]["norms"]
    assert max(ranks[0]["norms"]) > 0.3, "there was something to clip"


@pytest.mark.slow
def test_replicas_train_like_one(directory: Path, ranks: list[dict[str, Any]]) -> None:
    model = seeded("tied")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    expected = plain_losses(model, REPLICAS, optimizer)
    assert ranks[0]["replicas"] == ranks[1]["replicas"] == pytest.approx(expected, rel=1e-5)
    loaded = seeded("tied", 8)
    load_checkpoint(directory / "replicas-adamw", loaded, torch.optim.AdamW(loaded.parameters()))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)


@pytest.mark.slow
def test_devices_that_share_layers_train_like_one(directory: Path, ranks: list[dict[str, Any]]) -> None:
    """With one norm, in which every part counts once, and checkpoints of whole weights that they go on from."""
    model = seeded("tied")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    expected = plain_losses(model, LONGER, optimizer)
    assert ranks[0]["shared"] == ranks[1]["shared"] == pytest.approx(expected, rel=1e-5)
    assert ranks[0]["shared norms"][:6] == pytest.approx(ranks[0]["norms"], rel=1e-5)
    loaded = seeded("tied", 8)
    restored = torch.optim.SGD(loaded.parameters(), lr=0.1, momentum=0.9)
    assert load_checkpoint(directory / "shared-momentum", loaded, restored).step == 9
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)
    for parameter, theirs in zip(loaded.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(restored.state.get(parameter), optimizer.state.get(theirs))


@pytest.mark.slow
@pytest.mark.parametrize("pair", SWITCHES, ids=" then ".join)
def test_what_one_plan_wrote_another_goes_on_from(pair: tuple[str, str], ranks: list[dict[str, Any]]) -> None:
    model = seeded("tied")
    expected = plain_losses(model, LONGER, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    for found in ranks:
        assert found["switches"][pair] == pytest.approx(expected[6:], rel=1e-5)


@pytest.mark.slow
def test_inputs_and_targets_of_other_samples_are_noticed(ranks: list[dict[str, Any]]) -> None:
    assert all("of step 1 have other samples: the data are not the same in both" in rank["misread"] for rank in ranks)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("more", (3, 6)), ("shared", (6, 9))])
def test_another_plan_and_the_plain_model_go_on_from_what_ranks_wrote(
    name: str, steps: tuple[int, int], directory: Path, tmp_path: Path
) -> None:
    kept = sorted(path.name for path in (directory / f"{name}-momentum").iterdir())
    assert kept == [f"step-{step:08d}" for step in steps]
    written = tmp_path / "kept"
    shutil.copytree(directory / f"{name}-momentum" / "step-00000006", written / "step-00000006")
    model = seeded("tied", 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    assert load_checkpoint(written, model, optimizer).step == 6
    expected = plain_losses(model, LONGER, optimizer, first=7)
    program = program_of(seeded("tied", 9))
    resumed = fit(
        program, plan_of(program, 3 if name == "more" else 1), source_of(program.module), data(), LONGER,
        checkpoint_directory=written, resume=True,
    )
    assert resumed.resumed_from_step == 6
    assert resumed.losses == pytest.approx(expected, rel=1e-5)

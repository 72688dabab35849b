from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load

from autopart.errors import FileFormatError, RunError, UsageError
from autopart.program import Program
from autopart.schema.job import Optimizer
from autopart.schema.training import Recipe, Training
from autopart.training import fit, fitting, load_checkpoint
from tests.training.models import (
    BATCH,
    NUM_SAMPLES,
    data,
    loss_fn,
    plain_losses,
    plan_of,
    program_of,
    seeded,
    source_of,
)

RECIPE = Recipe(steps=12, optimizer="adamw", shuffle=False, clip=0.5, lr_schedule="cosine", lr_warmup=3, accumulate=2)
PROGRAMS = {name: program_of(seeded(name)) for name in ("chain", "tied")}


def program_with(name: str, seed: int = 0) -> Program:
    """The program of a model with new weights; traced once."""
    program = PROGRAMS[name]
    program.module.load_state_dict(seeded(name, seed).state_dict())
    program.module.zero_grad()
    return program


def train(name: str, recipe: Recipe, *, num_stages: int = 2, seed: int = 0, **words: Any) -> Training:
    program = program_with(name, seed)
    return fit(program, plan_of(program, num_stages), source_of(program.module), data(), recipe, **words)


def test_losses_and_weights_are_those_of_the_plain_loop() -> None:
    model = seeded("tied")
    expected = plain_losses(model, RECIPE, torch.optim.AdamW(model.parameters()))
    found = train("tied", RECIPE)
    assert found.losses == pytest.approx(expected, rel=1e-5)
    for name, value in PROGRAMS["tied"].module.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name])
    assert found.batch == 2 * BATCH and found.checkpoint is None


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_rate_and_decay_are_the_recipes(optimizer: Optimizer) -> None:
    recipe = dataclasses.replace(RECIPE, optimizer=optimizer, learning_rate=0.3, weight_decay=0.1, steps=6)
    momentum = 0.9 if optimizer == "momentum" else 0.0
    model = seeded("chain")
    plain = torch.optim.SGD(model.parameters(), lr=0.3, weight_decay=0.1, momentum=momentum)
    assert train("chain", recipe).losses == pytest.approx(plain_losses(model, recipe, plain), rel=1e-5)


def test_bf16_is_autocast() -> None:
    recipe = dataclasses.replace(RECIPE, precision="bf16", steps=6)
    model = seeded("chain")
    expected = plain_losses(model, recipe, torch.optim.AdamW(model.parameters()), autocast=torch.bfloat16)
    found = train("chain", recipe)
    full = train("chain", dataclasses.replace(recipe, precision="full"))
    assert found.losses == pytest.approx(expected, rel=2e-3)
    assert found.losses != pytest.approx(full.losses, rel=1e-6), "it did not compute in full precision"


def test_fp16_skips_the_steps_that_overflow_and_halves_the_scale(tmp_path: Path) -> None:
    def steep(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return 30.0 * loss_fn(output, labels)

    program = program_with("chain")
    source = dataclasses.replace(source_of(program.module), loss_fn=steep)
    recipe = dataclasses.replace(RECIPE, precision="fp16", steps=10)
    found = fit(program, plan_of(program), source, data(), recipe, metrics_file=tmp_path / "metrics.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scales = [line["loss_scale"] for line in lines]
    assert 0 < found.num_skipped < 10 and lines[0]["skipped"] and lines[0]["gradient_norm"] is None
    assert scales == [2.0**16 / 2 ** min(index, found.num_skipped) for index in range(10)]
    assert not lines[-1]["skipped"] and lines[-1]["gradient_norm"] > 0


def test_fp16_without_overflow_is_near_full_precision() -> None:
    recipe = dataclasses.replace(RECIPE, steps=5)
    found = train("chain", dataclasses.replace(recipe, precision="fp16"))
    assert not found.num_skipped
    assert found.losses == pytest.approx(train("chain", recipe).losses, rel=5e-3)


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    program = program_with("chain")
    source = dataclasses.replace(source_of(program.module), loss_fn=lambda output, labels: output.mean() / 0.0)
    with pytest.raises(RunError, match=r"^the (loss|gradient norm) of step 1 is (-?inf|nan)"):
        fit(program, plan_of(program), source, data(), RECIPE)


@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_an_interrupted_training_ends_like_one_that_was_not(optimizer: Optimizer, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, optimizer=optimizer, shuffle=True, checkpoint_every=4)
    whole = train("tied", recipe)
    short = dataclasses.replace(recipe, steps=7)  # of no consequence for the rates of the steps that are done again
    file = tmp_path / "metrics.jsonl"
    train("tied", short, checkpoint_directory=tmp_path / "kept", metrics_file=file)
    shutil.rmtree(tmp_path / "kept" / "step-00000007")
    resumed = train(
        "tied", recipe, num_stages=3, seed=9, checkpoint_directory=tmp_path / "kept", resume=True, metrics_file=file
    )
    assert resumed.resumed_from_step == 4
    assert resumed.losses == pytest.approx(whole.losses[4:], rel=1e-5)
    steps = [json.loads(line)["step"] for line in file.read_text().splitlines()]
    assert steps == list(range(1, 13)), "each once"
    samples = [json.loads(line)["samples"] for line in file.read_text().splitlines()]
    assert samples == [2 * BATCH * step for step in steps]


def test_the_plain_model_loads_a_checkpoint_and_goes_on(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, lr_schedule="constant", lr_warmup=0, steps=5)
    train("tied", recipe, checkpoint_directory=tmp_path)
    longer = dataclasses.replace(recipe, steps=9)
    model = seeded("tied", 5)
    optimizer = torch.optim.AdamW(model.parameters())
    assert load_checkpoint(tmp_path, model, optimizer).step == 5
    expected = plain_losses(model, longer, optimizer, first=6)
    resumed = train("tied", longer, checkpoint_directory=tmp_path, resume=True)
    assert resumed.losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torchs_own_loader_finds_the_models_own_keys(tmp_path: Path) -> None:
    train("tied", dataclasses.replace(RECIPE, steps=2), checkpoint_directory=tmp_path)
    model = seeded("tied", 5)
    state = {"model": model.state_dict()}
    assert {"upper.weight", "embed.weight", "unused.bias"} <= set(state["model"])
    load(state, checkpoint_id=tmp_path / "step-00000002")
    for name, value in PROGRAMS["tied"].module.state_dict().items():
        assert torch.equal(value, state["model"][name])


def test_what_cannot_be_resumed_is_said(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, steps=2)
    train("chain", recipe, checkpoint_directory=tmp_path)
    with pytest.raises(UsageError, match="step-00000002; add --resume"):
        train("chain", recipe, checkpoint_directory=tmp_path)
    with pytest.raises(UsageError, match="a training with adamw, not sgd"):
        train("chain", dataclasses.replace(recipe, optimizer="sgd"), checkpoint_directory=tmp_path, resume=True)
    with pytest.raises(UsageError, match="another model"):
        train("tied", recipe, checkpoint_directory=tmp_path, resume=True)
    with pytest.raises(FileFormatError, match=r"of another model or optimizer: model.0.weight is not in it"):
        load_checkpoint(tmp_path, torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_a_full_disk_leaves_the_earlier_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = dataclasses.replace(RECIPE, steps=2)
    train("chain", recipe, checkpoint_directory=tmp_path)
    before = load_into_new(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(RunError) as caught:
        patched.setattr(os, "fsync", full)  # torch flushes what it wrote
        train("chain", dataclasses.replace(recipe, steps=4), checkpoint_directory=tmp_path, resume=True)
    message = str(caught.value)
    assert message.startswith("the checkpoint of step 4 cannot be written") and "No space left on device" in message
    assert "step-00000002 is still there to resume from" in message
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"], "nothing half-written is left"
    assert all(torch.equal(value, before[name]) for name, value in load_into_new(tmp_path).items())


def load_into_new(directory: Path) -> dict[str, torch.Tensor]:
    model = seeded("chain", 5)
    load_checkpoint(directory, model)
    return model.state_dict()


def test_only_the_latest_checkpoints_are_kept(tmp_path: Path) -> None:
    (tmp_path / ".step-00000099.partial").mkdir()
    train("chain", dataclasses.replace(RECIPE, steps=6, checkpoint_every=2, keep=2), checkpoint_directory=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000006"]


def test_an_optimizer_of_the_users_own(tmp_path: Path) -> None:
    made: Callable[..., torch.optim.Optimizer] = lambda parameters: torch.optim.Adamax(parameters, lr=0.01)  # noqa: E731
    recipe = dataclasses.replace(RECIPE, steps=6, lr_schedule="constant", lr_warmup=0)
    model = seeded("chain")
    expected = plain_losses(model, recipe, made(model.parameters()))
    train("chain", dataclasses.replace(recipe, steps=3), optimizer=made, checkpoint_directory=tmp_path)
    again = train("chain", recipe, optimizer=made, checkpoint_directory=tmp_path, resume=True, seed=4)
    assert again.losses == pytest.approx(expected[3:], rel=1e-5)


def test_what_any_rank_has_to_say_all_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_gather_object(found: list[tuple[str, ...]], own: tuple[str, ...]) -> None:
        found[:] = [own, ("one", "of the last rank")]

    monkeypatch.setattr(dist, "all_gather_object", all_gather_object)
    assert fitting._of_all(("one",), 2) == ("one", "of the last rank")
    assert fitting._of_all(("one",), 1) == ("one",)


def test_the_callers_random_numbers_are_left_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    program = program_with("chain")
    torch.manual_seed(11)
    fit(program, plan_of(program), source_of(program.module), data(), dataclasses.replace(RECIPE, steps=1))
    assert torch.equal(torch.rand(3), expected)
    assert NUM_SAMPLES % BATCH == 0

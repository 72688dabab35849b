"""Every example loads, plans for devices that are not here, and (where it has weights) splits without a difference."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import pytest
import torch

from autopart import api
from autopart.modelsource import Source, batch_of, with_batch
from autopart.schema.plan import Plan

FOLDER = Path(__file__).parent.parent / "examples"
NUM_PARAMETERS = {
    "mlp": 20_979_712, "gpt2": 124_439_808, "resnet50": 25_557_032, "unet": 482_050, "diffusion": 3_955_076,
    "t5": 60_506_624, "custom": 2_300_928, "llama70b": 70_553_706_496,
}  # fmt: skip


@cache
def loaded(name: str) -> Source:
    return api.load_source(str(FOLDER / f"{name}.py"))


def planned(source: Source, mode: str, microbatches: int = 2) -> Plan:
    """Its split is not compared with the unsplit model by the way, but by ``verify_source``."""
    return api.plan_source(
        source, devices="2xa100-sxm-80gb", stages=2, mode=mode, optimizer="sgd" if mode == "train" else "none",
        microbatches=microbatches, verify=False,
    )


def test_every_example_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(NUM_PARAMETERS)


@pytest.mark.parametrize("name", NUM_PARAMETERS)
def test_sizes_are_the_real_ones_and_a_command_is_shown(name: str) -> None:
    source = loaded(name)
    assert sum(parameter.numel() for parameter in source.model.parameters()) == NUM_PARAMETERS[name]
    assert batch_of(source) > 1
    assert f"autopart plan examples/{name}.py" in (FOLDER / f"{name}.py").read_text()


@pytest.mark.parametrize("name", ["mlp", "unet", "resnet50", "gpt2", "diffusion", "t5", "custom"])
def test_the_loss_takes_what_the_model_gives(name: str) -> None:
    source = with_batch(loaded(name), 2)
    assert source.loss_fn is not None and source.targets is not None
    loss = source.loss_fn(source.model(*source.args, **source.kwargs), *source.targets)
    assert loss.dim() == 0 and torch.isfinite(loss)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("mlp", "train"), ("unet", "infer"), ("unet", "train"), ("diffusion", "infer"), ("custom", "train")],
)
def test_small_examples_split_without_a_difference(name: str, mode: str) -> None:
    source = with_batch(loaded(name), 4)
    plan = planned(source, mode)
    assert sum(len(stage.layers) for stage in plan.stages) == plan.model.num_layers
    assert name != "unet" or len(plan.transfers) > 1, "values skip across its middle"
    api.verify_source(plan, source)


@pytest.mark.slow
def test_gpt2_splits_without_a_difference() -> None:
    source = with_batch(loaded("gpt2"), 2)
    source = dataclasses.replace(source, kwargs={"input_ids": source.kwargs["input_ids"][:, :16]})
    api.verify_source(planned(source, "infer", microbatches=1), source)


@pytest.mark.slow
def test_llama_is_planned_without_its_weights() -> None:
    plan = planned(loaded("llama70b"), "infer", microbatches=1)
    num_bytes = sum(stage.parameter_bytes for stage in plan.stages)
    assert num_bytes == pytest.approx(2 * NUM_PARAMETERS["llama70b"], rel=0.01)

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from autopart.errors import UsageError
from autopart.running import LocalPipeline
from autopart.running.optimizers import OPTIMIZERS, make_optimizer
from autopart.schema.job import Optimizer
from autopart.training.part import check_plan
from tests.running.handmade import Skipping, make_plan, trace_skipping


def test_every_optimizer_of_a_job_can_be_made() -> None:
    named = {*Optimizer.__args__} - {"none"}  # type: ignore[attr-defined]
    assert named == set(OPTIMIZERS)
    for name in named:
        assert make_optimizer(name, [nn.Parameter(torch.ones(2))]) is not None


def test_none_and_a_stage_without_trainable_weights_have_no_optimizer() -> None:
    assert make_optimizer("none", [nn.Parameter(torch.ones(2))]) is None
    assert make_optimizer("adam", []) is None


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UsageError, match="no optimizer is called 'lion'"):
        make_optimizer("lion", [nn.Parameter(torch.ones(2))])


def test_float32_copies_of_weights_are_refused_rather_than_left_out() -> None:
    program = trace_skipping(Skipping(), 8, 4, training=True)
    plan = make_plan(program.graph, (2, 4), num_microbatches=4, mode="train", schedule="1f1b", optimizer="adamw")
    plan = dataclasses.replace(plan, job=dataclasses.replace(plan.job, master_weights=True))
    with pytest.raises(UsageError, match=r"float32 copies of its weights, which cannot be run yet; plan without"):
        LocalPipeline(program, plan)
    with pytest.raises(UsageError, match="which cannot be run yet"):
        check_plan(plan)

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from autopart.running import LocalPipeline
from autopart.running.loss import Objective
from autopart.running.meanloss import checked_loss
from tests.running.handmade import Skipping, make_plan, skipping_batch, skipping_loss, trace_skipping


def why_no_mean(
    loss_fn: Callable[..., torch.Tensor], output: Any, targets: tuple[torch.Tensor, ...], num_samples: int
) -> str:
    loss, why = checked_loss(loss_fn, output, targets, num_samples)
    assert torch.equal(loss, loss_fn(output, *targets))
    return why


OUTPUT = torch.tensor([[2.0, 0.5], [0.1, 1.0], [3.0, -1.0]], requires_grad=True)
LABELS = torch.tensor([0, 0, 1])


@pytest.mark.parametrize("num", [2, 3])
def test_a_mean_over_samples_is_one(num: int) -> None:
    assert why_no_mean(F.cross_entropy, OUTPUT[:num], (LABELS[:num],), num) == ""
    assert why_no_mean(lambda out, labels: F.cross_entropy(out["a"], labels).bfloat16(),
                       {"a": OUTPUT[:num]}, (LABELS[:num],), num) == ""  # fmt: skip


def summed(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output, labels, reduction="sum")


def test_sums_and_means_that_leave_some_out_are_not() -> None:
    assert why_no_mean(summed, OUTPUT, (LABELS,), 3).startswith("loss_fn is no mean over samples: of the first")
    padded = torch.tensor([[0, -100], [1, 1]])
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [3.0, 0.0]]])
    assert "fixed number of tokens" in why_no_mean(
        lambda out, labels: F.cross_entropy(out.flatten(0, 1), labels.flatten()), logits, (padded,), 2
    )


def test_one_sample_says_nothing_and_what_cannot_be_halved_is_said() -> None:
    assert why_no_mean(summed, OUTPUT[:1], (LABELS[:1],), 1) == ""

    def whole_only(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(output.view(3, 2), labels)

    assert "is not known: of half a micro-batch it raises RuntimeError" in why_no_mean(
        whole_only, OUTPUT, (LABELS,), 3
    )


def test_random_numbers_are_left_alone() -> None:
    torch.manual_seed(0)
    alone = F.dropout(OUTPUT).mean()
    torch.manual_seed(0)
    assert torch.equal(checked_loss(lambda out, _: F.dropout(out).mean(), OUTPUT, (LABELS,), 3)[0], alone)


def test_the_first_loss_is_looked_at_and_later_ones_are_not() -> None:
    sizes: list[int] = []

    def counted(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(output))
        return summed(output, labels)

    objective = Objective(counted, 3)
    with pytest.warns(UserWarning, match="no mean over samples"):
        objective(OUTPUT, LABELS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective(OUTPUT, LABELS)
    assert sizes == [1, 2, 3, 3] and len(objective.notes) == 1


def test_a_pipeline_says_so_where_the_batch_is_cut() -> None:
    def loss(output: Any, *targets: Any) -> torch.Tensor:
        return 8 * skipping_loss(output, *targets) if len(targets[0]) == 2 else skipping_loss(output, *targets)

    args, targets = skipping_batch(8)
    program = trace_skipping(Skipping(), 8, 4, training=True)
    plan = make_plan(program.graph, (2, 4), num_microbatches=4, mode="train", schedule="1f1b")
    pipeline = LocalPipeline(program, plan, loss_fn=loss)
    with pytest.warns(UserWarning, match="no mean over samples"):
        pipeline.step(*args, target=targets)
    assert "loss_fn is no mean over samples" in " ".join(pipeline.notes)

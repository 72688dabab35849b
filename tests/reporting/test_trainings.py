from __future__ import annotations

from autopart.reporting import training_text
from autopart.schema.training import Recovery, Training


def test_a_training_is_told_with_what_it_survived() -> None:
    recovery = Recovery(
        cause="rank 1 (cpu:1) was killed by SIGKILL", action="cpu:1 is left out; planned for cpu:0",
        failed_after_step=7, resumed_from_step=5, devices=("cpu:0",), predicted_step_seconds=0.01,
    )  # fmt: skip
    training = Training(
        model="small", steps=10, batch=8, resumed_from_step=2, losses=(2.5, None, 0.125), median_step_seconds=0.02,
        predicted_step_seconds=0.01, samples_per_second=400.0, total_seconds=90.0, num_skipped=1,
        checkpoint="kept/step-00000010", recoveries=(recovery,), notes=("A note.",),
    )  # fmt: skip
    assert training_text(training) == (
        "Trained small for 8 steps after 2 before of 8 samples: loss 2.5 at first, 0.125 at last; 20.0 ms a step "
        "(predicted 10.0 ms), 400 samples/s, 1.50 min in all.\n"
        "\nAfter step 7: rank 1 (cpu:1) was killed by SIGKILL.\n"
        "  cpu:1 is left out; planned for cpu:0; went on after step 5.\n"
        "\nCheckpoint: kept/step-00000010\n"
        "\n1 steps were skipped because their scaled gradients overflowed.\n"
        "\nA note."
    )

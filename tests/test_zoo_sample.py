"""A fixed sample of the zoo: one of every kind of model, split in 2 and 4, compared bit by bit.

To be quick, most are examined in one of the two modes.  GPT-2, Llama, T5, ResNet and a plain U-Net are in the tests of
tracing and splitting, in both.  All of the zoo: ``python -m tests.benchmarks.zoo``;
what it found last: docs/coverage.md.
"""

from __future__ import annotations

import pytest

from tests.zoology.catalogue import find
from tests.zoology.examine import examine

BOTH, TRAIN, EVAL = ("train", "eval"), ("train",), ("eval",)
SAMPLE = {
    "hf:bert/BertForSequenceClassification": TRAIN,  # text
    "hf:qwen2_moe/Qwen2MoeForCausalLM": TRAIN,  # mixture of experts, with a key-value cache
    "hf:mamba/MambaForCausalLM": EVAL,  # state space
    "hf:yolos/YolosForObjectDetection": EVAL,  # vision, with a detection head
    "hf:llava/LlavaForConditionalGeneration": EVAL,  # images among the text
    "hf:whisper/WhisperForConditionalGeneration": TRAIN,  # audio, encoder and decoder
    "unet:nested": TRAIN,  # skips across all stages, batch normalisation
    "hazard:CheckpointedInCheckpoint": BOTH,  # recomputed regions
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_split_equals_unsplit(name: str) -> None:
    modes = SAMPLE[name]
    result = examine(find(name), key="", modes=modes)
    assert result.verdict == "equal", f"{result.verdict}: {result.reason}\n{result.traceback}"
    asked = {(check.mode, check.num_stages) for check in result.checks}
    assert asked == {(mode, number) for mode in modes for number in (2, 4)}
    assert all(check.found_stages == min(check.num_stages, result.num_layers) > 1 for check in result.checks)

"""A fixed sample of the zoo: every kind of model once, split in 2 and 4, train and eval, bit by bit.

All of it: ``python -m tests.benchmarks.zoo``; what it found last: docs/coverage.md.
"""

from __future__ import annotations

import pytest

from tests.zoology.catalogue import find
from tests.zoology.examine import examine

SAMPLE = (
    "hf:llama/LlamaForCausalLM",
    "hf:gpt2/GPT2LMHeadModel",
    "hf:bert/BertForSequenceClassification",
    "hf:t5/T5ForConditionalGeneration",
    "hf:qwen2_moe/Qwen2MoeForCausalLM",
    "hf:mamba/MambaForCausalLM",
    "hf:llava/LlavaForConditionalGeneration",
    "hf:whisper/WhisperForConditionalGeneration",
    "hf:clip/CLIPModel",
    "hf:wav2vec2/Wav2Vec2ForCTC",
    "hf:yolos/YolosForObjectDetection",
    "unet:plain",
    "unet:nested",
    "unet:diffusion",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_split_equals_unsplit(name: str) -> None:
    result = examine(find(name), key="")
    assert result.verdict == "equal", f"{result.verdict}: {result.reason}\n{result.traceback}"
    assert {(check.mode, check.num_stages, check.found_stages) for check in result.checks} == {
        (mode, number, number) for mode in ("train", "eval") for number in (2, 4)
    }

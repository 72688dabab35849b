"""Generating text on paper: what is asked for, and what a plan gives of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Generation", "GenerationStage", "Requests", "WeightFormat"]

WeightFormat = Literal["as-built", "int8", "int4"]
"""how weights of matrix products are kept: in the model's data type, or in groups of 128 small integers with a scale"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """What text is generated: so many requests at once, a new one as soon as one is done."""

    prompt_tokens: int
    new_tokens: int
    concurrency: int
    weights: WeightFormat = "as-built"

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "new_tokens", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def context_tokens(self) -> int:
        """Most tokens of one request: its prompt and its answer."""
        return self.prompt_tokens + self.new_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationStage:
    """What one stage does for it."""

    prefill_seconds: float
    """of one prompt, with its way in from the stage before"""
    decode_seconds: float
    """of one token for every request of a group, with their way in"""
    cache_bytes: int
    """keys and values of all requests at their longest"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What a plan gives of the requests, when the pipeline is always full."""

    requests: Requests
    num_groups: int
    """the requests go through the stages in so many groups, one after the other"""
    tokens_per_second: float
    """new ones, of all requests together; prefills are paid for"""
    time_to_first_token_seconds: float
    """of a prompt that waits for nobody"""
    time_per_output_token_seconds: float
    """of one request, while the others' prompts come between"""
    stages: tuple[GenerationStage, ...]

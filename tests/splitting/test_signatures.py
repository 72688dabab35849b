"""Calls and results as real models have them: caches, optional arguments, other batch sizes and lengths."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from autopart.splitting import verify
from tests.zoo import assert_same, case, outcome, split


def _llama(**words: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        vocab_size=101, **words,
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model.eval()


TOKENS = torch.randint(101, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("ignore:the split model is called")
def test_a_cache_is_filled_step_by_step_as_the_model_does() -> None:
    from transformers import DynamicCache

    model = _llama()
    ours, theirs = DynamicCache(), DynamicCache()
    divided = split(model, (), {"input_ids": TOKENS, "past_key_values": DynamicCache(), "use_cache": True})
    for tokens in (TOKENS, TOKENS[:, :1], TOKENS[:, 1:2]):
        expected = model(input_ids=tokens, past_key_values=theirs, use_cache=True)
        found = divided(input_ids=tokens, past_key_values=ours, use_cache=True)
        assert torch.equal(found.logits, expected.logits)
        assert found.past_key_values is ours
        assert ours.get_seq_length() == theirs.get_seq_length()
    kept = zip(pytree.tree_leaves(ours), pytree.tree_leaves(theirs), strict=True)
    assert all(torch.equal(one, other) for one, other in kept)


def test_a_cache_is_made_and_compared() -> None:
    model = _llama()
    call = {"input_ids": TOKENS, "use_cache": True}
    divided = split(model, (), call)
    assert verify(divided, model, (), call).num_outputs == 5  # logits, and keys and values of two layers
    assert type(divided(**call)) is type(model(**call))


def test_an_encoder_decoder_cache() -> None:
    each = case("t5")
    each.model.eval()
    call = {**each.kwargs, "use_cache": True}
    divided = split(each.model, (), call)
    found, expected = divided(**call), each.model(**call)
    assert torch.equal(found.logits, expected.logits)
    assert type(found.past_key_values) is type(expected.past_key_values)
    assert verify(divided, each.model, (), call).num_outputs > 5


class Keeps:
    """Something that is written to and not returned."""

    def __init__(self) -> None:
        self.last = torch.zeros(2, 4)


class Writes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, keeps: Keeps) -> torch.Tensor:
        keeps.last = self.one(x)
        return self.two(keeps.last)  # type: ignore[no-any-return]


def test_a_lost_write_is_said() -> None:
    model, x = Writes().eval(), torch.randn(2, 4)
    divided = split(model, (x, Keeps()), {})
    with pytest.warns(UserWarning, match="was given a Keeps and does not return it"):
        assert torch.equal(divided(x, Keeps()), model(x, Keeps()))


class Optional(nn.Module):
    """None, flags, numbers, lists and nested dicts decide what is done."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, *, scale: float = 1.0, deep: bool = False,
        extra: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        y = self.one(x) * scale
        y = y if mask is None else y * mask
        for each in (extra or {}).get("add", []):
            y = y + each
        return {"y": self.two(y), "deep": y if deep else None, "scale": scale, "names": ["a", "b"]}


CALLS: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = (
    ((torch.ones(2, 4),), {}),
    ((torch.ones(2, 4), None), {"scale": 1.0}),
    ((torch.ones(2, 4), torch.zeros(4)), {"deep": True}),
    ((), {"x": torch.ones(2, 4), "deep": False, "scale": 2}),
    ((), {"scale": 2, "x": torch.ones(2, 4), "deep": False}),
    ((torch.ones(2, 4),), {"extra": {"add": [torch.ones(4), 3, 0.5], "none": None}}),
)


@pytest.mark.filterwarnings("ignore:the split model is called")
def test_one_split_takes_all_forms_of_call() -> None:
    model = Optional().train()
    divided = split(model, (torch.ones(2, 4),), {})
    for args, kwargs in CALLS:
        assert_same(outcome(model, model, args, kwargs), outcome(divided, model, args, kwargs))
        assert str(divided(*args, **kwargs)) == str(model(*args, **kwargs))
    assert len(divided._traced) == len(CALLS) - 1  # keywords in another order are the same call


def test_another_batch_is_traced_once_and_said_once() -> None:
    model = Optional().eval()
    divided = split(model, (torch.ones(2, 4),), {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        divided(torch.ones(2, 4))
        divided.train()(torch.ones(2, 4))  # another mode is no other form of call
    with pytest.warns(UserWarning, match="another structure, shape or size") as caught:
        for batch in (3, 4, 3, 1):
            x = torch.randn(batch, 4)
            assert torch.equal(divided(x)["y"], model(x)["y"])
    assert [each.filename for each in caught] == [__file__]


@pytest.mark.filterwarnings("ignore:the split model is called")
def test_another_length_and_batch_of_a_real_model() -> None:
    each = case("llama")
    each.model.eval()
    divided = split(each.model, (), each.kwargs)
    for shape in ((2, 16), (1, 16), (3, 7)):
        tokens = torch.randint(101, shape)
        assert torch.equal(divided(input_ids=tokens).logits, each.model(input_ids=tokens).logits)

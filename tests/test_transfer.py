from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from autopart.transfer import transfer


def test_a_tensor_that_is_there_is_itself() -> None:
    tensor = torch.randn(3)
    assert transfer(tensor, torch.device("cpu")) is tensor


@pytest.mark.parametrize("index", [0, 1])
def test_a_gradient_comes_back(index: int) -> None:
    with FakeTensorMode():
        tensor = torch.randn(3, device="meta:1", requires_grad=True)
        moved = transfer(tensor, torch.device("meta", index))
        torch.autograd.backward(moved.sum())
    assert moved.device == torch.device("meta", index)
    assert tensor.grad is not None
    assert tensor.grad.device == torch.device("meta:1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_to_a_cuda_device_and_back() -> None:
    tensor = torch.randn(1000)
    there = transfer(tensor, torch.device("cuda"))
    assert transfer(there, torch.device("cuda:0")) is there
    assert torch.equal(transfer(there, torch.device("cpu")), tensor)

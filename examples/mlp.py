"""A plain multi-layer perceptron: the smallest thing worth cutting.

autopart plan examples/mlp.py --devices cpu:0,cpu:1
autopart plan examples/mlp.py --devices 2xt4 --mode train
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

BATCH = 64
WIDTH = 2048


def build_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, 2 * WIDTH),
        nn.ReLU(),
        nn.Linear(2 * WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
    )


def example_inputs() -> tuple[torch.Tensor]:
    return (torch.randn(BATCH, WIDTH),)


def example_targets() -> tuple[torch.Tensor]:
    return (torch.randn(BATCH, WIDTH),)


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return functional.mse_loss(output, target)

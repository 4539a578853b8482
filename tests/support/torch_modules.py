"""Modules of torch for the tests: of its library, a residual block written out, and small ones of a few numbers."""

from __future__ import annotations

import functools
from typing import Any

# name -> shapes of the carry and of what all layers are given beside it
MODULES = {
    "TransformerEncoderLayer": ((2, 5, 8),),
    "TransformerDecoderLayer": ((2, 5, 8), (2, 3, 8)),
    "residual block": ((2, 4, 6, 6),),
}


def torch():
    import torch

    return torch


def modules_of(name, N, seed=0):
    """N modules in float64, and the carry with what goes with it, which require gradients."""
    torch().manual_seed(seed)
    nn = torch().nn
    make = {
        "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
        "TransformerDecoderLayer": lambda: nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
        "residual block": lambda: kinds()["residual block"](4),
    }[name]
    modules = [make().double() for _ in range(N)]
    return modules, [torch().randn(shape, dtype=torch().float64, requires_grad=True) for shape in MODULES[name]]


def loop(modules, x, *given):
    for module in modules:
        x = module(x, *given)
    return x


def close(found, right):
    """Equal to float64's last digits: both are the same operations on the same numbers."""
    torch().testing.assert_close(found, right, rtol=1e-9, atol=1e-11)


def block(name, *numbers):
    """A module of one or two numbers."""
    nn = torch().nn
    if name == "linear":
        module = nn.Linear(1, 1)
        for parameter, number in zip(module.parameters(), numbers, strict=True):
            parameter.data.fill_(number)
        return module
    return kinds()[name](*numbers)


@functools.cache
def kinds():
    nn: Any = torch().nn

    class Residual(nn.Module):
        """As in torchvision: convolution, batch norm, ReLU, convolution."""

        def __init__(self, channels):
            super().__init__()
            self.up = nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(2 * channels)
            self.down = nn.Conv2d(2 * channels, channels, 3, padding=1)

        def forward(self, x):
            return x + self.down(torch().relu(self.norm(self.up(x))))

    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.dropout = nn.Parameter(torch().ones(1)), nn.Dropout(0.5)

        def forward(self, x):
            return self.dropout(x) * self.one

    class Tied(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.down, self.up = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
            self.up.weight = self.down.weight
            self.up.weight.data.fill_(weight)

        def forward(self, x):
            return self.up(self.down(x))

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch().zeros(1))

        def forward(self, x):
            return x + self.calls.add_(1)

    return {"residual block": Residual, "dropping": Dropping, "tied": Tied, "counting": Counting}

"""Defects of current releases that the stacks here must not share: shown raw, so that a fix upstream is noticed."""

from __future__ import annotations

import numpy as np
import pytest

from reference import cases
from reference.stack import apply_layers_vjp
from tests.conftest import loaded

CASE = cases.case("orthogonal_3x7", "float32")
EXPECTED = apply_layers_vjp(CASE.weights, CASE.x, np.ones_like(CASE.x))[2]


def gradient_of_sum(apply) -> np.ndarray:
    """dx of `apply(weights, x).sum()` compiled as one: its cotangent is a scalar, broadcast with stride 0."""
    torch_compile = loaded("torch_compile")
    weights, x, _ = map(torch_compile.from_numpy, CASE.inputs)
    x.requires_grad_()
    torch_compile.compile(lambda weights, x: apply(weights, x).sum())(weights, x).backward()
    return torch_compile.to_numpy(x.grad)


def test_gradient_of_sum():
    np.testing.assert_allclose(gradient_of_sum(loaded("torch_compile").scan_apply_layers), EXPECTED, atol=1e-5)


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="torch 2.13: Inductor's scan misreads a stride of 0")
def test_gradient_of_sum_by_the_operator_itself():
    np.testing.assert_allclose(
        gradient_of_sum(loaded("torch_compile").ALTERNATIVES["raw scan"][0]), EXPECTED, atol=1e-5
    )

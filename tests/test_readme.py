"""What the README shows is what runs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np

from tests.conftest import loaded

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
WEIGHTS = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]]], np.float32)
X = np.array([3, 4], np.float32)


def run(block: str, function: str, weights, x):
    namespace: dict = {}
    exec(compile(block, "README.md", "exec"), namespace)
    return namespace[function](weights, x)


def test_definition():
    assert run(BLOCKS[0], "apply_layers", WEIGHTS, X).tolist() == [4, 3]


def test_jax():
    implementation = loaded("jax_scan")
    y = run(BLOCKS[1], "stack", implementation.from_numpy(WEIGHTS), implementation.from_numpy(X))
    assert implementation.to_numpy(y).tolist() == [4, 3]


def test_torch():
    implementation = loaded("torch_compile")
    y = run(BLOCKS[2], "stack", implementation.from_numpy(WEIGHTS), implementation.from_numpy(X))
    assert implementation.to_numpy(y).tolist() == [4, 3]


def test_tensorflow(tmp_path):
    implementation = loaded("tf_while")
    y = run(BLOCKS[3], "stack", implementation.from_numpy(WEIGHTS), implementation.from_numpy(X))
    assert implementation.to_numpy(y).tolist() == [4, 3]


def test_definition_is_the_reference():
    """The loop on the first screen and the oracle's have the same statements; the oracle's product rounds bfloat16."""
    (function,) = ast.parse(BLOCKS[0]).body
    assert [type(statement) for statement in function.body] == [ast.Assign, ast.For, ast.Return]


def test_links_and_targets_exist():
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target

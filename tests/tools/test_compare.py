"""The comparison run as a user starts it; what is missing costs its own column and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def only_jax(tmp_path):
    """An environment in which torch and tensorflow are not installed, as far as an import can tell."""
    for package in ("torch", "tensorflow"):
        text = f"raise ModuleNotFoundError(\"No module named '{package}'\", name='{package}')\n"
        (tmp_path / f"{package}.py").write_text(text)
    return os.environ | {"PYTHONPATH": str(tmp_path)}


def compare(environment, folder, *options):
    command = [sys.executable, "-m", "implementations", "--quick", "--depths", "2,3", "--out", str(folder), *options]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_missing_frameworks_cost_their_own_column(only_jax, tmp_path):
    done = compare(only_jax, tmp_path / "report")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    states = {row["name"]: row["status"] for row in results["implementations"]}
    assert states == {"jax_scan": "ok", "torch_compile": "not run", "tf_while": "not run"}
    assert "pip install --constraint constraints.txt torch" in done.stdout
    assert (tmp_path / "report" / "index.html").exists()


def test_a_missing_framework_asked_for_by_name_is_an_error(only_jax, tmp_path):
    done = compare(only_jax, tmp_path / "report", "--implementations", "torch_compile")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "pip install --constraint constraints.txt torch" in done.stdout

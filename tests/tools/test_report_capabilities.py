"""The capabilities in the comparison: the table, its notes, and the block of the README."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from implementations import NAMES, capabilities, files
from implementations.measuring import isolate


def test_capabilities_name_every_implementation_and_import_none() -> None:
    for capability, states in capabilities.TABLE.items():
        assert len(states) == len(NAMES)
        for name, state in zip(NAMES, states, strict=True):
            assert capabilities.declared(capability, name) is state
            if isinstance(state, capabilities.No):
                assert state.reason
                assert state.checked
                assert state.link.startswith("https://")
                assert re.fullmatch(r"\w+(\.\w+)+", state.raises)
    code = (
        "import sys, implementations.__main__; sys.exit(any(n in sys.modules for n in ('jax', 'torch', 'tensorflow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=isolate.ROOT, check=False).returncode == 0


def test_every_note_of_the_matrix_is_referred_to() -> None:
    matrix = capabilities.matrix()
    used = set(re.findall(r"\[(\d+)\]", " ".join(cell for row in matrix["rows"] for cell in row["states"])))
    assert used == {str(number) for number in range(1, len(matrix["notes"]) + 1)}
    cells = {cell.partition(" [")[0] for row in matrix["rows"] for cell in row["states"]}
    assert cells <= {"yes", "yes*", "no", "n/a"}


def test_blocks_of_the_readmes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short, whole = tmp_path / "README.md", tmp_path / "implementations" / "README.md"
    whole.parent.mkdir()
    for path in (short, whole):
        path.write_text("before\n<!-- capabilities -->\nold\n<!-- /capabilities -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(capabilities, "ROOT", tmp_path)
    assert capabilities.main(["--check"]) == 1
    assert "old" in short.read_text(encoding="utf-8")
    assert capabilities.main([]) == 0
    assert capabilities.main(["--check"]) == 0
    text = short.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| yes | yes | yes |" not in text
    assert "| remat=True | yes | yes | yes |" in whole.read_text(encoding="utf-8")
    assert set(text.splitlines()) < set(whole.read_text(encoding="utf-8").splitlines())
    with pytest.raises(ValueError, match="expected a block between"):
        files.with_block("no markers", "capabilities", capabilities.table(True))

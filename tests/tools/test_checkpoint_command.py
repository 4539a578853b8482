"""`stack-checkpoint` and `unstack-checkpoint` as a user starts them: files, the line at the end, errors in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from implementations import __main__ as entry
from implementations.checkpoints import checkpoint_command
from tests.support.checkpoints import header

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments, cwd=ROOT):
    line = [sys.executable, "-m", "implementations", *map(str, arguments)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_commands_there_and_back(source, tmp_path):
    stacked, back = tmp_path / "stacked.safetensors", tmp_path / "back.safetensors"
    done = command("stack-checkpoint", source, stacked)
    size = stacked.stat().st_size - 8 - len(header(stacked))
    assert (done.returncode, done.stderr) == (0, "")
    found = re.fullmatch(
        rf"{re.escape(str(stacked))}: 2 stacks \(decoder.layer of 13 layers, encoder.layer of 12 layers\), "
        rf"402 tensors -> 34, {size:,} bytes in \S+ m?s, peak resident memory (\S+) MB\n",
        done.stdout,
    )
    assert found, done.stdout
    # Of the command, not of what has started it: these tests are larger.
    assert not Path("/proc/self/status").exists() or float(found[1]) < 100
    done = command("unstack-checkpoint", stacked, back, "--prefix", "encoder.layer", "decoder.layer", "--axis", "0")
    assert (done.returncode, done.stderr) == (0, "")
    assert "34 tensors -> 402" in done.stdout
    assert back.read_bytes() == source.read_bytes()


COMMAND_ERRORS: dict[str, Any] = {
    "missing source": (["{no}", "{out}"], "{no}: expected a file, got none"),
    "source is a folder": (
        ["{folder}", "{out}"],
        "{folder}: expected a folder with one model.safetensors or *.safetensors.index.json, got neither",
    ),
    "missing folder": (["{in}", "{no}/out"], "{no}/out: expected an existing folder, got {no}"),
    "target is a folder": (["{in}", "{folder}"], "{folder}: expected a file, got a folder"),
    "target is a device": (["{in}", "/dev/null"], "/dev/null: expected a file, got something else"),
    "prefix": (
        ["{in}", "{out}", "--prefix", "encoder.layer", "g"],
        "prefixes: expected names like 'g.0', got none; found: 'decoder.layer', 'encoder.layer'",
    ),
    "axis": (
        ["{in}", "{out}", "--axis", "1", "--prefix", "encoder.layer"],
        "axis: expected -1 to 0 (for layer 0, 'encoder.layer.0.part.0.float32' of shape ()), got 1",
    ),
    "name too long": (["{in}", "{folder}/" + 255 * "x"], "File name too long"),
}


@pytest.mark.parametrize("case", COMMAND_ERRORS)
def test_an_error_is_one_line_and_status_2(case, source, target, capsys):
    """In this process: main is what the command calls."""
    arguments, message = COMMAND_ERRORS[case]
    paths = {"in": source, "out": target, "no": source.parent / "none", "folder": source.parent / "folder"}
    paths["folder"].mkdir()

    def named(text):
        return re.sub(r"\{(\w+)\}", lambda found: str(paths[found[1]]), text)

    assert entry.main(["stack-checkpoint", *map(named, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert named(message) in err
    assert sorted(source.parent.iterdir()) == sorted([source, paths["folder"]])
    assert not list(paths["folder"].iterdir())
    assert Path("/dev/null").is_char_device()


def test_a_broken_file_from_the_command_line(source, target):
    source.write_bytes(source.read_bytes()[:-1])
    done = command("unstack-checkpoint", source, target)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{source}: expected a whole safetensors file, got: ")
    assert done.stderr.count("\n") == 1
    assert not target.exists()


def test_interrupted(source, target, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_command, "stack_file", interrupted)
    assert entry.main(["stack-checkpoint", str(source), str(target)]) == 130
    assert capsys.readouterr().err == f"interrupted: {target} is what it was\n"


@pytest.mark.parametrize("name", ["stack-checkpoint", "unstack-checkpoint"])
def test_help(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        entry.main([name, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for word in ("--prefix", "--axis", "encoder.layer.0.w", "metadata", "Exit status", "index.json", "one file"):
        assert word in text


def test_no_framework_and_no_figures_are_imported(source, target):
    code = f"""
        import sys
        from implementations.__main__ import main
        assert main(["stack-checkpoint", {str(source)!r}, {str(target)!r}]) == 0
        print(*{{"jax", "torch", "tensorflow", "matplotlib"}} & sys.modules.keys())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[1:] == [""]


def test_a_bar_on_a_terminal(source, target):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    line = [sys.executable, "-m", "implementations", "stack-checkpoint", str(source), str(target)]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    done = subprocess.run(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=theirs, check=False)
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 1 << 16)
        except OSError:  # Linux says so at the end
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert done.returncode == 0
    assert b"stacking" in shown
    assert done.stdout.count(b"\n") == 1

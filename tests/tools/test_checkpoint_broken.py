"""A `.safetensors` file that is refused, broken or interrupted: what is said, and never half a file."""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from implementations.checkpoints.checkpoint_files import stack_file, unstack_file
from tests.support.checkpoints import DTYPES


def with_metadata(path, tensors, metadata):
    path.write_bytes(save(tensors, metadata))


H = {"h.w": np.zeros((2, 3), np.float32)}
NOTE = '[{"axis": 0, "layers": {"h": 2}}]'
UNSTACK_ERRORS: dict[str, Any] = {
    "neither": ({}, {}, "{source}: expected metadata that names its stacks, or prefixes, got neither"),
    "wrong prefix": (
        {"layer_stacks": NOTE},
        {"prefixes": ["g"]},
        "prefixes: expected some of 'h' (the last to be stacked, by the metadata of {source}), got 'g'",
    ),
    "empty prefixes": ({}, {"prefixes": []}, "prefixes: expected at least one, got none"),
    "no prefix": ({}, {"prefixes": ["g"]}, "prefixes: expected names that begin with 'g.', got none"),
    "other axis": (
        {"layer_stacks": NOTE},
        {"axis": 1},
        "axis: expected 0 (that of the metadata of {source}), got 1",
    ),
    "other N": (
        {"layer_stacks": NOTE.replace("2", "6")},
        {},
        "'h.w': expected 6 layers along axis 0 (that of the metadata), got 2",
    ),
    **{
        f"metadata {text}": (
            {"layer_stacks": text},
            {},
            "{source}: expected metadata 'layer_stacks' as stack_file writes it, got " + repr(text).replace("{", "{{"),
        )
        for text in ("", "6", "[6]", '[{"layers": {"h": 2}}]', '[{"axis": 0, "layers": ["h"]}]', '["h"]')
    },
}


@pytest.mark.parametrize("case", UNSTACK_ERRORS)
def test_what_cannot_be_unstacked(case, source, target):
    metadata, arguments, message = UNSTACK_ERRORS[case]
    with_metadata(source, H, metadata)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message below
        unstack_file(source, target, **arguments)
    assert str(caught.value) == message.replace("{{", "{").replace("{source}", str(source))
    assert not target.exists()


def test_layers_that_do_not_fit_together(source, target):
    """The words are those of `layer_names`, with the dtypes of the file."""
    tensors = {"h.0.w": np.zeros(4, np.float32), "h.1.w": np.zeros(4, DTYPES[3])}
    source.write_bytes(save(tensors))
    with pytest.raises(TypeError, match=r"^layer 1, 'h.1.w': expected F32\[4\] \(that of layer 0\), got BF16\[4\]$"):
        stack_file(source, target)
    source.write_bytes(save({"w": np.zeros(4)}))
    with pytest.raises(
        ValueError, match=r"model.safetensors: expected names with a layer index, like 'h.0.w', got none$"
    ):
        stack_file(source, target)
    assert not target.exists()


# Never half a file


def broken(source):
    """Description -> (what `source` holds then, the reason)."""
    whole = source.read_bytes()
    hole = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}'
    return {
        "truncated": (whole[:-5], "incomplete metadata, file not fully covered"),
        "truncated header": (whole[:100], "invalid header length"),
        "longer": (whole + b"!", "incomplete metadata, file not fully covered"),
        "empty": (b"", "header too small"),
        "text": (b"version https://git-lfs.github.com/spec/v1\n", "header too large"),
        "hole": (len(hole).to_bytes(8, "little") + hole + b"12", "invalid offset for tensor `a`"),
        "no JSON": (whole[:9] + b"x" + whole[10:], "invalid JSON in header"),
    }


@pytest.mark.parametrize("convert", [stack_file, unstack_file])
@pytest.mark.parametrize("what", ["truncated", "truncated header", "longer", "empty", "text", "hole", "no JSON"])
def test_a_broken_file_is_refused(what, convert, source, target):
    raw, reason = broken(source)[what]
    source.write_bytes(raw)
    target.write_bytes(b"old")
    expected = rf"^{re.escape(f'{source}: expected a whole safetensors file, got: {reason}')}"
    with pytest.raises(ValueError, match=expected):
        convert(source, target)
    assert_untouched(source, target)


def assert_untouched(source, target):
    assert target.read_bytes() == b"old"
    assert sorted(source.parent.iterdir()) == sorted([source, target])


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), SystemExit(143)])
@pytest.mark.parametrize("convert", [stack_file, unstack_file])
def test_an_interruption_leaves_what_was_there(convert, error, source, target):
    if convert is unstack_file:
        stack_file(source, source)
    target.write_bytes(b"old")
    seen = 0

    def interrupt(done, total, name):
        nonlocal seen
        seen += 1
        if done > total // 2:
            raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        convert(source, target, progress=interrupt)
    assert seen > 1
    assert_untouched(source, target)


def test_an_error_at_the_very_end_leaves_what_was_there(source, target, monkeypatch):
    target.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        stack_file(source, target)
    assert_untouched(source, target)


def test_a_source_that_becomes_shorter_is_noticed(source, target):
    target.write_bytes(b"old")

    def cut(done, total, name):
        os.truncate(source, 3000)

    with pytest.raises(ValueError, match=r"model.safetensors: expected a whole safetensors file, got one that became"):
        stack_file(source, target, progress=cut)
    assert_untouched(source, target)


def test_what_safetensors_would_not_read_is_not_written(source, target):
    """A stack by a name that means something else in a header."""
    target.write_bytes(b"old")
    source.write_bytes(save({"__metadata__/0": np.zeros(2)}))
    with pytest.raises(ValueError, match=r"out.safetensors: expected to write what safetensors reads, got: "):
        stack_file(source, target)
    assert_untouched(source, target)

"""Files that are either the old ones or the new ones, never half of one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def replace(path: Path, text: str) -> None:
    """Make `text` the content of `path` in one step; on any error, Ctrl-C included, leave what was there."""
    with replacing(path) as file:
        file.write(text.encode())


def with_block(text: str, name: str, inside: str) -> str:
    """`text` with `inside` between the two markers of the block `name`; ValueError where they are missing."""
    marks = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, begin, rest = text.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (begin and end):
        raise ValueError(f"expected a block between {marks[0]} and {marks[1]}")
    return f"{before}{begin}\n{inside}\n{end}{after}"


def replace_block(path: Path, name: str, inside: str) -> None:
    replace(path, with_block(path.read_text(encoding="utf-8"), name, inside))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """An empty file that becomes `path` in one step at the end of the block; on any error leave what was there."""
    # In the same folder, because a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            # The rename may reach the disk before the bytes do: after a power cut `path` would be empty.
            os.fsync(file.fileno())
        if path.exists():  # what was private stays private
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

"""One file checked, in this process: python -m implementations.check.run FILE.

Prints one JSON object a line: {"event": "progress", ...} before each row, {"event": "result", ...} at the end.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from implementations.check import rows
from implementations.check.candidate import BadFile, Candidate, read
from implementations.check.row import Row, words
from implementations.environment import pin
from implementations.results.records import Checked, Verdict, to_json


def verdict(row: Row, candidate: Candidate) -> Verdict:
    missing = [name for name in row.needs if name not in candidate.offered]
    if missing:
        return Verdict(section=row.section, row=row.name, verdict="not offered", words=f"no {', '.join(missing)}")
    try:
        found = row.run(candidate)
    except NotImplementedError as error:  # what a library does not claim
        return Verdict(section=row.section, row=row.name, verdict="not offered", words=words(error))
    except Exception as error:
        return Verdict(section=row.section, row=row.name, verdict="refused", words=words(error))
    try:
        said = row.wrong(found)
    except Exception as error:  # what came out is nothing that can be compared
        said = f"cannot be compared: {words(error)}"
    return Verdict(section=row.section, row=row.name, verdict="wrong" if said else "yes", words=said)


def check(path: Path, progress: Callable[[int, int, str], None]) -> Checked:
    start = time.perf_counter()
    try:
        candidate, known = read(path)
    except BadFile as error:
        return Checked(name=path.stem, status="failed", reason=f"{path.name}: {error}")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        advice = f"pip install {missing}"
        return Checked(name=path.stem, status="not run", reason=f"{path.name} needs {missing}", install=advice)
    asked, found = rows.rows(), []
    for done, row in enumerate(asked):
        progress(done, len(asked), row.name)
        found.append(verdict(row, candidate))
    return Checked(
        name=path.stem,
        framework=candidate.framework,
        versions=candidate.versions(),
        rows=tuple(found),
        known=known,
        seconds=time.perf_counter() - start,
    )


def main() -> None:
    pin()
    path = Path(sys.argv[1])

    def say(**event: Any) -> None:
        print(json.dumps(event), flush=True)

    result = check(path, lambda done, total, what: say(event="progress", done=done, total=total, what=what))
    say(event="result", result=to_json(result))


if __name__ == "__main__":
    main()

"""`python -m implementations peers`: the shared checks on the stacks that people use already."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from implementations import ROOT, files
from implementations.check.command import SHOWN, check
from implementations.report import html
from implementations.report.table import BAD, NONE, Table, in_markdown, renderable
from implementations.results.records import Checked, to_json

FOLDER = ROOT / "implementations" / "peers"
SHORT = SHOWN | {"yes": "yes", "not offered": NONE}


def parser() -> argparse.ArgumentParser:
    known = ", ".join(path.stem for path in files_of([]))
    made = argparse.ArgumentParser(
        prog="python -m implementations peers",
        description="Check the stacks of other libraries, each in a process of its own: one that fails costs its row.",
        epilog="Writes peers.json and index.html. Exit status 0: what is found here judges nobody.",
    )
    made.add_argument("names", nargs="*", help=f"only these. Of: {known}")
    made.add_argument("--readme", action="store_true", help="write the counts into implementations/README.md too")
    made.add_argument("--out", type=Path, default=Path("report/peers"), metavar="FOLDER", help="default: report/peers")
    made.add_argument("--timeout", type=float, default=900.0, metavar="SECONDS", help="for each; default: 900")
    return made


def files_of(names: Sequence[str]) -> list[Path]:
    found = {path.stem: path for path in sorted(FOLDER.glob("[a-z]*.py"))}
    return [found[name] for name in names] if names else list(found.values())


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        paths = files_of(options.names)
    except KeyError as error:
        parser().error(f"no such column: {error.args[0]}")
    checked = [check(path, options.timeout) for path in paths]
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    console = Console(width=120)
    for shown in (counts(checked, date), wrong(checked)):
        console.print(renderable(shown))
    options.out.mkdir(parents=True, exist_ok=True)
    plain = {"date": date, "peers": [to_json(each) for each in checked]}
    files.replace(options.out / "peers.json", json.dumps(plain, indent=1) + "\n")
    tables = [counts(checked, date), wrong(checked), matrix(checked)]
    files.replace(options.out / "index.html", html.page_of("The stacks that people use, and the shared checks", tables))
    if options.readme:
        files.replace_block(ROOT / "implementations" / "README.md", "peers", in_markdown(counts(checked, date)))
    console.print(f"Written: {options.out}/index.html, {options.out}/peers.json.", highlight=False)
    return 0


def counts(checked: Sequence[Checked], date: str) -> Table:
    """For each library and section, how many rows are yes, of those that it offers."""
    sections = list(dict.fromkeys(row.section for each in checked for row in each.rows))
    rows = []
    for each in checked:
        cells = []
        for section in sections:
            found = Counter(row.verdict for row in each.rows if row.section == section)
            offered = sum(found.values()) - found["not offered"]
            said = f"{found['yes']} of {offered}" if offered else NONE
            cells.append(f"{said} {BAD}" if found["wrong"] else said)
        kinds = Counter(row.verdict for row in each.rows)
        last = [str(kinds[kind]) for kind in ("refused", "wrong")] if each.rows else [each.status, each.reason]
        version = " ".join(next(iter(each.versions.items()), ("", "")))
        rows.append([each.name, version, *(cells or [NONE] * len(sections)), *last])
    note = f"{date}. Rows that are right, of those that the library offers; {BAD}: another is wrong without an error."
    columns = ("", "version", *sections, "refused", "wrong")
    return Table("capabilities", "Who does what", columns, "ll" + "r" * (len(columns) - 2), rows, note)


def wrong(checked: Sequence[Checked]) -> Table:
    found = [[each.name, row.row, row.words] for each in checked for row in each.rows if row.verdict == "wrong"]
    return Table("wrong", "Wrong without an error", ("", "row", "what is wrong"), "lll", found)


def matrix(checked: Sequence[Checked]) -> Table:
    ran = [each for each in checked if each.rows]
    rows = [
        [row.row, *(SHORT[each.rows[i].verdict] for each in ran)] for i, row in enumerate(ran[0].rows if ran else ())
    ]
    columns = ("", *(each.name.replace("_", "\n") for each in ran))
    return Table("capabilities", "Every row", columns, "l" * len(columns), rows)

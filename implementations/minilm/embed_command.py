"""The command `embed`: sentences in, how near they are to each other out, by all-MiniLM-L6-v2 as one scan.

python -m implementations embed "A cat is asleep." "A kitten is napping." --implementation jax_scan
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, pairwise

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from implementations import NAMES, REQUIRES, load, wording
from implementations.environment import pin
from implementations.minilm import checkpoint_check, model
from implementations.minilm.sentences import SENTENCES
from reference.layers import Array

REFERENCE = "reference"
SHOWN = 15  # pairs, or sentences of this repository
MATRIX = 8  # sentences whose matrix fits 100 columns


def main(arguments: Sequence[str]) -> int:
    made = argparse.ArgumentParser(
        prog="python -m implementations embed",
        description=(
            f"How near sentences are in meaning, by the cosine of what {model.NAME} makes of them: 1 is the same, 0 "
            "has nothing to do with it. Its six layers run as one compiled scan, from one stacked checkpoint. One "
            "sentence alone is compared with those of this repository."
        ),
        epilog=(
            f"It was trained on English; of a sentence the first {model.MAX_LENGTH} tokens count. Exit status: 0; 2 "
            "for wrong arguments and where something is not installed, with the command that installs it; 130 after "
            "Ctrl-C."
        ),
    )
    made.add_argument("sentences", nargs="+", metavar="SENTENCE", help="quoted, if it has spaces; may be empty")
    made.add_argument(
        "--implementation",
        choices=(*NAMES, REFERENCE),
        metavar="NAME",
        help=f"one of {', '.join((*NAMES, REFERENCE))}, the last being NumPy; default: the first that is installed",
    )
    options = made.parse_args(arguments)
    name = options.implementation or next(
        (name for name in NAMES if importlib.util.find_spec(REQUIRES[name])), REFERENCE
    )
    try:
        try:
            tokens = model.tokenize(options.sentences)
            run = program(name)
        except (ModuleNotFoundError, ValueError) as error:  # not installed; no text
            print(error, file=sys.stderr)
            return 2
        show(name, options.sentences, tokens, run)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def program(name: str) -> Callable[[Array, Array], Array]:
    """`checkpoint_check.hidden_states` of an implementation, or of NumPy in float64."""
    if name == REFERENCE:
        return checkpoint_check.reference_states
    pin()
    return checkpoint_check.hidden_states(load(name))


def show(name: str, sentences: Sequence[str], tokens: model.Tokens, run: Callable[[Array, Array], Array]) -> None:
    x = model.embed_tokens(tokens.ids)
    times = [time.perf_counter()]
    for _ in range(2):  # the first call compiles
        hidden = run(x, tokens.mask)
        times.append(time.perf_counter())
    embeddings = model.pool(hidden[-1], tokens.mask)

    console = Console()
    console = Console(width=min(console.width, 100) if console.is_terminal else 100)
    if len(sentences) == 1:
        similarities = checkpoint_check.right(SENTENCES).embeddings @ embeddings[0]
        console.print(ranking("Sentences of this repository", zip(similarities, map(short, SENTENCES), strict=True)))
    else:
        labels = [f"{i}: {short(sentence)}" for i, sentence in enumerate(sentences, 1)]
        if len(sentences) <= MATRIX:
            console.print(matrix(labels, embeddings @ embeddings.T))
        pairs = combinations(range(len(sentences)), 2)
        found = ((embeddings[i] @ embeddings[j], f"{labels[i]}\n{labels[j]}") for i, j in pairs)
        console.print(ranking("Pairs", found))
    cut = [str(i) for i, truncated in enumerate(tokens.truncated, 1) if truncated]
    if cut:
        console.print(f"Only the first {model.MAX_LENGTH} tokens count of sentence {', '.join(cut)}.", highlight=False)
    count = "1 sentence" if len(sentences) == 1 else f"{len(sentences)} sentences"
    first, second = (wording.seconds(after - before) for before, after in pairwise(times))
    said = f"{name}: {count}, {tokens.mask.sum()} tokens; first call {first}, second {second}."
    console.print(said, highlight=False)


def matrix(labels: Sequence[str], similarities: Array) -> Group:
    shown = Table(box=box.SIMPLE_HEAD, header_style="dim")
    shown.add_column("", overflow="fold")
    for j in range(len(labels)):
        shown.add_column(str(j + 1), justify="right", no_wrap=True)
    for label, row in zip(labels, similarities, strict=True):
        shown.add_row(Text(label), *(f"{value:.3f}" for value in row))
    return Group(Text("Similarity", style="bold"), shown)


def ranking(what: str, found: Iterable[tuple[float, str]]) -> Group:
    """The nearest first."""
    nearest = sorted(found, key=lambda pair: -pair[0])
    count = f"the nearest {SHOWN} of {len(nearest)}" if len(nearest) > SHOWN else "the nearest first"
    shown = Table(box=box.SIMPLE_HEAD, header_style="dim")
    shown.add_column("similarity", justify="right")
    shown.add_column("", overflow="fold")
    for similarity, text in nearest[:SHOWN]:
        shown.add_row(f"{similarity:.3f}", Text(text))  # square brackets in a sentence are no markup
    return Group(Text(f"{what}, {count}", style="bold"), shown)


def short(sentence: str) -> str:
    """In one line, and by its beginning."""
    return textwrap.shorten(sentence, 160, placeholder=" ...") or "(empty)"

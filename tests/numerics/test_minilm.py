"""all-MiniLM-L6-v2 as a stack of layers: against BERT written once more, and in every implementation."""

from __future__ import annotations

import functools
import json
import math
import tracemalloc
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from implementations.compare import merge
from implementations.interface import LEVELS
from implementations.minilm import checkpoint_check, embed_command, model
from implementations.minilm.sentences import PAIRS, SENTENCES
from implementations.results.records import Measured
from reference import layers
from reference.layers import transformer_encoder
from reference.stack import run_layers, tree_map
from tests.conftest import loaded

try:
    FOLDER = model.folder()
except ModuleNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)

# Of every length, so that a mask matters: among them another script, two symbols, and none at all.
FEW = (SENTENCES[0], SENTENCES[14], SENTENCES[7], SENTENCES[20], "", SENTENCES[18])


@functools.cache
def raw():
    with safe_open(FOLDER / "model.safetensors", framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping


def said(hidden, sentences=FEW, **change):
    """What the verdict of a comparison says of those hidden states."""
    block = replace(checkpoint_check.compare(hidden, sentences, ()), **change)
    return list(merge("default", {}, [Measured(name="it", checkpoint=block)], 0.0).deviations)


# Words to numbers


def test_tokens_stand_between_two_marks_and_padding_is_not_among_them():
    ids, mask, truncated = model.tokenize(["Hello, world!", "", "hello WORLD"])
    assert ids.tolist() == [[101, 7592, 1010, 2088, 999, 102], [101, 102, 0, 0, 0, 0], [101, 7592, 2088, 102, 0, 0]]
    assert mask.tolist() == [[True] * 6, [True] * 2 + [False] * 4, [True] * 4 + [False] * 2]
    assert truncated == (False, False, False)
    vocabulary = (FOLDER / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert [vocabulary[i] for i in (0, 101, 102, 7592)] == ["[PAD]", "[CLS]", "[SEP]", "hello"]


def test_a_sentence_that_is_too_long_loses_its_end_and_that_is_said():
    ids, mask, truncated = model.tokenize(["one two three four", "one two three", "one"], 5)
    assert truncated == (True, False, False)
    assert ids[0].tolist() == ids[1].tolist() == [101, *ids[0, 1:4], 102]
    assert mask.sum(1).tolist() == [5, 5, 3]
    assert model.tokenize(["word " * 300]).ids.shape == (1, 256)


@pytest.mark.parametrize(
    ("sentences", "max_length", "error", "words"),
    [
        ("abc", 256, TypeError, "sentences: expected a list of strings, got 'abc'"),
        ([b"abc"], 256, TypeError, r"sentences: expected a list of strings, got \[b'abc'\]"),
        ([], 256, ValueError, "sentences: expected at least one, got none"),
        (["abc", "a\udcff"], 256, ValueError, r"sentence 1: expected text, got 'a\\udcff'"),
        (["abc"], 1, ValueError, "max_length: expected 2 to 512, got 1"),
        (["abc"], 513, ValueError, "max_length: expected 2 to 512, got 513"),
    ],
)
def test_wrong_sentences_are_refused(sentences, max_length, error, words):
    with pytest.raises(error, match=f"^{words}$"):
        model.tokenize(sentences, max_length)


def test_sentences_are_what_they_are_for():
    lengths = model.tokenize(SENTENCES).mask.sum(1)
    assert len(SENTENCES) >= 20
    assert lengths.min() == 2
    assert 100 <= lengths.max() <= 128  # long, but the reference runs in seconds
    embeddings = checkpoint_check.right(SENTENCES).embeddings
    similarity = {(i, j): float(embeddings[i] @ embeddings[j]) for i, j in PAIRS}
    assert similarity[0, 1] > similarity[0, 4] > similarity[0, 2]  # two cats, a dog, a bank
    assert similarity[8, 9] > similarity[8, 24]  # a train in French, a baker in English
    assert similarity[18, 19] > similarity[18, 22]  # two releases, a loop


# The stack


def test_what_the_layer_takes_for_granted_is_what_the_model_says():
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    assert config["hidden_act"] == "gelu"  # the exact one: the tanh form is "gelu_new"
    assert config["layer_norm_eps"] == layers.EPS_BERT
    assert (config["num_attention_heads"], config["hidden_size"]) == (model.HEADS, model.WIDTH)
    assert config["num_hidden_layers"] == checkpoint_check.DEPTHS[0]


def by_hand(sentence):
    """BERT once more, from the file's own names: one sentence, one head after the other, torch's layout [out, in]."""

    def w(name, rows=slice(None)):
        return raw()[name][rows].astype(np.float64)

    def linear(x, name):
        return x @ w(f"{name}.weight").T + w(f"{name}.bias")

    def norm(x, name):
        rows = [(row - np.mean(row)) / math.sqrt(np.var(row) + 1e-12) for row in x]
        return np.array(rows) * w(f"{name}.weight") + w(f"{name}.bias")

    ids = model.tokenize([sentence]).ids[0]
    x = w("embeddings.word_embeddings.weight", ids) + w("embeddings.token_type_embeddings.weight", 0)
    x = norm(x + w("embeddings.position_embeddings.weight", range(len(ids))), "embeddings.LayerNorm")
    x = x.astype(np.float32).astype(np.float64)
    hidden = []
    for i in range(6):
        at = f"encoder.layer.{i}"
        q, k, v = (linear(x, f"{at}.attention.self.{name}") for name in ("query", "key", "value"))
        heads = []
        for first in range(0, 384, 32):
            head = slice(first, first + 32)
            p = np.exp(q[:, head] @ k[:, head].T / math.sqrt(32))
            heads.append(p / p.sum(1, keepdims=True) @ v[:, head])
        x = norm(x + linear(np.hstack(heads), f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
        h = linear(x, f"{at}.intermediate.dense")
        h = h * np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2)))(h)
        x = norm(x + linear(h, f"{at}.output.dense"), f"{at}.output.LayerNorm")
        hidden.append(x)
    return np.array(hidden)


def test_the_reference_is_bert():
    known = checkpoint_check.right(FEW)
    for i in (0, 3):
        hidden = by_hand(FEW[i])
        np.testing.assert_allclose(known.hidden[:, i, known.mask[i]], hidden, rtol=0, atol=1e-12)
        embedding = hidden[-1].mean(0) / np.linalg.norm(hidden[-1].mean(0))
        np.testing.assert_allclose(known.embeddings[i], embedding, rtol=0, atol=1e-13)


def test_published_similarities():
    """Source: https://www.sbert.net/docs/quickstart.html, to the four digits given there."""
    sentences = ("The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.")
    embeddings = checkpoint_check.right(sentences).embeddings
    published = [[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]]
    np.testing.assert_allclose(embeddings @ embeddings.T, published, rtol=0, atol=5.1e-5)


def test_layers_over_and_over_are_the_layers_and_one_copy():
    params = model.load().params
    size = sum(array.nbytes for part in params.values() for array in part.values())
    tracemalloc.start()
    deep = model.repeated(params, 13)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.02 * size * 13 / 6

    def same(array, many):
        assert many.shape == (13, *array.shape[1:])
        assert not np.shares_memory(array, many)
        for i in range(13):
            np.testing.assert_array_equal(many[i], array[i % 6])

    tree_map(same, params, deep)


# The implementations


def test_hidden_states_and_embeddings(implementation):
    known = checkpoint_check.right(FEW)
    hidden = checkpoint_check.hidden_states(implementation)(known.x, known.mask)
    assert said(hidden) == []


# What the comparison counts, in JAX, which compiles it soonest. In every framework the same layer is counted, at these
# depths, by test_six_layers_and_forty_eight_have_one_size in tests/numerics/test_layers.py.


def test_48_layers_have_the_program_of_6():
    counted = [sizes(N) for N in checkpoint_check.DEPTHS]
    assert counted[0] == counted[1]
    assert [size.loops for size in counted[0]] == [1, 2]


@functools.cache
def sizes(N):
    implementation = loaded("jax_scan")
    params, programs = checkpoint_check.stacked_params(implementation, N), checkpoint_check.programs(N, gradients=True)
    rolled = [checkpoint_check.size(implementation, params, of) for of in programs if of.form == "rolled"]
    return [replace(size, N=0) for size in rolled]


def test_unrolled_is_larger_and_has_no_loop():
    implementation = loaded("jax_scan")
    params, of = checkpoint_check.stacked_params(implementation, 6), checkpoint_check.programs(6, gradients=True)[-1]
    unrolled, rolled = checkpoint_check.size(implementation, params, of), sizes(6)[0]
    assert (unrolled.form, unrolled.loops) == ("unrolled", 0)
    assert all(getattr(unrolled, level) > 3 * getattr(rolled, level) for level in LEVELS)


# Wrong networks: each must be told from the right one.


def numpy_states(change=lambda params: params, layer=transformer_encoder):
    """By NumPy in float32, of the padded batch, as an implementation runs it."""
    known = checkpoint_check.right(FEW)
    carry = {"x": known.x, "mask": known.mask}
    return run_layers(checkpoint_check.showing(layer), change(model.load().params), carry)[1]


def test_numpy_in_float32_is_right():
    assert said(numpy_states()) == []


def unmasked(carry, params):
    new_carry, _ = transformer_encoder({**carry, "mask": np.ones_like(carry["mask"])}, params)
    return {**new_carry, "mask": carry["mask"]}, None


def e_before_h(params):
    """Of d numbers every twelfth is of one head: all four matrices agree on it, and each head is another."""

    def heads(name):
        w, bias = params[name]["w"], params[name]["bias"]
        (N, d, h, e) = w.shape
        return {"w": w.reshape(N, d, e, h).swapaxes(2, 3), "bias": bias.reshape(N, e, h).swapaxes(1, 2)}

    N, h, e, d = params["out"]["w"].shape
    out = {**params["out"], "w": params["out"]["w"].reshape(N, e, h, d).swapaxes(1, 2)}
    return {**params, **{name: heads(name) for name in ("query", "key", "value")}, "out": out}


def not_transposed(params):
    w = params["out"]["w"]  # square, so that it fits both ways
    return {**params, "out": {**params["out"], "w": w.reshape(-1, 384, 384).swapaxes(1, 2).reshape(w.shape)}}


def norms_swapped(params):
    return {**params, "norm1": params["norm2"], "norm2": params["norm1"]}


def in_another_order(params):
    return tree_map(lambda array: array[[0, 2, 1, 3, 4, 5]], params)


def one_matrix_in_tf32(params):
    """10 bits of 23 of its fraction, in one layer of six."""
    w = params["up"]["w"].copy()
    w[3] = (w[3].view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    return {**params, "up": {**params["up"], "w": w}}


def one_bias_in_bfloat16(params):
    bias = params["down"]["bias"].copy()
    bias[4] = bias[4].astype(ml_dtypes.bfloat16)
    return {**params, "down": {**params["down"], "bias": bias}}


CHANGES = (e_before_h, not_transposed, norms_swapped, in_another_order, one_matrix_in_tf32, one_bias_in_bfloat16)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_wrong_parameters_are_caught(change):
    assert any("hidden states" in text for text in said(numpy_states(change)))


def test_a_mask_that_is_ignored_is_caught():
    found = said(numpy_states(layer=unmasked))
    assert len(found) == 7
    assert "after layer 0: error" in found[0]
    assert "cosine with the right ones" in found[-1]


def wrongly(monkeypatch, **replaced):
    """NumPy's layers with something replaced, after what is right has been computed."""
    checkpoint_check.right(FEW)
    for name, value in replaced.items():
        monkeypatch.setattr(layers, name, value)


def test_eps_of_other_norms_is_caught(monkeypatch):
    """1e-5 is, and is off by five times as much as may be. 1e-6 would not be: half of what may be, in float32."""
    wrongly(monkeypatch, EPS_BERT=1e-5)
    assert len(said(numpy_states())) == 6


def test_gelu_by_tanh_is_caught(monkeypatch):
    wrongly(monkeypatch, _erf=lambda z: np.tanh(layers._gelu_argument(z * 2**0.5)))
    assert len(said(numpy_states())) >= 6


def test_what_is_not_finite_or_of_another_type_is_caught():
    hidden = numpy_states()
    hidden[2, 0, 0, 0] = np.nan
    assert [text for text in said(hidden) if "after layer 2: error nan" in text]
    with pytest.raises(ValueError, match=r"hidden states: expected float32\[6, 6, .*\], got float64"):
        checkpoint_check.compare(hidden.astype(np.float64), FEW, ())


def test_a_padding_position_is_not_looked_at():
    hidden = numpy_states()
    hidden[:, ~checkpoint_check.right(FEW).mask] = np.nan
    assert said(hidden) == []


# The command


def test_command_shows_how_near_sentences_are(capsys):
    assert embed_command.main(["A cat.", "A kitten.", "[red]Rates rise.", "--implementation", "reference"]) == 0
    out = capsys.readouterr().out
    known = checkpoint_check.right(("A cat.", "A kitten.", "[red]Rates rise.")).embeddings
    assert f"{known[0] @ known[1]:.3f}" in out
    assert "3: [red]Rates rise." in out
    assert out.rindex("2: A kitten.") < out.rindex("3: [red]Rates rise.")
    assert "reference: 3 sentences, " in out


def test_command_compares_one_sentence_with_those_of_the_repository(capsys):
    assert embed_command.main([SENTENCES[1], "--implementation", "reference"]) == 0
    first, second = [line for line in capsys.readouterr().out.splitlines() if line.lstrip().startswith(("0.", "1."))][
        :2
    ]
    assert "1.000" in first
    assert SENTENCES[1] in first
    assert SENTENCES[0] in second


def test_command_runs_an_implementation(capsys):
    loaded("jax_scan")
    assert embed_command.main(["one " * 300, "two", "--implementation", "jax_scan"]) == 0
    out = capsys.readouterr().out
    assert "Only the first 256 tokens count of sentence 1." in out
    assert "jax_scan: 2 sentences, 259 tokens; first call " in out

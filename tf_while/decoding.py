"""Decoding with a cache of keys and values, through the scanned stack of `transformer_decoder`.

A decoder reads, in each layer, the keys and values of all positions before. Kept, they need not be made again; but a
scan that takes the cache of each layer and returns it whole copies every cache for every token. `decode` can hold it in
three ways; in one of them only what is new comes out of the scan, and is written into the cache once, after it.
Source: https://www.tensorflow.org/api_docs/python/tf/tensor_scatter_nd_update
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from reference import shapes
from tf_while.edges import as_leaf
from tf_while.layers import attend, causal, finish, queries_keys_values
from tf_while.stack import scan_layers

Cache = dict[str, tf.Tensor]  # k and v, each [N, B, S, g, e]
Carry = tuple[Any, ...]  # x, position


def empty_cache(params: dict[str, Any], B: int, S: int) -> Cache:
    """Room for S positions of B sequences, in the stack of those params."""
    N, _, g, e = params["key"]["w"].shape
    return {name: tf.zeros((N, B, S, g, e), params["key"]["w"].dtype) for name in ("k", "v")}


def decode(
    params: dict[str, Any], x: tf.Tensor, cache: Cache, position: Any, hold: str = "entries"
) -> tuple[tf.Tensor, Cache]:
    """Run t new positions, x [B, t, d], the first of them at `position`: (y [B, t, d], the cache with them in it).

    position: an int, or an integer array [] so that one program serves all positions. The whole prompt at position 0 is
    the prefill; then token by token. hold, the same values in each:
    "entries": the caches are xs, read in place; ys are the new keys and values alone, written once after the scan.
    "slices": the caches are xs and, with the new entries, ys: every cache is copied.
    "carry": the caches are in the carry, and each layer writes into its own.

    Raises:
        TypeError, ValueError: words in `reference/shapes.py`. That position + t is at most S is checked for an int.
    Limits: of an array the value is not looked at; where it does not fit, frameworks differ in what they do.
    """
    shapes.check_cache(as_leaf, x, cache, position, hold)
    position = tf.cast(position, tf.int32)
    if hold == "slices":
        (y, _), cache = scan_layers(_slices, params, (x, position), cache)
    elif hold == "carry":
        (y, _, cache), _ = scan_layers(_carried, params, (x, position, cache), tf.range(cache["k"].shape[0]))
    else:
        (y, _), new = scan_layers(_entries, params, (x, position), cache)  # new [N, B, t, g, e]
        cache = {name: _write(cache[name], new[name], position, 0) for name in cache}
    return y, cache


def _entries(carry: Carry, params: dict[str, Any], kept: Cache) -> tuple[Carry, Cache]:
    x, position = carry
    positions, room = _places(position, x.shape[1], kept["k"].shape[1])
    q, k, v = queries_keys_values(x, params, positions)
    # to what the cache has and to what is new, in two parts: joined, the cache would be copied
    is_kept = room < position
    a = attend(q, (kept["k"], kept["v"], is_kept), (k, v, causal(positions, positions)))
    return (finish(x, params, a), position), {"k": k, "v": v}


def _slices(carry: Carry, params: dict[str, Any], kept: Cache) -> tuple[Carry, Cache]:
    x, position = carry
    positions, room = _places(position, x.shape[1], kept["k"].shape[1])
    q, k, v = queries_keys_values(x, params, positions)
    kept = {"k": _write(kept["k"], k, position), "v": _write(kept["v"], v, position)}
    return (finish(x, params, attend(q, (kept["k"], kept["v"], causal(positions, room)))), position), kept


def _carried(carry: Carry, params: dict[str, Any], i: tf.Tensor) -> tuple[Carry, None]:
    x, position, cache = carry
    positions, room = _places(position, x.shape[1], cache["k"].shape[2])
    q, k, v = queries_keys_values(x, params, positions)
    cache = {"k": _write(cache["k"], k[None], position, i), "v": _write(cache["v"], v[None], position, i)}
    a = attend(q, (cache["k"][i], cache["v"][i], causal(positions, room)))
    return (finish(x, params, a), position, cache), None


def _places(position: tf.Tensor, t: int, S: int) -> tuple[tf.Tensor, tf.Tensor]:
    return position + tf.range(t), tf.range(S)


def _write(cache: tf.Tensor, new: tf.Tensor, position: tf.Tensor, *layer: Any) -> tf.Tensor:
    """`new` at that position of [B, S, g, e], or, from that layer on, of [N, B, S, g, e]."""
    starts, sizes = (*layer, 0, position), tf.unstack(tf.shape(new))[:-2]
    places = tf.meshgrid(*(start + tf.range(size) for start, size in zip(starts, sizes, strict=True)), indexing="ij")
    return tf.tensor_scatter_nd_update(cache, tf.stack(places, -1), new)

"""Decoding with a cache of keys and values, through the scanned stack of `transformer_decoder`.

A decoder reads, in each layer, the keys and values of all positions before. Kept, they need not be made again; but a
scan that takes the cache of each layer and returns it whole copies every cache for every token. `decode` can hold it in
three ways; in one of them only what is new comes out of the scan, and is written into the cache once, after it.
Source: https://docs.pytorch.org/docs/2.13/generated/torch.Tensor.index_copy.html
"""

from __future__ import annotations

from typing import Any

import torch

from reference import shapes
from torch_compile.edges import as_leaf
from torch_compile.layers import attend, causal, finish, queries_keys_values
from torch_compile.stack import scan_layers

Cache = dict[str, torch.Tensor]  # k and v, each [N, B, S, g, e]
Carry = tuple[Any, ...]  # x, position


def empty_cache(params: dict[str, Any], B: int, S: int) -> Cache:
    """Room for S positions of B sequences, in the stack of those params."""
    N, _, g, e = params["key"]["w"].shape
    return {name: params["key"]["w"].new_zeros((N, B, S, g, e)) for name in ("k", "v")}


def decode(
    params: dict[str, Any], x: torch.Tensor, cache: Cache, position: Any, hold: str = "entries"
) -> tuple[torch.Tensor, Cache]:
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
    position = torch.as_tensor(position, device=x.device)
    if hold == "slices":
        (y, _), cache = scan_layers(_slices, params, (x, position), cache)
    elif hold == "carry":
        layers = torch.arange(cache["k"].shape[0], device=x.device)
        (y, _, cache), _ = scan_layers(_carried, params, (x, position, cache), layers)
    else:
        (y, _), new = scan_layers(_entries, params, (x, position), cache)  # new [N, B, t, g, e]
        positions, _ = _places(position, x.shape[1], 0)
        cache = {name: _write(cache[name], new[name], positions) for name in cache}
    return y, cache


def _entries(carry: Carry, params: dict[str, Any], kept: Cache) -> tuple[Carry, Cache]:
    x, position = carry
    positions, room = _places(position, x.shape[1], kept["k"].shape[1])
    q, k, v = queries_keys_values(x, params, positions)
    # to what the cache has and to what is new, in two parts: joined, the cache would be copied
    is_kept = (room < position).expand(len(positions), -1)
    a = attend(q, (kept["k"], kept["v"], is_kept), (k, v, causal(positions, positions)))
    return (finish(x, params, a), position), {"k": k, "v": v}


def _slices(carry: Carry, params: dict[str, Any], kept: Cache) -> tuple[Carry, Cache]:
    x, position = carry
    positions, room = _places(position, x.shape[1], kept["k"].shape[1])
    q, k, v = queries_keys_values(x, params, positions)
    kept = {"k": _write(kept["k"], k, positions), "v": _write(kept["v"], v, positions)}
    return (finish(x, params, attend(q, (kept["k"], kept["v"], causal(positions, room)))), position), kept


def _carried(carry: Carry, params: dict[str, Any], i: torch.Tensor) -> tuple[Carry, None]:
    x, position, cache = carry
    positions, room = _places(position, x.shape[1], cache["k"].shape[2])
    q, k, v = queries_keys_values(x, params, positions)
    cache = {"k": _write_layer(cache["k"], k, positions, i), "v": _write_layer(cache["v"], v, positions, i)}
    a = attend(q, (_layer(cache["k"], i), _layer(cache["v"], i), causal(positions, room)))
    return (finish(x, params, a), position, cache), None


def _places(position: torch.Tensor, t: int, S: int) -> tuple[torch.Tensor, torch.Tensor]:
    return position + torch.arange(t, device=position.device), torch.arange(S, device=position.device)


def _write(cache: torch.Tensor, new: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The cache [..., B, S, g, e] with `new` at those positions."""
    return cache.index_copy(-3, positions, new)


def _write_layer(cache: torch.Tensor, new: torch.Tensor, positions: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
    """The cache [N, B, S, g, e] with `new` at those positions of layer i."""
    return cache.index_copy(0, i[None], _write(_layer(cache, i), new, positions)[None])


def _layer(cache: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
    return cache.index_select(0, i[None])[0]

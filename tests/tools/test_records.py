"""The records of the results: to JSON and back, and what is no record."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from implementations.results.records import Comparison, Measured, Results, Size, Time, from_json, to_json
from tests.support.synthetic import results, spoilt

SIZE = {
    "program": "gradient", "layer": "mlp", "form": "rolled", "unroll": 1, "remat": True, "d": 64, "dtype": "float32",
    "carry_bytes": 256, "N": 3, "captured": 5, "lowered": 17, "compiled": 37, "loops": 2, "temp_bytes": None,
}  # fmt: skip
TIME = to_json(Time(program="forward", layer="dense", N=3, sizes={"d": 8}, run_seconds={"rolled": (0.5,)}))


def test_a_record_is_an_object_of_its_fields() -> None:
    of = Size(program="gradient", layer="mlp", remat=True, d=64, carry_bytes=256)
    counts = {"captured": 5, "lowered": 17, "compiled": 37, "loops": 2}
    assert to_json(of.counted(3, counts)) == SIZE
    assert from_json(Size, SIZE) == of.counted(3, counts)
    assert of.name == "gradient, remat=True"


def test_results_come_back_from_their_text_as_they_were() -> None:
    text = json.dumps(to_json(results()), allow_nan=False)
    assert from_json(Results, json.loads(text)) == results()


def test_what_is_not_finite_is_null() -> None:
    plain = to_json(spoilt("numerics", 0, ratio=math.inf))
    assert plain["implementations"][0]["numerics"][0]["ratio"] is None
    assert from_json(Results, plain) == spoilt("numerics", 0, ratio=None)
    assert to_json((1.5, math.nan, -math.inf)) == [1.5, None, None]


@pytest.mark.parametrize(
    ("kind", "plain", "words"),
    [
        (Size, SIZE | {"size": 3, "count": 4}, "Size: unknown fields: count, size"),
        (Size, {key: SIZE[key] for key in SIZE if key not in ("N", "loops")}, "Size: missing fields: N, loops"),
        (Size, SIZE | {"N": "3"}, "Size.N: expected int, got '3'"),
        (Size, SIZE | {"captured": 1.5}, "Size.captured: expected int, got 1.5"),
        (Size, [], "Size: expected Size, got []"),
        (Measured, to_json(Measured(name="it")) | {"sizes": [SIZE, {}]}, "Measured.sizes[1]: missing fields: N, captu"),
        (Measured, to_json(Measured(name="it")) | {"sizes": None}, "Measured.sizes: expected list, got None"),
        (Time, TIME | {"run_seconds": {"rolled": [1, None]}}, "Time.run_seconds.rolled[1]: expected float, got None"),
        (Comparison, {}, "Comparison: missing fields: N, allowed, case, d, dtype, exact, ok, quantity, ratio"),
    ],
)
def test_what_is_no_record_is_named(kind: Any, plain: Any, words: str) -> None:
    with pytest.raises(ValueError, match=r"^\w+") as caught:
        from_json(kind, plain)
    assert str(caught.value).startswith(words)

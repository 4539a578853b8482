"""The verdict: the laws of graph size, and all else that the results must be."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from implementations.interface import LEVELS
from implementations.results.summary import (
    PROGRAMS,
    Measured,
    Results,
    Setting,
    at_least,
    checkpoint,
    checkpoint_counts,
    deep,
    implementations,
    programs,
    ran,
    series,
    trained,
    within,
)


def deviations(results: Results) -> list[str]:
    """Everything observed that is not as declared, in words; an empty list is exit status 0."""
    found = []
    for measured in implementations(results):
        name, status = measured["name"], measured.get("status")
        if status == "failed":
            found.append(f"{name}: failed: {'; '.join(str(measured.get('reason', '')).strip().splitlines()[-2:])}")
        elif status == "not run" and measured.get("asked_for"):
            found.append(f"{name}: asked for by name and not run: {measured.get('reason', '')}")
        elif status == "ok":
            found += [f"{name}: {text}" for text in measured.get("problems", ())]
            found += [f"{name}: {text}" for text in (*_broken(measured), *_training(results, measured))]
    if not ran(results):
        found.append("no implementation ran")
    return found


def _broken(measured: Measured) -> list[str]:
    laws = [*_laws(measured), *_program_laws(measured)]
    return [*_numerics(measured), *_checkpoint(measured), *_recompiles(measured), *laws]


def _numerics(measured: Measured) -> list[str]:
    return [
        f"{record['quantity']} of case {record['case']} (N = {record['N']}, d = {record['d']}, {record['dtype']}): "
        + ("not equal" if record.get("exact") else f"error {record.get('ratio')}, allowed {record.get('allowed')}")
        for record in measured.get("numerics", ())
        if not record.get("ok")
    ]


def _checkpoint(measured: Measured) -> list[str]:
    """The hidden states and embeddings of real sentences; one size for the layers once and several times over."""
    block = checkpoint(measured)
    if not block:
        return []
    model, found = block["model"], []
    for record in block["hidden"]:
        if not within(record["ulps"], record["allowed"]):
            error = f"error {record['ulps']} ulps, allowed {record['allowed']:.3g}"
            found.append(f"hidden states of {model} after layer {record['layer']}: {error}")
    cosine, allowed = block["embeddings"]["cosine"], block["embeddings"]["allowed"]
    if not at_least(cosine, allowed):
        found.append(f"embeddings of {model}: cosine with the right ones {cosine}, allowed {allowed} and more")
    for gradient, program in PROGRAMS.items():
        for level in LEVELS:
            rolled = checkpoint_counts(measured, level, "rolled", gradient)
            if len(set(rolled.values())) > 1:
                found.append(f"rolled {level} size of {model} changes with N ({program}): {_pairs(rolled)}")
        for form, right in (("rolled", "at least one"), ("unrolled", "none")):
            loops = checkpoint_counts(measured, "loops", form, gradient)
            wrong = {n: count for n, count in loops.items() if (count > 0) != (form == "rolled")}
            if wrong:
                found.append(f"{form} loops of {model}: expected {right} ({program}): {_pairs(wrong)}")
    return found


def _training(results: Results, measured: Measured) -> list[str]:
    run = trained(results, measured)
    if not run or not run.broken:
        return []
    off, allowed = run.off[run.broken - 1], run.allowed[run.broken - 1]
    said = f"off by {off:.2g}, allowed {allowed:.2g}" if np.isfinite(off) else "not finite"
    return [f"loss at step {run.broken} of training: {said}"]


def _recompiles(measured: Measured) -> list[str]:
    return [
        f"{record['what']}: {record['programs']} programs, declared {record['declared']}"
        for record in measured.get("recompiles", ())
        if not record.get("ok")
    ]


def _laws(measured: Measured) -> list[str]:
    """Rolled: exactly equal for all N >= 2, with a loop. Unrolled: the control, which must grow, without one."""
    found = []
    records = measured.get("sizes", ())
    for setting in dict.fromkeys(Setting(record["d"], record["dtype"]) for record in records):
        for gradient, program in PROGRAMS.items():
            where = f"{program}, {setting}"
            for level in LEVELS:
                rolled = series(measured, level, "rolled", gradient, setting)
                if len(set(deep(rolled).values())) > 1:
                    found.append(f"rolled {level} size changes with N ({where}): {_pairs(rolled)}")
                unrolled = deep(series(measured, level, "unrolled", gradient, setting))
                if any(unrolled[a] >= unrolled[b] for a, b in pairwise(unrolled)):
                    found.append(f"unrolled {level} size does not grow with N ({where}): {_pairs(unrolled)}")
            captured = deep(series(measured, "captured", "unrolled", gradient, setting))
            steps = {(captured[b] - captured[a]) / (b - a) for a, b in pairwise(captured)}
            if len(steps) > 1:
                found.append(f"unrolled captured size does not grow by a constant ({where}): {_pairs(captured)}")
            for form, right in (("rolled", "at least one"), ("unrolled", "none")):
                loops = series(measured, "loops", form, gradient, setting)
                wrong = {n: count for n, count in deep(loops).items() if (count > 0) != (form == "rolled")}
                if wrong:
                    found.append(f"{form} loops: expected {right} ({where}): {_pairs(wrong)}")
    return found


def _program_laws(measured: Measured) -> list[str]:
    """The general stack: what `Counted.holds` says, and a loop; its twin, the control: growth, and none."""
    found = []
    for program in programs(measured):
        who = f"{program.name} of {program.layer}"
        for level in LEVELS:
            counts = program.counts(level)
            if program.form == "unrolled":
                if any(counts[a] >= counts[b] for a, b in pairwise(counts)):
                    found.append(f"{who}: {level} size does not grow with N: {_pairs(counts)}")
            elif not program.holds(level):
                said = "changes with N" if program.k == 1 else f"is above {program.constant(level)}"
                found.append(f"{who}: {level} size {said}: {_pairs(counts)}")
        right = "none" if program.form == "unrolled" else "at least one"
        wrong = {n: count for n, count in program.counts("loops").items() if (count > 0) == (right == "none")}
        if wrong:
            found.append(f"{who}: loops: expected {right}: {_pairs(wrong)}")
    return found


def _pairs(counts: Mapping[int, Any]) -> str:
    return ", ".join(f"N = {n}: {count}" for n, count in counts.items())

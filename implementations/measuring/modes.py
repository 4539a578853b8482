"""How much is measured: quickly, by default, in full, or of the bench alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from implementations.measuring import bench, programs
from implementations.results.records import Case
from reference.cases import DTYPES, NAMES


@dataclass(frozen=True, kw_only=True)
class Mode:
    rolled: tuple[int, ...] = ()  # depths N of the dense stack
    unrolled: tuple[int, ...] = ()
    alternatives: tuple[int, ...] = ()
    rolled_gradients: tuple[int, ...] = ()
    unrolled_gradients: tuple[int, ...] = ()
    alternative_gradients: bool = False
    patience: float = 60  # seconds: a form is not tried deeper once a compilation has taken longer
    compilations: int = 1  # timed ones: of the rolled form, and of the unrolled one until REPEAT_SECONDS
    run_seconds: float = 0  # spent on run time at each depth
    linear: tuple[int, ...] = ()  # depths at which the gradient is timed in turn
    cases: dict[str, tuple[str, ...]] = field(default_factory=dict)  # dtype -> names
    programs: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of the general stack: layer -> names
    program_depths: tuple[int, ...] = ()
    stepped: tuple[int, ...] = ()  # more of them for several layers a step, where the remainder counts
    twins: tuple[int, ...] = ()  # depths of the unrolled form of the general stack
    checkpoint: bool = False  # a trained network, on sentences
    training: bool = False  # of a small language model
    slow: bool = False  # both in torch too, where a gradient of these takes ten seconds and more to compile
    bench: tuple[Case, ...] = ()  # timed beside their limit, or beside what users do instead
    bench_seconds: float = 15  # of timing a case, all tries together


DEPTHS = (1, 2, 4, 16, 64, 256, 1024)
FEW = ("orthogonal_1024x16", "permutation_1001x16")  # of one width: each one compiles for seconds in torch
# A program of the general stack compiles for 5 to 40 s in torch: the default run has those of the dense layer that are
# fastest; the full run has all of `mlp`, which keeps more than its carry, so that the choices of remat differ.
DENSE = (
    *("gradient", "vjp_layers", "jvp_layers", "vmap_layers", "vmap_vjp_layers", "hvp_layers"),
    f"gradient, remat={programs.K}",
)
MODES = {
    "quick": Mode(rolled=(4, 1024), unrolled=(4, 16), patience=5, run_seconds=0.3, cases={"float32": FEW}),
    "default": Mode(
        rolled=(4, 64, 1024),
        unrolled=(4, 64),
        alternatives=(64,),
        rolled_gradients=(4, 1024),
        unrolled_gradients=(2, 4),
        patience=10,
        run_seconds=0.5,
        linear=(256, 1024),
        cases={"float32": NAMES, "float64": FEW, "bfloat16": FEW},
        programs={"dense": DENSE},
        program_depths=(23, 255),
        checkpoint=True,
        training=True,
        bench=bench.TRAINED[:1],
        bench_seconds=8,
    ),
    "full": Mode(
        rolled=DEPTHS,
        unrolled=DEPTHS,
        alternatives=DEPTHS[1:],
        rolled_gradients=DEPTHS,
        unrolled_gradients=DEPTHS,
        alternative_gradients=True,
        patience=20,
        compilations=3,
        run_seconds=2,
        linear=(256, 1024),
        cases=dict.fromkeys(DTYPES, NAMES),
        programs={"mlp": programs.NAMES},
        program_depths=(23, 511),
        stepped=(64,),
        twins=(2, 4, 16),
        checkpoint=True,
        training=True,
        slow=True,
        bench=bench.CASES,
    ),
    "bench": Mode(bench=bench.CASES),
}

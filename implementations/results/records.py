"""The results: what `results.json` holds, one frozen record for each kind of thing that is measured.

`to_json` and `from_json` take any of them: an object of the same fields, a list for a tuple, null for what is not known
or not finite. Every field is there, also where it holds nothing. A change of meaning, or of a field, is a new VERSION.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

VERSION = 4
FORMS = ("rolled", "unrolled")  # the others are names of what users do instead
PROGRAMS = ("forward", "gradient")
DENSE = "the dense stack"  # another program than the general stack of dense layers
LIMIT = "limit"  # a form too, of what is timed: what no stack can beat


@dataclass(frozen=True, kw_only=True)
class Size:
    """One program, counted: of the dense stack, of the general stack, or of the layers of a checkpoint."""

    program: str  # "forward", "gradient", or the function whose program it is
    layer: str  # of LAYERS; DENSE for `scan_apply_layers` and its twin; or the model whose layers they are
    form: str = "rolled"
    unroll: int = 1
    remat: int = False  # or True
    d: int
    dtype: str = "float32"
    carry_bytes: int  # of one carry
    N: int = 0
    captured: int | None = None  # in the unit of that level
    lowered: int | None = None
    compiled: int | None = None
    loops: int | None = None  # left by the compiler
    temp_bytes: int | None = None  # the peak beside arguments and results

    @property
    def name(self) -> str:
        """The program with its options: "gradient, remat=4"."""
        options = [f"remat={self.remat}"] if self.remat else []
        options += [f"unroll={self.unroll}"] if self.unroll > 1 else []
        return ", ".join([self.program, *options, *([] if self.form == "rolled" else [self.form])])

    @property
    def setting(self) -> str:
        return f"d = {self.d}, {self.dtype}"

    def counted(self, N: int, counts: dict[str, Any]) -> Size:
        """The same at N, with what `graph_size` returns."""
        return replace(self, N=N, **counts)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A stack that is timed."""

    layer: str
    N: int
    sizes: dict[str, int]  # by their symbols: reference/shapes.py
    batch: int = 0  # 0: a single vector
    dtype: str = "float32"
    program: str  # "forward", "gradient" or "training step"

    @property
    def width(self) -> tuple[str, int]:
        """The symbol of the carry's last axis and its size."""
        return next((symbol, self.sizes[symbol]) for symbol in ("d", "c") if symbol in self.sizes)

    @property
    def name(self) -> str:
        """In words: "dense, gradient, d = 64, N = 256, batch 32"."""
        said = [self.layer, self.program, "{} = {}".format(*self.width), f"N = {self.N}"]
        said += [f"batch {self.batch}"] if self.batch else []
        return ", ".join(said + ([self.dtype] if self.dtype != "float32" else []))

    @property
    def is_single(self) -> bool:
        return self.layer == "dense" and not self.batch

    @property
    def is_step(self) -> bool:
        """Whether it is a training step of a real layer, which stands beside what users do instead."""
        return self.layer != "dense" and self.program == "training step"


@dataclass(frozen=True, kw_only=True)
class Time(Case):
    """The forms of one case, timed in turn. They are "limit", "rolled", "unrolled" and names of alternatives."""

    limit: str | None = None  # what it is: "read" the weights once, or the "product" of the batch with as many numbers
    run_seconds: dict[str, tuple[float, ...]]  # form -> seconds in each round
    compile_seconds: dict[str, tuple[float, ...]] = field(default_factory=dict)  # form -> from cold; in the bench then
    # once more, warm; of a training step those of its gradient
    skipped: dict[str, str] = field(default_factory=dict)  # form -> reason
    tries: int = 1  # how many times all of that was timed; the quietest is here
    weights_bytes: int = 0
    peak_bytes: int | None = None  # what the process held at most while the rolled form ran, beside what it held before
    load: tuple[float | None, ...] = ()  # the average before and after, where the system has one


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One result of one case, compared with NumPy float64."""

    case: str
    dtype: str
    N: int
    d: int
    quantity: str
    ratio: float | None  # the largest error, in standard deviations
    allowed: float
    exact: bool  # data whose results must be equal
    ok: bool


@dataclass(frozen=True, kw_only=True)
class Recompiles:
    what: str
    programs: int
    declared: int

    @property
    def ok(self) -> bool:
        return self.programs == self.declared


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """The hidden states after one layer of a checkpoint; errors in ulps of the largest number."""

    layer: int
    ulps: float | None
    numpy_ulps: float  # of NumPy in float32
    allowed: float

    @property
    def ok(self) -> bool:
        return self.ulps is not None and self.ulps <= self.allowed


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Those of the sentences, beside the right ones."""

    difference: float | None  # the largest
    cosine: float | None  # the smallest
    allowed: float

    @property
    def ok(self) -> bool:
        return self.cosine is not None and self.cosine >= self.allowed


@dataclass(frozen=True, kw_only=True)
class Pair:
    one: str
    other: str
    similarity: float | None
    reference: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """How it ended, and where not well, why."""

    status: str = "ok"  # "not run", with the command that installs what is missing, or "failed"
    reason: str = ""
    install: str = ""


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Run):
    """A trained network as one scan."""

    model: str
    sentences: int = 0
    tokens: int = 0
    hidden: tuple[Hidden, ...] = ()
    embeddings: Embeddings | None = None
    pairs: tuple[Pair, ...] = ()
    sizes: tuple[Size, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Training(Run):
    """A small language model, trained: rolled, in float32."""

    losses: tuple[float | None, ...] = ()  # before each step
    weight_norms: tuple[float | None, ...] = ()  # of each layer, at the end
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The same training by NumPy."""

    sizes: dict[str, int]
    float64: Training
    float32: Training


@dataclass(frozen=True, kw_only=True)
class Measured(Run):
    """One implementation. In a quick run the blocks from `linear` on are empty, in a bench all but `bench`."""

    name: str
    asked_for: bool = False  # by name, on the command line
    problems: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)  # level -> what is counted there
    recompiles: tuple[Recompiles, ...] = ()
    numerics: tuple[Comparison, ...] = ()
    sizes: tuple[Size, ...] = ()  # of the dense stack
    times: tuple[Time, ...] = ()  # likewise
    linear: tuple[Time, ...] = ()  # its rolled gradient at several N, in turn
    programs: tuple[Size, ...] = ()  # of the general stack
    checkpoint: Checkpoint | None = None
    training: Training | None = None
    bench: tuple[Time, ...] = ()  # stacks beside their limit, training steps beside what users do instead
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One row of a check of anybody's stack."""

    section: str
    row: str
    verdict: str  # "yes", "refused" (it raises), "wrong" or "not offered"
    words: str = ""  # what it raises, or what is wrong


@dataclass(frozen=True, kw_only=True)
class Checked(Run):
    """What `python -m implementations check` finds of one file."""

    name: str
    problems: tuple[str, ...] = ()
    framework: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    rows: tuple[Verdict, ...] = ()
    known: dict[str, str] | None = None  # row -> what the file declares of it
    seconds: float = 0.0

    @property
    def deviations(self) -> list[str]:
        """Every row that is wrong without being known to be, and every one that differs from what is known."""
        found = []
        for row in self.rows:
            known, raised = (self.known or {}).get(row.row), row.words.partition(":")[0]
            observed = raised if row.verdict == "refused" else row.verdict
            if known is None and (row.verdict == "wrong" or (row.verdict == "refused" and self.known is not None)):
                found.append(f"{row.row}: {row.verdict}: {row.words}")
            elif known is not None and known.rpartition(".")[2] != observed:
                found.append(f"{row.row}: known as {known}, observed {observed}")
        unknown = (self.known or {}).keys() - {row.row for row in self.rows}
        return [*found, *(f"{row}: known, but there is no such row" for row in sorted(unknown))]


@dataclass(frozen=True, kw_only=True)
class Way:
    """The gradient of a stack that is cut over devices in one way, at one depth."""

    way: str
    N: int
    wrong: str = ""  # what differs from NumPy's
    collectives: dict[str, int] = field(default_factory=dict)  # kind -> number in the bodies of loops; and "outside"
    operations: int | None = None  # of the program, before it is compiled
    sent_bytes: int | None = None  # of whole arrays, by the collectives in loops
    whole_bytes: int  # of the stack
    param_bytes: int  # of it on one device
    temp_bytes: int | None = None  # of the program on one device, where the framework says it


@dataclass(frozen=True, kw_only=True)
class OnDevices(Run):
    """One implementation on many devices."""

    name: str
    problems: tuple[str, ...] = ()
    size: int = 0  # devices
    versions: dict[str, str] = field(default_factory=dict)
    ways: tuple[Way, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Release(Run):
    """What `python -m implementations versions` finds of one release of a framework."""

    package: str
    release: str
    date: str = ""
    versions: dict[str, str] = field(default_factory=dict)  # of what was installed with it
    deviations: tuple[str, ...] = ()  # of the quick comparison
    passed: int = 0  # of the framework's tests
    failed: dict[str, str] = field(default_factory=dict)  # test -> the first words of its error
    seconds: float = 0.0

    @property
    def is_green(self) -> bool:
        return self.status == "ok" and self.passed > 0 and not self.failed and not self.deviations


@dataclass(frozen=True, kw_only=True)
class Capability:
    capability: str
    states: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Note:
    text: str
    link: str


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """The declared matrix; `states` are in the order of `names`, and refer to the notes by number."""

    names: tuple[str, ...]
    rows: tuple[Capability, ...]
    notes: tuple[Note, ...]


@dataclass(frozen=True, kw_only=True)
class Results:
    schema_version: int = VERSION
    mode: str  # "quick", "default", "full" or "bench"
    provenance: dict[str, str]  # date, command, commit, cpu, platform, environment, ...
    implementations: tuple[Measured, ...]
    training: Trained | None = None
    devices: tuple[OnDevices, ...] = ()  # of an earlier run of `python -m implementations devices`
    capabilities: Capabilities
    seconds: float  # the whole run
    deviations: tuple[str, ...] = ()  # everything observed that is not as declared; none is exit status 0

    @property
    def ran(self) -> list[Measured]:
        return [measured for measured in self.implementations if measured.status == "ok"]


Record = TypeVar("Record")
_hints = functools.cache(get_type_hints)


def to_json(value: Any) -> Any:
    """A record as plain data. JSON has no infinity and no NaN: null."""
    if is_dataclass(value):
        return {each.name: to_json(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_json(kind: type[Record], plain: Any) -> Record:
    """The record that `to_json` made `plain` of; ValueError with the names of fields that are unknown or missing."""
    return cast(Record, _read(kind, plain, kind.__name__))


def _read(kind: Any, plain: Any, where: str) -> Any:
    outer, inner = get_origin(kind), get_args(kind)
    if outer is UnionType:  # of a kind and None
        return None if plain is None else _read(inner[0], plain, where)
    shape: Any = {tuple: list, float: (float, int)}.get(outer or kind, dict if is_dataclass(kind) else outer or kind)
    if not isinstance(plain, shape):
        raise ValueError(f"{where}: expected {'list' if outer is tuple else kind.__name__}, got {plain!r}")
    if outer is tuple:
        return tuple(_read(inner[0], item, f"{where}[{i}]") for i, item in enumerate(plain))
    if outer is dict:
        return {key: _read(inner[1], item, f"{where}.{key}") for key, item in plain.items()}
    if shape is not dict:
        return plain
    hints = _hints(kind)
    for what, names in (("unknown", plain.keys() - hints.keys()), ("missing", hints.keys() - plain.keys())):
        if names:
            raise ValueError(f"{where}: {what} fields: {', '.join(sorted(names))}")
    return kind(**{name: _read(hint, plain[name], f"{where}.{name}") for name, hint in hints.items()})

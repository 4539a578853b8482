"""The folders are a star: none knows another; `reference` below, `implementations` above; the same names in each."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from implementations import NAMES, REQUIRES, load
from implementations.interface import Implementation
from reference import cases
from tests.conftest import loaded

ROOT = Path(__file__).parents[2]
FRAMEWORKS = ("jax", "jaxlib", "flax", "torch", "functorch", "tensorflow", "keras")
FILES = (
    "stack.py",
    "loops.py",
    "autodiff.py",
    "transforms.py",
    "recipes.py",
    "modules.py",
    "decoding.py",
    "training.py",
    "devices.py",
    "layers.py",
    "checks.py",
    "programs.py",
    "trees.py",
    "alternatives.py",
    "outside.py",
    "graph.py",
    "graph_on_mesh.py",
    "edges.py",
)
# What JAX has no need of: the primitive made safe, what is not public, what a derivative keeps; in torch, what a layer
# shows and what runs layer by layer; in TensorFlow, a convolution's gradient.
BESIDE = {
    "tf_while": ("convolution.py", "mesh_program.py", "parts.py", "primitive.py", "private.py", "residuals.py"),
    "torch_compile": ("collectives.py", "fallback.py", "looks.py", "primitive.py", "private.py", "residuals.py"),
}
# of reference: not the oracle, and no more than what frameworks must agree on
WORDS = {f"reference.{name}" for name in ("alike", "arguments", "made_of", "meshes", "releases", "shapes")}
LINES = {"stack.py": 150, "graph.py": 135, "transforms.py": 195, "training.py": 100}


def source(*path):
    return ROOT.joinpath(*path).read_text(encoding="utf-8")


def sources(folder):
    paths = sorted((ROOT / folder).rglob("*.py"))
    return {path.relative_to(ROOT / folder).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def python(code):
    """Run `code` in a process of its own, at the root of the repository; its output, or its error as this one's."""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


# Imports, as they happen and as they are written.


# Put before the code of a process: these modules are not found, as if they were not installed.
BLOCK = """
import sys
from importlib.machinery import PathFinder

def find(name, path=None, target=None, find=PathFinder.find_spec):
    return None if name in {blocked} else find(name, path, target)

PathFinder.find_spec = find
"""


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_needs_no_framework_but_its_own(name):
    """Blocked rather than looked for: TensorFlow by itself imports JAX where there is one."""
    loaded(name)
    others = [REQUIRES[other] for other in NAMES if other != name]
    loads = f"import {name}\nprint(*sys.modules.keys() & {set(REQUIRES.values())})"
    assert python(BLOCK.format(blocked=others) + loads).split() == [REQUIRES[name]]


# What a process has traced and set, around an import: a number and the settings that differ, which print.
WATCH = {
    "jax_scan": """
import jax
told = []
jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: told.append(event))
before = dict(jax.config.values)
import jax_scan
print(len(told), *(name for name in before if jax.config.values[name] != before[name]))
""",
    "torch_compile": """
import torch._dynamo, torch._functorch.config, torch._inductor.config
from torch._dynamo.utils import counters
configs = torch._dynamo.config, torch._functorch.config, torch._inductor.config
before = [config.get_config_copy() for config in configs]
import torch_compile
after = [config.get_config_copy() for config in configs]
print(sum(counters["stats"].values()), *(k for a, b in zip(before, after) for k in a if a[k] != b[k]))
""",
    "tf_while": """
import tensorflow as tf
from tensorflow.python.framework import func_graph
from unittest.mock import patch
with patch.object(func_graph.FuncGraph, "__init__") as graphs, patch.object(tf.autograph, "to_graph") as conversions:
    import tf_while
print(graphs.call_count + conversions.call_count)
""",
}
SETS = {"jax_scan": "0", "torch_compile": "0", "tf_while": "0"}


@pytest.mark.parametrize("name", NAMES)
def test_importing_a_folder_traces_nothing_and_sets_what_is_documented_alone(name):
    loaded(name)
    assert python(WATCH[name]).strip() == SETS[name]


def test_reference_and_implementations_import_no_framework():
    folders = ("reference", "implementations")
    files = [f"{folder}/{file}" for folder in folders for file in sources(folder) if "__" not in file]
    files = [file for file in files if "/peers/" not in file]  # the stacks of others
    modules = [file.removesuffix(".py").replace("/", ".") for file in files]
    assert "implementations.measuring.measure" in modules
    assert python(f"import sys, {', '.join(modules)}\nprint(*sys.modules.keys() & {set(FRAMEWORKS)})").split() == []


def imported(text):
    """Every (module, names) that the source imports, wherever in it; names () for `import module`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield node.module, tuple(alias.name for alias in node.names)


def test_the_reader_of_imports_sees_them():
    """The control of the tests below."""
    text = "import a.b as c\ndef f():\n    from reference import arguments, stack\n"
    assert list(imported(text)) == [("a.b", ()), ("reference", ("arguments", "stack"))]


# The rooms of the comparison, lowest first; "" is what stands at the door, below all of them but for TOP.
ROOMS = "", "results", "checkpoints", "report", "check", "devices", "peers", "minilm", "measuring", "top"
# commands, which put the rooms together
TOP = {"compare.py", "__main__.py", "measuring/bench_command.py", "check/command.py", "check/peers_command.py"}
TOP |= {"devices/command.py"}
TOP |= {"checkpoint.py", "checkpoint_files.py"}  # names of before the rooms


def room(file):
    return "top" if file in TOP else file.rpartition("/")[0]


def below(text, files):
    """Those of the files of the comparison that a file imports."""
    for module, names in imported(text):
        if module.split(".")[0] == "implementations":
            for path in (module, *(f"{module}.{name}" for name in names)):
                file = path.removeprefix("implementations").lstrip(".").replace(".", "/") + ".py"
                if file in files:
                    yield file


def test_arrows_between_the_rooms_run_down_only():
    files = sources("implementations")
    assert {room(file) for file in files} == {*ROOMS}
    arrows = [(file, other) for file, text in files.items() for other in below(text, files)]
    assert len(arrows) > 50  # they are seen
    up = [(a, b) for a, b in arrows if room(a) != room(b) and ROOMS.index(room(a)) < ROOMS.index(room(b))]
    assert not up


def test_imports_of_the_comparison_make_no_circle():
    files = sources("implementations")
    arrows = {file: {*below(text, files)} for file, text in files.items()}
    while leaves := [file for file, others in arrows.items() if not others & arrows.keys()]:
        for file in leaves:
            del arrows[file]
    assert not arrows


def is_of_words(module, names):
    return module in WORDS or (module == "reference" and {f"reference.{name}" for name in names} <= WORDS)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_knows_of_this_repository_only_itself_and_what_valid_input_is(name):
    inside = {path.name for path in ROOT.iterdir() if path.is_dir()} | {"tests"}
    found = {
        file: [pair for pair in imported(text) if pair[0].split(".")[0] in inside]
        for file, text in sources(name).items()
    }
    assert ("reference", ("arguments",)) in found["stack.py"]
    strangers = {
        (file, *pair)
        for file, pairs in found.items()
        for pair in pairs
        if pair[0].split(".")[0] != name and not is_of_words(*pair)
    }
    assert not strangers
    # by name, as a string, it would slip past
    assert not any(re.search(r"import_module|__import__", text) for text in sources(name).values())


PUBLIC = {"_check", "_replace"}  # torch documents the one, NamedTuple the other
MODULES = ("tensorflow.python", "tensorflow.compiler", "functorch")  # not public, though without an underscore


def private_names(text):
    """What a file of a folder names that the framework does not call public."""
    for module, names in imported(text):
        parts = [*module.split("."), *names]
        if module != "__future__" and (module.startswith(MODULES) or any(part.startswith("_") for part in parts)):
            yield f"{module} {' '.join(names)}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr not in PUBLIC:
            said = ast.unparse(node)
            is_own = said.startswith(("self._", "cls._", "programs._", "stack._", "super().__")) or "__" in node.attr
            if not is_own:
                yield said


@pytest.mark.parametrize("name", NAMES)
def test_what_a_framework_does_not_call_public_is_named_in_one_file(name):
    found = {file: {*private_names(text)} for file, text in sources(name).items()}
    assert bool(found.pop("private.py", ())) == (name != "jax_scan")
    assert not {file: names for file, names in found.items() if names}


def test_a_private_name_is_seen():
    text = "from torch._C import x\nimport torch\ntorch._dynamo.y()\nfrom tensorflow.python.ops import z\nself._own\n"
    found = ["torch._C x", "tensorflow.python.ops z", "torch._dynamo"]
    assert list(private_names(text)) == found


@pytest.mark.parametrize("folder", ["reference", "implementations"])
def test_what_stands_below_and_above_names_no_folder(folder):
    allowed = {"reference": {"reference"}, "implementations": {"implementations", "reference"}}[folder]
    ours = {"reference", "implementations", "tests", *NAMES, *FRAMEWORKS}
    texts = {file: text for file, text in sources(folder).items() if not file.startswith("peers/")}
    roots = {(file, module.split(".")[0]) for file, text in texts.items() for module, _ in imported(text)}
    assert roots
    assert not {(file, root) for file, root in roots if root in ours - allowed}


# load: what is said when something is not there.

LOAD = """
from implementations import load
try:
    load({name!r})
except ModuleNotFoundError as error:
    print(error)
"""


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_framework_comes_with_the_command_that_installs_it(name):
    needs = REQUIRES[name]
    words = f"{name} needs {needs}: pip install --constraint constraints.txt {needs}\n"
    assert python(BLOCK.format(blocked=[needs]) + LOAD.format(name=name)) == words


def test_another_missing_module_is_not_taken_for_the_framework():
    """Nor one whose name begins like the framework's: advice to install JAX would send its reader astray."""
    loaded("jax_scan")
    for blocked in ("jax_scan.layers", "ml_dtypes"):
        said = python(BLOCK.format(blocked=[blocked]) + LOAD.format(name="jax_scan"))
        assert "pip install" not in said
        assert blocked in said


def test_the_optimizer_is_not_needed_before_something_is_trained():
    loaded("jax_scan")
    assert python(BLOCK.format(blocked=["optax"]) + "import jax_scan\nprint(jax_scan.train.__name__)") == "train\n"


@pytest.mark.parametrize("name", ["jax", "JAX_scan", "", "reference", "os"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ValueError, match="implementation") as caught:
        load(name)
    assert str(caught.value) == f"implementation: expected one of {', '.join(NAMES)}, got {name!r}"


# The same names, in the same order.


def members():
    """The names of the protocol, in order."""
    tree = ast.parse(source("implementations", "interface.py"))
    (protocol,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == Implementation.__name__)
    return [member(n) for n in protocol.body if isinstance(n, (ast.FunctionDef, ast.AnnAssign))]


def member(node):
    return node.name if isinstance(node, ast.FunctionDef) else ast.unparse(node.target)


def test_exports_are_the_interface_in_its_order(implementation):
    assert members()[0] == "scan_apply_layers"
    assert implementation.__all__ == members()


def test_signatures_are_the_interfaces(implementation):
    """Names, kinds and defaults of parameters; the type checker sees types, but does not import every framework."""
    for name in members():
        specified = getattr(Implementation, name, None)
        if specified is None:  # a value
            assert isinstance(getattr(implementation, name), dict)
            continue
        _, *expected = inspect.signature(specified).parameters.values()
        actual = inspect.signature(getattr(implementation, name)).parameters.values()
        shape = [[(p.name, p.kind, p.default) for p in parameters] for parameters in (expected, actual)]
        assert shape[0] == shape[1], name


def public_functions(text):
    functions = (n.name for n in ast.parse(text).body if isinstance(n, ast.FunctionDef))
    return [name for name in functions if not name.startswith("_")]


@pytest.mark.parametrize("file", [file for file in FILES if file not in ("alternatives.py", "programs.py")])
def test_functions_stand_in_the_same_order_in_every_folder(file):
    """Open two of them side by side: what both have is in one order, that of the interface if it is there."""
    functions = {name: public_functions(source(name, file)) for name in NAMES}
    shared = set.intersection(*map(set, functions.values()))
    assert shared
    for names in functions.values():
        for others in functions.values():
            assert [n for n in names if n in others] == [n for n in others if n in names]
        assert [n for n in names if n in members()] == [n for n in members() if n in names]
        assert shared >= set(names) & set(members())


@pytest.mark.parametrize("name", NAMES)
def test_every_folder_holds_the_same_files_that_fit_on_a_screen_or_two(name):
    texts = sources(name)
    assert set(texts) == {"__init__.py", *FILES, *BESIDE.get(name, ())}
    for file, limit in LINES.items():
        assert len(texts[file].splitlines()) <= limit, file


def names_of(name, *files):
    """What the files define at their top, functions, classes and values."""
    nodes = [node for file in files for node in ast.parse(source(name, file)).body]
    defined = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    return defined | {ast.unparse(target) for node in nodes if isinstance(node, ast.Assign) for target in node.targets}


def test_torch_and_tensorflow_tell_the_derivative_in_the_same_words():
    """At least half of all names; and the way from the stack to its gradient is short."""
    files = "loops.py", "autodiff.py"
    torch, tf = (names_of(name, *files) for name in ("torch_compile", "tf_while"))
    assert {"Plan", "Rule", "scan", "scan_vjp", "vjp_step", "differentiable"} <= torch & tf
    assert len(torch & tf) >= len(torch | tf) / 2, torch ^ tf
    assert sum(len(source("torch_compile", file).splitlines()) for file in ("stack.py", *files)) <= 450


def test_many_devices_are_the_same_functions_in_every_folder():
    """At least four of five names, with the same arguments."""
    found = [functions(name, "devices.py") for name in NAMES]
    public = [{name for name in each if not name.startswith("_")} for each in found]
    shared = set.intersection(*public)
    assert len(shared) >= 0.8 * len(set.union(*public)), set.union(*public) - shared
    for name in shared:
        assert len({tuple(a.arg for a in each[name].args.args) for each in found}) == 1, name


# The file to read: no loop over layers, one docstring a function.

LOOPS = (ast.For, ast.AsyncFor, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
HIDDEN_LOOPS = {"map", "reduce", "accumulate", "vectorized_map", "map_fn"}


def loops(function):
    """Every Python loop in a function, and what loops under another name."""
    for node in ast.walk(function):
        if isinstance(node, LOOPS) or {getattr(node, "id", ""), getattr(node, "attr", "")} & HIDDEN_LOOPS:
            yield node


def functions(name, file):
    return {n.name: n for n in ast.parse(source(name, file)).body if isinstance(n, ast.FunctionDef)}


@pytest.mark.parametrize("name", NAMES)
def test_no_python_loop_in_the_file_to_read(name):
    looping = {function for function, node in functions(name, "stack.py").items() if list(loops(node))}
    # argument checks run over names and sizes
    assert not {function for function in looping if not function.startswith("_check")}


def counting_loops(node):
    """Loops over numbers: of layers, then. Those over the arrays of a tree run over the arrays."""
    for loop in ast.walk(node):
        over = [loop.iter] if isinstance(loop, (ast.For, ast.comprehension)) else []
        if any("range" in ast.unparse(iterable) for iterable in over):
            yield over[0].lineno
        elif isinstance(loop, ast.While):
            yield loop.lineno


@pytest.mark.parametrize("name", NAMES)
def test_no_python_loop_over_layers_but_in_the_twin(name):
    """Nor over the layers of one step, unless a comment beside it says so."""
    lines = source(name, "loops.py").splitlines()
    found = {function: list(counting_loops(node)) for function, node in functions(name, "loops.py").items()}
    assert found.pop("unrolled")  # which shows that a loop would be seen
    assert not {
        f"{function}, line {line}": lines[line - 1]
        for function, at in found.items()
        for line in at
        if "#" not in lines[line - 1] and not lines[line - 2].strip().startswith("#")
    }


def stack_docstring(name, function="scan_apply_layers"):
    """Read, not imported: the text is compared also where the framework is not installed."""
    return ast.get_docstring(functions(name, "stack.py")[function])


def section(docstring, title):
    """From `title` to the next unindented line."""
    return re.search(rf"^{title}:.*\n((?:[ \t]+.*\n|\n)*)", docstring + "\n", re.MULTILINE)


@pytest.mark.parametrize("title", ["Equivalent loop", "Args", "Returns", "Raises"])
@pytest.mark.parametrize("function", ["scan_apply_layers", "scan_layers"])
def test_docstrings_say_the_same(function, title):
    texts = {name: section(stack_docstring(name, function), title).group(0).strip() for name in NAMES}
    assert len(set(texts.values())) == 1, texts
    assert len(texts[NAMES[0]]) > len(title) + 20


def run_equivalent_loop(function, variables):
    """The loop in the docstring is run, as it is written there, on NumPy arrays."""
    exec(textwrap.dedent(section(inspect.getdoc(function), "Equivalent loop").group(1)), variables)
    return variables


def test_the_equivalent_loop_is_equivalent(implementation):
    case = cases.case("small_integers_3x7", "float32")
    expected = run_equivalent_loop(implementation.scan_apply_layers, {"weights": case.weights, "x": case.x})["y"]
    y = implementation.scan_apply_layers(*map(implementation.from_numpy, (case.weights, case.x)))
    np.testing.assert_array_equal(implementation.to_numpy(y), expected, strict=True)
    assert not np.array_equal(expected, case.x)


@pytest.mark.torch_backend("eager")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("with_xs", [False, True])
def test_the_equivalent_loop_of_any_layer_is_equivalent(implementation, reverse, with_xs):
    case = cases.case("small_integers_3x7", "float32")
    params, init = case.weights[:, 0], case.x  # [N, d], [d]
    xs = case.weights[:, 1] if with_xs else None

    def layer(carry, p, x=0):  # in any framework, and NumPy
        return carry * p + p + x, carry - p

    variables = {"params": params, "init": init, "xs": xs, "N": len(params), "layer": layer, "reverse": reverse}
    variables = run_equivalent_loop(implementation.scan_layers, variables)
    given = [None if array is None else implementation.from_numpy(array) for array in (params, init, xs)]
    for form in (implementation.scan_layers, implementation.unroll_layers):
        carry, ys = map(implementation.to_numpy, form(layer, *given, reverse=reverse))
        np.testing.assert_array_equal(carry, variables["carry"], strict=True)
        np.testing.assert_array_equal(ys, np.stack(variables["ys"]), strict=True)


def test_module_docstrings_show_the_same_loop():
    for name in (*NAMES, "reference"):
        docstring = ast.get_docstring(ast.parse(source(name, "stack.py"))) or ""
        loop = section(stack_docstring(NAMES[0]), "Equivalent loop").group(1).rstrip()
        assert loop in docstring, name
        assert len(docstring.splitlines()) <= 15, name

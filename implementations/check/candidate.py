"""A stack to be checked: what a user's file says of it; all else that the checks need is the framework folder's."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from implementations import REQUIRES, load
from implementations.interface import Implementation

FRAMEWORKS = {needs: name for name, needs in REQUIRES.items()}
OPTIONAL = ("xs", "reverse", "unroll", "remat")  # arguments of scan_layers that a stack need not have


class BadFile(Exception):
    """What is wrong with a user's file, in words."""


class Candidate:
    """An implementation as the checks see it: its own `scan_layers`; whatever else they ask for is the folder's."""

    def __init__(self, tools: Implementation, name: str, scan_layers: Callable[..., Any], **own: Any) -> None:
        self.tools, self.__name__, self.scan_layers = tools, name, scan_layers
        self.offered = _offered(scan_layers) | own.keys()
        vars(self).update(own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tools, name)


def ours(implementation: Implementation) -> Candidate:
    """The stack of a framework folder."""
    name = implementation.__name__  # type: ignore[attr-defined]
    return Candidate(implementation, name, implementation.scan_layers, unroll_layers=implementation.unroll_layers)


def read(path: Path) -> tuple[Candidate, dict[str, str] | None]:
    """The stack that a file defines, and what it says is not so: row -> "wrong" or the name of an exception.

    LIBRARY, if it has one, is the package whose version is shown first.

    Raises:
        BadFile: there is no such file, it raises, or what it defines is not what is asked for.
        ModuleNotFoundError: it imports a library that is not installed.
    """
    module = _imported(path)
    framework = getattr(module, "FRAMEWORK", None)
    if framework not in FRAMEWORKS:
        raise BadFile(f"FRAMEWORK: expected one of {', '.join(FRAMEWORKS)}, got {framework!r}")
    own = {name: getattr(module, name) for name in ("scan_layers", "unroll_layers", "compile") if hasattr(module, name)}
    if "scan_layers" not in own:
        raise BadFile("scan_layers: expected a function (layer, stacked_params, init, ...), got none")
    for name, function in own.items():
        if not callable(function):
            raise BadFile(f"{name}: expected a function, got {function!r}")
    known = getattr(module, "KNOWN", None)
    if known is not None and not (isinstance(known, Mapping) and all(isinstance(v, str) for v in known.values())):
        raise BadFile(f'KNOWN: expected row -> "wrong" or the name of an exception, got {known!r}')
    folder = FRAMEWORKS[framework]
    is_built_on_ours = folder in sys.modules
    tools = load(folder)
    if not is_built_on_ours:
        tools.set_back()  # nothing that our folders set may make another stack look better than it is
    library = getattr(module, "LIBRARY", None)
    versions = {library: importlib.metadata.version(library)} if library else {}
    own |= {"framework": framework, "versions": lambda: versions | tools.versions()}
    return Candidate(tools, path.stem, own.pop("scan_layers"), **own), None if known is None else dict(known)


def _imported(path: Path) -> Any:
    if not path.is_file():
        raise BadFile("no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise BadFile("expected a Python file, its name ending in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as dataclasses and pickle expect
    sys.path.insert(0, str(path.parent))  # what stands beside it is found
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError:
        raise
    except BaseException as error:  # sys.exit() too
        raise BadFile(f"raises {type(error).__name__} where it is imported: {error}") from error
    return module


def _offered(function: Callable[..., Any]) -> frozenset[str]:
    """The optional arguments that it takes; all, where its signature does not tell."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return frozenset(OPTIONAL)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return frozenset(name for name in OPTIONAL if takes_any or name in parameters)

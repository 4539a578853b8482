"""From the modules that people have to a stack, and back: N trees to one, and nn.Modules to a layer.

    for module in modules:
        carry = module(carry)

In JAX a module is a tree of arrays. An nn.Module is an object that holds them by name, so params are a dict of the
names of its state_dict, and the layer is a `functional_call`: parameters may be tied or frozen, and the running
statistics of a batch norm, which JAX's modules return, come out as ys.
Source: https://docs.pytorch.org/docs/2.13/generated/torch.func.functional_call.html
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import type_before_parametrizations

from reference import alike, arguments
from torch_compile.edges import as_leaf, to_numpy
from torch_compile.private import has_hooks, pytree
from torch_compile.stack import scan_layers
from torch_compile.trees import Layer, flatten, flatten_like, unflatten


def stack_layers(trees: Sequence[Any]) -> Any:
    """As `jax_scan.stack_layers`."""
    trees = alike.check_trees(as_leaf, "trees", trees)
    arrays, structure = flatten(trees[0])
    split = [arrays, *(flatten_like(structure, tree) for tree in trees[1:])]
    return unflatten(structure, [torch.stack(parts) for parts in zip(*split, strict=True)])


def unstack_layers(stacked_params: Any) -> list[Any]:
    """As `jax_scan.unstack_layers`. The arrays are views."""
    num_layers = arguments.check_scan(as_leaf, stacked_params, None, None)
    arrays, structure = flatten(stacked_params)
    split = [array.unbind() for array in arrays]  # once, not N times
    return [unflatten(structure, [parts[i] for parts in split]) for i in range(num_layers)]


def from_modules(modules: Sequence[torch.nn.Module]) -> tuple[Layer, dict[str, torch.Tensor]]:
    """As `jax_scan.from_modules`; nn.ModuleList and nn.Sequential are lists of modules too.

    stacked_params: parameters and buffers by their names in the state_dict, arrays [N, ...], each with the
    `requires_grad` of the modules. One of all modules is left out: it is closed over, and gets its gradient.

    y is None; but while the first module is in training mode and has running statistics, it is a dict of their new
    values: `stacked_params | ys` is what the next step starts from, ys detached.

    Limits: modules that write any other buffer are refused by the stack.
    """
    modules = alike.check_modules(modules, _is_module)
    trees = [_arrays(module) for module in modules]
    _check(modules, trees)
    module, shared = modules[0], alike.which_shared(trees)
    stacked_params = stack_layers([{name: a.detach() for name, a in t.items() if name not in shared} for t in trees])
    for name, array in stacked_params.items():
        array.requires_grad_(trees[0][name].requires_grad)
        vars(array).update(_marks(trees[0][name]))
    return _layer(module), stacked_params


def _layer(module: torch.nn.Module) -> Layer:
    def layer(carry: Any, params: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        state = {name: params[name].detach().clone() for name in _statistics(module) if name in params}
        return functional_call(module, {**params, **state}, (carry, *args), kwargs), state or None

    return layer


def to_modules(stacked_params: Any, modules: Sequence[torch.nn.Module]) -> list[torch.nn.Module]:
    """As `jax_scan.to_modules`, but written into `modules` themselves."""
    modules = alike.check_modules(modules, _is_module)
    rows = unstack_layers(stacked_params)
    trees = [_arrays(module) for module in modules]
    shared = alike.which_shared(trees)
    trees = [{name: array for name, array in tree.items() if name not in shared} for tree in trees]
    alike.check_rows(as_leaf, rows, trees)
    with torch.no_grad():
        for tree, row in zip(trees, rows, strict=True):
            for name, array in tree.items():
                array.copy_(row[name])
    return modules


def scanned(modules: Sequence[torch.nn.Module], **options: Any) -> Scanned:
    """As `jax_scan.scanned`: an nn.Module, whose parameters are the stacked ones.

    Its state_dict is that of `nn.ModuleList(modules)`, names and all, so that their checkpoints load. `train()`,
    `eval()`, `to(...)` and `requires_grad_()` go to all layers. It writes its running statistics itself.
    """
    return Scanned(modules, options)


class Scanned(torch.nn.Module):
    """What `scanned` returns. Its template is one module whose arrays are stacks, save those that modules share."""

    def __init__(self, modules: Sequence[torch.nn.Module], options: dict[str, Any]) -> None:
        super().__init__()
        modules = alike.check_modules(modules, _is_module)
        _, stacked_params = from_modules(modules)
        memo: dict[int, Any] = {}  # of deepcopy: what stands for each array in the copy
        for name, array in _arrays(modules[0]).items():
            new = stacked_params.get(name, array)
            is_parameter = name in stacked_params and isinstance(array, torch.nn.Parameter)
            memo[id(array)] = torch.nn.Parameter(new, array.requires_grad) if is_parameter else new
            vars(memo[id(array)]).update(_marks(array))
        self.template = copy.deepcopy(modules[0], memo)
        self.num_layers, self.names, self.options = len(modules), tuple(stacked_params), options
        self.register_state_dict_post_hook(_to_layers)
        self.register_load_state_dict_pre_hook(_from_layers)

    @property
    def stacked_params(self) -> dict[str, torch.Tensor]:
        arrays = _arrays(self.template)
        return {name: arrays[name] for name in self.names}

    def forward(self, carry: Any, *args: Any, xs: Any = None, **kwargs: Any) -> Any:
        one = _layer(self.template)

        def layer(carry: Any, params: Any, *x: Any) -> tuple[Any, Any]:
            return one(carry, params, *x, *args, **kwargs)

        stacked_params = self.stacked_params
        before = {name: stacked_params[name].clone() for name in _statistics(self.template) if name in self.names}
        carry, state = scan_layers(layer, stacked_params | before, carry, xs, **self.options)
        for name, array in (state or {}).items():  # but not into what the gradient has kept
            stacked_params[name].copy_(array.detach())
        return carry


def _to_layers(stack: Scanned, state_dict: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Give the entries of the template the names that they have in a list of modules."""
    within = f"{prefix}template."
    entries = {key: state_dict.pop(key) for key in [*state_dict] if key.startswith(within)}
    shared = _shared(stack)
    for i in range(stack.num_layers):
        for key, array in entries.items():
            name = key.removeprefix(within)
            state_dict[f"{prefix}{i}.{name}"] = array if name in shared else array[i]


def _from_layers(
    stack: Scanned, state_dict: dict[str, Any], prefix: str, metadata: Any, _strict: bool, missing: Any, *others: Any
) -> None:
    """The way back, before entries are loaded. What is missing, or of another shape, is reported layer by layer."""
    _unexpected, errors = others
    shared, is_assigned = _shared(stack), metadata.get("assign_to_params_buffers", False)
    for name, array in stack.template.state_dict().items():
        own = [array] * stack.num_layers if name in shared else [*array]
        rows = [state_dict.pop(f"{prefix}{i}.{name}", None) for i in range(stack.num_layers)]
        for i, (old, new) in enumerate(zip(own, rows, strict=True)):
            key = f"{prefix}{i}.{name}"
            if new is None:
                missing.append(key)
            elif new.shape != old.shape:
                errors.append(f"{key}: expected shape {tuple(old.shape)}, got {tuple(new.shape)}")
        fit = [new is not None and new.shape == old.shape for old, new in zip(own, rows, strict=True)]
        if not is_assigned:
            rows = [new.to(old) if fits else old for old, new, fits in zip(own, rows, fit, strict=True)]
        elif not all(fit):
            rows = own
        state_dict[f"{prefix}template.{name}"] = rows[-1] if name in shared else torch.stack(rows)


def _shared(stack: Scanned) -> set[str]:
    """The entries of the template that are no stacks."""
    stacks = {id(array) for array in stack.stacked_params.values()}
    template = stack.template
    named = [*template.named_parameters(remove_duplicate=False), *template.named_buffers(remove_duplicate=False)]
    return {name for name, array in named if id(array) not in stacks}


def _is_module(module: Any) -> bool:
    return isinstance(module, torch.nn.Module)


def _arrays(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, one that is tied once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _check(modules: list[torch.nn.Module], trees: list[dict[str, torch.Tensor]]) -> None:
    """Refuse what is not the same in all modules, and would be taken from the first."""
    for i, (module, tree) in enumerate(zip(modules, trees, strict=True)):
        if any(map(is_lazy, tree.values())):
            raise alike.not_built(f"modules[{i}]", type(module).__name__)
        for name, part in module.named_modules():  # by name: the class is Dynamo's own
            if isinstance(part, torch.jit.ScriptModule) or type(part).__name__ == "OptimizedModule":
                raise alike.compiled_before(f"modules[{i}].{name}".rstrip("."), type(part).__name__)
    kinds = [{name: type_before_parametrizations(part) for name, part in m.named_modules()} for m in modules]
    held = [_rest(f"modules[{i}]", module) for i, module in enumerate(modules)]
    for i, (tree, kind, rest) in enumerate(zip(trees, kinds, held, strict=True)):
        alike.check_alike("modules", i, kind, kinds[0])
        arguments.check_like(as_leaf, f"modules[{i}]", tree, trees[0], "modules[0]")
        alike.check_alike("modules", i, rest, held[0])
    shared = alike.which_shared(trees)
    for i, tree in enumerate(trees):
        for name, array in tree.items():
            if name not in shared and has_hooks(array):
                raise alike.has_hooks(f"modules[{i}].{name}")


def _rest(where: str, module: torch.nn.Module) -> dict[str, Any]:
    """What is neither array nor module: rates, functions, hooks, whether it is in training mode and what is frozen."""
    rest: dict[str, Any] = {f"{n}.requires_grad": a.requires_grad for n, a in module.named_parameters()}
    for name, array in module.named_parameters():
        rest |= {f"{name}.{key}": _values(value) for key, value in _marks(array).items()}
    named = {id(array) for array in _arrays(module).values()}
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if key in ("_parameters", "_buffers", "_modules") or "state_dict" in key:
                continue
            path = f"{name}.{key}" if name else key
            if not named.isdisjoint(map(id, pytree.tree_leaves(value))):
                raise alike.held_apart(f"{where}.{path}")
            # hooks are kept by numbers, of which no two are equal
            rest[path] = _values([*value.values()] if isinstance(value, OrderedDict) else value)
    return rest


def _marks(array: torch.Tensor) -> dict[str, Any]:
    """What users have written on a parameter, for an optimizer."""
    return {key: value for key, value in vars(array).items() if not key.startswith("_dynamo")}


def _values(tree: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, to_numpy, tree)


def _statistics(module: torch.nn.Module) -> list[str]:
    """The names of buffers that its forward writes, those of torch's own norms."""
    return [
        f"{name}.{key}" if name else key
        for name, part in module.named_modules()
        if part.training and getattr(part, "track_running_stats", False)
        for key, _ in part.named_buffers(recurse=False)
    ]

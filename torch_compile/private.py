"""What this folder uses of torch that torch does not call public, each name once: the place where a release breaks it.

JAX needs none of it: `lax.scan` is public, and so is all that differentiates and compiles it.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from reference.releases import names_of

with names_of("torch"):
    from functorch.compile import make_boxed_func
    from torch import _dynamo as dynamo
    from torch._C import DispatchKey
    from torch._C import _are_functorch_transforms_active as in_functorch
    from torch._C import _AutoDispatchBelowAutograd as below_autograd
    from torch._C import _get_dispatch_mode as get_dispatch_mode
    from torch._C import _TorchDispatchModeKey as ModeKey
    from torch._C._autograd import _top_saved_tensors_default_hooks as top_hooks
    from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor, is_legacy_batchedtensor
    from torch._dynamo.backends.common import aot_autograd
    from torch._dynamo.eval_frame import skip_code
    from torch._dynamo.exc import FailOnRecompileLimitHit
    from torch._dynamo.symbolic_convert import InstructionTranslator
    from torch._dynamo.utils import counters
    from torch._dynamo.variables.higher_order_ops import (
        LazyVariableTracker,
        TorchHigherOrderOperatorVariable,
        discard_graph_changes,
        make_attr,
        speculate_subgraph,
        unpack_iterable,
    )
    from torch._dynamo.variables.higher_order_ops import _call_function_and_unflatten_output as call_and_unflatten
    from torch._dynamo.variables.higher_order_ops import _hop_name_to_variable_class as variables_of_operators
    from torch._dynamo.variables.higher_order_ops import _make_inlined as inlined
    from torch._functorch import config as functorch_config
    from torch._functorch.partitioners import CheckpointPolicy, min_cut_rematerialization_partition
    from torch._guards import TracingContext, active_fake_mode
    from torch._higher_order_ops.cond import cond_op
    from torch._higher_order_ops.partitioner import HopJointGraph
    from torch._higher_order_ops.scan import scan
    from torch._higher_order_ops.utils import (
        first_slice_copy,
        materialize_as_graph,
        redirect_to_mode,
        save_values_for_backward,
        saved_values,
    )
    from torch._higher_order_ops.while_loop import while_loop_op
    from torch._inductor import config as inductor_config
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner
    from torch._inductor.ir import BaseView, ExternKernel, InplaceCopyFallback, IRNode, MutableBox, Subgraph
    from torch._inductor.lowering import lowerings
    from torch._inductor.runtime.cache_dir_utils import cache_dir
    from torch._inductor.utils import fresh_cache
    from torch._inductor.virtualized import V as inductor
    from torch._ops import HigherOrderOperator
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch._subclasses.functional_tensor import FunctionalTensorMode, PythonFunctionalizeAPI, dispatch_functionalize
    from torch.distributed.distributed_c10d import _resolve_process_group
    from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode, disable_proxy_modes_tracing, get_proxy_mode
    from torch.utils import _pytree as pytree
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._python_dispatch import _get_current_dispatch_mode as get_current_dispatch_mode
    from torch.utils._python_dispatch import _pop_mode_temporarily as pop_mode
    from torch.utils.checkpoint import CheckpointFunction
    from torch.utils.checkpoint import _CachedTorchDispatchMode as CachedMode
    from torch.utils.checkpoint import _CachingTorchDispatchMode as CachingMode

    # attributes, looked up now for the same words
    _ = forward_ad._current_level, torch.UntypedStorage._cdata, torch.ops.aten.mm.default._schema
    copy_op = torch.ops.aten.copy_.default
    check_errors = torch.ops.aten._linalg_check_errors.default
    # what they keep for their derivative is constant to that of their forward mode, as in pytorch/pytorch#196700
    wrong_twice = {torch.ops.aten.native_layer_norm, torch.ops.aten.native_batch_norm}
    wrong_twice |= {torch.ops.aten._linalg_det, torch.ops.aten._linalg_slogdet, torch.ops.aten._linalg_solve_ex}
    recompute_complex = HopJointGraph._mark_complex_exprs_as_must_recompute


def in_forward_mode() -> bool:
    return forward_ad._current_level >= 0


def within_checkpoint() -> bool:
    """Whether what autograd saves here is dropped, and made again when it is asked for (torch.utils.checkpoint)."""
    hooks = top_hooks(True)
    return hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint"


def process_group(name: str) -> torch.distributed.ProcessGroup:
    return _resolve_process_group(name)  # type: ignore[arg-type]


def memory_of(array: torch.Tensor) -> int:
    """The same for arrays that share memory, also where they have no values."""
    return array.untyped_storage()._cdata


def arguments_of(operator: torch._ops.OpOverload) -> list[torch.Argument]:
    return operator._schema.arguments


def has_hooks(array: torch.Tensor) -> bool:
    """Whether something waits for its gradient."""
    return bool(array._backward_hooks or getattr(array, "_post_accumulate_grad_hooks", None))

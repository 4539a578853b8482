"""What this folder uses of TensorFlow that TensorFlow does not call public: the place where a release breaks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from reference.releases import names_of

with names_of("tensorflow"):
    from tensorflow.compiler.tf2xla.ops.gen_xla_ops import xla_dynamic_update_slice
    from tensorflow.compiler.xla.service import hlo_pb2
    from tensorflow.python.autograph.core.ag_ctx import Status
    from tensorflow.python.autograph.impl.api import autograph_artifact
    from tensorflow.python.eager import context
    from tensorflow.python.eager.forwardprop_util import pack_tangents
    from tensorflow.python.framework import op_def_registry
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext as in_xla
    from tensorflow.python.saved_model.save_context import in_save_context
    from tensorflow.python.trackable import data_structures

    Tensor = tf.__internal__.types.Tensor  # arrays, variables, and Keras's
    control_status_ctx, tf_convert = tf.__internal__.autograph.control_status_ctx, tf.__internal__.autograph.tf_convert
    _ = tf.Operation._set_attr  # looked up now, for the same words


def in_forward_mode(arrays: list[tf.Tensor]) -> bool:
    """Whether a ForwardAccumulator has a tangent of one of them."""
    return bool(pack_tangents([*map(tf.convert_to_tensor, arrays)]).tangents)


def leave_alone(operation: tf.Operation) -> None:
    """Keep TensorFlow's graph optimiser from rewriting this operation."""
    operation._set_attr("_grappler_do_not_remove", tf.compat.v1.AttrValue(b=True))


def differentiate_by(operation: tf.Operation, gradient: Callable[..., Any]) -> None:
    """Give this operation a gradient of its own."""
    operation._gradient_function = gradient


def abort_collectives(why: str) -> None:
    """End all collectives of this process, those to come too: a device that has failed would be waited for."""
    context.context().abort_collective_ops(tf.errors.ABORTED, why)

"""The gradient of a stack on four devices by what its framework offers for many: NAME of the folder.

Prints {"error": of the gradient, over the largest number in it, "held": bytes that one device holds, "whole": bytes of
the stack}. The batch is small: what is held besides parameters is a fraction of the stack.
"""

from __future__ import annotations

import importlib
import json
import sys

from implementations import load
from implementations.check.dialect import flat, from_numpy, to_numpy
from implementations.devices.ways import problem
from implementations.environment import pin

CUT, BATCH = {"data": 1}, {"data": 0}


def in_jax(folder, devices, params, carry, dcarry):
    """Placed, and no more: jax.jit finds what must be sent. All of it is sent in loops, for one layer at a time."""
    import jax

    mesh = devices.make_mesh(data=4)

    def gradient(params, carry, dcarry):
        _, pullback = jax.vjp(lambda params: folder.scan_layers(folder.LAYERS["mlp"], params, carry)[0], params)
        return pullback(dcarry)[0]

    placed = devices.shard_layers(params, mesh, CUT), *(devices.shard(a, mesh, BATCH) for a in (carry, dcarry))
    found, counts = importlib.import_module("jax_scan.graph_on_mesh").run_on_mesh(gradient, *placed)
    if "outside" in counts["collectives"] or not counts["collectives"]["all-gather"]:
        raise ValueError(counts)
    return devices.whole(found, mesh, CUT), counts["param_bytes"] + counts["temp_bytes"]


def in_tensorflow(folder, devices, params, carry, dcarry):
    """By the variables of a MirroredStrategy."""
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(4)])
    with strategy.scope():
        mirrored = tf.nest.map_structure(tf.Variable, params)

    def gradient(carry, dcarry):
        with tf.GradientTape() as tape:
            y, _ = folder.scan_layers(folder.LAYERS["mlp"], mirrored, carry)
        gradients = tape.gradient(y, tf.nest.flatten(mirrored), dcarry)
        return tf.distribute.get_replica_context().all_reduce("sum", gradients)

    parts = [tf.split(a, 4) for a in (carry, dcarry)]
    args = [
        strategy.experimental_distribute_values_from_function(lambda at, own=own: own[at.replica_id_in_sync_group])
        for own in parts
    ]
    found = [strategy.experimental_local_results(a)[0] for a in tf.function(strategy.run)(gradient, args)]
    held = sum(strategy.experimental_local_results(a)[3].numpy().nbytes for a in tf.nest.flatten(mirrored))
    return tf.nest.pack_sequence_as(params, found), held


def main(name):
    folder, devices = load(name), importlib.import_module(f"{name}.devices")
    devices.start(4)
    *given, exact, _ = problem("mlp", 64, False, 4)
    found, held = {"jax_scan": in_jax, "tf_while": in_tensorflow}[name](
        folder, devices, *from_numpy(folder, tuple(given))
    )
    pairs = zip(flat(to_numpy(folder, found)), flat(exact.dparams), strict=True)
    error = max(float(abs(a - b).max() / abs(b).max()) for a, b in pairs)
    print(json.dumps({"error": error, "held": held, "whole": sum(a.nbytes for a in flat(given[0]))}))


if __name__ == "__main__":
    pin()
    main(sys.argv[1])

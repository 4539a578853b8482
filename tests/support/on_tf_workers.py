"""A stack fully sharded over two processes of TensorFlow, the cluster that TF_CONFIG names, one CPU each.

Prints JSON lines: {"error": of this process's parts}, then one for each step. The second process ends itself after two;
the first says {"ended": exception, its words, seconds after its last step}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

import numpy as np
import tensorflow as tf

import tf_while
from implementations.check.dialect import from_numpy
from implementations.devices.ways import problem
from tf_while import devices

MLP: Any = tf_while.LAYERS["mlp"]
CUT, BATCH = {"data": 1}, {"data": 0}


def gradient(layer):
    def run(params, carry, dcarry):
        (carry, _), (dparams, dinit, _) = tf_while.vjp_layers(layer, params, carry, cotangents=(dcarry, None))
        return carry, dparams, dinit

    return run


def main(is_second):
    tf.distribute.MultiWorkerMirroredStrategy()  # which connects the processes
    *given, exact, _ = problem("mlp", 4, False, 16)
    params, carry, dcarry, dparams = from_numpy(tf_while, (*given, exact.dparams))
    mesh = devices.make_mesh(data=2)
    layer = devices.fully_sharded(MLP, mesh, "data")
    run = devices.on_mesh(gradient(layer), mesh, (CUT, BATCH, BATCH), (BATCH, CUT, BATCH))
    params, right = (devices.shard_layers(tree, mesh, CUT) for tree in (params, dparams))
    last = time.monotonic()
    try:
        for step in range(1000):
            results = run(params, carry, dcarry)
            if step == 0:
                tell(error=error(results[1], right))
            tell(step=step + 1)
            last = time.monotonic()
            if step == 1 and is_second:
                os.kill(os.getpid(), signal.SIGKILL)
    except tf.errors.OpError as ended:
        tell(ended=type(ended).__name__, words=str(ended), seconds=time.monotonic() - last)
    os._exit(0)  # an ordinary exit waits 40 seconds for the cluster


def error(results, right):
    pairs = zip(tf.nest.flatten(results), tf.nest.flatten(right), strict=True)
    parts = (of for a, b in pairs for of in zip(a.parts, b.parts, strict=True))
    own = [(part.numpy(), of.numpy()) for part, of in parts if of is not None]
    return float(max(np.abs(a - b).max() / np.abs(b).max() for a, b in own))


def tell(**line):
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1] == "second")

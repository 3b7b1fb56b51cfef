"""The matrix-product peak of the machine in JAX: `python matrix_product.py SIDE DTYPE`."""

from __future__ import annotations

import json
import statistics
import sys
import time

REPEATS = 20

if __name__ == "__main__":
    import jax
    import jax.numpy as jnp

    side, dtype = int(sys.argv[1]), sys.argv[2]
    a, b = jax.random.normal(jax.random.key(0), (2, side, side)).astype(jnp.dtype(dtype))
    product = jax.jit(lambda a, b: a @ b)
    product(a, b).block_until_ready()
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        product(a, b).block_until_ready()
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"gflops": 2 * side**3 / statistics.median(seconds) / 1e9}))

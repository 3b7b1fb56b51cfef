"""What one writes first in Flax: `nn.Conv`, `nn.max_pool`, and a jitted step for each batch."""

from __future__ import annotations

import time

from task import STARTED, answer, digits, read_task

if __name__ == "__main__":
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    imported = time.perf_counter() - STARTED
    task = read_task()

    class Network(nn.Module):
        """The network of the task."""

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            """Logits."""
            for i in range(task.conv_layers):
                size, padding = ((5, 5), "VALID") if i == 0 else ((3, 3), "SAME")
                x = nn.relu(nn.Conv(task.filters, size, padding=padding)(x))
                x = nn.max_pool(x, (2, 2), (2, 2))
            x = x.reshape(len(x), -1)
            for _ in range(task.dense_layers):
                x = nn.relu(nn.Dense(task.units)(x))
            return nn.Dense(10)(x)

    images, labels = digits(task.images)
    scaled = images.astype(np.float32) / 255
    moments, losses, accuracies = [time.perf_counter()], [], []
    network, optimizer = Network(), optax.adam(task.learning_rate)
    parameters = jax.jit(network.init)(jax.random.key(0), scaled[:1])
    state = optimizer.init(parameters)

    @jax.jit
    def step(parameters, state, x, y):
        """One batch."""

        def loss(parameters):
            logits = network.apply(parameters, x)
            right = (logits.argmax(-1) == y).sum()
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return losses.mean(), (losses.sum(), right)

        gradients, sums = jax.grad(loss, has_aux=True)(parameters)
        updates, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state, sums

    rng = np.random.default_rng(0)
    for _ in range(task.epochs):
        order = rng.permutation(task.images)
        total, right = jnp.float32(0), jnp.int32(0)
        for first in range(0, task.images, task.batch_size):
            rows = order[first : first + task.batch_size]
            parameters, state, sums = step(parameters, state, scaled[rows], labels[rows])
            total, right = total + sums[0], right + sums[1]
        jax.block_until_ready((parameters, total, right))
        losses.append(float(total) / task.images)
        accuracies.append(int(right) / task.images)
        moments.append(time.perf_counter())
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    answer(["jax", "flax", "optax"], imported, count, [moments], [losses], [accuracies])

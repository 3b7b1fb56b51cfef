"""Small arrays packed into one vector: nothing but the number of kernels changes."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from jaxmnist.engine.lanes import LARGE, Packing
from jaxmnist.engine.training import OPTIMIZERS, TrainingState, weight_decay
from jaxmnist.models.interface import is_kernel

TREE = {
    "conv": {"kernel": (3, 3, 2, 4), "bias": (4,)},
    "dense": {"kernel": (LARGE // 4, 4), "bias": (4,)},
    "scale": {"half": (5,), "number": ()},
}


def arrays(seed):
    generator = np.random.default_rng(seed)
    tree = jax.tree.map(
        lambda shape: generator.normal(size=shape).astype(np.float32),
        TREE,
        is_leaf=lambda part: isinstance(part, tuple),
    )
    tree["scale"]["half"] = tree["scale"]["half"].astype(np.float16)
    return tree


def packing_of(tree):
    return Packing.of(tree, jax.tree_util.tree_map_with_path(is_kernel, tree))


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


def test_packing_and_back():
    tree = arrays(0)
    packing = packing_of(tree)
    packed = packing.pack(tree)
    assert packed.vector.shape == (3 * 3 * 2 * 4 + 4 + 4 + 1,)
    assert [x.shape for x in packed.others] == [(LARGE // 4, 4), (5,)]  # large; of another dtype
    assert_same(packing.unpack(packed), tree)
    stack = jax.tree.map(lambda *each: np.stack(each), packed, packing.pack(arrays(1)))
    assert_same(packing.unpack(stack), jax.tree.map(lambda *e: np.stack(e), tree, arrays(1)))


def test_nothing_to_pack():
    assert packing_of({"bias": np.zeros(3, np.float32)}) is None
    assert packing_of(jax.tree.map(lambda x: x.astype(np.float64), arrays(0))) is None


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_computes_the_same(name):
    """Bit for bit, with moments that are unpacked and packed again, as by a checkpoint."""
    packing = packing_of(arrays(0))

    @jax.jit
    def step(parameters, state, gradients):
        packed = not isinstance(parameters, dict)
        decay = weight_decay(1e-2, packing.decayed if packed else None)
        optimizer = OPTIMIZERS[name](1e-3, decay)
        updates, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state

    optimizer = OPTIMIZERS[name](1e-3, weight_decay(1e-2, None))
    parameters, packed = arrays(0), packing.pack(arrays(0))
    state, packed_state = optimizer.init(parameters), optimizer.init(packed)
    for seed in range(1, 4):
        parameters, state = step(parameters, state, arrays(seed))
        packed, packed_state = step(packed, packed_state, packing.pack(arrays(seed)))
        whole = TrainingState(packed, packed_state, 0, 0, {}, {})
        unpacked = packing.unpacked(jax.device_get(whole))
        assert_same(unpacked.optimizer_state, state)
        packed_state = packing.packed(unpacked).optimizer_state
    assert_same(packing.unpack(packed), parameters)


def test_collections_stay_as_they_are():
    """Also those of the parameters' structure, such as their running mean."""
    packing, weights = packing_of(arrays(0)), arrays(0)
    state = TrainingState(weights, {"mean": weights}, 0, 0, {"mean": weights}, {})
    packed = packing.packed(state)
    assert packed.collections is state.collections
    assert_same(packed.parameters, packing.pack(weights))
    assert_same(packed.optimizer_state, {"mean": packing.pack(weights)})
    assert_same(packing.unpacked(packed), state)

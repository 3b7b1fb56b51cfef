"""The small arrays of a network's weights as one vector, for optimizers that compute elementwise.

For each array, an optimizer such as Adam has three kernels to compile, on a CPU some 25 ms each.
Most arrays of a network are small: together they need three.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# The elements of an array that is not packed, as copying its gradient would take time.
LARGE = 2**18


State = Any  # a `TrainingState`, whose module imports this one


class Packed(NamedTuple):
    """A tree of arrays.

    vector: float32[P], the P elements of the small ones. others: the arrays that are not small.
    """

    vector: Any
    others: tuple[Any, ...]


@dataclass(frozen=True)
class Packing:
    """How the arrays of a tree of this structure are packed.

    shapes: of all arrays, in the tree's order. small: whether each stands in the vector.
    """

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    small: tuple[bool, ...]

    @classmethod
    def of(cls, parameters: Any) -> Packing | None:
        """The packing of trees like `parameters`; None where it would save nothing."""
        leaves, structure = jax.tree.flatten(parameters)
        small = tuple(x.dtype == np.float32 and math.prod(x.shape) < LARGE for x in leaves)
        return cls(structure, tuple(x.shape for x in leaves), small) if sum(small) > 1 else None

    def pack(self, tree: Any) -> Packed:
        """A tree of this structure, packed; arrays on the host or in a program."""
        leaves = list(zip(jax.tree.leaves(tree), self.small, strict=True))
        flat = [leaf.reshape(-1) for leaf, small in leaves if small]
        on_host = isinstance(flat[0], np.ndarray)
        vector = np.concatenate(flat) if on_host else jnp.concatenate(flat)
        return Packed(vector, tuple(leaf for leaf, small in leaves if not small))

    def unpack(self, packed: Packed) -> Any:
        """The inverse of `pack`, of one tree or of a stack of them."""
        stack = packed.vector.shape[:-1]
        others, leaves, start = iter(packed.others), [], 0
        for shape, small in zip(self.shapes, self.small, strict=True):
            if small:
                end = start + math.prod(shape)
                leaves.append(packed.vector[..., start:end].reshape((*stack, *shape)))
                start = end
            else:
                leaves.append(next(others))
        return self.structure.unflatten(leaves)

    def packed(self, state: State) -> State:
        """A training state with its parameters and moments packed; collections stay as they are."""
        return self._replaced(
            state, lambda part: jax.tree.structure(part) == self.structure, self.pack
        )

    def unpacked(self, state: State) -> State:
        """The inverse of `packed`."""
        return self._replaced(state, lambda part: isinstance(part, Packed), self.unpack)

    def _replaced(
        self, state: State, chosen: Callable[[Any], bool], new: Callable[[Any], Any]
    ) -> State:
        def each(tree: Any) -> Any:
            return jax.tree.map(
                lambda part: new(part) if chosen(part) else part, tree, is_leaf=chosen
            )

        return state._replace(
            parameters=each(state.parameters), optimizer_state=each(state.optimizer_state)
        )

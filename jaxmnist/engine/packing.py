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

    shapes: of all arrays, in the tree's order. decays: whether weight decay applies to each.
    small: whether each stands in the vector.
    """

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    decays: tuple[bool, ...]
    small: tuple[bool, ...]

    @classmethod
    def of(cls, parameters: Any, decayed: Any) -> Packing | None:
        """The packing of trees like `parameters`; None where it would save nothing.

        decayed: a tree of the same structure, which says what weight decay applies to.
        """
        leaves, structure = jax.tree.flatten(parameters)
        small = tuple(x.dtype == np.float32 and math.prod(x.shape) < LARGE for x in leaves)
        shapes, decays = tuple(x.shape for x in leaves), tuple(jax.tree.leaves(decayed))
        return cls(structure, shapes, decays, small) if sum(small) > 1 else None

    @property
    def order(self) -> list[int]:
        """The places of the small arrays as the vector has them: those that decay come first."""
        small = [place for place, small in enumerate(self.small) if small]
        return sorted(small, key=lambda place: not self.decays[place])

    @property
    def decayed(self) -> Packed:
        """What weight decay applies to, packed: bool[P], and a bool for each other array."""
        sizes = {place: math.prod(self.shapes[place]) for place in self.order}
        decaying = sum(size for place, size in sizes.items() if self.decays[place])
        others = (d for d, small in zip(self.decays, self.small, strict=True) if not small)
        return Packed(jnp.arange(sum(sizes.values())) < decaying, tuple(others))

    def pack(self, tree: Any) -> Packed:
        """A tree of this structure, packed; arrays on the host or in a program."""
        leaves = jax.tree.leaves(tree)
        flat = [leaves[place].reshape(-1) for place in self.order]
        on_host = isinstance(flat[0], np.ndarray)
        vector = np.concatenate(flat) if on_host else jnp.concatenate(flat)
        others = (leaf for leaf, small in zip(leaves, self.small, strict=True) if not small)
        return Packed(vector, tuple(others))

    def unpack(self, packed: Packed) -> Any:
        """The inverse of `pack`, of one tree or of a stack of them."""
        stack = packed.vector.shape[:-1]
        parts, start = {}, 0
        for place in self.order:
            shape = self.shapes[place]
            end = start + math.prod(shape)
            parts[place] = packed.vector[..., start:end].reshape((*stack, *shape))
            start = end
        others = iter(packed.others)
        leaves = [parts[i] if small else next(others) for i, small in enumerate(self.small)]
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

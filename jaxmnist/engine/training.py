"""Training and evaluation as pure functions of arrays on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxmnist.models.network import Model, Parameters
from jaxmnist.settings import TrainingSettings

# Stands for a missing image: the last batch of an epoch or of an evaluation may be short.
NO_IMAGE = -1


class TrainingState(NamedTuple):
    """The state of a trial between two steps.

    loss_sum: float[], the cross-entropy summed over the images of the epoch so far.
    correct: int32[], the number of these images that were correctly classified.
    """

    parameters: Any
    optimizer_state: Any
    loss_sum: jax.Array
    correct: jax.Array


class Sums(NamedTuple):
    """Cross-entropy and number of correct classifications, summed over images: float[], int32[]."""

    loss_sum: jax.Array
    correct: jax.Array


class Validation(NamedTuple):
    """The result of an evaluation.

    loss_sum: float[], the cross-entropy summed over the images.
    right: bool[S, B], whether each image of the batches is correctly classified; False where a
      batch has no image.
    """

    loss_sum: jax.Array
    right: jax.Array


OPTIMIZERS = {"adam": optax.adam}


def optimizer(settings: TrainingSettings) -> optax.GradientTransformation:
    """The optimizer of `settings`, with its learning rate."""
    return OPTIMIZERS[settings.optimizer](settings.learning_rate)


def epoch_order(images: int, seed: int, epoch: int) -> np.ndarray:
    """The random order of images in an epoch, the same for all trials: int32[images]."""
    return np.random.default_rng([seed, epoch, 2]).permutation(images).astype(np.int32)


def batches(order: np.ndarray, batch_size: int, block: int) -> np.ndarray:
    """`order` divided into batches, and each batch into blocks, padded with `NO_IMAGE`.

    Returns int32[S, K, block]: S batches of K blocks.
    """
    steps, blocks = -(-len(order) // batch_size), -(-batch_size // block)
    rows = np.full((steps, batch_size), NO_IMAGE, np.int32)
    rows.reshape(-1)[: len(order)] = order
    cut = np.full((steps, blocks * block), NO_IMAGE, np.int32)
    cut[:, :batch_size] = rows
    return cut.reshape(steps, blocks, block)


def start_training(parameters: Parameters, settings: TrainingSettings) -> TrainingState:
    """The state before the first step, in host memory.

    Adam's moments and count start at zero, so nothing has to be compiled to create them.
    """

    def start(parameters: Parameters) -> TrainingState:
        moments = optimizer(settings).init(parameters)
        return TrainingState(parameters, moments, *_no_sums(parameters))

    shapes = jax.eval_shape(start, parameters)
    zeros: TrainingState = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    return zeros._replace(parameters=parameters)


def start_epoch(state: TrainingState) -> TrainingState:
    """The state with the epoch's sums reset to zero, for one trial or a stack of trials."""
    sums = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state[2:])
    return TrainingState(*state[:2], *sums)


def _no_sums(parameters: Any) -> Sums:
    """Sums of zero; the loss has the dtype of the parameters."""
    precision = jnp.result_type(*jax.tree.leaves(parameters))
    return Sums(jnp.zeros((), precision), jnp.zeros((), jnp.int32))


def _judge(logits: jax.Array, labels: jax.Array, present: jax.Array) -> Validation:
    """The summed cross-entropy of the present images, and which are correctly classified."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    right = (logits.argmax(-1) == labels) & present
    return Validation(jnp.where(present, losses, 0).sum(), right)


def train_block(model: Model, settings: TrainingSettings) -> Callable[..., TrainingState]:
    """The function that trains on the batches first, …, last − 1 of an epoch.

    Returns a pure function of (state, images [N, H, W, C], labels int32[N],
    batches int32[S, K, B], first int32[], last int32[]) that returns the state after these batches.
    A batch's gradient is that of the mean loss over its real images, summed over its K blocks.
    """
    update = optimizer(settings).update

    def step(
        state: TrainingState, images: jax.Array, labels: jax.Array, batch: jax.Array
    ) -> TrainingState:
        """The state after one batch int32[K, B]."""
        count = (batch != NO_IMAGE).sum()

        def loss(logits: jax.Array, block: jax.Array) -> tuple[jax.Array, Sums]:
            judged = _judge(logits, labels[block], block != NO_IMAGE)
            sums = Sums(judged.loss_sum, judged.right.sum(dtype=jnp.int32))
            return sums.loss_sum / count, sums

        gradients, sums = model.gradient(state.parameters, lambda block: images[block], loss, batch)
        updates, optimizer_state = update(gradients, state.optimizer_state, state.parameters)
        return TrainingState(
            optax.apply_updates(state.parameters, updates),
            optimizer_state,
            state.loss_sum + sums.loss_sum,
            state.correct + sums.correct,
        )

    def block(
        state: TrainingState,
        images: jax.Array,
        labels: jax.Array,
        batches: jax.Array,
        first: jax.Array,
        last: jax.Array,
    ) -> TrainingState:
        after: TrainingState = lax.fori_loop(
            first, last, lambda i, state: step(state, images, labels, batches[i]), state
        )
        return after

    return block


def evaluate(model: Model) -> Callable[..., Validation]:
    """The function that computes a network's loss and which images it classifies correctly.

    Returns a pure function of (parameters, images [N, H, W, C], labels int32[N],
    batches int32[S, B]) that evaluates the images whose indices are in `batches`.
    """

    def run(
        parameters: Parameters, images: jax.Array, labels: jax.Array, batches: jax.Array
    ) -> Validation:
        def add_batch(total: jax.Array, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = model.outputs(parameters, images[batch]).logits
            judged = _judge(logits, labels[batch], batch != NO_IMAGE)
            return total + judged.loss_sum, judged.right

        return Validation(*lax.scan(add_batch, _no_sums(parameters).loss_sum, batches))

    return run


def apply(model: Model, output: str, block: int) -> Callable[..., jax.Array]:
    """The function of (parameters, images [N, H, W, C]) that returns 'logits' or 'features'.

    N must be a multiple of `block`, the number of images computed at a time; the result is
    float32[N, D].
    """

    def run(parameters: Parameters, images: jax.Array) -> jax.Array:
        blocks = images.reshape(-1, block, *images.shape[1:])
        values = lax.map(lambda part: getattr(model.outputs(parameters, part), output), blocks)
        flat: jax.Array = values.reshape(len(images), -1)
        return flat

    return run


def frozen_where_diverged(
    train: Callable[..., TrainingState],
) -> Callable[..., TrainingState]:
    """`train` of one lane, modified to keep the old weights once the loss is not finite."""

    def run(state: TrainingState, *shared: jax.Array) -> TrainingState:
        after = train(state, *shared)
        sound = jnp.isfinite(after.loss_sum)
        kept = jax.tree.map(lambda new, old: jnp.where(sound, new, old), after[:2], state[:2])
        return after._replace(parameters=kept[0], optimizer_state=kept[1])

    return run

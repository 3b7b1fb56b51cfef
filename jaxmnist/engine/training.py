"""Training and evaluation as pure functions of arrays on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxmnist.engine.augmentation import augmentation
from jaxmnist.engine.optimizers import SCHEDULES, averaged, optimizer
from jaxmnist.engine.packing import Packing
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.network import NUMBERS, DataSpec, Model, Network, Parameters, StepInputs
from jaxmnist.training_settings import TrainingSettings

# Stands for a missing image: the last batch of an epoch or of an evaluation may be short.
NO_IMAGE = -1


class TrainingState(NamedTuple):
    """A trial between two steps.

    loss_sum: float[], the epoch's cross-entropy so far, summed over its images.
    correct: int32[], the number of the epoch's images so far that were classified correctly.
    collections: what else the network changes as it trains, such as BatchNorm's statistics.
    constants: see `constants_of`; trials that differ in these alone share a program.
    """

    parameters: Any
    optimizer_state: Any
    loss_sum: jax.Array
    correct: jax.Array
    collections: Any
    constants: Any


# What a network computes with: its parameters, and its other collections.
Weights = tuple[Parameters, Any]


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


def constants_of(
    settings: TrainingSettings,
    seed: int,
    index: int,
    dtype: Any = np.float32,
    numbers: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The numbers of a trial that are arguments of its program: float[] or uint32[].

    Args:
      settings: of the trial.
      seed, index: of the trial; its randomness comes from them.
      dtype: of the floats: that of the parameters.
      numbers: see `Network.numbers`; they stand under 'network'.
    """
    return {
        **{name: np.asarray(getattr(settings, name), dtype) for name in NUMBERS},
        "seed": np.asarray(seed, np.uint32),
        "index": np.asarray(index, np.uint32),
        "network": {name: np.asarray(value, dtype) for name, value in (numbers or {}).items()},
    }


def key_of(constants: Mapping[str, jax.Array], step: jax.Array) -> jax.Array:
    """The key of a step of a trial, counted over all epochs."""
    key = jax.random.key(constants["seed"], impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(key, constants["index"]), step)


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


def start_training(
    parameters: Parameters,
    transformation: optax.GradientTransformation,
    constants: Mapping[str, Any],
    collections: Any = None,
    *,
    computed: bool = False,
) -> TrainingState:
    """The state before the first step, in host memory.

    Args:
      parameters: initial weights, or their shapes.
      transformation: the optimizer.
      constants: see `constants_of`.
      collections: of the network, initially, or their shapes.
      computed: compute the optimizer's first state; else it is zero, as that of `OPTIMIZERS` is.
    """
    zeros = jax.eval_shape(transformation.init, parameters)
    moments = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), zeros)
    if computed:
        moments = jax.device_get(transformation.init(parameters))
    loss_sum, correct = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(_no_sums, parameters)
    )
    return TrainingState(parameters, moments, loss_sum, correct, collections or {}, dict(constants))


def first_state(
    network: Network,
    hyperparameters: Hyperparameters,
    data: DataSpec,
    settings: TrainingSettings,
    weights: Parameters,
    *,
    seed: int = 0,
    index: int = 0,
    computed: bool = False,
) -> TrainingState:
    """The state of a trial before its first step: see `start_training`.

    Args:
      network, hyperparameters, data: what is trained.
      settings: of the search; the trial's own hyperparameters of training take their place.
      weights: initially, or their shapes.
      seed, index: of the trial.
      computed: compute the first state of a network's own optimizer; else shapes alone are right.
    """
    settings = network.training(settings, hyperparameters, data)
    constants = constants_of(settings, seed, index, numbers=network.numbers(hyperparameters))
    parameters, collections = network.split(weights)
    own = network.optimizer(hyperparameters, data)
    return start_training(
        parameters,
        optimizer(settings, constants, own),
        constants,
        collections,
        computed=computed and own is not None,
    )


def trained_weights(state: TrainingState) -> Weights:
    """What the network computes with: the average of its parameters, where one is kept."""
    return averaged(state.optimizer_state, state.parameters), state.collections


def start_epoch(state: TrainingState) -> TrainingState:
    """The state with the epoch's sums reset to zero, for one trial or a stack of trials."""
    sums: dict[str, Any] = {name: getattr(state, name) for name in ("loss_sum", "correct")}
    zeros: dict[str, Any] = {name: np.zeros(x.shape, x.dtype) for name, x in sums.items()}
    return state._replace(**zeros)


def _no_sums(parameters: Any) -> Sums:
    """Sums of zero; the loss has the dtype of the parameters, float32 at least."""
    precision = jnp.promote_types(jnp.result_type(*jax.tree.leaves(parameters)), jnp.float32)
    return Sums(jnp.zeros((), precision).real, jnp.zeros((), jnp.int32))


@jax.custom_vjp
def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The cross-entropy of each image, float[N], of logits float[N, classes] and int32[N].

    It is NaN where a logit is not finite. Optax's has the same values, but indexes by label: gather
    and scatter, and the gradient of a logarithm of a sum, are ten more kernels to compile.
    """
    return _cross_entropy_forward(logits, labels)[0]


def _cross_entropy_forward(
    logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    largest = logits.max(-1)
    powers = jnp.exp(logits - largest[:, None])
    total, is_label = powers.sum(-1), labels[:, None] == jnp.arange(logits.shape[-1])
    chosen = jnp.where(is_label, logits, 0).sum(-1)
    return largest + jnp.log(total) - chosen, (powers, total, is_label)


def _cross_entropy_backward(
    kept: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array, None]:
    powers, total, is_label = kept
    return cotangent[:, None] * (powers / total[:, None] - is_label), None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def _judge(logits: jax.Array, labels: jax.Array, present: jax.Array) -> Validation:
    """The summed cross-entropy of the present images, and which are correctly classified."""
    losses = cross_entropy(logits, labels)
    right = (logits.argmax(-1) == labels) & present
    return Validation(jnp.where(present, losses, 0).sum(), right)


def _above_mean(logits: jax.Array, labels: jax.Array, present: jax.Array) -> jax.Array:
    """By how much the labels' logits exceed the mean logit, summed over the present images.

    Added to the cross-entropy with the factor s, it smooths the labels: it makes it the
    cross-entropy with targets of 1 − s for the label and s / classes for each class besides.

    Reference: Szegedy et al., 'Rethinking the Inception architecture for computer vision', 2016.
    """
    is_label = labels[:, None] == jnp.arange(logits.shape[-1])
    above = jnp.where(is_label, logits, 0).sum(-1) - logits.mean(-1)
    return jnp.where(present, above, 0).sum()


def train_block(
    model: Model,
    settings: TrainingSettings,
    transformation: optax.GradientTransformation | None = None,
    tail: int = 0,
    packing: Packing | None = None,
    decayed: Any = None,
) -> Callable[..., TrainingState]:
    """The function that trains on the batches first, …, last − 1 of an epoch.

    Args:
      model: the network.
      settings: of the trials.
      transformation: the network's own optimizer; None for the one that `settings` name.
      tail: number of images of the last batch where it may not be filled up, because the network
        lets images of a batch depend on each other; else 0.
      packing: how the state's parameters and moments are packed; None if they are not.
      decayed: whether weight decay applies to each parameter, a tree like them: see
        `Network.decayed`; None for those that `is_kernel`.

    Returns:
      A pure function of (state, images [N, H, W, C], labels int32[N], batches int32[S, K, B],
      first int32[], last int32[], before int32[]) that returns the state afterwards; `before` is
      the number of steps of earlier epochs. A batch's gradient is that of the mean loss over its
      real images, summed over its K blocks.
    """

    def step(
        state: TrainingState,
        images: jax.Array,
        labels: jax.Array,
        batch: jax.Array,
        number: jax.Array,
        steps: int,
    ) -> TrainingState:
        """The state after one batch int32[K, B], the step `number` of `steps` in all."""
        count = (batch != NO_IMAGE).sum()

        def loss(logits: jax.Array, block: jax.Array) -> tuple[jax.Array, Sums]:
            judged = _judge(logits, labels[block], block != NO_IMAGE)
            sums = Sums(judged.loss_sum, judged.right.sum(dtype=jnp.int32))
            minimized = sums.loss_sum
            if settings.label_smoothing > 0:
                smoothing = state.constants["label_smoothing"]
                above = _above_mean(logits, labels[block], block != NO_IMAGE)
                minimized += smoothing * above
            return minimized / count, sums

        key, numbers = key_of(state.constants, number), state.constants["network"]
        inputs = StepInputs(state.collections, key, numbers)
        images_of = augmentation(settings, state.constants, images, key)
        parameters = packing.unpack(state.parameters) if packing else state.parameters
        gradients, sums, collections = model.gradient(parameters, images_of, loss, batch, inputs)
        gradients = packing.pack(gradients) if packing else gradients
        schedule = SCHEDULES.get(settings.schedule)
        factor = schedule(steps)(number) if schedule else None
        decays = packing.decayed if packing else decayed
        update = optimizer(settings, state.constants, transformation, factor, decays).update
        updates, optimizer_state = update(gradients, state.optimizer_state, state.parameters)
        return state._replace(
            parameters=optax.apply_updates(state.parameters, updates),
            optimizer_state=optimizer_state,
            loss_sum=state.loss_sum + sums.loss_sum,
            correct=state.correct + sums.correct,
            collections=collections,
        )

    def block(
        state: TrainingState,
        images: jax.Array,
        labels: jax.Array,
        batches: jax.Array,
        first: jax.Array,
        last: jax.Array,
        before: jax.Array | int = 0,
    ) -> TrainingState:
        """The state after the batches first, …, last − 1."""
        steps = len(batches) * settings.epochs

        def train(batch: jax.Array, i: jax.Array, state: TrainingState) -> TrainingState:
            return step(state, images, labels, batch, before + i, steps)

        whole = len(batches) - 1 if tail else len(batches)
        after: TrainingState = lax.fori_loop(
            first, jnp.minimum(last, whole), lambda i, state: train(batches[i], i, state), state
        )
        if not tail:
            return after
        rest = batches[whole].reshape(1, -1)[:, :tail]
        ended: TrainingState = lax.cond(
            last > whole, lambda state: train(rest, jnp.int32(whole), state), lambda s: s, after
        )
        return ended

    return block


def evaluate(model: Model) -> Callable[..., Validation]:
    """The function that computes a network's loss and which images it classifies correctly.

    Returns a pure function of (weights, images [N, H, W, C], labels int32[N],
    batches int32[S, B]) that evaluates the images whose indices are in `batches`; weights are
    parameters and collections.
    """

    def run(
        weights: Weights, images: jax.Array, labels: jax.Array, batches: jax.Array
    ) -> Validation:
        parameters, collections = weights

        def add_batch(total: jax.Array, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = model.outputs(parameters, images[batch], collections).logits
            judged = _judge(logits, labels[batch], batch != NO_IMAGE)
            return total + judged.loss_sum, judged.right

        return Validation(*lax.scan(add_batch, _no_sums(parameters).loss_sum, batches))

    return run


def apply(model: Model, output: str, block: int) -> Callable[..., jax.Array]:
    """The function of (weights, images [N, H, W, C]) that returns 'logits' or 'features'.

    N must be a multiple of `block`, the number of images computed at a time; the result is
    float32[N, D].
    """

    def run(weights: Weights, images: jax.Array) -> jax.Array:
        parameters, collections = weights
        blocks = images.reshape(-1, block, *images.shape[1:])
        values = lax.map(
            lambda part: getattr(model.outputs(parameters, part, collections), output), blocks
        )
        flat: jax.Array = values.reshape(len(images), -1)
        return flat

    return run


def frozen_where_diverged(
    train: Callable[..., TrainingState],
) -> Callable[..., TrainingState]:
    """`train` of one lane, but with the weights frozen if the loss has become non-finite."""

    def run(state: TrainingState, *shared: jax.Array) -> TrainingState:
        after = train(state, *shared)
        sound = jnp.isfinite(after.loss_sum)

        def kept(name: str) -> Any:
            new, old = getattr(after, name), getattr(state, name)
            return jax.tree.map(lambda new, old: jnp.where(sound, new, old), new, old)

        names = ("parameters", "optimizer_state", "collections")
        return after._replace(**{name: kept(name) for name in names})

    return run

"""Training and evaluation as pure functions of arrays on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxmnist.engine.lanes import Packing
from jaxmnist.models.interface import (
    NUMBERS,
    Images,
    Parameters,
    is_kernel,
    join_weights,
    split_weights,
    stream_key,
)
from jaxmnist.models.network import BoundNetwork, Model
from jaxmnist.runs.trial import Key
from jaxmnist.settings import TrainingSettings

# --- The seeds of a rerun ---


def weights_seed(seed: int, key: Key) -> int:
    """Return the seed of a training's initial weights and of all that is random in its steps.

    It is the search's for a trial, and depends on (seed, index, rerun) for a rerun: an int from 0
    to 2³² − 1.
    """
    return _drawn(seed, key.index, key.rerun, 4) if key.rerun is not None else seed


def order_seed(seed: int, key: Key) -> int:
    """Return the seed of the order of images: the search's, or that of (seed, rerun) for a rerun.

    Reruns of one number have the same orders, whichever trial they repeat: they share programs.
    """
    return _drawn(seed, key.rerun, 5) if key.rerun is not None else seed


def _drawn(*numbers: int) -> int:
    # The last number differs from those of other draws and isn't 0, which would change nothing.
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


# --- Training images shifted and turned at random, on the device ---

STREAM = "augmentation"  # of random numbers


def augmentation(
    settings: TrainingSettings, constants: Mapping[str, Any], images: jax.Array, key: jax.Array
) -> Images:
    """The function that returns some training images of a step as it trains on them.

    Args:
      settings: of the trial; they say what is done.
      constants: its numbers, float[], by the names of the settings.
      images: all training images, uint8 or float[N, H, W, C].
      key: of the step.
    """
    shift, rotation = settings.random_shift, None
    if settings.random_rotation > 0:
        rotation = constants["random_rotation"]
    if not shift and rotation is None:
        return lambda block: images[block]
    return lambda block: augmented(images, block, key, shift, rotation)


def augmented(
    images: jax.Array,
    block: jax.Array,
    key: jax.Array,
    shift: int,
    rotation: jax.Array | None,
) -> jax.Array:
    """Some images, each shifted and turned at random; what comes in from outside repeats the edge.

    Args:
      images: all training images, uint8 or float[N, H, W, C].
      block: int32[B], the indices of the images that are wanted.
      key: of the step.
      shift: the largest shift in rows and in columns, in pixels; a shift is a whole number.
      rotation: the largest angle either way, in degrees, float[]; None for no turning.

    Returns:
      [B, H, W, C], of the dtype of `images` if nothing is turned; else float32, as a turned image
      is interpolated linearly between four pixels.
    """
    height, width = images.shape[1:3]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(stream_key(key, STREAM), block)
    rows, columns = jnp.arange(height), jnp.arange(width)
    shifts = jnp.zeros((len(block), 2), jnp.int32)
    if shift:
        shifts = jax.vmap(lambda key: jax.random.randint(key, (2,), -shift, shift + 1))(keys)
    y, x = rows[None, :] - shifts[:, :1], columns[None, :] - shifts[:, 1:]  # [B, H], [B, W]
    image = block[:, None, None]
    if rotation is None:
        return images[image, y.clip(0, height - 1)[:, :, None], x.clip(0, width - 1)[:, None, :]]
    turns = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(keys)
    angle = (jnp.deg2rad(rotation) * (2 * turns - 1)).astype(jnp.float32)[:, None, None]
    from_center = y[:, :, None] - (height - 1) / 2, x[:, None, :] - (width - 1) / 2
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    source_y = cosine * from_center[0] + sine * from_center[1] + (height - 1) / 2
    source_x = cosine * from_center[1] - sine * from_center[0] + (width - 1) / 2
    above, left = jnp.floor(source_y), jnp.floor(source_x)
    part_y, part_x = (source_y - above)[..., None], (source_x - left)[..., None]

    def pixel(down: int, right: int) -> jax.Array:
        row = (above.astype(jnp.int32) + down).clip(0, height - 1)
        column = (left.astype(jnp.int32) + right).clip(0, width - 1)
        return images[image, row, column].astype(jnp.float32)

    upper = pixel(0, 0) * (1 - part_x) + pixel(0, 1) * part_x
    lower = pixel(1, 0) * (1 - part_x) + pixel(1, 1) * part_x
    return upper * (1 - part_y) + lower * part_y


# --- What changes the weights at a step: optimizer, schedule and moving average ---

MOMENTUM = 0.9  # of SGD
WARM_UP = 0.2  # of a linear schedule: the part of all steps in which the rate rises
Rate = jax.Array | float


def weight_decay(factor: Rate, decayed: Any) -> optax.GradientTransformation:
    """Adds `factor` times the weights to their updates, before these are scaled by the rate.

    Args:
      factor: of the decay.
      decayed: a tree like the weights: whether each array decays, or which elements of it; None
        for those that `is_kernel`.
    """

    def update(updates: Any, state: Any, weights: Any = None) -> tuple[Any, Any]:
        def decay(change: jax.Array, weight: jax.Array, decays: Any) -> jax.Array:
            if decays is False:
                return change
            return change + jnp.where(decays, factor * weight, 0).astype(change.dtype)

        which = jax.tree_util.tree_map_with_path(is_kernel, weights) if decayed is None else decayed
        return jax.tree.map(decay, updates, weights, which), state

    return optax.GradientTransformation(lambda weights: optax.EmptyState(), update)


# Of learning rate and weight decay, which only some of them have.
OPTIMIZERS: dict[
    str, Callable[[Rate, optax.GradientTransformation], optax.GradientTransformation]
] = {
    "adam": lambda rate, decay: optax.adam(rate),
    "adamw": lambda rate, decay: optax.chain(
        optax.scale_by_adam(), decay, optax.scale_by_learning_rate(rate)
    ),
    "nadam": lambda rate, decay: optax.nadam(rate),
    "rmsprop": lambda rate, decay: optax.rmsprop(rate),
    "sgd": lambda rate, decay: optax.sgd(rate, MOMENTUM),
    "lion": lambda rate, decay: optax.chain(
        optax.scale_by_lion(), decay, optax.scale_by_learning_rate(rate)
    ),
}


def linear(steps: int) -> optax.Schedule:
    """Up from nearly 0 to 1 in the first part of the steps, then down to nearly 0 at the last."""

    def factor(step: Any) -> Any:
        rise = max(WARM_UP * steps, 1)
        return jnp.minimum((step + 1) / rise, (steps - step) / (steps - rise + 1))

    return factor


# By how much the learning rate is multiplied at a step, of the number of all steps.
SCHEDULES: dict[str, Callable[[int], optax.Schedule]] = {
    "cosine": lambda steps: optax.cosine_decay_schedule(1.0, steps),
    "linear": linear,
    "one-cycle": lambda steps: optax.cosine_onecycle_schedule(steps, 1.0),
}


class Average(NamedTuple):
    """The state of `moving_average`: steps so far, int32[], and the average, like the weights."""

    steps: jax.Array
    weights: Any


def moving_average(momentum: Rate) -> optax.GradientTransformation:
    """Leaves updates as they are, and keeps the exponential moving average of the weights.

    The average is weighted to be one of the weights after each step so far, without the initial
    ones, as Adam's corrected moments are: after step t, the weights after step s count in
    proportion to momentum^(t − s).
    """

    def init(weights: Any) -> Average:
        return Average(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, weights))

    def update(updates: Any, state: Average, weights: Any = None) -> tuple[Any, Average]:
        steps = state.steps + 1
        new = (1 - momentum) / (1 - momentum**steps)
        average = jax.tree.map(
            lambda old, weight, change: old + (new * (weight + change - old)).astype(old.dtype),
            state.weights,
            weights,
            updates,
        )
        return updates, Average(steps, average)

    return optax.GradientTransformation(init, update)


def averaged(optimizer_state: Any, weights: Any) -> Any:
    """The moving average that an optimizer's state has; `weights` if it has none."""
    parts = jax.tree.leaves(optimizer_state, is_leaf=lambda part: isinstance(part, Average))
    return next((part.weights for part in parts if isinstance(part, Average)), weights)


def optimizer(
    settings: TrainingSettings,
    constants: Mapping[str, Any],
    own: optax.GradientTransformation | None = None,
    factor: Rate | None = None,
    decayed: Any = None,
) -> optax.GradientTransformation:
    """What changes the weights, with the numbers of `constants`.

    Args:
      settings: of the trial.
      constants: see `training.constants_of`.
      own: the network's own optimizer, in place of that of the settings.
      factor: what the schedule multiplies the learning rate by at this step; None for 1.
      decayed: see `weight_decay`.
    """
    rate = constants["learning_rate"]
    rate = rate if factor is None else rate * factor
    decay = weight_decay(constants["weight_decay"], decayed)
    found = own or OPTIMIZERS[settings.optimizer](rate, decay)
    if settings.ema_momentum > 0:
        return optax.chain(found, moving_average(constants["ema_momentum"]))
    return found


# --- Training and evaluation as pure functions of arrays on the device ---

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
) -> dict[str, Any]:
    """The numbers of a trial that are arguments of its program: float[] or uint32[].

    Args:
      settings: of the trial.
      seed, index: of the trial; its randomness comes from them.
      dtype: of the floats: that of the parameters.
    """
    return {
        **{name: np.asarray(getattr(settings, name), dtype) for name in NUMBERS},
        "seed": np.asarray(seed, np.uint32),
        "index": np.asarray(index, np.uint32),
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
    bound: BoundNetwork,
    settings: TrainingSettings,
    weights: Parameters,
    *,
    seed: int = 0,
    index: int = 0,
    computed: bool = False,
) -> TrainingState:
    """The state of a trial before its first step: see `start_training`.

    Args:
      bound: what is trained.
      settings: of the trial; see `BoundNetwork.training`.
      weights: initially, or their shapes.
      seed, index: of the trial.
      computed: compute the first state of a network's own optimizer; else shapes alone are right.
    """
    constants = constants_of(settings, seed, index)
    parameters, collections = split_weights(weights)
    own = bound.optimizer
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
        `BoundNetwork.decayed`; None for those that `is_kernel`.

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

        key = key_of(state.constants, number)
        images_of = augmentation(settings, state.constants, images, key)
        parameters = packing.unpack(state.parameters) if packing else state.parameters
        gradients, sums, collections = model.gradient(
            parameters, state.collections, images_of, loss, batch, key
        )
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
        whole = join_weights(*weights)

        def add_batch(total: jax.Array, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = model.outputs(whole, images[batch]).logits
            judged = _judge(logits, labels[batch], batch != NO_IMAGE)
            return total + judged.loss_sum, judged.right

        return Validation(*lax.scan(add_batch, _no_sums(weights[0]).loss_sum, batches))

    return run


def apply(model: Model, output: str, block: int) -> Callable[..., jax.Array]:
    """The function of (variables, images [N, H, W, C]) that returns 'logits' or 'features'.

    N must be a multiple of `block`, the number of images computed at a time; the result is
    float32[N, D].
    """

    def run(weights: Parameters, images: jax.Array) -> jax.Array:
        blocks = images.reshape(-1, block, *images.shape[1:])
        values = lax.map(lambda part: getattr(model.outputs(weights, part), output), blocks)
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

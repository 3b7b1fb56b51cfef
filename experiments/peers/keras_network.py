"""The network in Keras, for the peers that train it and the one that searches with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras


def compiled_network(
    filters: int,
    conv_layers: int,
    dense_layers: int,
    units: int | None,
    learning_rate: float,
    **options: Any,
) -> keras.Model:
    """The network with Adam, cross-entropy and accuracy; `options` go to Keras' `compile`."""
    import keras

    model = keras.Sequential([keras.Input((28, 28, 1))])
    for i in range(conv_layers):
        size, padding = (5, "valid") if i == 0 else (3, "same")
        model.add(keras.layers.Conv2D(filters, size, padding=padding, activation="relu"))
        model.add(keras.layers.MaxPooling2D())
    model.add(keras.layers.Flatten())
    for _ in range(dense_layers):
        model.add(keras.layers.Dense(units, activation="relu"))
    model.add(keras.layers.Dense(10))
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **options,
    )
    return model

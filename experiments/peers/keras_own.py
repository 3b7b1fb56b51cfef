"""Keras' `model.fit` on TensorFlow for networks of a person's own: `NETWORK IMAGES EPOCHS`.

NETWORK: lenet or resnet, as `own_networks.py` has them in Flax. Prints images per second after the
first epoch, the number of trained parameters, and versions, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow
from keras import layers
from task import digits


def lenet(x):
    """LeNet-5 with BatchNorm: the logits of images."""
    for filters, padding in ((6, "same"), (16, "valid")):
        x = layers.Conv2D(filters, 5, padding=padding, use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.AveragePooling2D(2)(x)
    x = layers.Flatten()(x)
    for units in (120, 84):
        x = layers.Dense(units, "relu")(x)
    return layers.Dense(10)(x)


def resnet(x):
    """Three blocks of 16, 32 and 64 filters."""

    def convolution(x, filters, size, stride=1):
        x = layers.Conv2D(filters, size, stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    x = layers.ReLU()(convolution(x, 16, 3))
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        y = layers.ReLU()(convolution(x, filters, 3, stride))
        y = convolution(y, filters, 3)
        if y.shape != x.shape:
            x = convolution(x, filters, 1, stride)
        x = layers.ReLU()(layers.Add()([x, y]))
    return layers.Dense(10)(layers.GlobalAveragePooling2D()(x))


if __name__ == "__main__":
    network, images, epochs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    x, y = digits(images)
    inputs = keras.Input((28, 28, 1))
    model = keras.Model(inputs, {"lenet": lenet, "resnet": resnet}[network](inputs))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    moments = []
    clock = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: moments.append(time.perf_counter())
    )
    scaled = x.astype(np.float32) / 255
    model.fit(scaled, y, batch_size=128, epochs=epochs, callbacks=[clock], verbose=0)
    found = {
        "rate": images * (epochs - 1) / (moments[-1] - moments[0]),
        "parameters": sum(int(np.prod(w.shape)) for w in model.trainable_weights),
        "versions": {"keras": keras.__version__, "tensorflow": tensorflow.__version__},
    }
    print(json.dumps(found))

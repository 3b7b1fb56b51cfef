"""The usual PyTorch loop on tensors in memory: `python pytorch.py TASK ARM`.

ARM: 'default', PyTorch as it comes; 'tuned', channels last and the fused Adam.
"""

from __future__ import annotations

import sys
import time

from task import STARTED, answer, digits, read_task

if __name__ == "__main__":
    import numpy as np
    import torch
    from torch import nn

    imported = time.perf_counter() - STARTED
    task, tuned = read_task(), sys.argv[2] == "tuned"
    images, labels = digits(task.images)
    x = torch.from_numpy(images.astype(np.float32) / 255).permute(0, 3, 1, 2).contiguous()
    y = torch.from_numpy(labels.astype(np.int64))
    torch.manual_seed(0)
    moments, losses, accuracies = [time.perf_counter()], [], []
    layers: list[nn.Module] = []
    for i in range(task.conv_layers):
        channels, size, padding = (1, 5, "valid") if i == 0 else (task.filters, 3, "same")
        layers += [nn.Conv2d(channels, task.filters, size, padding=padding), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    side = 24 // 2**task.conv_layers
    layers.append(nn.Flatten())
    inputs = side * side * task.filters
    for _ in range(task.dense_layers):
        layers += [nn.Linear(inputs, task.units), nn.ReLU()]
        inputs = task.units
    network = nn.Sequential(*layers, nn.Linear(inputs, 10))
    if tuned:
        network = network.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), task.learning_rate, fused=tuned or None)
    for _ in range(task.epochs):
        total, right = torch.zeros(()), torch.zeros((), dtype=torch.int64)
        for rows in torch.randperm(task.images).split(task.batch_size):
            logits = network(x[rows])
            loss = nn.functional.cross_entropy(logits, y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(rows)
            right += (logits.argmax(1) == y[rows]).sum()
        losses.append(total.item() / task.images)
        accuracies.append(right.item() / task.images)
        moments.append(time.perf_counter())
    count = sum(parameter.numel() for parameter in network.parameters())
    answer(["torch"], imported, count, [moments], [losses], [accuracies])

"""Your own network on your own data: a 1-D convolutional network that tells the waves of an 8-bit sensor apart.

Nothing here is an image, and odn knows nothing of the network but where its blocks stand.
Run it with: python examples/time_series.py
"""

import sys

import torch
from torch import nn

import odn
from odn.data import DataSpec, TensorSplit
from odn.evaluation import evaluate
from odn.images import Preprocessing

WAVES, LENGTH, CHANNELS = ("sine", "square", "triangle", "sawtooth"), 64, 2
TARGET = 0.95


def waves(count, seed):
    """Waves of random frequency, phase and loudness in noise, and their derivative: uint8 (N, 2, 64), and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(WAVES)
    frequency, phase, loudness = torch.rand(3, count, 1, generator=generator) + torch.tensor(
        [[[1.0]], [[0.0]], [[0.5]]]
    )
    turn = (torch.arange(LENGTH) / LENGTH * 2 * frequency + phase) % 1
    shapes = torch.stack(
        [(2 * torch.pi * turn).sin(), (turn < 0.5) * 2.0 - 1, 4 * (turn - 0.5).abs() - 1, 2 * turn - 1]
    )
    signal = shapes[labels, torch.arange(count)] * loudness + 0.13 * torch.randn(count, LENGTH, generator=generator)
    both = torch.stack([signal, signal.diff(dim=1, prepend=signal[:, :1])], dim=1)
    return (both.clamp(-2, 2) * 63 + 128).byte(), labels


class Block(nn.Module):
    """A residual block whose branch starts at zero, so that attaching it does not change the function."""

    def __init__(self, width):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv1d(width, width, 5, padding=2, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Conv1d(width, width, 5, padding=2, bias=False),
            nn.BatchNorm1d(width),
        )
        nn.init.zeros_(self.branch[-1].weight)

    def forward(self, x):
        return torch.relu(x + self.branch(x))


class WaveNetwork(nn.Module):
    """As anybody would write it: a stem, stages with a pooling between them, a classifier."""

    def __init__(self, width=16, blocks=4):
        super().__init__()
        self.embed = nn.Conv1d(CHANNELS, width, 7, padding=3)
        self.early = nn.Sequential(*[Block(width) for _ in range(blocks)])
        self.pool = nn.MaxPool1d(2)
        self.late = nn.Sequential(*[Block(width) for _ in range(blocks)])
        self.classify = nn.Linear(width, len(WAVES))

    def forward(self, x):
        x = torch.relu(self.embed(x))
        x = self.late(self.pool(self.early(x)))
        return self.classify(x.mean(2))


def main(seed=0):
    torch.manual_seed(seed)
    spec = DataSpec(
        name="waves",
        classes=WAVES,
        preprocessing=Preprocessing(input_shape=(CHANNELS, LENGTH), mean=(0.5, 0.5), std=(0.25, 0.1)),
        train_count=1024,
        valid_count=512,
        seed=seed,
        augment=odn.AugmentConfig(shift=0.0),
    )
    train, valid, test = (TensorSplit(*waves(count, seed), spec) for seed, count in enumerate((1024, 512, 1024)))

    network = odn.partition(WaveNetwork(), spec, blocks=["early.#", "late.#"])
    config = odn.ExpandConfig(target_accuracy=TARGET, epochs_per_depth=10)
    result = odn.expand(network, train, valid, config=config)
    small = odn.extract(network, result.depth)
    tuned = odn.finetune(small, train, valid, config=odn.FinetuneConfig(epochs=4))

    correct = evaluate(small, test).value
    kept, full = (sum(p.numel() for p in n.parameters()) for n in (small, network.prefix(network.max_depth)))
    print(
        f"kept depth {result.depth} of {network.max_depth}: {kept:,} of {full:,} parameters, "
        f"validation {tuned.valid_score:.4f}, test {correct:.4f}"
    )
    return result, correct


if __name__ == "__main__":
    sys.exit(0 if main()[0].reached else 3)

"""Optimally Deep Networks on one page (arXiv 2510.10764), with torch and scikit-learn's digits alone.

Train shallow; when the averaged weights stop improving, attach the next block; stop at the target; cut the rest off.
Run it with: python examples/onepage.py
"""

import copy
import sys

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

TARGET, PATIENCE, EPOCHS_PER_DEPTH, FINETUNE_EPOCHS, BATCH = 0.975, 4, 25, 8, 32


class Block(nn.Module):
    """A residual block whose branch starts at zero, so that attaching it does not change the function."""

    def __init__(self, width):
        super().__init__()
        conv = lambda: nn.Conv2d(width, width, 3, padding=1, bias=False)  # noqa: E731
        self.branch = nn.Sequential(conv(), nn.BatchNorm2d(width), nn.ReLU(), conv(), nn.BatchNorm2d(width))
        nn.init.zeros_(self.branch[-1].weight)

    def forward(self, x):
        return F.relu(x + self.branch(x))


def head(width):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def prefix(stem, blocks, heads, depth):
    """The network of one depth: it shares its weights with the others and holds no other parameters."""
    return nn.Sequential(stem, *blocks[:depth], heads[depth - 1])


def accuracy(network, x, y):
    network.eval()
    with torch.no_grad():
        return (network(x).argmax(1) == y).float().mean().item()


def train_epochs(network, train, valid, epochs, rate):
    """Yield the averaged network and its validation accuracy after every epoch; the caller breaks when it likes."""
    x, y = train
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9, nesterov=True, weight_decay=5e-4)
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.97))
    for epoch in range(epochs):
        network.train()
        for batch in torch.randperm(len(x)).split(BATCH):
            optimizer.param_groups[0]["lr"] = rate(epoch / epochs)
            F.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
            averaged.update_parameters(network)
        update_bn(x.split(256), averaged)  # BatchNorm statistics that belong to the averaged weights
        yield averaged.module, accuracy(averaged.module, *valid)


def expand(stem, blocks, heads, train, valid, target):
    """Return the first depth whose averaged weights reach the target twice in a row, else the deepest."""
    for depth in range(1, len(blocks) + 1):
        if depth > 1:
            heads[depth - 1].load_state_dict(heads[depth - 2].state_dict())
        network, seen = prefix(stem, blocks, heads, depth), []
        for averaged, valid_accuracy in train_epochs(network, train, valid, EPOCHS_PER_DEPTH, lambda _: 0.05):  # noqa: B007
            seen.append(valid_accuracy)
            reached = min(seen[-2:]) >= target and len(seen) > 1
            converged = len(seen) > PATIENCE and max(seen[-PATIENCE:]) <= max(seen[:-PATIENCE])
            if reached or converged:
                break
        network.load_state_dict(averaged.state_dict())
        print(f"depth {depth}: {len(seen)} epochs, validation accuracy {seen[-1]:.4f}")
        if reached:
            break
    return depth, reached


def finetune(network, train, valid):
    """Anneal the learning rate to zero and keep the best averaged weights."""
    best, weights = accuracy(network, *valid), copy.deepcopy(network.state_dict())
    for averaged, valid_accuracy in train_epochs(network, train, valid, FINETUNE_EPOCHS, lambda t: 0.05 * (1 - t)):
        if valid_accuracy >= best:
            best, weights = valid_accuracy, copy.deepcopy(averaged.state_dict())
    network.load_state_dict(weights)
    return best


def main(target=TARGET, max_depth=6, width=16, seed=0):
    torch.manual_seed(seed)
    digits = load_digits()
    x, y = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target)
    rest, test = train_test_split(range(len(y)), test_size=0.2, stratify=y, random_state=0)
    train, valid = train_test_split(rest, test_size=0.2, stratify=y[rest], random_state=seed)
    stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    blocks, heads = [Block(width) for _ in range(max_depth)], [head(width) for _ in range(max_depth)]
    depth, reached = expand(stem, blocks, heads, (x[train], y[train]), (x[valid], y[valid]), target)
    small = copy.deepcopy(prefix(stem, blocks, heads, depth))  # extraction: the blocks beyond are gone
    best = finetune(small, (x[train], y[train]), (x[valid], y[valid]))
    result = accuracy(small, x[test], y[test])
    kept = sum(p.numel() for p in small.parameters())
    full = sum(p.numel() for p in prefix(stem, blocks, heads, max_depth).parameters())
    print(
        f"kept depth {depth} of {max_depth}: {kept:,} of {full:,} parameters, validation {best:.4f}, test {result:.4f}"
    )
    return depth, reached, result


if __name__ == "__main__":
    sys.exit(0 if main()[1] else 3)

"""How well a network does, in the metric of its task, with the standard error that a sample of that size leaves.

Shapes: B batch, C channels, G groups, H height, W width, K classes, N samples.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from odn.errors import OdnError
from odn.tasks import Metric, Task

GROUPS = 10
IGNORED = -100  # label of a pixel that has none, as in torch.nn.functional.cross_entropy


class NotFiniteError(OdnError):
    """A network gave NaN or infinite numbers, of which there is no score."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well a network does on a split.

    Attributes:
        metric: what ``value`` is a value of.
        value: at most 1, the best; only R² can be below 0.
        error: its standard error: of accuracy the binomial one, else by the jackknife over groups of samples.
        count: samples.
        accuracy: share of the samples, for segmentation of the pixels, that got the right label; None where labels
            are none.
        per_class: for every class recall, average precision, IoU or R²; None for a class that no sample has.
        support: samples of each class, for segmentation pixels, for regression all samples.
    """

    metric: Metric
    value: float
    error: float
    count: int
    accuracy: float | None
    per_class: tuple[float | None, ...]
    support: tuple[int, ...]


@final
class Tally:
    """Sums over the batches of a split from which a score follows, in whatever order and by how many processes.

    Sample ``i`` belongs to group ``i mod G``; leaving out one group after the other gives the standard error of any
    metric (delete-a-group jackknife: Kott, J. Off. Stat. 17, 2001).

    Args:
        task: of the split.
        classes: number of outputs K.
        count: samples N of the split.
        device: where outputs will be.
    """

    def __init__(self, task: Task, classes: int, count: int, device: torch.device) -> None:
        self.task, self.classes, self.count = task, classes, count
        if task == "multilabel":  # a ranking cannot be summed up: outputs, then targets, of all samples
            self.sums = torch.zeros(count, 2, classes, device=device)
        elif task == "regression":  # number, sum and sum of squares of the targets, sum of squared differences
            self.sums = torch.zeros(GROUPS, 4, classes, dtype=torch.float64).to(device)
        else:  # hits, answers and labels of each class
            self.sums = torch.zeros(GROUPS, 3, classes, dtype=torch.int64, device=device)

    def add(self, outputs: Tensor, targets: Tensor, positions: Tensor) -> None:
        """Add a batch.

        Args:
            outputs: of the network, shape (B, K), for segmentation (B, K, H, W).
            targets: labels of shape (B,) or (B, H, W), else numbers of shape (B, K).
            positions: of the samples in the split, shape (B,).
        """
        if self.task == "multilabel":
            self.sums[positions] = torch.stack([outputs.float(), targets.float()], 1)
            return
        groups = positions % GROUPS
        if self.task == "regression":
            y, wrong = targets.double(), (outputs.double() - targets.double()) ** 2
            self.sums.index_add_(0, groups, torch.stack([torch.ones_like(y), y, y * y, wrong], 1))
            return
        # An output that is NaN or infinite is no answer; the label after the right one is a wrong one.
        answers = torch.where(outputs.isfinite().all(1), outputs.argmax(1), (targets + 1) % self.classes)
        groups = groups.view(-1, *[1] * (targets.ndim - 1)).expand_as(targets)
        kept = targets != IGNORED
        groups, answers, targets = groups[kept], answers[kept], targets[kept]
        hits = answers == targets
        for row, (group, label) in enumerate(((groups[hits], targets[hits]), (groups, answers), (groups, targets))):
            cells = torch.bincount(group * self.classes + label, minlength=GROUPS * self.classes)
            self.sums[:, row] += cells.view(GROUPS, self.classes)

    def score(self, metric: Metric) -> Score:
        """Compute a metric of all that was added.

        Args:
            metric: one of the task's.

        Returns:
            Its value, error and what it is made of.

        Raises:
            NotFiniteError: when numbers or several labels were answered with NaN or infinity.
        """
        sums = self.sums.cpu()
        if not bool(sums.isfinite().all()):
            raise NotFiniteError(f"the network gives NaN or infinite values for some of {self.count:,} samples")
        measure = _MEASURES[metric]
        if self.task == "multilabel":
            parts = [sums[torch.arange(self.count) % GROUPS != group] for group in range(GROUPS)]
            everything = sums
        else:
            everything = sums.sum(0)
            parts = [everything - sums[group] for group in range(GROUPS)]
        value, accuracy = measure(everything), None
        if self.task in ("classification", "segmentation"):
            accuracy = _accuracy(everything)
        if metric == "accuracy":
            error = math.sqrt(value * (1 - value) / self.count)
        else:
            error = _jackknife([measure(part) for part in parts[: self.count]])
        return Score(
            metric=metric,
            value=value,
            error=error,
            count=self.count,
            accuracy=accuracy,
            per_class=tuple(None if math.isnan(x) else x for x in _PER_CLASS[self.task](everything).tolist()),
            support=tuple(_support(self.task, everything).tolist()),
        )


def trivial_score(metric: Metric, support: tuple[int, ...], count: int) -> float | None:
    """Return what the best answer scores that is the same for every sample.

    Args:
        metric: of a task.
        support: samples of each class or label; empty for other tasks.
        count: samples in all, 1 or more.

    Returns:
        Its score; 0 for R², None where it does not follow from these numbers.
    """
    shares = [number / count for number in support if number]
    if metric == "r2":
        return 0.0
    if not shares:
        return None
    if metric == "accuracy":
        return max(shares)
    if metric == "balanced_accuracy":
        return 1 / len(shares)
    if metric == "macro_f1":
        several = sum(support) != count  # labels instead of classes, each of which can be given to all samples
        found = shares if several else [max(shares)]
        return math.fsum(2 * share / (1 + share) for share in found) / len(shares)
    return math.fsum(shares) / len(shares) if metric == "mean_average_precision" else None


def _jackknife(values: list[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt((len(values) - 1) / len(values) * math.fsum((value - mean) ** 2 for value in values))


def _support(task: Task, sums: Tensor) -> Tensor:
    if task == "multilabel":
        return sums[:, 1].sum(0).long()
    return sums[0].long() if task == "regression" else sums[2]


def _mean(values: Tensor) -> float:
    """Return the mean over the classes that there are; 0 where there are none."""
    return float(values.nanmean()) if not bool(values.isnan().all()) else 0.0


def _accuracy(sums: Tensor) -> float:
    return int(sums[0].sum()) / max(int(sums[2].sum()), 1)


def _recall(sums: Tensor) -> Tensor:
    return sums[0].double() / sums[2]  # 0 / 0 is NaN: no sample of that class


def _f1(sums: Tensor) -> Tensor:
    return 2 * sums[0].double() / (sums[1] + sums[2])


def _iou(sums: Tensor) -> Tensor:
    return sums[0].double() / (sums[1] + sums[2] - sums[0])


def _r2(sums: Tensor) -> Tensor:
    spread = sums[2] - sums[1] ** 2 / sums[0]
    # Of a target that never varies nothing can be explained.
    return torch.where(spread > 1e-12 * sums[2], 1 - sums[3] / spread, torch.nan)


def _average_precision(samples: Tensor) -> Tensor:
    from sklearn.metrics import average_precision_score

    outputs, targets = samples[:, 0].double().numpy(), samples[:, 1].numpy() > 0.5
    return torch.tensor(
        [
            average_precision_score(targets[:, k], outputs[:, k]) if targets[:, k].any() else math.nan
            for k in range(samples.shape[2])
        ],
        dtype=torch.float64,
    )


def _counts(samples: Tensor) -> Tensor:
    answers, labels = samples[:, 0] > 0, samples[:, 1] > 0.5
    return torch.stack([(answers & labels).sum(0), answers.sum(0), labels.sum(0)])


def _macro_f1(sums: Tensor) -> float:
    return _mean(_f1(_counts(sums) if sums.is_floating_point() else sums))


_MEASURES: dict[Metric, Callable[[Tensor], float]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": lambda sums: _mean(_recall(sums)),
    "macro_f1": _macro_f1,
    "mean_average_precision": lambda samples: _mean(_average_precision(samples)),
    "r2": lambda sums: _mean(_r2(sums)),
    "mean_iou": lambda sums: _mean(_iou(sums)),
}
_PER_CLASS: dict[Task, Callable[[Tensor], Tensor]] = {
    "classification": _recall,
    "multilabel": _average_precision,
    "regression": _r2,
    "segmentation": _iou,
}

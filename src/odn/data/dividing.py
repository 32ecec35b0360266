"""Dividing a dataset into what is trained on, what decides, and what is looked at once."""

import logging
import re
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from odn.config import DataConfig
from odn.data.sources import Labels, Samples, Source
from odn.data.splits import derive_seed
from odn.data.targets import support
from odn.errors import OdnError, UsageError

Indices = npt.NDArray[np.int64]
_log = logging.getLogger(__name__)


def check_classes(source: Source) -> None:
    """Refuse data from which nothing can be learnt.

    Args:
        source: as its reader found it.

    Raises:
        OdnError: when a class or label has too few samples, or there is but one class.
    """
    if source.task != "classification":
        _check_samples(source)
        return
    if len(source.classes) < 2:
        raise OdnError(
            f"{source.name} has {len(source.classes)} class{' (' + source.classes[0] + ')' if source.classes else ''}"
            "; a classifier needs two or more"
        )
    per_class = np.bincount(source.train.labels, minlength=len(source.classes))
    needed = 1 + (source.valid is None) + (source.test is None)
    if per_class.min() < needed:
        name = source.classes[int(per_class.argmin())]
        raise OdnError(
            f"{source.name}: class '{name}' has {per_class.min()} training {source.things}; {needed} or more are "
            f"needed to split them; add {source.things} or remove the class{_other_task(source.classes)}"
        )


def _other_task(classes: Sequence[str]) -> str:
    """Name the task that names of classes look like they were meant for."""
    if any(";" in name for name in classes):
        return "; for several labels per sample say --task multilabel"
    if all(re.fullmatch(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", name.lower()) for name in classes):
        return "; for numbers to predict say --task regression"
    return ""


def _check_samples(source: Source) -> None:
    """Refuse data from which nothing can be learnt, where labels are no classes."""
    count = len(source.train.labels)
    if count < 10:
        raise OdnError(f"{source.name} has {count} training {source.things}; 10 or more are needed; add some")
    if source.task == "multilabel":
        positive = source.train.labels.sum(0)
        name = source.classes[int(positive.argmin())]
        if positive.min() == 0:
            raise OdnError(f"{source.name}: no training sample has the label '{name}'; add some or remove the label")
    if source.task == "segmentation" and len(source.classes) < 2:
        raise OdnError(
            f"{source.name}: masks have one class; segmentation needs two or more (255 marks pixels that do not "
            "count, so a foreground is written as 1)"
        )


def divide(source: Source, config: DataConfig, seed: int) -> tuple[Samples, Samples, Callable[[], Samples]]:
    """Hold out what a dataset does not bring, of every class the same share; of several labels at least one sample.

    Args:
        source: as its reader found it.
        config: sizes of the splits.
        seed: of the split into train and validation.

    Returns:
        Training and validation samples, and what reads the test samples.

    Raises:
        UsageError: when the limit leaves a class without a sample.
    """
    train, valid, read_test = source.train, source.valid, source.test
    kinds = source.task == "classification"
    if read_test is None:
        held_out, train = _split_off(train, config.test_fraction, 0, source, kept=1 + (valid is None))
        read_test = lambda: held_out  # noqa: E731
    if valid is None:
        fraction = config.valid_fraction or (0.1 if len(train.labels) >= 5000 else 0.2)
        valid, train = _split_off(train, fraction, seed, source)
    if config.train_limit:
        if kinds and config.train_limit < len(source.classes):
            raise UsageError(
                f"--train-limit is {config.train_limit} but {source.name} has {len(source.classes)} classes; "
                "allowed: at least one image per class"
            )
        train, valid = (_limit(part, config.train_limit, seed, stratified=kinds) for part in (train, valid))
    counts = support(source.task, len(source.classes), valid.labels)
    unseen = [name for name, count in zip(source.classes, counts, strict=False) if not count]
    if unseen:
        names = ", ".join(unseen[:3]) + (f" and {len(unseen) - 3:,} more" if len(unseen) > 3 else "")
        _log.warning(
            "%d of %d classes have no validation sample, so no decision sees them: %s", len(unseen), len(counts), names
        )
    return train, valid, read_test


def _split_off(
    samples: Samples, fraction: float, seed: int, source: Source, *, kept: int = 1
) -> tuple[Samples, Samples]:
    """Return a share of the samples, of every class or label the same where there are some, and the rest."""
    # The rest keeps so many of each: one to learn from, and one for each part that is still to be split off.
    from sklearn.model_selection import train_test_split

    labels, stratified = samples.labels, source.task == "classification"
    classes = len(np.unique(labels)) if stratified else 1
    count = min(max(round(fraction * len(labels)), classes), len(labels) - classes)
    random_state = derive_seed(seed, "split") % 2**32
    if source.task == "multilabel":
        chosen = multilabel_subset(labels > 0, count, kept, random_state)
        return samples.take(np.flatnonzero(chosen)), samples.take(np.flatnonzero(~chosen))
    try:
        rest, part = train_test_split(
            np.arange(len(labels)), test_size=count, stratify=labels if stratified else None, random_state=random_state
        )
    except ValueError as error:
        raise OdnError(f"{len(labels)} images of {classes} classes cannot be split: {error} Add images.") from error
    if stratified:
        _show_all(labels, part, rest, kept)
    return samples.take(np.sort(part)), samples.take(np.sort(rest))


def _show_all(labels: Labels, part: Indices, rest: Indices, kept: int) -> None:
    """Swap samples in place so that rare classes, whose shares are rounded to none, are in both parts."""
    for name in np.unique(labels):
        lacking, giving = (part, rest) if not (labels[part] == name).any() else (rest, part)
        wanted = 1 if lacking is part else kept - int((labels[rest] == name).sum())
        for _ in range(wanted):
            frequent = np.bincount(labels[lacking]).argmax()
            here, there = (np.flatnonzero(labels[own] == cls)[0] for own, cls in ((lacking, frequent), (giving, name)))
            lacking[here], giving[there] = giving[there], lacking[here]


def multilabel_subset(labels: npt.NDArray[np.bool_], count: int, kept: int, seed: int) -> npt.NDArray[np.bool_]:
    """Choose samples with several labels so that every label keeps its share: iterative stratification.

    Sechidis, Tsoumakas and Vlahavas, On the stratification of multi-label data (ECML PKDD 2011), algorithm 1, but that
    a label of which there are enough is wanted at least once, and ``kept`` times among the rest.

    Args:
        labels: whether a sample has a label, shape (N, K).
        count: samples to choose; the number is met exactly.
        kept: samples of each label that are wanted among the rest.
        seed: of the choice between equals.

    Returns:
        Whether each sample was chosen, shape (N,).
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    labels, totals = labels[order], labels.sum(0)
    share = np.clip(totals * count / len(labels), np.minimum(1, totals - 1), np.maximum(totals - kept, 0))
    wanted = np.stack([totals - share, share])  # of each label, by the rest and by those chosen
    room = np.array([len(labels) - count, count])
    place = np.full(len(labels), -1)
    while (waiting := place < 0).any():
        left = labels[waiting].sum(0)
        if left.any():
            rarest = int(np.where(left, left, len(labels) + 1).argmin())
            batch, wish = np.flatnonzero(waiting & labels[:, rarest]), wanted[:, rarest]
        else:
            batch, wish = np.flatnonzero(waiting), room
        for sample in batch:
            side = int(np.lexsort((room, wish, room > 0))[-1])  # where there is room, by the wish, then by the room
            place[sample] = side
            room[side] -= 1
            wanted[side] -= labels[sample]
    chosen = np.zeros(len(labels), np.bool_)
    chosen[order] = place == 1
    return chosen


def _limit(samples: Samples, limit: int, seed: int, *, stratified: bool) -> Samples:
    if limit >= len(samples.labels):
        return samples
    labels = samples.labels if stratified else np.zeros(len(samples.labels), np.int64)
    return samples.take(stratified_subset(labels, limit, seed))


def stratified_subset(labels: Labels, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Choose samples so that every class keeps its share, and at least one sample.

    Args:
        labels: class of each sample, shape (N,).
        count: samples to choose, at least one per class and at most N.
        seed: of the choice.

    Returns:
        Positions of the chosen samples, ascending, shape (count,).
    """
    generator = np.random.default_rng(derive_seed(seed, "limit"))
    order = generator.permutation(len(labels))
    # The k-th of n samples of a class stands at (k + 1/2) / n of the way: a prefix by that rank is stratified.
    totals = np.bincount(labels)
    seen = np.zeros_like(totals)
    rank = np.empty(len(labels))
    for position in order:
        label = labels[position]
        rank[position] = 0.0 if seen[label] == 0 else (seen[label] + 0.5) / totals[label]
        seen[label] += 1
    return np.sort(order[np.argsort(rank[order], kind="stable")][:count])

"""Dividing a dataset into what is trained on, what decides, and what is looked at once."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from odn.config import DataConfig
from odn.data.sources import Labels, Samples, Source
from odn.data.splits import derive_seed
from odn.errors import OdnError, UsageError


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
            f"needed to split them; add {source.things} or remove the class"
        )


def _check_samples(source: Source) -> None:
    """Refuse data from which nothing can be learnt, where labels are no classes."""
    count = len(source.train.labels)
    if count < 10:
        raise OdnError(f"{source.name} has {count} training images; 10 or more are needed; add some")
    if source.task == "multilabel":
        positive = source.train.labels.sum(0)
        name = source.classes[int(positive.argmin())]
        if positive.min() == 0:
            raise OdnError(f"{source.name}: no training image has the label '{name}'; add some or remove the label")
    if source.task == "segmentation" and len(source.classes) < 2:
        raise OdnError(f"{source.name}: masks have one class; segmentation needs two or more")


def divide(source: Source, config: DataConfig, seed: int) -> tuple[Samples, Samples, Callable[[], Samples]]:
    """Hold out what a dataset does not bring, of every class the same share.

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
        held_out, train = _split_off(train, config.test_fraction, seed=0, stratified=kinds)
        read_test = lambda: held_out  # noqa: E731
    if valid is None:
        fraction = config.valid_fraction or (0.1 if len(train.labels) >= 5000 else 0.2)
        valid, train = _split_off(train, fraction, seed, stratified=kinds)
    if config.train_limit:
        if kinds and config.train_limit < len(source.classes):
            raise UsageError(
                f"--train-limit is {config.train_limit} but {source.name} has {len(source.classes)} classes; "
                "allowed: at least one image per class"
            )
        train, valid = (_limit(part, config.train_limit, seed, stratified=kinds) for part in (train, valid))
    return train, valid, read_test


def _split_off(samples: Samples, fraction: float, seed: int, *, stratified: bool) -> tuple[Samples, Samples]:
    """Return a share of the samples, of every class the same where there are classes, and the rest."""
    from sklearn.model_selection import train_test_split

    labels = samples.labels
    classes = len(np.unique(labels)) if stratified else 1
    count = min(max(round(fraction * len(labels)), classes), len(labels) - classes)
    random_state = derive_seed(seed, "split") % 2**32
    try:
        rest, part = train_test_split(
            np.arange(len(labels)), test_size=count, stratify=labels if stratified else None, random_state=random_state
        )
    except ValueError as error:
        raise OdnError(f"{len(labels)} images of {classes} classes cannot be split: {error} Add images.") from error
    return samples.take(np.sort(part)), samples.take(np.sort(rest))


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

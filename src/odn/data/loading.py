"""From a dataset's name or path to train, validation and test splits."""

from collections.abc import Callable
from pathlib import Path
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from odn.config import AugmentConfig, DataConfig
from odn.data.folder import common_shape, decode_all, read_folder
from odn.data.labelled import read_saved, read_tables
from odn.data.shards import find_shards, read_shards
from odn.data.sources import Labels, Samples, Source, read_digits, read_npz, read_torchvision
from odn.data.splits import DataSpec, FileSplit, Split, TensorSplit, derive_seed
from odn.data.tokens import token_splits
from odn.defaults import DATASETS, require_dataset
from odn.errors import OdnError, UsageError
from odn.images import Preprocessing
from odn.saved import find_saved
from odn.tabular import find_tables


@final
class Data:
    """A dataset, split.

    Args:
        train: the images that weights are trained on.
        valid: the images that decisions rest on.
        spec: of the dataset.
        read_test: reads the test split; called at the first access of ``test`` and never before.
    """

    def __init__(self, train: Split, valid: Split, spec: DataSpec, read_test: Callable[[], Split]) -> None:
        self.train, self.valid, self.spec = train, valid, spec
        self._read_test, self._test = read_test, None

    _test: Split | None

    @property
    def test(self) -> Split:
        """The images that only the report may look at; they are read when first asked for."""
        if self._test is None:
            self._test = self._read_test()
        return self._test


def load_data(
    dataset: str,
    *,
    data_dir: str | Path = "data",
    seed: int = 0,
    config: DataConfig | None = None,
    augment: AugmentConfig | None = None,
    positions: int = 512,
) -> Data:
    """Read a dataset and split it.

    Args:
        dataset: a name (``digits``, ``mnist``, ``fashion-mnist``, ``emnist``, ``kmnist``, ``svhn``, ``cifar10``,
            ``cifar100``), an ImageFolder directory, an ``.npz`` file, or what docs/data.md lists.
        data_dir: where named datasets lie in torchvision's layout, or are downloaded to.
        seed: of the split into train and validation. A test split that has to be held out does not depend on
            it, so that runs with other seeds are judged on the same images.
        config: sizes of the splits, image size, limits.
        augment: changes made to training images; None takes those of the named dataset.
        positions: of texts, tokens that the encoder can read at the most.

    Returns:
        Train, validation and (read later) test split, normalised by statistics of the training split alone.

    Raises:
        OdnError: when the dataset cannot be read or split.
        UsageError: when there is no such dataset.
    """
    config = config or DataConfig()
    source = _read(dataset, Path(data_dir))
    if augment is None:
        augment = DATASETS[dataset].augment if dataset in DATASETS else AugmentConfig()
    _check_classes(source)
    train, valid, held_out = _divide(source, config, seed)
    if source.texts:
        return Data(*token_splits(source, (train, valid, held_out), config, augment, seed, positions))
    if config.max_tokens:
        raise UsageError(f"--max-tokens {config.max_tokens} is for texts, {source.name} holds images; leave it out")
    return _Loader(source, config, augment, seed).load(train, valid, held_out)


def _read(dataset: str, data_dir: Path) -> Source:
    require_dataset(dataset)
    if dataset == "digits":
        return read_digits()
    if dataset in DATASETS:
        return read_torchvision(dataset, data_dir)
    path = Path(dataset)
    if find_tables(path):
        return read_tables(path)
    if find_saved(path):
        return read_saved(path)
    if find_shards(dataset):
        return read_shards(dataset)
    if path.is_dir():
        return read_folder(path)
    if path.suffix == ".npz":
        return read_npz(path)
    raise UsageError(
        f"{dataset} is a file; allowed: an .npz, .csv, .jsonl, .tar or .parquet file, a folder, or a dataset's name"
    )


def _check_classes(source: Source) -> None:
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


def _divide(source: Source, config: DataConfig, seed: int) -> tuple[Samples, Samples, Callable[[], Samples]]:
    train, valid, read_test = source.train, source.valid, source.test
    if read_test is None:
        held_out, train = _split_off(train, config.test_fraction, seed=0)
        read_test = lambda: held_out  # noqa: E731
    if valid is None:
        fraction = config.valid_fraction or (0.1 if len(train.labels) >= 5000 else 0.2)
        valid, train = _split_off(train, fraction, seed)
    if config.train_limit:
        if config.train_limit < len(source.classes):
            raise UsageError(
                f"--train-limit is {config.train_limit} but {source.name} has {len(source.classes)} classes; "
                "allowed: at least one image per class"
            )
        train, valid = (_limit(part, config.train_limit, seed) for part in (train, valid))
    return train, valid, read_test


def _split_off(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """Return a stratified share of the samples, and the rest."""
    from sklearn.model_selection import train_test_split

    labels = samples.labels
    classes = len(np.unique(labels))
    count = min(max(round(fraction * len(labels)), classes), len(labels) - classes)
    random_state = derive_seed(seed, "split") % 2**32
    try:
        rest, part = train_test_split(
            np.arange(len(labels)), test_size=count, stratify=labels, random_state=random_state
        )
    except ValueError as error:
        raise OdnError(f"{len(labels)} images of {classes} classes cannot be split: {error} Add images.") from error
    return samples.take(np.sort(part)), samples.take(np.sort(rest))


def _limit(samples: Samples, limit: int, seed: int) -> Samples:
    if limit >= len(samples.labels):
        return samples
    return samples.take(stratified_subset(samples.labels, limit, seed))


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


@final
class _Loader:
    """Turns samples into splits; holds what all three splits of a dataset share."""

    def __init__(self, source: Source, config: DataConfig, augment: AugmentConfig, seed: int) -> None:
        self.source, self.config, self.augment, self.seed = source, config, augment, seed

    def load(self, train: Samples, valid: Samples, read_test: Callable[[], Samples]) -> Data:
        shape = self._shape(train, valid)
        train, histogram = self._decode(train, shape)
        valid, _ = self._decode(valid, shape)
        if self.config.skip_bad_files:
            self._check_left_over(train)
        mean, std = _statistics(histogram)
        spec = DataSpec(
            name=self.source.name,
            classes=self.source.classes,
            preprocessing=Preprocessing(input_shape=shape, mean=mean, std=std),
            train_count=len(train.labels),
            valid_count=len(valid.labels),
            seed=self.seed,
            augment=self.augment,
        )

        def test() -> Split:
            return self._split(self._decode(read_test(), shape)[0], spec)

        return Data(self._split(train, spec), self._split(valid, spec), spec, test)

    def _shape(self, train: Samples, valid: Samples) -> tuple[int, int, int]:
        size = self.config.image_size
        if isinstance(train.images, Tensor) or isinstance(valid.images, Tensor):
            if size:
                raise UsageError(f"--image-size {size} is for folders of image files; leave it out")
            channels, height, width = map(int, train.images.shape[1:])  # type: ignore[union-attr]
            return channels, height, width
        files = [*train.files, *valid.files]
        return common_shape(files, size, skip_bad_files=self.config.skip_bad_files)

    def _decode(self, samples: Samples, shape: tuple[int, int, int]) -> tuple[Samples, Tensor]:
        """Decode files that fit into memory, check those that do not; count the pixel values of all."""
        if isinstance(samples.images, Tensor):
            return samples, _histogram(samples.images)
        paths = samples.files
        resident = len(paths) * int(np.prod(shape)) <= self.config.resident_bytes
        images = torch.empty((len(paths) if resident else 0, *shape), dtype=torch.uint8)
        histogram = torch.zeros(shape[0], 256, dtype=torch.int64)
        good: list[int] = []
        for position, image in decode_all(paths, shape, skip_bad_files=self.config.skip_bad_files):
            histogram += _histogram(image[None])
            if resident:
                images[len(good)] = image
            good.append(position)
        if not good:
            raise OdnError(f"{self.source.name}: none of {len(paths)} files is a readable image, e.g. {paths[0]}")
        kept = samples.take(np.asarray(good, dtype=np.int64))
        return (Samples(images=images[: len(good)], labels=kept.labels) if resident else kept), histogram

    def _check_left_over(self, train: Samples) -> None:
        left = np.bincount(train.labels, minlength=len(self.source.classes))
        if left.min() == 0:
            name = self.source.classes[int(left.argmin())]
            raise OdnError(f"{self.source.name}: no readable training image of class '{name}' is left; add some")

    def _split(self, samples: Samples, spec: DataSpec) -> Split:
        labels = torch.from_numpy(samples.labels)
        if isinstance(samples.images, Tensor):
            return TensorSplit(samples.images, labels, spec)
        return FileSplit(samples.files, labels, spec, self.config.workers)


def _histogram(images: Tensor) -> Tensor:
    """Count the values 0..255 per channel; shape (C, 256). Exact, and needs no float copy of the images."""
    return torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])


def _statistics(histogram: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    counts = histogram.double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * values).sum(1) / counts.sum(1)
    std = ((counts * (values - mean[:, None]) ** 2).sum(1) / counts.sum(1)).sqrt()
    # A channel that never varies would divide by zero; a grey level is the finest difference there can be.
    return tuple(mean.tolist()), tuple(std.clamp(min=1 / 255).tolist())

"""From a dataset's name or path to train, validation and test splits."""

from collections.abc import Callable
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from odn.config import AugmentConfig, DataConfig
from odn.data.dividing import check_classes, divide
from odn.data.folder import common_shape, decode_all, read_folder
from odn.data.labelled import read_saved, read_tables
from odn.data.masks import with_masks
from odn.data.npz import read_npz
from odn.data.overlap import tell_shared
from odn.data.shards import find_shards, read_shards
from odn.data.sources import Samples, Source, read_digits, read_torchvision
from odn.data.splits import DataSpec, FileSplit, Split, TensorSplit
from odn.data.targets import as_targets, target_facts
from odn.data.tokens import token_splits
from odn.defaults import DATASETS, require_dataset
from odn.errors import OdnError, UsageError
from odn.images import Preprocessing
from odn.saved import find_saved
from odn.tabular import find_tables
from odn.tasks import choose_metric
from odn.tokenizer import TokenizerSource


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
            tell_shared(self._test, self.train, "test")
        return self._test


def load_data(
    dataset: str,
    *,
    data_dir: str | Path = "data",
    seed: int = 0,
    config: DataConfig | None = None,
    augment: AugmentConfig | None = None,
    positions: int = 512,
    tokenizer: TokenizerSource | None = None,
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
        tokenizer: of texts, the one that trained embeddings came with; None trains one on the training texts.

    Returns:
        Train, validation and (read later) test split, normalised by statistics of the training split alone.

    Raises:
        OdnError: when the dataset cannot be read or split.
        UsageError: when there is no such dataset.
    """
    config = config or DataConfig()
    source = _read(dataset, Path(data_dir), config)
    if augment is None:
        augment = DATASETS[dataset].augment if dataset in DATASETS else AugmentConfig()
    check_classes(source)
    train, valid, held_out = divide(source, config, seed)
    if source.texts:
        data = Data(*token_splits(source, (train, valid, held_out), config, augment, seed, positions, tokenizer))
    elif config.max_tokens:
        raise UsageError(f"--max-tokens {config.max_tokens} is for texts, {source.name} holds images; leave it out")
    else:
        data = _Loader(source, config, augment, seed).load(train, valid, held_out)
    tell_shared(data.valid, data.train, "validation")
    return data


def _read(dataset: str, data_dir: Path, config: DataConfig) -> Source:
    require_dataset(dataset)
    source = _read_any(dataset, data_dir, config)
    if config.task not in ("auto", source.task):
        raise UsageError(
            f"--task {config.task} for {source.name}, whose labels are classes; allowed: an .npz file, or "
            "a .csv, .jsonl or saved table with labels of that kind"
        )
    choose_metric(source.task, config.metric)
    return source


def _read_any(dataset: str, data_dir: Path, config: DataConfig) -> Source:
    if dataset == "digits":
        return read_digits()
    if dataset in DATASETS:
        return read_torchvision(dataset, data_dir)
    path, task = Path(dataset), "classification" if config.task == "auto" else config.task
    if find_tables(path):
        return read_tables(path, task)
    if find_saved(path):
        return read_saved(path, task)
    if find_shards(dataset):
        return read_shards(dataset)
    if path.is_dir():
        return read_folder(path)
    if path.suffix == ".npz":
        return read_npz(path, config.task)
    raise UsageError(
        f"{dataset} is a file; allowed: an .npz, .csv, .jsonl, .tar or .parquet file, a folder, or a dataset's name"
    )


@final
class _Loader:
    """Turns samples into splits; holds what all three splits of a dataset share."""

    def __init__(self, source: Source, config: DataConfig, augment: AugmentConfig, seed: int) -> None:
        self.source, self.config, self.augment, self.seed = source, config, augment, seed

    def load(self, train: Samples, valid: Samples, read_test: Callable[[], Samples]) -> Data:
        shape = self._shape(train, valid)
        train, valid = (self._masked(samples, shape) for samples in (train, valid))
        train, histogram = self._decode(train, shape)
        valid, _ = self._decode(valid, shape)
        if self.config.skip_bad_files and self.source.task == "classification":
            self._check_left_over(train)
        mean, std = _statistics(histogram)
        spec = DataSpec(
            name=self.source.name,
            preprocessing=Preprocessing(input_shape=shape, mean=mean, std=std),
            train_count=len(train.labels),
            valid_count=len(valid.labels),
            seed=self.seed,
            augment=self.augment,
            **target_facts(self.source.task, self.config.metric, self.source.classes, train.labels, valid.labels),
        )

        def test() -> Split:
            return self._split(self._decode(self._masked(read_test(), shape), shape)[0], spec)

        return Data(self._split(train, spec), self._split(valid, spec), spec, test)

    def _masked(self, samples: Samples, shape: tuple[int, int, int]) -> Samples:
        return with_masks(samples, shape[1:], len(self.source.classes))

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
        labels = as_targets(samples.labels, spec)
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

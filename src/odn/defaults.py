"""One table: the backbone, target and augmentation that each named dataset starts from. No torch here."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odn.config import AugmentConfig
from odn.errors import UsageError, did_you_mean
from odn.recipe import RunConfig
from odn.saved import holds_texts
from odn.tables import from_table, to_table

_PHOTO = AugmentConfig(shift=0.125, flip=True)
_GLYPH = AugmentConfig(shift=0.08, rotate_degrees=12.0)


@dataclass(frozen=True, kw_only=True)
class DatasetDefaults:
    """What ``odn run NAME`` does when nothing else is said.

    Attributes:
        backbone: name of the network that is right-sized.
        target_accuracy: validation accuracy to reach, a fraction.
        augment: changes that keep the label of this dataset's images.
    """

    backbone: str
    target_accuracy: float
    augment: AugmentConfig


# mnist and svhn aim at the accuracies of the ODN paper (99.31 % and 96.08 %); the other targets are what the
# named backbone is known to reach on that dataset.
DATASETS = {
    "digits": DatasetDefaults(backbone="resnet18_small", target_accuracy=0.98, augment=_GLYPH),
    "mnist": DatasetDefaults(backbone="resnet18", target_accuracy=0.993, augment=_GLYPH),
    "fashion-mnist": DatasetDefaults(
        backbone="resnet18", target_accuracy=0.91, augment=AugmentConfig(shift=0.08, flip=True)
    ),
    "emnist": DatasetDefaults(backbone="resnet18", target_accuracy=0.88, augment=_GLYPH),
    "kmnist": DatasetDefaults(backbone="resnet18", target_accuracy=0.98, augment=_GLYPH),
    "svhn": DatasetDefaults(
        backbone="resnet34", target_accuracy=0.9608, augment=AugmentConfig(shift=0.1, rotate_degrees=5.0)
    ),
    "cifar10": DatasetDefaults(backbone="cifar_resnet56", target_accuracy=0.92, augment=_PHOTO),
    "cifar100": DatasetDefaults(backbone="cifar_resnet56", target_accuracy=0.68, augment=_PHOTO),
}

OWN_DATA_BACKBONE, OWN_TEXTS_BACKBONE = "resnet18", "bert_tiny"


def require_dataset(dataset: str) -> None:
    """Refuse a dataset that is neither a known name nor a path that exists.

    Args:
        dataset: as the user gave it.

    Raises:
        UsageError: with the names that are known.
    """
    shards = dataset.endswith(".tar") and "{" in dataset  # a pattern, whose files are looked for when they are read
    if dataset not in DATASETS and not shards and not os.path.exists(dataset):  # noqa: PTH110 - names may be too long
        raise UsageError(
            f"unknown dataset '{dataset}'; allowed: {', '.join(DATASETS)}, or the path of a folder or of an .npz, "
            f".csv, .jsonl or .tar file that exists.{did_you_mean(dataset, DATASETS)}"
        )


def complete(table: dict[str, Any]) -> RunConfig:
    """Fill in what a recipe leaves open for its dataset.

    Args:
        table: a recipe as nested tables; it names at least the dataset.

    Returns:
        Every setting of the run.

    Raises:
        UsageError: when a setting is wrong.
    """
    dataset = table["dataset"]
    require_dataset(dataset)
    filled: dict[str, Any] = {"data_dir": os.environ.get("ODN_DATA_DIR", "data"), **table}
    known = DATASETS.get(dataset)
    given = table.get("expand", {})
    if not isinstance(given, dict) or not isinstance(filled["data_dir"], str):
        return from_table(RunConfig, {"backbone": OWN_DATA_BACKBONE, **filled})  # which says what is wrong
    expand = dict(given)
    if known is not None:
        filled.setdefault("backbone", known.backbone)
        augment = filled.get("augment", {})
        filled["augment"] = {**to_table(known.augment), **augment} if isinstance(augment, dict) else augment
        expand.setdefault("target_accuracy", known.target_accuracy)
    else:
        filled.setdefault("backbone", OWN_TEXTS_BACKBONE if holds_texts(dataset) else OWN_DATA_BACKBONE)
        filled["dataset"] = str(Path(dataset).resolve())
    filled["data_dir"] = str(Path(filled["data_dir"]).resolve())
    if isinstance(filled.get("weights"), str) and filled["weights"]:
        filled["weights"] = str(Path(filled["weights"]).resolve())
    return from_table(RunConfig, {**filled, "expand": expand})

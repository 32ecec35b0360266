"""What a run learns from: loaded by its settings, and held against what it was started with."""

import json
from pathlib import Path

from odn.backbones import Backbone, find_backbone, find_tokenizer
from odn.data import Data, DataSpec, load_data
from odn.errors import OdnError, UsageError
from odn.processes import first_on_each_machine
from odn.recipe import RunConfig
from odn.saved import holds_texts
from odn.tables import from_table
from odn.texts import TextPreprocessing
from odn.tokenizer import TokenizerSource


def read_data_spec(path: Path) -> DataSpec:
    """Read what a run learns from.

    Args:
        path: the run directory.

    Returns:
        The labels, preprocessing and sizes of its dataset.

    Raises:
        OdnError: when it is not a run directory, or damaged.
    """
    file = path / "data.json"
    if not file.is_file():
        raise OdnError(f"{path} is not a run directory: it has no data.json; start one with odn run")
    try:
        return from_table(DataSpec, json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, UsageError) as error:
        raise OdnError(f"{file} is damaged ({error}); start anew with --force") from error


def check_data(path: Path, data: DataSpec) -> None:
    """Refuse other data than a run was started with.

    Args:
        path: the run directory.
        data: of the dataset at hand.

    Raises:
        OdnError: when they differ.
    """
    if read_data_spec(path) != data:
        raise OdnError(f"{data.name} is not the data that {path} was started with; restore it, or use --force")


def load_run_data(config: RunConfig, path: Path | None = None) -> Data:
    """Load the dataset of a run.

    Args:
        config: every setting.
        path: the run directory where the run stands; a tokenizer that came with trained weights is taken from there.

    Returns:
        The splits and what is known of them.

    Raises:
        UsageError: when the backbone reads something else.
    """
    backbone = find_backbone(config.backbone, config.width)
    reads_texts, texts = backbone.task == "text-classification", holds_texts(config.dataset)
    if reads_texts != texts:
        given, wanted = ("texts", "bert_tiny") if texts else ("images", "resnet18")
        raise UsageError(
            f"{config.dataset} holds {given}, backbone '{config.backbone}' reads {'images' if texts else 'texts'}; "
            f"choose another, e.g. --backbone {wanted}"
        )
    with first_on_each_machine():  # it may have to download
        reading = backbone.reading() if backbone.reading else None
        return load_data(
            config.dataset,
            data_dir=config.data_dir,
            seed=config.seed,
            config=config.data,
            augment=config.augment,
            positions=reading.positions if reading else 0,
            tokenizer=_tokenizer(config, backbone, path),
        )


def _tokenizer(config: RunConfig, backbone: Backbone, path: Path | None) -> TokenizerSource | None:
    spec = read_data_spec(path) if path is not None else None
    if spec is None or not isinstance(spec.preprocessing, TextPreprocessing):
        return find_tokenizer(backbone, config.weights or None, config.pretrained)
    if not (config.weights or config.pretrained):
        return None
    kept = spec.preprocessing
    return TokenizerSource(
        content=spec.tokenizer, where=f"{path}/data.json", padding=kept.padding, vocabulary=kept.vocabulary
    )


def reload_data(config: RunConfig, path: Path) -> Data:
    """Load the dataset of a run that stands, and check that it is still the same.

    Args:
        config: every setting.
        path: the run directory.

    Returns:
        The splits and what is known of them.
    """
    data = load_run_data(config, path)
    check_data(path, data.spec)
    return data

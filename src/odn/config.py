"""Every setting of a run: frozen dataclasses, their checks, and their TOML form. No torch here."""

import dataclasses
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w

from odn.errors import OdnError, UsageError, did_you_mean

Precision = Literal["auto", "fp32", "bf16"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes made to each training image, drawn anew for every sample.

    Attributes:
        shift: largest translation as a fraction of the image side, in [0, 0.5].
        rotate_degrees: largest rotation either way, in [0, 180].
        flip: mirror half of the images left to right; only where the classes allow it.
    """

    shift: float = 0.1
    rotate_degrees: float = 0.0
    flip: bool = False

    def __post_init__(self) -> None:
        _require(0 <= self.shift <= 0.5, f"augment.shift is {self.shift}; allowed: 0 to 0.5 of the side")
        _require(
            0 <= self.rotate_degrees <= 180,
            f"augment.rotate_degrees is {self.rotate_degrees}; allowed: 0 to 180",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How a dataset is read and split.

    Attributes:
        valid_fraction: share of the training images held out for validation, in (0, 0.5]; 0 means 0.1, or 0.2
            where fewer than 5,000 images are at hand.
        test_fraction: share of the images kept for the report where the dataset brings no test split.
        train_limit: keep a stratified subset of so many training images (and at most as many for validation);
            0 keeps all.
        image_size: height and width in pixels to which files are resized; 0 keeps the size they share.
        skip_bad_files: leave unreadable image files out (they are named) instead of stopping.
        resident_bytes: datasets whose decoded images fit into so many bytes live in memory, larger ones stream.
        workers: processes that decode a streamed dataset; 0 means one per CPU core, at most 8.
    """

    valid_fraction: float = 0.0
    test_fraction: float = 0.2
    train_limit: int = 0
    image_size: int = 0
    skip_bad_files: bool = False
    resident_bytes: int = 2 * 1024**3
    workers: int = 0

    def __post_init__(self) -> None:
        _require(
            0 <= self.valid_fraction <= 0.5,
            f"data.valid_fraction is {self.valid_fraction}; allowed: above 0 to 0.5, or 0 for the default",
        )
        _require(
            0 < self.test_fraction <= 0.5,
            f"data.test_fraction is {self.test_fraction}; allowed: above 0 to 0.5",
        )
        for name in ("train_limit", "image_size", "resident_bytes", "workers"):
            value = getattr(self, name)
            _require(value >= 0, f"data.{name} is {value}; allowed: 0 or more")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How weights are trained, the same for every depth and for fine-tuning.

    Attributes:
        optimizer: ``sgd`` (Nesterov momentum 0.9) or ``adamw``.
        learning_rate: peak learning rate; 0 takes the optimizer's default (0.1 for sgd, 0.002 for adamw).
        weight_decay: on weights of two or more dimensions; biases and norms are never decayed. Negative
            takes the optimizer's default (5e-4 for sgd, 0.05 for adamw).
        batch_size: images per step; 0 takes a sixteenth of the training set, rounded down to a power of two,
            between 16 and 128.
        label_smoothing: in [0, 1).
        warmup_epochs: epochs over which the learning rate rises linearly, at the start of every depth.
        ema_epochs: horizon of the moving average of the weights, in epochs (at most 2,000 steps).
        recalibration_images: training images used to compute BatchNorm statistics for averaged weights.
        max_gradient_norm: gradients are clipped to this L2 norm; 0 does not clip.
        precision: ``bf16`` autocast, ``fp32``, or ``auto``: bf16 where the hardware computes it natively.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.0
    weight_decay: float = -1.0
    batch_size: int = 0
    label_smoothing: float = 0.0
    warmup_epochs: float = 1.0
    ema_epochs: float = 3.0
    recalibration_images: int = 2048
    max_gradient_norm: float = 0.0
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        for name in ("learning_rate", "batch_size", "warmup_epochs", "max_gradient_norm"):
            value = getattr(self, name)
            _require(value >= 0, f"train.{name} is {value}; allowed: 0 or more")
        _require(self.ema_epochs > 0, f"train.ema_epochs is {self.ema_epochs}; allowed: above 0")
        _require(
            self.recalibration_images > 0,
            f"train.recalibration_images is {self.recalibration_images}; allowed: 1 or more",
        )
        _require(
            0 <= self.label_smoothing < 1,
            f"train.label_smoothing is {self.label_smoothing}; allowed: 0 to below 1",
        )


@dataclass(frozen=True, kw_only=True)
class ExpandConfig:
    """When progressive depth expansion grows and when it stops.

    Attributes:
        target_accuracy: validation accuracy to reach, a fraction above 0 and at most 1.
        depths: the depths to try, ascending; empty tries every depth from 1 to the full one.
        epochs_per_depth: hard cap on the epochs spent at one depth.
        confirmations: consecutive evaluations that must reach the target.
        confidence: when above 0, the lower Wilson bound at this confidence must reach the target, e.g. 0.95.
        patience: a depth has converged when so many epochs in a row brought no improvement.
        min_improvement: gains in validation accuracy below this fraction do not count as improvement.
    """

    target_accuracy: float = 1.0
    depths: tuple[int, ...] = ()
    epochs_per_depth: int = 30
    confirmations: int = 2
    confidence: float = 0.0
    patience: int = 4
    min_improvement: float = 0.0005

    def __post_init__(self) -> None:
        check_target(self.target_accuracy)
        for name in ("epochs_per_depth", "confirmations", "patience"):
            value = getattr(self, name)
            _require(value >= 1, f"expand.{name} is {value}; allowed: 1 or more")
        _require(
            0 <= self.confidence < 1,
            f"expand.confidence is {self.confidence}; allowed: above 0 and below 1, e.g. 0.95, or 0 for none",
        )
        _require(
            all(depth >= 1 for depth in self.depths) and list(self.depths) == sorted(set(self.depths)),
            f"expand.depths is {list(self.depths)}; allowed: ascending depths from 1, e.g. 1,2,4,8",
        )
        _require(
            self.confirmations <= self.epochs_per_depth,
            f"expand.confirmations is {self.confirmations} but only {self.epochs_per_depth} epochs are allowed "
            "per depth; lower the one or raise the other",
        )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How the extracted network is fine-tuned.

    Attributes:
        epochs: epochs over which the learning rate is annealed to zero; 0 leaves the network as extracted.
    """

    epochs: int = 10

    def __post_init__(self) -> None:
        _require(self.epochs >= 0, f"finetune.epochs is {self.epochs}; allowed: 0 or more")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What the report measures.

    Attributes:
        reference_epochs: epochs of the full-depth training to which the cost of the run is compared.
        latency_seconds: time spent measuring each latency; 0 leaves latencies unmeasured.
    """

    reference_epochs: int = 30
    latency_seconds: float = 0.5

    def __post_init__(self) -> None:
        _require(
            self.reference_epochs >= 1,
            f"report.reference_epochs is {self.reference_epochs}; allowed: 1 or more",
        )
        _require(
            self.latency_seconds >= 0, f"report.latency_seconds is {self.latency_seconds}; allowed: 0 or more"
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, whole: what ``RUN/config.toml`` holds.

    Attributes:
        dataset: a name or a path.
        data_dir: where named datasets lie or are downloaded to.
        backbone: a name from ``odn backbones``.
        width: factor on the backbone's channels, where its family scales.
        seed: seeds the split, the initial weights, the order of samples and the augmentation.
    """

    dataset: str
    data_dir: str
    backbone: str
    width: float = 1.0
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    expand: ExpandConfig = field(default_factory=ExpandConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        _require(0 < self.width <= 64, f"width is {self.width}; allowed: above 0 to 64")
        _require(0 <= self.seed < 2**63, f"seed is {self.seed}; allowed: 0 to 2^63 - 1")


def check_target(target_accuracy: float) -> None:
    """Refuse a target that is not a fraction.

    Args:
        target_accuracy: validation accuracy asked for.

    Raises:
        UsageError: when it is not above 0 and at most 1; percentages get the fraction that was meant.
    """
    hint = f"; for {target_accuracy} % write {target_accuracy / 100:g}" if 1 < target_accuracy <= 100 else ""
    _require(
        0 < target_accuracy <= 1,
        f"target accuracy is {target_accuracy}; allowed: a fraction above 0 and at most 1{hint}",
    )


Config = TypeVar("Config")


def from_table(kind: type[Config], table: dict[str, Any], *, where: str = "") -> Config:
    """Build a dataclass from a TOML or JSON table, checking every name and type.

    Args:
        kind: the dataclass to build, possibly holding others.
        table: the table as parsed.
        where: dotted name of the table, for messages.

    Returns:
        An instance of ``kind``.

    Raises:
        UsageError: on an unknown or missing key, or a value of the wrong type.
    """
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    for name in table:
        if name not in fields:
            hint = did_you_mean(name, fields)
            raise UsageError(f"unknown key '{prefix}{name}'; allowed: {', '.join(fields)}.{hint}")
    for name, entry in fields.items():
        no_default = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if no_default and name not in table:
            raise UsageError(f"'{prefix}{name}' is missing; add it")
    return kind(**{name: _value(hints[name], value, prefix + name) for name, value in table.items()})


def _value(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise UsageError(f"'{where}' is {value!r}; allowed: a table of settings")
        return from_table(kind, value, where=where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in arguments:
            raise UsageError(f"'{where}' is {value!r}; allowed: {', '.join(map(str, arguments))}")
        return value
    if origin is types.UnionType:
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _value(inner, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UsageError(f"'{where}' is {value!r}; allowed: a list")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise UsageError(f"'{where}' has {len(value)} entries; allowed: {len(kinds)}")
        return tuple(_value(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = typing.get_origin(kind) or kind
    if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
        raise UsageError(f"'{where}' is {value!r}; allowed: a value of type {plain.__name__}")
    return value


def to_table(config: Any) -> dict[str, Any]:
    """Return a dataclass as nested plain tables, ready for TOML or JSON.

    Args:
        config: any of the dataclasses above.

    Returns:
        Nested dictionaries; tuples become lists.
    """
    return {
        f.name: to_table(value)
        if dataclasses.is_dataclass(value)
        else list(value)
        if isinstance(value, tuple)
        else value
        for f in dataclasses.fields(config)
        for value in [getattr(config, f.name)]
    }


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: the file.

    Returns:
        Its tables.

    Raises:
        UsageError: when the file is missing, unreadable or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read the recipe {path}: {error}") from error


def read_run_config(path: Path) -> RunConfig:
    """Read the settings of an existing run.

    Args:
        path: ``RUN/config.toml``.

    Returns:
        The settings it was started with.

    Raises:
        OdnError: when there is no such file.
    """
    if not path.is_file():
        raise OdnError(f"{path.parent} is not a run directory: it has no config.toml; start one with odn run")
    return from_table(RunConfig, read_toml(path))


def to_toml(config: RunConfig) -> str:
    """Return the settings of a run as the text of a recipe.

    Args:
        config: the settings.

    Returns:
        TOML that ``--config`` accepts.
    """
    return tomli_w.dumps(to_table(config))

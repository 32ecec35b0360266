"""The settings of every step: frozen dataclasses and their checks. No torch here."""

from dataclasses import dataclass
from typing import Literal

from odn.errors import UsageError

Precision = Literal["auto", "fp32", "bf16"]


def require(condition: bool, message: str) -> None:
    """Refuse a setting.

    Args:
        condition: what has to hold.
        message: what was given, what is allowed, the fix.

    Raises:
        UsageError: when it does not hold.
    """
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
        require(0 <= self.shift <= 0.5, f"augment.shift is {self.shift}; allowed: 0 to 0.5 of the side")
        require(
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
        resident_bytes: a split whose decoded images fit into so many bytes lives in memory, a larger one streams.
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
        require(
            0 <= self.valid_fraction <= 0.5,
            f"data.valid_fraction is {self.valid_fraction}; allowed: above 0 to 0.5, or 0 for the default",
        )
        require(
            0 < self.test_fraction <= 0.5,
            f"data.test_fraction is {self.test_fraction}; allowed: above 0 to 0.5",
        )
        for name in ("train_limit", "resident_bytes", "workers"):
            value = getattr(self, name)
            require(value >= 0, f"data.{name} is {value}; allowed: 0 or more")
        require(0 <= self.image_size <= 4096, f"data.image_size is {self.image_size}; allowed: 1 to 4096 pixels")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How weights are trained, the same for every depth and for fine-tuning.

    Attributes:
        optimizer: ``sgd`` (Nesterov momentum 0.9) or ``adamw``.
        learning_rate: peak learning rate; 0 takes the optimizer's default: for a batch of 128 images 0.1 (sgd) or
            0.002 (adamw), scaled with the batch size linearly (sgd) or by its square root (adamw).
        weight_decay: on weights of two or more dimensions; biases and norms are never decayed. Negative
            takes the optimizer's default (5e-4 for sgd, 0.05 for adamw).
        batch_size: images per step; 0 takes a 64th of the training set, rounded down to a power of two between
            16 and 256.
        label_smoothing: in [0, 1).
        warmup_epochs: epochs over which the learning rate rises linearly, at the start of every depth.
        ema_epochs: horizon of the moving average of the weights, in epochs (at most 2,000 steps).
        recalibration_images: training images used to compute BatchNorm statistics for averaged weights.
        max_gradient_norm: gradients are clipped to this L2 norm; 0 does not clip.
        precision: ``bf16`` autocast, ``fp32``, or ``auto``: bf16 where the hardware computes it natively.
        checkpoint_minutes: within an epoch that takes longer, the state is saved every so many minutes; after every
            epoch it is saved anyway.
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
    checkpoint_minutes: float = 5.0

    def __post_init__(self) -> None:
        require(
            self.checkpoint_minutes > 0,
            f"train.checkpoint_minutes is {self.checkpoint_minutes}; allowed: above 0, e.g. 5",
        )
        for name in ("learning_rate", "batch_size", "warmup_epochs", "max_gradient_norm"):
            value = getattr(self, name)
            require(value >= 0, f"train.{name} is {value}; allowed: 0 or more")
        require(self.batch_size != 1, "train.batch_size is 1; BatchNorm needs 2 or more images per step")
        require(self.ema_epochs > 0, f"train.ema_epochs is {self.ema_epochs}; allowed: above 0")
        require(
            self.recalibration_images > 1,
            f"train.recalibration_images is {self.recalibration_images}; allowed: 2 or more",
        )
        require(
            0 <= self.label_smoothing < 1,
            f"train.label_smoothing is {self.label_smoothing}; allowed: 0 to below 1",
        )


@dataclass(frozen=True, kw_only=True)
class ExpandConfig:
    """When progressive depth expansion grows and when it stops.

    Attributes:
        target_accuracy: validation accuracy to reach, a fraction above 0 and at most 1; 0 finds it automatically: the
            best accuracy that growing reaches before two more depths gain nothing, less ``within``.
        within: how far below the best accuracy the shallowest network may stay with an automatic target.
        depths: the depths that may be chosen, ascending; empty means every depth from 1 to the full one.
        epochs_per_depth: hard cap on the epochs at a constant learning rate at one depth; a cool-down may follow. 0
            means 16, or as many as 1,250 steps take where that is more, at most 64; twice that for the deepest.
        confirmations: consecutive evaluations that must reach the target.
        confidence: when above 0, the lower Wilson bound at this confidence must reach the target, e.g. 0.95.
        patience: a depth has converged when so many epochs in a row, or an eighth of the cap where that is more,
            brought no improvement.
        min_improvement: gains in validation accuracy below this fraction do not count as improvement.
        cooldown_epochs: a converged depth that almost reaches the target is annealed to zero over so many epochs
            before the next block is attached; 0 never does that.
        reach: a depth almost reaches the target when its validation error is at most so many times the target's.
        lookback_epochs: once a depth holds the target, shallower ones start from its weights and are annealed over so
            many epochs; 0 never looks back.
    """

    target_accuracy: float = 0.0
    within: float = 0.002
    depths: tuple[int, ...] = ()
    epochs_per_depth: int = 0
    confirmations: int = 2
    confidence: float = 0.0
    patience: int = 4
    min_improvement: float = 0.0005
    cooldown_epochs: int = 5
    reach: float = 1.25
    lookback_epochs: int = 8

    def __post_init__(self) -> None:
        if self.target_accuracy:
            check_target(self.target_accuracy)
        require(0 <= self.within < 1, f"expand.within is {self.within}; allowed: 0 to below 1, e.g. 0.002")
        require(self.epochs_per_depth >= 0, f"expand.epochs_per_depth is {self.epochs_per_depth}; allowed: 0 or more")
        for name in ("confirmations", "patience"):
            value = getattr(self, name)
            require(value >= 1, f"expand.{name} is {value}; allowed: 1 or more")
        require(self.reach >= 1, f"expand.reach is {self.reach}; allowed: 1 or more")
        require(
            0 <= self.confidence < 1,
            f"expand.confidence is {self.confidence}; allowed: above 0 and below 1, e.g. 0.95, or 0 for none",
        )
        require(
            all(depth >= 1 for depth in self.depths) and list(self.depths) == sorted(set(self.depths)),
            f"expand.depths is {list(self.depths)}; allowed: ascending depths from 1, e.g. 1,2,4,8",
        )
        require(
            self.confirmations <= (self.epochs_per_depth or 16),
            f"expand.confirmations is {self.confirmations} but only {self.epochs_per_depth or 16} epochs are allowed "
            "per depth; lower the one or raise the other",
        )
        for name in ("cooldown_epochs", "lookback_epochs"):
            value = getattr(self, name)
            require(
                value == 0 or value >= self.confirmations,
                f"expand.{name} is {value}; allowed: 0, or at least expand.confirmations, {self.confirmations}",
            )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How the extracted network is fine-tuned.

    Attributes:
        epochs: epochs over which the learning rate is annealed to zero; 0 leaves the network as extracted.
    """

    epochs: int = 15

    def __post_init__(self) -> None:
        require(self.epochs >= 0, f"finetune.epochs is {self.epochs}; allowed: 0 or more")


@dataclass(frozen=True, kw_only=True)
class CompressConfig:
    """How narrow the network becomes; at most one of the first four is given, and none leaves it as it is.

    Attributes:
        width: share of the channels that every layer keeps, above 0 to 1.
        max_parameters: keep as many channels as fit into so many parameters.
        max_macs: keep as many channels as fit into so many multiply-accumulates per image.
        auto: narrow step by step for as long as the target is held.
        step: with ``auto``, each width is so many times the one before, above 0 and below 1.
        channel_multiple: layers keep a multiple of so many channels; hardware computes them by fours or more.
        epochs: epochs over which each narrower network is annealed.
        temperature: of the soft targets that the network before narrowing gives.
        soft_share: of the soft targets in the loss, in [0, 1]; the labels have the rest.
    """

    width: float = 0.0
    max_parameters: int = 0
    max_macs: int = 0
    auto: bool = False
    step: float = 0.75
    channel_multiple: int = 4
    epochs: int = 20
    temperature: float = 4.0
    soft_share: float = 0.9

    def __post_init__(self) -> None:
        hint = f"; for {self.width:g} % write {self.width / 100:g}" if 1 < self.width <= 100 else ""
        require(0 <= self.width <= 1, f"compress.width is {self.width}; allowed: a share above 0 and at most 1{hint}")
        for name, least in (("max_parameters", 0), ("max_macs", 0), ("epochs", 1)):
            value = getattr(self, name)
            require(value >= least, f"compress.{name} is {value}; allowed: {least} or more")
        require(len(self.asked) <= 1, f"compress was given {' and '.join(self.asked)}; allowed: one of them")
        require(0 < self.step < 1, f"compress.step is {self.step}; allowed: above 0 and below 1, e.g. 0.75")
        require(
            1 <= self.channel_multiple <= 64,
            f"compress.channel_multiple is {self.channel_multiple}; allowed: 1 to 64",
        )
        require(self.temperature > 0, f"compress.temperature is {self.temperature}; allowed: above 0")
        require(0 <= self.soft_share <= 1, f"compress.soft_share is {self.soft_share}; allowed: 0 to 1")

    @property
    def asked(self) -> list[str]:
        """Names of the bounds that are given: one, or none where the network stays as it is."""
        return [name for name in ("width", "max_parameters", "max_macs", "auto") if getattr(self, name)]


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
        require(
            self.reference_epochs >= 1,
            f"report.reference_epochs is {self.reference_epochs}; allowed: 1 or more",
        )
        require(self.latency_seconds >= 0, f"report.latency_seconds is {self.latency_seconds}; allowed: 0 or more")


def check_target(target_accuracy: float) -> None:
    """Refuse a target that is not a fraction.

    Args:
        target_accuracy: validation accuracy asked for.

    Raises:
        UsageError: when it is not above 0 and at most 1; percentages get the fraction that was meant.
    """
    hint = f"; for {target_accuracy} % write {target_accuracy / 100:g}" if 1 < target_accuracy <= 100 else ""
    require(
        0 < target_accuracy <= 1,
        f"target accuracy is {target_accuracy}; allowed: a fraction above 0 and at most 1{hint}",
    )

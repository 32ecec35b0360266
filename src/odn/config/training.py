"""Settings of training: weights, depth, fine-tuning. No torch here."""

from dataclasses import dataclass
from typing import Literal

from odn.config.checks import check_target, require

Precision = Literal["auto", "fp32", "bf16"]
Parallel = Literal["ddp", "fsdp"]
REFINING_RATE = 0.3  # of weights that were annealed before, by that of fresh ones


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How weights are trained, the same for every depth and for fine-tuning.

    Attributes:
        optimizer: ``sgd`` (Nesterov momentum 0.9), ``adamw``, or ``auto``: sgd for images, adamw for texts.
        learning_rate: peak learning rate; 0 takes the optimizer's default: for a batch of 128 images 0.1 (sgd) or
            0.002 (adamw), scaled with the batch size by its square root (adamw), above that linearly (sgd).
        pretrained_rate: peak learning rate of weights that came trained; 0 takes that of fresh ones, at most 0.05 (sgd)
            or 0.0005 (adamw).
        weight_decay: on weights of two or more dimensions; biases and norms are never decayed. Negative
            takes the optimizer's default (5e-4 for sgd, 0.05 for adamw).
        batch_size: images per step; 0 takes a 64th of the training set, rounded down to a power of two between
            16 and 256.
        label_smoothing: in [0, 1).
        warmup_epochs: epochs over which the learning rate rises linearly, at the start of every depth.
        ema_epochs: horizon of the moving average of the weights, in epochs (at most 2,000 steps).
        recalibration_images: training images used to compute BatchNorm statistics for averaged weights.
        evaluation_share: where the length of training is fixed, evaluations cost at most this share of what learning
            does: on data of which few are trained on, epochs pass without one. The last epochs are evaluated anyway.
        max_gradient_norm: gradients are clipped to this L2 norm; 0 does not clip. Negative takes the default: 1 for
            texts, 0 for images.
        precision: ``bf16`` autocast, ``fp32``, or ``auto``: bf16 where the hardware is faster with it.
        parallel: how several processes share the work: ``ddp`` gives each a copy of the network, ``fsdp`` a part of it,
            for networks that do not fit one GPU.
        checkpoint_minutes: where evaluations are longer apart, the state is saved every so many minutes; after every
            evaluation it is saved anyway.
    """

    optimizer: Literal["auto", "sgd", "adamw"] = "auto"
    learning_rate: float = 0.0
    pretrained_rate: float = 0.0
    weight_decay: float = -1.0
    batch_size: int = 0
    label_smoothing: float = 0.0
    warmup_epochs: float = 1.0
    ema_epochs: float = 3.0
    recalibration_images: int = 2048
    evaluation_share: float = 0.02
    max_gradient_norm: float = -1.0
    precision: Precision = "auto"
    parallel: Parallel = "ddp"
    checkpoint_minutes: float = 5.0

    def __post_init__(self) -> None:
        require(
            self.checkpoint_minutes > 0,
            f"train.checkpoint_minutes is {self.checkpoint_minutes}; allowed: above 0, e.g. 5",
        )
        for name in ("learning_rate", "pretrained_rate", "batch_size", "warmup_epochs"):
            value = getattr(self, name)
            require(value >= 0, f"train.{name} is {value}; allowed: 0 or more")
        require(self.batch_size != 1, "train.batch_size is 1; BatchNorm needs 2 or more images per step")
        require(self.ema_epochs > 0, f"train.ema_epochs is {self.ema_epochs}; allowed: above 0")
        require(
            self.recalibration_images > 1,
            f"train.recalibration_images is {self.recalibration_images}; allowed: 2 or more",
        )
        require(
            self.evaluation_share > 0,
            f"train.evaluation_share is {self.evaluation_share}; allowed: above 0, e.g. 0.02, or inf for every epoch",
        )
        require(
            0 <= self.label_smoothing < 1,
            f"train.label_smoothing is {self.label_smoothing}; allowed: 0 to below 1",
        )


@dataclass(frozen=True, kw_only=True)
class ExpandConfig:
    """When progressive depth expansion grows and when it stops.

    Attributes:
        target_accuracy: validation accuracy to reach, a fraction above 0 and at most 1; 0 finds it automatically:
            what the best depth reaches once deeper networks gain nothing more, less ``within``.
        within: how far below the best accuracy the shallowest network may stay with an automatic target.
        depths: the depths that may be chosen, ascending; empty means every depth from 1 to the full one.
        epochs_per_depth: hard cap on the epochs at a constant learning rate at one depth. 0 means 4, or as many as 500
            steps take where that is more, at most 20.
        confirmations: consecutive evaluations that must reach the target.
        confidence: when above 0, the lower Wilson bound at this confidence must reach the target, e.g. 0.95.
        patience: a network has converged when so many epochs in a row brought no improvement.
        min_improvement: gains in validation accuracy below this fraction do not count as improvement.
        reach: a network is near the target when its best depth makes at most so many times as many errors per correct
            answer as the target allows; of others the depths are not trained to their end, but for the deepest. It
            counts until one was, which says what that brings; the first planned depth is at once, if it is at most a
            quarter of the deepest.
        settle_epochs: the depths that a network near the target has more than the one before are trained to their end
            over so many epochs, more where one has less than 2,000 samples or 64 steps; 0 takes them as they are once
            growing has reached the target.
        probe_images: of a pretrained network, fit the probes on so many training images at most; 0 does not probe.
        reach_probe: growing begins at the first depth whose probe has an error of at most so many times the target's,
            or the best probe's where that is larger.
    """

    target_accuracy: float = 0.0
    within: float = 0.002
    depths: tuple[int, ...] = ()
    epochs_per_depth: int = 0
    confirmations: int = 2
    confidence: float = 0.0
    patience: int = 4
    min_improvement: float = 0.0005
    reach: float = 1.85
    settle_epochs: int = 30
    probe_images: int = 20_000
    reach_probe: float = 2.0

    def __post_init__(self) -> None:
        if self.target_accuracy:
            check_target(self.target_accuracy)
        require(0 <= self.within < 1, f"expand.within is {self.within}; allowed: 0 to below 1, e.g. 0.002")
        require(self.epochs_per_depth >= 0, f"expand.epochs_per_depth is {self.epochs_per_depth}; allowed: 0 or more")
        for name in ("confirmations", "patience"):
            value = getattr(self, name)
            require(value >= 1, f"expand.{name} is {value}; allowed: 1 or more")
        require(self.probe_images >= 0, f"expand.probe_images is {self.probe_images}; allowed: 0 or more")
        require(self.reach_probe >= 1, f"expand.reach_probe is {self.reach_probe}; allowed: 1 or more")
        require(self.reach >= 1, f"expand.reach is {self.reach}; allowed: 1 or more")
        require(
            0 <= self.confidence < 1,
            f"expand.confidence is {self.confidence}; allowed: above 0 and below 1, e.g. 0.95, or 0 for none",
        )
        require(
            all(depth >= 1 for depth in self.depths) and list(self.depths) == sorted(set(self.depths)),
            f"expand.depths is {list(self.depths)}; allowed: ascending depths from 1, e.g. 1,2,4,8",
        )
        most = self.epochs_per_depth or 4
        require(
            self.settle_epochs > 0 or self.confirmations <= most,
            f"expand.confirmations is {self.confirmations} but only {most} epochs are allowed per depth; lower the one "
            "or raise the other",
        )
        require(
            self.settle_epochs == 0 or self.settle_epochs >= self.confirmations,
            f"expand.settle_epochs is {self.settle_epochs}; allowed: 0, or at least expand.confirmations, "
            f"{self.confirmations}",
        )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How the extracted network is fine-tuned.

    Attributes:
        epochs: epochs over which the learning rate is annealed to zero; 0 leaves the network as extracted. Negative
            takes the default: 10 for a network that was trained to its end before, in a run none where the search has
            fine-tuned it already, otherwise 15.
        rate: peak learning rate by that of fresh weights, above 0; 0 takes the default: 0.3 for a network that was
            trained to its end before, which a high rate would undo, otherwise 1.
    """

    epochs: int = -1
    rate: float = 0.0

    def __post_init__(self) -> None:
        require(self.rate >= 0, f"finetune.rate is {self.rate}; allowed: above 0, e.g. 0.3, or 0 for the default")

    def resolved(self, *, annealed: bool = True) -> "FinetuneConfig":
        """Fill in the defaults.

        Args:
            annealed: whether the network was trained to its end before.

        Returns:
            Settings with epochs from 0 and a rate above 0.
        """
        epochs = self.epochs if self.epochs >= 0 else 10 if annealed else 15
        return FinetuneConfig(epochs=epochs, rate=self.rate or (REFINING_RATE if annealed else 1.0))

"""Settings of the data and their augmentation. No torch here."""

from dataclasses import dataclass
from typing import Literal

from odn.config.checks import require
from odn.tasks import Metric, Task, choose_metric


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes made to each training image, drawn anew for every sample.

    Attributes:
        shift: largest translation as a fraction of the image side, in [0, 0.5].
        rotate_degrees: largest rotation either way, in [0, 180].
        flip: mirror half of the images left to right; only where the classes allow it.
        token_dropout: of texts, share of the tokens that are hidden; the other changes are for images.
    """

    shift: float = 0.1
    rotate_degrees: float = 0.0
    flip: bool = False
    token_dropout: float = 0.1

    def __post_init__(self) -> None:
        require(0 <= self.shift <= 0.5, f"augment.shift is {self.shift}; allowed: 0 to 0.5 of the side")
        require(
            0 <= self.rotate_degrees <= 180,
            f"augment.rotate_degrees is {self.rotate_degrees}; allowed: 0 to 180",
        )
        require(0 <= self.token_dropout < 1, f"augment.token_dropout is {self.token_dropout}; allowed: 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How a dataset is read and split.

    Attributes:
        task: what is asked of a sample; ``auto`` is what the data's labels look like.
        metric: what the target is a value of; ``auto`` is the task's own.
        valid_fraction: share of the training images held out for validation, in (0, 0.5]; 0 means 0.1, or 0.2
            where fewer than 5,000 images are at hand.
        test_fraction: share of the images kept for the report where the dataset brings no test split.
        train_limit: keep a stratified subset of so many training images (and at most as many for validation);
            0 keeps all.
        image_size: height and width in pixels to which files are resized; 0 keeps the size they share.
        skip_bad_files: leave unreadable image files out (they are named) instead of stopping.
        resident_bytes: a split whose decoded images fit into so many bytes lives in memory, a larger one streams.
        workers: processes that decode a streamed dataset; 0 means one per CPU core, at most 8.
        max_tokens: of a text; longer ones are cut off. 0 means what 99 of 100 training texts need, rounded up to a
            multiple of 8, at most the encoder's positions.
        vocabulary: most tokens that the tokenizer, trained on the training texts, may have; 0 means one for every 24
            of their words, rounded down to a power of two between 512 and 8,192.
        lowercase: whether capital letters of texts are dropped.
    """

    task: Literal["auto", Task] = "auto"
    metric: Literal["auto", Metric] = "auto"
    valid_fraction: float = 0.0
    test_fraction: float = 0.2
    train_limit: int = 0
    image_size: int = 0
    skip_bad_files: bool = False
    resident_bytes: int = 2 * 1024**3
    workers: int = 0
    max_tokens: int = 0
    vocabulary: int = 0
    lowercase: bool = True

    def __post_init__(self) -> None:
        if self.task != "auto":
            choose_metric(self.task, self.metric)
        require(
            0 <= self.valid_fraction <= 0.5,
            f"data.valid_fraction is {self.valid_fraction}; allowed: above 0 to 0.5, or 0 for the default",
        )
        require(
            0 < self.test_fraction <= 0.5,
            f"data.test_fraction is {self.test_fraction}; allowed: above 0 to 0.5",
        )
        for name in ("train_limit", "resident_bytes", "workers", "max_tokens"):
            value = getattr(self, name)
            require(value >= 0, f"data.{name} is {value}; allowed: 0 or more")
        require(
            self.vocabulary == 0 or 258 <= self.vocabulary <= 1_000_000,
            f"data.vocabulary is {self.vocabulary}; allowed: 258 (every byte, padding and mask) to 1,000,000, or 0",
        )
        require(0 <= self.image_size <= 4096, f"data.image_size is {self.image_size}; allowed: 1 to 4096 pixels")

"""One run, whole: its settings as a recipe in TOML. No torch here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tomli_w

from odn.config import (
    AugmentConfig,
    CompressConfig,
    DataConfig,
    ExpandConfig,
    ExportConfig,
    FinetuneConfig,
    OneShotConfig,
    ReportConfig,
    TrainConfig,
    check_confidence,
    require,
)
from odn.errors import OdnError
from odn.tables import from_table, read_toml, to_table


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, whole: what ``RUN/config.toml`` holds.

    Attributes:
        dataset: a name or a path.
        data_dir: where named datasets lie or are downloaded to.
        backbone: a name from ``odn backbones``.
        width: factor on the backbone's channels, where its family scales.
        weights: safetensors file that the backbone starts from; empty for none.
        pretrained: start from the weights that the backbone's library publishes.
        weights_sha256: checksum of those weights, filled in by the run; given beforehand, others are refused.
        mode: ``expand`` grows the network depth by depth until the target is reached, ``one-shot`` trains all depths at
            once, for a target or device that comes later.
        seed: seeds the split, the initial weights, the order of samples and the augmentation.
    """

    dataset: str
    data_dir: str
    backbone: str
    width: float = 1.0
    weights: str = ""
    pretrained: bool = False
    weights_sha256: str = ""
    mode: Literal["expand", "one-shot"] = "expand"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    expand: ExpandConfig = field(default_factory=ExpandConfig)
    oneshot: OneShotConfig = field(default_factory=OneShotConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    compress: CompressConfig = field(default_factory=CompressConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        require(0 < self.width <= 64, f"width is {self.width}; allowed: above 0 to 64")
        require(
            not (self.weights and self.pretrained),
            "--weights and --pretrained (weights and pretrained of a recipe) exclude each other; give one of them",
        )
        require(
            not self.pretrained or self.width == 1,
            f"width is {self.width:g} with --pretrained, whose weights are of width 1; leave one of them out",
        )
        require(
            not self.weights_sha256 or self.weights != "" or self.pretrained,
            "weights_sha256 is given without weights or pretrained; add one of them, or leave it out",
        )
        require(
            self.mode == "expand" or not self.expand.depths,
            "--depths (expand.depths of a recipe) is for --mode expand; one-shot trains all: leave it out, and choose "
            "among them with odn specialize",
        )
        check_confidence(self.expand.confidence, self.expand.target_accuracy)
        require(0 <= self.seed < 2**63, f"seed is {self.seed}; allowed: 0 to 2^63 - 1")


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


def difference(stored: RunConfig, asked: RunConfig) -> str:
    """Name the first setting in which two runs differ.

    Args:
        stored: settings of a run.
        asked: other settings.

    Returns:
        Its name and both values.
    """

    def flat(table: dict[str, object], prefix: str = "") -> dict[str, object]:
        found: dict[str, object] = {}
        for name, value in table.items():
            found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        return found

    old, new = flat(to_table(stored)), flat(to_table(asked))
    name = next(name for name in old if old[name] != new[name])
    return f"{name} = {old[name]!r}, not {new[name]!r}"

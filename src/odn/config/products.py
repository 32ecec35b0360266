"""Settings of what comes after the depth is found: width, files and the report. No torch here."""

from dataclasses import dataclass
from typing import Literal

from odn.config.checks import require
from odn.runtimes import find_runtime


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
class ExportConfig:
    """What the artifact holds.

    Attributes:
        to: runtimes besides PyTorch to write files for.
        max_drop: validation accuracy that int8 and shorter weights may cost, a fraction; beyond it fp32 is kept.
        weights: how PyTorch's weights are stored on disk; they are computed with in fp32.
    """

    to: tuple[str, ...] = ()
    max_drop: float = 0.002
    weights: Literal["fp32", "bf16", "fp16"] = "fp32"

    def __post_init__(self) -> None:
        for name in self.to:
            static = find_runtime(name).static
            require(static, f"--to {name}: stages with exits are made by odn route RUN; leave it out of --to")
        require(0 <= self.max_drop < 1, f"export.max_drop is {self.max_drop}; allowed: 0 to below 1, e.g. 0.002")


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

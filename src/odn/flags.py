"""The flags of a run, and how they come together with a recipe and a dataset's defaults. No torch here."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from odn.command import Switch
from odn.errors import UsageError
from odn.launch import restarts
from odn.tasks import Metric, Task

if TYPE_CHECKING:
    from odn.recipe import RunConfig


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Flags:
    """The settings that have a flag; everything else is set in a recipe (--config).

    Attributes:
        backbone: network to right-size; see odn backbones.
        target: validation score to reach, by default an accuracy, a fraction, e.g. 0.993; auto, the default for data of
            your own, finds what they give.
        mode: grow depth by depth until the target is reached, or train all depths at once, for targets and devices to
            come; see odn specialize [default: expand].
        metric: what the target is a value of [default: accuracy, for other tasks their own].
        task: what the labels mean [default: those of .npz files what they look like, others classes].
        data_dir: folder of the named datasets [default: $ODN_DATA_DIR, else data].
        run: directory that receives everything [default: runs/DATASET].
        seed: of the split, the weights, the order of samples and the augmentation [default: 0].
        epochs_per_depth: hard cap on the epochs of growing at one depth [default: 4, more for small data].
        finetune_epochs: epochs over which the extracted network is annealed; default: 10, none where the search
            has refined that depth, 15 where it has not trained it to its end.
        train_limit: train on a stratified subset of so many images.
        depths: the depths that may be chosen, e.g. 1,2,4,8 [default: every one].
        confidence: demand that the lower Wilson bound reaches the target, e.g. 0.95.
        image_size: resize image files to so many pixels a side.
        max_tokens: cut texts off after so many tokens [default: what 99 of 100 need].
        skip_bad_files: leave out image files that cannot be read, and name them.
        width: factor on the channels of a backbone that scales.
        weights: safetensors file to start from: the library's own for this backbone, or odn's, e.g.
            RUN/artifact/weights.safetensors.
        pretrained: start from the weights that the backbone's library publishes.
        compress: narrow the network in the end: width=0.5, max_parameters=20000, max_macs=1000000, or auto for as
            narrow as holds the target; with ,int8 quantised too.
        to: further runtimes that the artifact gets files for, e.g. onnx,int8; see odn export.
        precision: arithmetic of training; auto takes bf16 where the hardware is faster with it.
        parallel: with several processes (torchrun) each holds a copy of the network, or with fsdp a part of it.
        config: a TOML recipe, as RUN/config.toml; flags go before it.
        resume: continue the run that stands in the run directory.
        force: replace the run that stands in the run directory.
    """

    backbone: str | None = None
    target: float | Literal["auto"] | None = None
    mode: Literal["expand", "one-shot"] | None = None
    metric: Metric | None = None
    task: Task | None = None
    data_dir: Path | None = None
    run: Path | None = None
    seed: int | None = None
    epochs_per_depth: int | None = None
    finetune_epochs: int | None = None
    train_limit: int | None = None
    depths: str | None = None
    confidence: float | None = None
    image_size: int | None = None
    max_tokens: int | None = None
    skip_bad_files: Annotated[bool | None, Parameter(negative="")] = None
    width: float | None = None
    weights: Path | None = None
    pretrained: Annotated[bool | None, Parameter(negative="")] = None
    compress: str | None = None
    to: str | None = None
    precision: Literal["auto", "fp32", "bf16"] | None = None
    parallel: Literal["ddp", "fsdp"] | None = None
    config: Path | None = None
    resume: Switch = False
    force: Switch = False

    def restarted(self, dataset: str | None) -> "Flags":
        """Continue the run that torchrun has started again after a process of it failed.

        Args:
            dataset: as given, or None.

        Returns:
            These flags; after a restart with ``resume`` in the place of ``force`` where the run has begun.
        """
        begun = restarts() > 0 and (self._directory(dataset) / "config.toml").is_file()
        return replace(self, resume=True, force=False) if begun else self

    def _directory(self, dataset: str | None) -> Path:
        return self.run or Path("runs") / (Path(dataset).resolve().stem if dataset else "digits")

    def settle(self, dataset: str | None) -> "tuple[RunConfig, Path]":
        """Bring flags, recipe and the dataset's defaults together.

        Args:
            dataset: as given, or None.

        Returns:
            The settings of the run, and its directory.

        Raises:
            UsageError: when they do not fit together.
        """
        from odn.config import check_target
        from odn.defaults import complete, require_dataset
        from odn.recipe import read_run_config
        from odn.tables import read_toml, to_table

        if isinstance(self.target, float):
            check_target(self.target)
        recipe = read_toml(self.config) if self.config else {}
        dataset = dataset or recipe.get("dataset")
        if dataset is not None and not isinstance(dataset, str):
            raise UsageError(f"'dataset' is {dataset!r} in {self.config}; allowed: a name or a path")
        if dataset is not None:
            require_dataset(dataset)
        run = self._directory(dataset)
        if self.resume:
            recipe = _merged(to_table(read_run_config(run / "config.toml")), recipe)
        compress, quantised = compression(self.compress)
        flags = {
            "dataset": dataset or recipe.get("dataset", "digits"),
            "data_dir": str(self.data_dir) if self.data_dir else None,
            "backbone": self.backbone,
            "mode": self.mode,
            "seed": self.seed,
            "width": self.width,
            "weights": str(self.weights) if self.weights else None,
            "pretrained": self.pretrained,
            "data": {
                "task": self.task,
                "metric": self.metric,
                "train_limit": self.train_limit,
                "image_size": self.image_size,
                "max_tokens": self.max_tokens,
                "skip_bad_files": self.skip_bad_files,
            },
            "train": {"precision": self.precision, "parallel": self.parallel},
            "expand": {
                "target_accuracy": 0.0 if self.target == "auto" else self.target,
                "epochs_per_depth": self.epochs_per_depth,
                "depths": _depths(self.depths),
                "confidence": self.confidence,
            },
            "finetune": {"epochs": self.finetune_epochs},
            "compress": compress,
            "export": {"to": [*listed(self.to), *quantised] or None},
        }
        return complete(_merged(recipe, flags)), run


def _depths(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(_is_number(part.strip()) for part in parts):
        raise UsageError(f"--depths is '{text}'; allowed: whole numbers with commas between, e.g. 1,2,4,8")
    return [int(part) for part in parts]


def listed(text: str | None) -> list[str]:
    """Split what a flag lists.

    Args:
        text: names with commas between, or None.

    Returns:
        The names.
    """
    return [name.strip() for name in text.split(",") if name.strip()] if text else []


def compression(text: str | None) -> tuple[dict[str, Any], list[str]]:
    """Read the parts of --compress, with commas between.

    Args:
        text: as given, or None.

    Returns:
        A bound, which replaces that of a recipe, or nothing; and the runtimes that it adds.

    Raises:
        UsageError: when a part is not known, or there are two bounds.
    """
    table: dict[str, Any] = {}
    quantised: list[str] = []
    for part in text.split(",") if text is not None else []:
        name, _, value = part.strip().partition("=")
        if part.strip() == "int8" and not quantised:
            quantised = ["int8"]
            continue
        if name == "auto" and not value:
            bound: float | bool = True
        elif name == "width" and _is_number(value.replace(".", "", 1)):
            bound = float(value)
        elif name in ("max_parameters", "max_macs") and _is_number(value):
            bound = int(value)
        else:
            bound = False
        if not bound or table:
            problem = "is one bound too many" if bound else "is not known"
            raise UsageError(
                f"--compress is '{text}', of which '{part.strip()}' {problem}; allowed: one of width=SHARE, "
                "max_parameters=N, max_macs=N and auto, and int8"
            )
        table = {"width": 0.0, "max_parameters": 0, "max_macs": 0, "auto": False} | {name: bound}
    return table, quantised


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Lay one nested table over another; None stands for not given."""
    merged = dict(below)
    for name, value in above.items():
        if isinstance(value, dict):
            inner = merged.get(name, {})
            # A recipe with something else in the place of a table is refused later, by name.
            if isinstance(inner, dict):
                merged[name] = _merged(inner, value)
        elif value is not None:
            merged[name] = value
    return merged

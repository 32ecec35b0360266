"""The flags of a run, and how they come together with a recipe and a dataset's defaults. No torch here."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from odn.errors import UsageError

if TYPE_CHECKING:
    from odn.recipe import RunConfig


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Flags:
    """The settings that have a flag; everything else is set in a recipe (--config).

    Attributes:
        backbone: network to right-size; see odn backbones.
        target: validation accuracy to reach, a fraction, e.g. 0.993; auto finds what the data give.
        data_dir: folder of the named datasets [default: $ODN_DATA_DIR, else data].
        run: directory that receives everything [default: runs/DATASET].
        seed: of the split, the weights, the order of samples and the augmentation [default: 0].
        epochs_per_depth: hard cap on the epochs at one depth, before a cool-down [default: 16, more for small data].
        finetune_epochs: epochs over which the extracted network is annealed [default: 15].
        train_limit: train on a stratified subset of so many images.
        depths: the depths that may be chosen, e.g. 1,2,4,8 [default: every one].
        confidence: demand that the lower Wilson bound reaches the target, e.g. 0.95.
        image_size: resize image files to so many pixels a side.
        skip_bad_files: leave out image files that cannot be read, and name them.
        width: factor on the channels of a backbone that scales.
        to: further runtimes that the artifact gets files for, e.g. onnx,int8; see odn export.
        precision: arithmetic of training; auto takes bf16 where the hardware has it.
        config: a TOML recipe, as RUN/config.toml; flags go before it.
        resume: continue the run that stands in the run directory.
        force: replace the run that stands in the run directory.
    """

    backbone: str | None = None
    target: float | Literal["auto"] | None = None
    data_dir: Path | None = None
    run: Path | None = None
    seed: int | None = None
    epochs_per_depth: int | None = None
    finetune_epochs: int | None = None
    train_limit: int | None = None
    depths: str | None = None
    confidence: float | None = None
    image_size: int | None = None
    skip_bad_files: Annotated[bool | None, Parameter(negative="")] = None
    width: float | None = None
    to: str | None = None
    precision: Literal["auto", "fp32", "bf16"] | None = None
    config: Path | None = None
    resume: Annotated[bool, Parameter(negative="")] = False
    force: Annotated[bool, Parameter(negative="")] = False

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
        from odn.defaults import complete
        from odn.recipe import read_run_config
        from odn.tables import read_toml, to_table

        if isinstance(self.target, float):
            check_target(self.target)
        recipe = read_toml(self.config) if self.config else {}
        dataset = dataset or recipe.get("dataset")
        if dataset is not None and not isinstance(dataset, str):
            raise UsageError(f"'dataset' is {dataset!r} in {self.config}; allowed: a name or a path")
        run = self.run or Path("runs") / (Path(dataset).resolve().stem if dataset else "digits")
        if self.resume:
            recipe = _merged(to_table(read_run_config(run / "config.toml")), recipe)
        flags = {
            "dataset": dataset or recipe.get("dataset", "digits"),
            "data_dir": str(self.data_dir) if self.data_dir else None,
            "backbone": self.backbone,
            "seed": self.seed,
            "width": self.width,
            "data": {
                "train_limit": self.train_limit,
                "image_size": self.image_size,
                "skip_bad_files": self.skip_bad_files,
            },
            "train": {"precision": self.precision},
            "expand": {
                "target_accuracy": 0.0 if self.target == "auto" else self.target,
                "epochs_per_depth": self.epochs_per_depth,
                "depths": _depths(self.depths),
                "confidence": self.confidence,
            },
            "finetune": {"epochs": self.finetune_epochs},
            "export": {"to": [name.strip() for name in self.to.split(",")] if self.to else None},
        }
        return complete(_merged(recipe, flags)), run


def _depths(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(_is_number(part.strip()) for part in parts):
        raise UsageError(f"--depths is '{text}'; allowed: whole numbers with commas between, e.g. 1,2,4,8")
    return [int(part) for part in parts]


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

"""The command ``odn``: flags in, results to stdout, progress and errors to stderr, exit codes 0 to 3."""

import json as json_module
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from odn.errors import OdnError, UsageError

if TYPE_CHECKING:
    from odn.config import RunConfig
    from odn.display import Display

DONE, FAILED, USAGE, TARGET_MISSED = 0, 1, 2, 3

app = App(
    name="odn",
    help="Find the shallowest network that holds a target accuracy on your data, and deploy it.",
    help_format="plaintext",  # Markdown would cost a fifth of the time of odn --help
    version=lambda: _version(),
)


def _version() -> str:
    from importlib.metadata import version

    return version("optimally-deep")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Flags:
    """The settings that have a flag; everything else is set in a recipe (--config).

    Attributes:
        backbone: network to right-size; see odn backbones.
        target: validation accuracy to reach, a fraction, e.g. 0.993.
        data_dir: folder of the named datasets [default: $ODN_DATA_DIR, else data].
        run: directory that receives everything [default: runs/DATASET].
        seed: of the split, the weights, the order of samples and the augmentation [default: 0].
        epochs_per_depth: hard cap on the epochs spent at one depth [default: 30].
        finetune_epochs: epochs over which the extracted network is annealed [default: 10].
        train_limit: train on a stratified subset of so many images.
        depths: the depths to try, e.g. 1,2,4,8 [default: every one].
        confidence: demand that the lower Wilson bound reaches the target, e.g. 0.95.
        image_size: resize image files to so many pixels a side.
        skip_bad_files: leave out image files that cannot be read, and name them.
        width: factor on the channels of a backbone that scales.
        precision: arithmetic of training; auto takes bf16 where the hardware has it.
        config: a TOML recipe, as RUN/config.toml; flags go before it.
        resume: continue the run that stands in the run directory.
        force: replace the run that stands in the run directory.
    """

    backbone: str | None = None
    target: float | None = None
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
        """
        from odn.config import read_run_config, read_toml, to_table
        from odn.defaults import complete

        recipe = read_toml(self.config) if self.config else {}
        dataset = dataset or recipe.get("dataset")
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
                "target_accuracy": self.target,
                "epochs_per_depth": self.epochs_per_depth,
                "depths": _depths(self.depths),
                "confidence": self.confidence,
            },
            "finetune": {"epochs": self.finetune_epochs},
        }
        return complete(_merged(recipe, flags)), run


def _depths(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise UsageError(f"--depths is '{text}'; allowed: whole numbers with commas between, e.g. 1,2,4,8")
    return [int(part) for part in parts]


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Lay one nested table over another; None stands for not given."""
    merged = dict(below)
    for name, value in above.items():
        if isinstance(value, dict):
            inner = merged.get(name, {})
            lower = _merged(inner if isinstance(inner, dict) else {}, value)
            if lower or name in merged:
                merged[name] = lower
        elif value is not None:
            merged[name] = value
    return merged


Json = Annotated[bool, Parameter(negative="")]


@app.command(name="run")
def run_command(dataset: str | None = None, /, *, flags: Flags = Flags(), json: Json = False) -> int:  # noqa: B008
    """Do the whole line: data, expand, extract, finetune, artifact, report.

    Args:
        dataset: a name (digits mnist fashion-mnist emnist kmnist svhn cifar10 cifar100), a folder with one
            sub-folder of images per class, or an .npz file [default: digits].
        flags: settings.
        json: print report.json instead of the table.
    """
    config, path = flags.settle(dataset)
    from odn.run import run

    report = run(config, path, force=flags.force, resume=flags.resume, watch=_display(config).watch)
    if json:
        _print_json(report.figures)
    else:
        _print_report(report)
    return DONE if report.figures["reached"] else TARGET_MISSED


@app.command(name="expand")
def expand_command(dataset: str | None = None, /, *, flags: Flags = Flags(), json: Json = False) -> int:  # noqa: B008
    """Grow the network until the target is reached; the first step of a run.

    Args:
        dataset: as for odn run.
        flags: settings.
        json: print the outcome as JSON.
    """
    config, path = flags.settle(dataset)
    from odn.run import expand_run

    result = expand_run(config, path, force=flags.force, resume=flags.resume, watch=_display(config).watch)
    outcome = {"depth": result.depth, "reached": result.reached, "valid_accuracy": result.valid_accuracy}
    if json:
        _print_json(outcome)
    else:
        verdict = "reached" if result.reached else "not reached"
        print(f"target {verdict}: depth {result.depth}, valid {result.valid_accuracy:.4f}; next: odn extract {path}")  # noqa: T201
    return DONE if result.reached else TARGET_MISSED


@app.command(name="extract")
def extract_command(run: Path, /, *, depth: int | None = None) -> int:
    """Copy the network of the chosen depth out of its backbone, to RUN/extracted.

    Args:
        run: the run directory.
        depth: another depth that was tried.
    """
    from odn.run import extract_run

    small = extract_run(run, depth)
    print(f"depth {small.depth} written to {run / 'extracted'}; next: odn finetune {run}")  # noqa: T201
    return DONE


@app.command(name="finetune")
def finetune_command(run: Path, /, *, epochs: int | None = None, resume: Json = False) -> int:
    """Anneal the extracted network, to RUN/finetuned.

    Args:
        run: the run directory.
        epochs: instead of the run's own setting.
        resume: continue an interrupted fine-tuning.
    """
    from odn.config import read_run_config
    from odn.run import finetune_run

    display = _display(read_run_config(run / "config.toml"))
    result = finetune_run(run, epochs=epochs, resume=resume, watch=display.watch)
    print(  # noqa: T201
        f"valid {result.valid_accuracy_before:.4f} before, {result.valid_accuracy:.4f} after, written to "
        f"{run / 'finetuned'}; next: odn export {run}"
    )
    return DONE


@app.command(name="export")
def export_command(run: Path, /) -> int:
    """Write the deployable directory, RUN/artifact.

    Args:
        run: the run directory.
    """
    from odn.run import export_run

    print(f"{export_run(run)}; next: odn report {run}")  # noqa: T201
    return DONE


@app.command(name="report")
def report_command(run: Path, /, *, json: Json = False) -> int:
    """Measure the artifact and look at the test split, to RUN/report.json and RUN/report.html.

    Args:
        run: the run directory.
        json: print report.json instead of the table.
    """
    from odn.run import report_run

    report = report_run(run)
    if json:
        _print_json(report.figures)
    else:
        _print_report(report)
    return DONE if report.figures["reached"] else TARGET_MISSED


@app.command(name="profile")
def profile_command(
    backbone: str, /, *, input_shape: str = "3x32x32", classes: int = 10, width: float = 1.0, json: Json = False
) -> int:
    """Print the cost of every depth of a backbone: no data, no training.

    Args:
        backbone: see odn backbones.
        input_shape: channels, height and width of an image.
        classes: number of labels.
        width: factor on the channels of a backbone that scales.
        json: print a list of objects instead of the table.
    """
    shape = _shape(input_shape)
    from odn.measure import profile
    from odn.network import build_network

    network = build_network(backbone, shape, classes, width=width, device="meta")
    rows = profile((network.prefix(depth) for depth in range(1, network.max_depth + 1)), shape)
    if json:
        _print_json(rows)
    else:
        _print_rows(f"{backbone}, {input_shape}, {classes} classes", rows)
    return DONE


@app.command(name="backbones")
def backbones_command(*, json: Json = False) -> int:
    """List the backbones that can be named; parameters are those of the full depth for 3x32x32 and 10 classes.

    Args:
        json: print a list of objects instead of the table.
    """
    from odn.backbones import BACKBONES
    from odn.network import build_network

    rows = []
    for entry in BACKBONES.values():
        network = build_network(entry.name, (3, 32, 32), 10, device="meta")
        parameters = sum(p.numel() for p in network.prefix(network.max_depth).parameters())
        rows.append(
            {
                "name": entry.name,
                "library": entry.library,
                "task": entry.task,
                "blocks": network.max_depth,
                "parameters": parameters,
            }
        )
    if json:
        _print_json(rows)
    else:
        _print_rows("backbones", rows)
    return DONE


@app.command(name="predict")
def predict_command(artifact: Path, files: Annotated[list[Path], Parameter(consume_multiple=True)], /, *, json: Json = False) -> int:
    """Classify image files: path, label and probability, one line each.

    Args:
        artifact: the directory that odn run or odn export wrote.
        files: images; they are resized to the network's input.
        json: print one JSON object per line.
    """
    from odn.artifact import load

    for path, prediction in load(artifact).predict_files(files):
        if json:
            row = {"path": str(path), "label": prediction.label, "probability": prediction.probability}
            print(json_module.dumps(row))  # noqa: T201
        else:
            print(f"{path}\t{prediction.label}\t{prediction.probability:.4f}")  # noqa: T201
    return DONE


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code.

    Args:
        arguments: in place of those of the process.

    Raises:
        SystemExit: always, with 0 done, 1 failed, 2 wrong usage, or 3 target not reached.
    """
    logging.basicConfig(format="odn: %(message)s", stream=sys.stderr)
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        code = _fail(" ".join(str(error).split()), USAGE)
    except OdnError as error:
        code = _fail(str(error), error.exit_code)
    except OSError as error:
        from odn.files import explain

        code = _fail(explain(error, Path(error.filename or ".")), FAILED)
    except KeyboardInterrupt:
        code = _fail("interrupted; what was finished is kept, add --resume to the same command to continue", FAILED)
    raise SystemExit(code if isinstance(code, int) else DONE)


def _fail(message: str, code: int) -> int:
    print(f"odn: {message}", file=sys.stderr)  # noqa: T201
    return code


def _shape(text: str) -> tuple[int, int, int]:
    sides = text.lower().split("x")
    if len(sides) != 3 or not all(side.isascii() and side.isdigit() for side in sides):
        raise UsageError(f"--input-shape is '{text}'; allowed: channels x height x width, e.g. 1x28x28")
    channels, height, width = map(int, sides)
    return channels, height, width


def _display(config: "RunConfig") -> "Display":
    from rich.console import Console

    from odn.display import Display

    return Display(Console(stderr=True), config)


def _print_json(value: Any) -> None:
    print(json_module.dumps(value, indent=2))  # noqa: T201


def _print_report(report: Any) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(report)
    console.print(f"report: {report.directory / 'report.html'}", soft_wrap=True, highlight=False)
    console.print(f"artifact: {report.directory / 'artifact'}", soft_wrap=True, highlight=False)


def _print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name, value in rows[0].items():
        table.add_column(name, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(f"{v:,}" if isinstance(v, int) else f"{v:.5f}" if isinstance(v, float) else v for v in row.values()))
    Console(width=None if sys.stdout.isatty() else 120).print(table)

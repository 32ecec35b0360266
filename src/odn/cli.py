"""The command ``odn``: flags in, results to stdout, progress and errors to stderr, exit codes 0 to 3."""

import json as json_module
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from odn.errors import OdnError, UsageError
from odn.flags import Flags

if TYPE_CHECKING:
    from odn.display import Display
    from odn.recipe import RunConfig

DONE, FAILED, USAGE, TARGET_MISSED = 0, 1, 2, 3

app = App(
    name="odn",
    help="Find the shallowest network that holds a target accuracy on your data, and deploy it.",
    help_format="plaintext",  # Markdown would cost a fifth of the time of odn --help
    version=lambda: _version(),
    suppress_keyboard_interrupt=False,  # main() says how to continue
)


def _version() -> str:
    from importlib.metadata import version

    return version("optimally-deep")


Switch = Annotated[bool, Parameter(negative="")]


@app.command(name="run")
def run_command(dataset: str | None = None, /, *, flags: Flags = Flags(), json: Switch = False) -> int:
    """Do the whole line: data, expand, extract, finetune, artifact, report.

    Args:
        dataset: a name (digits mnist fashion-mnist emnist kmnist svhn cifar10 cifar100), a folder with one
            sub-folder of images per class, or an .npz file [default: digits].
        flags: settings.
        json: print report.json instead of the table.
    """
    config, path = flags.settle(dataset)
    from odn.display import print_report
    from odn.run import run

    report = run(config, path, force=flags.force, resume=flags.resume, watch=_display(config).watch)
    if json:
        _print_json(report.figures)
    else:
        print_report(report)
    return DONE if report.figures["reached"] else TARGET_MISSED


@app.command(name="expand")
def expand_command(dataset: str | None = None, /, *, flags: Flags = Flags(), json: Switch = False) -> int:
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
        print(f"target {verdict}: depth {result.depth}, valid {result.valid_accuracy:.4f}; next: odn extract {path}")
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
    print(f"depth {small.depth} written to {run / 'extracted'}; next: odn finetune {run}")
    return DONE


@app.command(name="finetune")
def finetune_command(run: Path, /, *, epochs: int | None = None, resume: Switch = False) -> int:
    """Anneal the extracted network, to RUN/finetuned.

    Args:
        run: the run directory.
        epochs: instead of the run's own setting.
        resume: continue an interrupted fine-tuning.
    """
    from odn.config import FinetuneConfig
    from odn.recipe import read_run_config
    from odn.run import finetune_run

    config = read_run_config(run / "config.toml")
    if epochs is not None:
        config = replace(config, finetune=FinetuneConfig(epochs=epochs))
    display = _display(config)
    result = finetune_run(run, epochs=epochs, resume=resume, watch=display.watch)
    print(
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

    print(f"{export_run(run)}; next: odn report {run}")
    return DONE


@app.command(name="report")
def report_command(run: Path, /, *, json: Switch = False) -> int:
    """Measure the artifact and look at the test split, to RUN/report.json and RUN/report.html.

    Args:
        run: the run directory.
        json: print report.json instead of the table.
    """
    from odn.display import print_report
    from odn.run import report_run

    report = report_run(run)
    if json:
        _print_json(report.figures)
    else:
        print_report(report)
    return DONE if report.figures["reached"] else TARGET_MISSED


@app.command(name="profile")
def profile_command(
    backbone: str,
    /,
    *,
    input_shape: str | None = None,
    classes: int = 10,
    width: float = 1.0,
    json: Switch = False,
) -> int:
    """Print the cost of every depth of a backbone: no data, no training.

    Args:
        backbone: see odn backbones.
        input_shape: channels, height and width of an image, or the tokens of a text [default: 3x32x32, or 128].
        classes: number of labels.
        width: factor on the channels of a backbone that scales.
        json: print a list of objects instead of the table.
    """
    shape = _shape(input_shape) if input_shape is not None else None
    from odn.backbones import find_backbone
    from odn.display import print_rows
    from odn.measure import profile
    from odn.network import build_network

    if shape is None:
        shape = (128,) if find_backbone(backbone, width).task == "text-classification" else (3, 32, 32)
    network = build_network(backbone, shape, classes, width=width, device="meta")
    assert network.spec is not None
    rows = profile(network.prefixes(), shape, network.spec.input_dtype)
    if json:
        _print_json(rows)
    else:
        print_rows(f"{backbone}, {'x'.join(map(str, shape))}, {classes} classes", rows)
    return DONE


@app.command(name="backbones")
def backbones_command(
    pattern: str = "",
    /,
    *,
    library: Literal["odn", "torchvision", "timm", "transformers"] | None = None,
    task: Literal["image-classification", "text-classification"] | None = None,
    json: Switch = False,
) -> int:
    """List the backbones that can be named; blocks and parameters are those of the full depth for 10 classes.

    Args:
        pattern: a part of the name, e.g. convnext.
        library: where they come from; with timm every network that it has is listed, the tested ones with their size.
        task: what they read.
        json: print a list of objects instead of the table.
    """
    from odn.catalog import list_backbones
    from odn.display import print_rows

    rows = list_backbones(pattern, library=library, task=task)
    if json:
        _print_json(rows)
    else:
        print_rows("backbones", rows)
    return DONE


@app.command(name="predict")
def predict_command(
    artifact: Path, files: Annotated[list[Path], Parameter(consume_multiple=True)], /, *, json: Switch = False
) -> int:
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
            print(json_module.dumps(row))
        else:
            print(f"{path}\t{prediction.label}\t{prediction.probability:.4f}")
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
    except BrokenPipeError:
        # The reader of our output has gone; Python would complain again while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    except OSError as error:
        code = _fail(" ".join(str(error).split()), FAILED)
    except KeyboardInterrupt:
        code = _fail("interrupted; what a run finished is kept, the same command continues with --resume", FAILED)
    raise SystemExit(code if isinstance(code, int) else DONE)


def _fail(message: str, code: int) -> int:
    print(f"odn: {message}", file=sys.stderr)
    return code


def _shape(text: str) -> tuple[int, ...]:
    sides = text.lower().split("x")
    if len(sides) not in (1, 3) or not all(s.isascii() and s.isdigit() and len(s) < 10 for s in sides):
        raise UsageError(f"--input-shape is '{text}'; allowed: channels x height x width, e.g. 1x28x28, or tokens")
    return tuple(map(int, sides))


def _display(config: "RunConfig") -> "Display":
    from odn.display import Display

    return Display(config)


def _print_json(value: Any) -> None:
    print(json_module.dumps(value, indent=2))

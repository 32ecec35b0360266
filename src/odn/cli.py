"""The command ``odn``: flags in, results to stdout, progress and errors to stderr, exit codes 0 to 3."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App, CycloptsError

from odn.command import DONE, FAILED, TARGET_MISSED, USAGE, Switch, print_json
from odn.compress_command import compress_command
from odn.deploy import COMMANDS as AFTER_A_RUN
from odn.errors import ElsewhereError, OdnError
from odn.flags import Flags
from odn.launch import launched, rank, world_size
from odn.route_command import route_command
from odn.specialize_command import specialize_command
from odn.survey import COMMANDS as BEFORE_A_RUN

if TYPE_CHECKING:
    from odn.engine import Watch
    from odn.recipe import RunConfig


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


@app.command(name="run")
def run_command(dataset: str | None = None, /, *, flags: Flags = Flags(), json: Switch = False) -> int:
    """Do the whole line: data, expand, extract, finetune, compress where asked for, artifact, report.

    Args:
        dataset: a name (digits mnist fashion-mnist emnist kmnist svhn cifar10 cifar100), a folder with one
            sub-folder of images per class, an .npz file, a .csv or .jsonl file with the columns path,label or
            text,label, or what docs/data.md lists [default: digits].
        flags: settings.
        json: print report.json instead of the table.
    """
    flags = flags.restarted(dataset)
    config, path = flags.settle(dataset)
    from odn.display import print_report
    from odn.run import run

    report = run(config, path, force=flags.force, resume=flags.resume, watch=_watch(config))
    if json:
        print_json(report.figures)
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
    flags = flags.restarted(dataset)
    config, path = flags.settle(dataset)
    from odn.training import train_run

    _, result = train_run(config, path, force=flags.force, resume=flags.resume, watch=_watch(config))
    outcome = {"depth": result.depth, "reached": result.reached, "valid_score": result.valid_score}
    if json:
        print_json(outcome)
    else:
        verdict = "reached" if result.reached else "not reached"
        print(f"target {verdict}: depth {result.depth}, valid {result.valid_score:.4f}; next: odn extract {path}")
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
    result = finetune_run(run, epochs=epochs, resume=resume, watch=_watch(config))
    print(
        f"valid {result.valid_score_before:.4f} before, {result.valid_score:.4f} after, written to "
        f"{run / 'finetuned'}; next: odn export {run}"
    )
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
        print_json(report.figures)
    else:
        print_report(report)
    return DONE if report.figures["reached"] else TARGET_MISSED


_OWN_COMMANDS: dict[str, Callable[..., int]] = {
    "compress": compress_command,
    "specialize": specialize_command,
    "route": route_command,
}
for _name, _command in {**BEFORE_A_RUN, **_OWN_COMMANDS, **AFTER_A_RUN}.items():
    app.command(_command, name=_name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code.

    Args:
        arguments: in place of those of the process.

    Raises:
        SystemExit: always, with 0 done, 1 failed, 2 wrong usage, or 3 target not reached.
    """
    logging.basicConfig(format="odn: %(message)s", stream=sys.stderr, level=logging.ERROR if rank() else None)
    if rank():  # of several processes the first one speaks
        _mute()
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        code = _fail(" ".join(str(error).split()), USAGE)
    except ElsewhereError:
        code = FAILED
    except OdnError as error:
        code = _fail(str(error), error.exit_code)
    except BrokenPipeError:
        # The reader of our output has gone; Python would complain again while it flushes at exit.
        _mute()
        code = FAILED
    except OSError as error:
        code = _fail(" ".join(str(error).split()), FAILED)
    except RuntimeError as error:
        code = _fail(_lost(error), FAILED)
    except KeyboardInterrupt:
        code = _fail("interrupted; what a run finished is kept and goes on with --resume", FAILED)
    if code == TARGET_MISSED and launched():
        code = DONE  # a result; torchrun would take another code for a crash and start again
    raise SystemExit(code if isinstance(code, int) else DONE)


def _lost(error: RuntimeError) -> str:
    """Say what it means when communication between processes fails; any other error is a defect and stays one."""
    if world_size() > 1:
        from odn.processes import lost_another

        if lost_another(error):
            return "another process is gone; continue with --resume, or let torchrun do that with --max-restarts"
    raise error


def _mute() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    # A wrong request is wrong in all processes.
    if not rank():
        print(f"odn: {message}", file=sys.stderr)
    elif code != USAGE:
        print(f"odn: process {rank()}: {message}", file=sys.stderr)
    return code


def _watch(config: "RunConfig") -> "Watch":
    from odn.display import Display
    from odn.engine import finish

    return finish if rank() else Display(config).watch

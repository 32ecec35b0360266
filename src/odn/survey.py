"""The commands that come before any run: profile, plan and backbones. No torch until one is used."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from odn.command import DONE, Switch, check_threads, print_json
from odn.errors import UsageError


def profile_command(
    backbone: str,
    /,
    *,
    input_shape: str | None = None,
    classes: int = 10,
    width: float = 1.0,
    latency: Switch = False,
    runtime: Literal["torch", "onnx", "openvino"] = "onnx",
    threads: int = 1,
    seconds: float = 0.2,
    out: Path | None = None,
    parts: Path | None = None,
    json: Switch = False,
) -> int:
    """Print the cost of every depth of a backbone, no data, no training; or measure its parts on this machine.

    Args:
        backbone: see odn backbones; or a run directory, whose backbone, input, classes and width are taken.
        input_shape: channels, height and width of an image, or the tokens of a text [default: 3x32x32, or 128].
        classes: number of labels.
        width: factor on the channels of a backbone that scales.
        latency: time stem, blocks and heads, and write a device table for odn specialize --device.
        runtime: in which they are timed.
        threads: to compute with.
        seconds: spent on timing each part.
        out: file for the device table [default: BACKBONE-RUNTIME.json].
        parts: instead of timing them, write the parts as ONNX files into this directory, with a script that times them
            on a device that has onnxruntime and numpy alone.
        json: print a list of objects instead of the table.
    """
    shape = _shape(input_shape) if input_shape is not None else None
    check_threads(threads)
    if not 0 < seconds < 3600:
        raise UsageError(f"--seconds is {seconds}; allowed: above 0 and below 3600")
    made_for: dict[str, Any] = {}
    if (Path(backbone) / "config.toml").is_file():
        from odn.recipe import read_run_config
        from odn.rundata import read_data_spec

        run, data = read_run_config(Path(backbone) / "config.toml"), read_data_spec(Path(backbone))
        backbone, shape, classes, width = run.backbone, data.input_shape, len(data.classes), run.width
        made_for = {"task": data.task, "vocabulary": data.vocabulary, "padding": data.padding}
    from odn.backbones import find_backbone
    from odn.display import print_rows
    from odn.measure import profile
    from odn.network import build_network

    shape = shape or _usual_shape(find_backbone(backbone, width).task)
    if latency or parts:
        from odn.latencies import time_or_write

        network = build_network(backbone, shape, classes, width=width, **made_for)
        print(time_or_write(network, runtime=runtime, threads=threads, seconds=seconds, out=out, parts=parts))
        return DONE
    network = build_network(backbone, shape, classes, width=width, **made_for, device="meta")
    assert network.spec is not None
    rows = profile(network.prefixes(), shape, network.spec.input_dtype)
    if json:
        print_json(rows)
    else:
        print_rows(f"{backbone}, {'x'.join(map(str, shape))}, {classes} classes", rows)
    return DONE


def plan_command(
    backbone: str,
    /,
    *,
    images: int,
    input_shape: str | None = None,
    classes: int = 10,
    width: float = 1.0,
    epochs: int = 30,
    batch_size: int = 0,
    processes: Annotated[list[int] | None, Parameter(consume_multiple=True)] = None,
    parallel: Literal["ddp", "fsdp"] = "ddp",
    gmacs_per_second: float = 0.0,
    gigabytes_per_second: float = 1.0,
    price_per_hour: float = 0.0,
    json: Switch = False,
) -> int:
    """Estimate time, memory and money of a training from its exact MACs and the speed of this machine or another.

    Args:
        backbone: see odn backbones.
        images: or texts in the training split.
        input_shape: channels, height and width of an image, or the tokens of a text [default: 3x32x32, or 128].
        classes: number of labels.
        width: factor on the channels of a backbone that scales.
        epochs: of a training at full depth, for comparison.
        batch_size: images per step of all processes together; 0 takes the default of odn run.
        processes: how many share the work, e.g. --processes 1 2 4 [default: 1].
        parallel: with several processes each holds a copy of the network, or with fsdp a part of it.
        gmacs_per_second: speed of training of one process, as this command prints it there; 0 measures it here.
        gigabytes_per_second: at which processes exchange gradients.
        price_per_hour: of all machines together.
        json: print a list of objects instead of the table.
    """
    asked = _shape(input_shape) if input_shape is not None else None
    from odn.backbones import find_backbone
    from odn.config import TrainConfig
    from odn.display import print_rows
    from odn.plan import Hardware, Workload, plan

    shape = asked or _usual_shape(find_backbone(backbone, width).task)
    workload = Workload(
        backbone=backbone,
        input_shape=shape,
        classes=classes,
        images=images,
        width=width,
        epochs=epochs,
        training=TrainConfig(batch_size=batch_size, parallel=parallel),
    )
    rows = [
        plan(
            workload,
            Hardware(
                processes=count,
                gmacs_per_second=gmacs_per_second,
                gigabytes_per_second=gigabytes_per_second,
                price_per_hour=price_per_hour,
            ),
        )
        for count in processes or [1]
    ]
    if json:
        print_json(rows)
    else:
        form = "x".join(map(str, shape))
        print_rows(f"{backbone}, {form}, {images:,} {'texts' if len(shape) == 1 else 'images'}", rows)
    return DONE


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
        print_json(rows)
    else:
        print_rows("backbones", rows)
    return DONE


def _shape(text: str) -> tuple[int, ...]:
    sides = text.lower().split("x")
    if len(sides) not in (1, 3) or not all(s.isascii() and s.isdigit() and len(s) < 10 for s in sides):
        raise UsageError(f"--input-shape is '{text}'; allowed: channels x height x width, e.g. 1x28x28, or tokens")
    return tuple(map(int, sides))


def _usual_shape(task: str) -> tuple[int, ...]:
    return (128,) if task == "text-classification" else (3, 32, 32)


COMMANDS: dict[str, Callable[..., int]] = {
    "profile": profile_command,
    "plan": plan_command,
    "backbones": backbones_command,
}

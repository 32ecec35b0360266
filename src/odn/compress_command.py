"""The command ``odn compress``. No torch here before it runs."""

from dataclasses import replace
from pathlib import Path

from odn.command import Switch


def compress_command(
    run: Path,
    /,
    *,
    width: float | None = None,
    max_parameters: int | None = None,
    max_macs: int | None = None,
    auto: Switch = False,
    epochs: int | None = None,
    resume: Switch = False,
) -> int:
    """Narrow the network and let it learn from what it was, to RUN/compressed; at most one of the first four.

    Args:
        run: the run directory.
        width: share of the channels that every layer keeps, e.g. 0.5.
        max_parameters: keep as many channels as fit into so many parameters.
        max_macs: keep as many channels as fit into so many multiply-accumulates per image.
        auto: narrow step by step for as long as the run's target is held.
        epochs: instead of the run's own setting, for each width.
        resume: continue an interrupted compressing.

    Returns:
        The exit code.
    """
    from odn.display import Display
    from odn.narrowing import with_bound
    from odn.recipe import read_run_config
    from odn.run import compress_run

    config = read_run_config(run / "config.toml")
    compress = config.compress if epochs is None else replace(config.compress, epochs=epochs)
    bounds = {"width": width, "max_parameters": max_parameters, "max_macs": max_macs, "auto": auto or None}
    if any(value is not None for value in bounds.values()):
        compress = with_bound(compress, **bounds)
    result = compress_run(run, compress=compress, resume=resume, watch=Display(config).watch)
    print(
        f"{result.parameters:,} parameters at width {result.width:g}: valid {result.valid_score_before:.4f} before, "
        f"{result.valid_score:.4f} after, written to {run / 'compressed'}; next: odn export {run}"
    )
    return 0

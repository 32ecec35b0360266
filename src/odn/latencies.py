"""What ``odn profile --latency`` does with a network: time its parts here, or write them for another machine."""

from pathlib import Path

from odn.devices import DeviceTable, write_device_table
from odn.network import PartitionedNetwork
from odn.profiling import measure_device, write_parts
from odn.texts import plain_preprocessing


def time_or_write(
    network: PartitionedNetwork,
    *,
    runtime: str,
    threads: int,
    seconds: float,
    out: Path | None = None,
    parts: Path | None = None,
) -> str:
    """Time the parts of a network and write the device table, or write the parts.

    Args:
        network: of a named backbone; its weights do not matter.
        runtime: ``torch``, ``onnx`` or ``openvino``.
        threads: to compute with.
        seconds: spent on each part.
        out: file for the table; None names it after backbone and runtime.
        parts: directory for the parts; nothing is timed then.

    Returns:
        What was done, for a person.
    """
    spec = network.spec
    assert spec is not None
    preprocessing = plain_preprocessing(spec.input_shape, spec.vocabulary)
    if parts is not None:
        write_parts(network, preprocessing, parts)
        return f"{parts}; copy it to the device and run there: python measure.py --out table.json"
    table = measure_device(network, preprocessing, runtime=runtime, threads=threads, seconds=seconds)
    out = out or Path(f"{spec.backbone.replace('/', '-')}-{runtime}.json")
    write_device_table(table, out)
    return f"{_summary(table)}; written to {out}; next: odn specialize RUN --max-latency-ms X --device {out}"


def _summary(table: DeviceTable) -> str:
    most = len(table.blocks_ms)
    text = f"{table.predict_ms(1):.3f} ms at depth 1, {table.predict_ms(most):.3f} ms at depth {most}"
    checked = table.check()
    if checked["mape"] is not None:
        text += f"; {len(table.held_out_ms)} depths that were held out: off by {checked['mape']:.1%} in the mean"
    if checked["spearman"] is not None:
        text += f", rank correlation {checked['spearman']:.3f}"
    if table.doubt():
        text += " (rough: measure again on a machine that does nothing else, or with more --seconds)"
    return text

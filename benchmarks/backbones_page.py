"""docs/backbones.md and the listing behind ``odn backbones``, made from the registry: no weights, no training.

Run it with: python -m benchmarks.backbones_page    (timm and transformers have to be installed)
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from odn.backbones import BACKBONES, Backbone, Inputs
from odn.catalog import LISTING
from odn.network import PartitionedNetwork, build_network

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "backbones.md"
CLASSES, TOKENS = 10, 128

HEAD = f"""# Backbones

Every backbone that the tests hold, with what it costs at depth 1, 2, 3 and so on, each as parameters in thousands /
multiply-accumulates of one forward pass in millions. For {CLASSES} classes, RGB images of the size named, and texts of
{TOKENS} tokens; `odn profile NAME --input-shape 3x32x32` prints the figures for yours.

Beyond these, any network of timm can be named, as `timm/NAME`, whose blocks stand where timm's families have them and
form a chain; what is not understood is refused with the reason. Text encoders can also be given by a directory with
their `config.json`. A bare name is ours or torchvision's; timm's carry `timm/`.

This page is made from the registry: `python -m benchmarks.backbones_page`.
"""


def input_shape(entry: Backbone) -> tuple[int, ...]:
    """Return the input for which the page counts."""
    if entry.task == "text-classification":
        return (TOKENS,)
    side = 32 if entry.library == "odn" else entry.sides()[0]
    return (3, side, side)


def costs_by_depth(network: PartitionedNetwork) -> list[tuple[int, int]]:
    """Count parameters and MACs of every depth, from one pass over all blocks and heads on the meta device."""
    spec = network.spec
    assert spec is not None
    example = Inputs(shape=spec.input_shape, dtype=spec.input_dtype).example(1)

    def size(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    parameters, rows = size(network.stem), []
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as flops:

        def macs_since(before: int) -> int:
            return flops.get_total_flops() // 2 - before

        features = network.stem(example)
        heads = 0  # of the heads passed, which no deeper prefix has
        for block, head in zip(network.blocks, network.heads, strict=True):
            features = block(features)
            parameters, macs = parameters + size(block), macs_since(heads)
            head(features)
            head_macs = macs_since(heads + macs)
            heads += head_macs
            rows.append((parameters + size(head), macs + head_macs))
    return rows


def listing_row(entry: Backbone, costs: list[tuple[int, int]]) -> dict[str, Any]:
    """Return what ``odn backbones`` says of one backbone."""
    return {
        "name": entry.name,
        "library": entry.library,
        "task": entry.task,
        "blocks": len(costs),
        "parameters": costs[-1][0],
    }


def page_row(entry: Backbone, costs: list[tuple[int, int]]) -> str:
    """Return one line of the page."""
    cells = " · ".join(f"{parameters / 1e3:,.0f} / {macs / 1e6:,.0f}" for parameters, macs in costs)
    return f"| `{entry.name}` | {'x'.join(map(str, input_shape(entry)))} | {len(costs)} | {cells} |"


def tables(lines: dict[str, str]) -> Iterator[str]:
    """Yield the page's tables, one per library."""
    for library in dict.fromkeys(entry.library for entry in BACKBONES.values()):
        yield f"\n## {library}\n"
        yield "| name | input | blocks | depth 1 · 2 · 3 · ... |"
        yield "|---|---|---:|---|"
        yield from (lines[name] for name, entry in BACKBONES.items() if entry.library == library)


def main() -> None:
    """Write the page and the listing."""
    rows, lines = [], {}
    for name, entry in BACKBONES.items():
        costs = costs_by_depth(build_network(name, input_shape(entry), CLASSES, device="meta"))
        rows.append(listing_row(entry, costs))
        lines[name] = page_row(entry, costs)
    listing = "[\n" + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n]\n"
    (ROOT / "src" / "odn" / LISTING).write_text(listing, encoding="utf-8")
    PAGE.write_text(HEAD + "\n".join(tables(lines)) + "\n", encoding="utf-8")
    print(f"{len(rows)} backbones: {PAGE.relative_to(ROOT)}, src/odn/{LISTING}")


if __name__ == "__main__":
    main()

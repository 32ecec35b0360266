"""What can be named as a backbone, read from the listing that was made from the registry. No torch here.

``python -m benchmarks.backbones_page`` makes the listing and docs/backbones.md; tests compare both with the registry.
"""

import importlib.util
import json
from importlib.resources import files
from typing import Any

from odn.errors import UsageError

LISTING = "backbones/listing.json"


def list_backbones(pattern: str = "", *, library: str | None = None, task: str | None = None) -> list[dict[str, Any]]:
    """List backbones.

    Args:
        pattern: a part of the name.
        library: where they come from. All of timm's networks are listed when it is named here, and installed.
        task: what they read.

    Returns:
        Rows of ``name library task blocks parameters``; blocks and parameters are those of the full depth for 10
        classes and the input of docs/backbones.md, None for networks of timm that are not among the tested ones.

    Raises:
        UsageError: when nothing matches.
    """
    rows: list[dict[str, Any]] = json.loads(files("odn").joinpath(LISTING).read_text(encoding="utf-8"))
    if (library == "timm" or pattern.startswith("timm/")) and importlib.util.find_spec("timm") is not None:
        import timm

        known = {row["name"] for row in rows}
        unsized = {"library": "timm", "task": "image-classification", "blocks": None, "parameters": None}
        names = [f"timm/{name}" for name in timm.list_models()]
        rows += [{"name": name, **unsized} for name in names if name not in known]
    matches = [
        row
        for row in rows
        if pattern.lower() in row["name"] and library in (None, row["library"]) and task in (None, row["task"])
    ]
    if not matches:
        asked = " ".join(filter(None, (pattern, library and f"--library {library}", task and f"--task {task}")))
        raise UsageError(f"no backbone matches '{asked}'; odn backbones lists them, --library timm all of timm's")
    return matches

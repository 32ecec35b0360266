"""The part of a report's page that tells of dynamic depth. No torch here."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from odn.calibration import in_words


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An input of the test split, and where it left.

    Attributes:
        png: the image, encoded.
        depth: at which it left.
        label: its own.
        answer: of the network.
    """

    png: bytes
    depth: int
    label: str
    answer: str


def render_routing(routing: dict[str, Any] | None, pictures: Sequence[Picture]) -> str:
    """Write the part of the page that tells of dynamic depth.

    Args:
        routing: of report.json.
        pictures: of inputs that leave first and last.

    Returns:
        HTML; nothing where there are no stages.
    """
    if routing is None:
        return ""
    unit = routing["unit"]
    mean, full = in_words(routing["mean_cost"], unit), in_words(routing["full_cost"], unit)
    text = (
        f"Easy inputs leave early ({routing['policy']}). On {routing['samples']:,} validation samples that it was "
        f"chosen on, not fitted to, the route is right on {routing['accuracy']:.4f} for {mean} in the mean, "
        f"the full depth on {routing['full_accuracy']:.4f} for {full}. "
    )
    static = (
        f"depth {routing['static_depth']} alone is right on {routing['static_accuracy']:.4f} for "
        f"{in_words(routing['static_cost'], unit)}"
    )
    better = (
        "The route is better than the static network that does as well or comes nearest"
        if routing["worthwhile"]
        else "A static network that does as well costs no more, and is the better choice"
    )
    text += f"{better}: {static}."
    rows = ""
    if routing["test"] is not None:
        test = routing["test"]
        text += f" On the test split: {test['accuracy']:.4f} for {in_words(test['mean_cost'], unit)}"
        if test["by_depth"]:
            text += "; " + ", ".join(f"depth {depth} alone {score:.4f}" for depth, score in test["by_depth"].items())
        text += "."
        rows = "".join(
            f"<tr><td>{row['depth']}</td><td>{row['share']:.1%}</td>"
            f"<td>{'-' if row['accuracy'] is None else format(row['accuracy'], '.4f')}</td></tr>"
            for row in test["exits"]
        )
        rows = (
            '<div class="scroll"><table><thead><tr><th>leaves at depth</th><th>share of the test split</th>'
            f"<th>accuracy there</th></tr></thead><tbody>{rows}</tbody></table></div>"
        )
    return f"<h2>Dynamic depth</h2><p>{escape(text)}</p>{rows}{_gallery(pictures)}"


def _gallery(pictures: Sequence[Picture]) -> str:
    parts = []
    for depth in sorted({picture.depth for picture in pictures}):
        images = "".join(
            f'<img src="data:image/png;base64,{base64.b64encode(picture.png).decode()}" width="64" height="64" '
            f'style="image-rendering: pixelated; margin: 2px" alt="{escape(picture.label, quote=True)}" '
            f'title="{escape(f"{picture.label}, answer {picture.answer}", quote=True)}">'
            for picture in pictures
            if picture.depth == depth
        )
        parts.append(f'<p class="note">Some that leave at depth {depth}:</p><p>{images}</p>')
    return "".join(parts)

"""The part of a report's page that tells of dynamic depth. No torch here."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from odn.route_record import in_words


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
    rows = ""
    if routing["test"] is not None:
        rows = "".join(
            f"<tr><td>{row['depth']}</td><td>{row['count']:,}</td><td>{row['share']:.1%}</td>"
            f"<td>{'-' if row['accuracy'] is None else format(row['accuracy'], '.4f')}</td></tr>"
            for row in routing["test"]["exits"]
        )
        rows = (
            '<div class="scroll"><table><thead><tr><th>leaves at depth</th><th>test samples</th><th>share</th>'
            f"<th>accuracy there</th></tr></thead><tbody>{rows}</tbody></table></div>"
        )
    return f"<h2>Dynamic depth</h2><p>{escape(routing_sentences(routing))}</p>{rows}{_gallery(pictures)}"


def routing_sentences(routing: dict[str, Any]) -> str:
    """Say how a route does, beside the static network that it has to beat.

    Args:
        routing: of report.json.

    Returns:
        Some sentences.
    """
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
    behind = routing["static_accuracy"] - routing["accuracy"]
    if not routing["worthwhile"]:
        better = "A static network that does as well costs no more, and is the better choice"
    elif routing["mean_cost"] >= routing["static_cost"]:
        better = "No static network is as accurate for less; the nearest"
    elif behind > 0:
        better = f"The static network to compare with costs more, and is {behind:.4f} more accurate"
    else:
        better = "The static network to compare with costs more, and is no more accurate"
    text += f"{better}: {static}."
    if routing["test"] is not None:
        test = routing["test"]
        text += (
            f" On the test split the route is right on {test['accuracy']:.4f} for {in_words(test['mean_cost'], unit)}"
        )
        if test["by_depth"]:
            text += "; " + ", ".join(f"depth {depth} alone {score:.4f}" for depth, score in test["by_depth"].items())
        text += ", all with the weights that the depths share, before fine-tuning."
    return text


def _gallery(pictures: Sequence[Picture]) -> str:
    parts = []
    for depth in sorted({picture.depth for picture in pictures}):
        images = "".join(
            '<figure style="display: inline-block; margin: 2px 6px; text-align: center; font-size: .8rem">'
            f'<img src="data:image/png;base64,{base64.b64encode(picture.png).decode()}" width="64" height="64" '
            f'style="image-rendering: pixelated" alt="{escape(picture.label, quote=True)}">'
            f"<figcaption>{_caption(picture)}</figcaption></figure>"
            for picture in pictures
            if picture.depth == depth
        )
        parts.append(f'<p class="note">Some that leave at depth {depth}, with their labels:</p><p>{images}</p>')
    return "".join(parts)


def _caption(picture: Picture) -> str:
    if picture.answer == picture.label:
        return escape(picture.label)
    return f'{escape(picture.label)}<br><span class="missed">taken for {escape(picture.answer)}</span>'

"""The registry: every backbone that can be named."""

from odn.backbones import cifar_resnet, resnet
from odn.backbones.parts import Backbone as Backbone
from odn.backbones.parts import Parts as Parts
from odn.backbones.shapes import feature_shapes as feature_shapes
from odn.errors import UsageError, did_you_mean

BACKBONES: dict[str, Backbone] = {backbone.name: backbone for backbone in (*resnet.BACKBONES, *cifar_resnet.BACKBONES)}


def find_backbone(name: str, width: float = 1.0) -> Backbone:
    """Return a backbone by its name.

    Args:
        name: as listed by ``odn backbones``.
        width: factor on its channels that will be asked of it.

    Returns:
        Its entry in the registry.

    Raises:
        UsageError: when there is none of that name, or it does not scale.
    """
    if name not in BACKBONES:
        hint = did_you_mean(name, BACKBONES)
        raise UsageError(f"unknown backbone '{name}'; allowed: {', '.join(BACKBONES)}.{hint}")
    backbone = BACKBONES[name]
    if width != 1 and not backbone.scales:
        scaling = ", ".join(entry.name for entry in BACKBONES.values() if entry.scales)
        raise UsageError(f"backbone '{name}' has no width {width:g}; allowed: width 1, or one of {scaling}")
    return backbone

"""The registry: every backbone that can be named. timm and transformers are imported when one of theirs is made."""

from collections.abc import Mapping
from pathlib import Path

from odn.backbones import cifar_resnet, from_timm, from_torchvision, from_transformers
from odn.backbones.loading import find_weights as find_weights
from odn.backbones.own import take_own_apart as take_own_apart
from odn.backbones.parts import Backbone as Backbone
from odn.backbones.parts import Inputs as Inputs
from odn.backbones.parts import Origin as Origin
from odn.backbones.parts import Parts as Parts
from odn.backbones.shapes import take_apart as take_apart
from odn.backbones.tokenizers import find_tokenizer as find_tokenizer
from odn.errors import UsageError, did_you_mean

# Those that the tests hold; beyond them any network of timm can be named.
BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        *cifar_resnet.BACKBONES,
        *from_torchvision.BACKBONES,
        *map(from_timm.entry, from_timm.TESTED),
        *from_transformers.BACKBONES,
    )
}


def find_backbone(name: str, width: float = 1.0, config: Mapping[str, object] | None = None) -> Backbone:
    """Return a backbone by its name.

    Args:
        name: as listed by ``odn backbones``; ``timm/NAME``; or the directory of a text encoder's ``config.json``.
        width: factor on its channels that will be asked of it.
        config: of a text encoder that came from a directory, in the place of that directory.

    Returns:
        Its entry in the registry.

    Raises:
        UsageError: when there is none of that name, or it does not scale.
    """
    backbone = _find(name, config)
    if width != 1 and not backbone.scales:
        scaling = ", ".join(entry.name for entry in BACKBONES.values() if entry.scales)
        raise UsageError(f"backbone '{name}' has no width {width:g}; allowed: width 1, or one of {scaling}")
    return backbone


def refuse_namesake(name: str) -> None:
    """Make sure that a name which a user gives does not mean two things; what is stored means the registry's.

    Args:
        name: of a backbone.

    Raises:
        UsageError: when an encoder's directory has the same name.
    """
    if name in BACKBONES and _is_encoder(Path(name)):
        raise UsageError(
            f"'{name}' is a backbone, and a directory here; write ./{name} for it, or give it another name"
        )


def _is_encoder(directory: Path) -> bool:
    return (directory / "config.json").is_file()


def _find(name: str, config: Mapping[str, object] | None) -> Backbone:
    if config is not None:
        return from_transformers.find_config(name.removeprefix("transformers/"), config)
    if name.startswith(from_timm.PREFIX):
        return from_timm.find_timm(name)
    if name in BACKBONES:
        return BACKBONES[name]
    if _is_encoder(Path(name)):
        return from_transformers.find_directory(Path(name))
    # A bare name is ours or torchvision's; that timm has one too does not matter, unless only timm has it.
    if from_timm.installed() and from_timm.PREFIX + name in from_timm.all_names():
        raise UsageError(f"unknown backbone '{name}'; it is timm's: write {from_timm.PREFIX}{name}")
    hint = did_you_mean(name, BACKBONES)
    run = "" if "/" not in name else f" There is no run directory at {name} either."
    raise UsageError(f"unknown backbone '{name}'; allowed: what odn backbones lists, or timm/NAME.{hint}{run}")

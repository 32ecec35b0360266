"""timm's networks by their timm names, as ``timm/convnext_atto``: any whose blocks stand where its families have them.

No name is known here but those that are tested (``TESTED``); the style of timm's module names says where blocks are.
"""

import importlib.util
from collections.abc import Mapping
from functools import cache, partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from odn.backbones.chain import Chain, find_chain, match_names
from odn.backbones.cut import Pooling, cut
from odn.backbones.from_torchvision import convolution_groups
from odn.backbones.parts import Backbone, Inputs, Parts, names_alone
from odn.errors import UsageError, did_you_mean, require_extra

PREFIX = "timm/"

# Where blocks stand, in timm's words: the first that matches is the network's style.
_STYLES = (
    "layer#.#",  # ResNet and its relatives
    "s#.b#",  # RegNet
    "stages.#.blocks.#",  # ConvNeXt, pre-activation ResNet, EfficientFormer, hierarchical transformers
    "layers.#.blocks.#",  # Swin
    "stages.#.#",  # RepVGG, MobileOne, MobileViT, StarNet
    "blocks.#.#",  # EfficientNet, MobileNet, GhostNet
    "blocks.#",  # ViT, DeiT, MLP-Mixer
)

TESTED = tuple(
    PREFIX + name
    for name in (
        "resnet18",
        "resnet18d",
        "seresnet18",
        "resnext50_32x4d",
        "wide_resnet50_2",
        "resnetv2_50",
        "regnety_002",
        "vgg11_bn",
        "mobilenetv2_050",
        "mobilenetv3_small_050",
        "mobilenetv4_conv_small",
        "efficientnet_b0",
        "efficientnetv2_rw_t",
        "ghostnet_100",
        "repvgg_a0",
        "mobilevit_xxs",
        "starnet_s1",
        "convnext_atto",
        "convnextv2_atto",
        "poolformer_s12",
        "efficientformer_l1",
        "efficientformerv2_s0",
        "levit_128s",
        "vit_tiny_patch16_224",
        "deit_tiny_patch16_224",
        "swin_tiny_patch4_window7_224",
        "mixer_s32_224",
    )
)


def installed() -> bool:
    """Find out whether timm can be imported, without importing it.

    Returns:
        Whether it can.
    """
    return importlib.util.find_spec("timm") is not None


@cache
def all_names() -> tuple[str, ...]:
    """List timm's networks; it has to be installed.

    Returns:
        Their names as users write them, with ``timm/`` in front.
    """
    return tuple(PREFIX + name for name in _timm("listing its networks").list_models())


@cache
def _tagged_names() -> frozenset[str]:
    """List them again with the tags of their weights, as ``timm/resnet18.a1_in1k``."""
    listed = _timm("listing its networks").list_models(include_tags=True)
    return frozenset(PREFIX + name for name in listed if "." in name)


def find_timm(name: str) -> Backbone:
    """Return the entry of a timm network.

    Args:
        name: with ``timm/`` in front; a tag behind it says which weights ``pretrained`` means.

    Returns:
        Its entry; whether it can be cut shows when it is made.

    Raises:
        UsageError: when timm has no network of that name, or none with that tag.
    """
    _timm(f"backbone '{name}'")
    if name not in all_names() and name not in _tagged_names():
        plain, _, tag = name.partition(".")
        if plain in all_names():
            tags = ", ".join(sorted(n.partition(".")[2] for n in _tagged_names() if n.startswith(f"{plain}.")))
            raise UsageError(f"timm has no weights '{tag}' for '{plain}'; allowed: {tags or 'no tag'}")
        hint = did_you_mean(name, all_names())
        raise UsageError(f"timm has no network '{name.removeprefix(PREFIX)}'; see: odn backbones --library timm.{hint}")
    return entry(name)


def entry(name: str) -> Backbone:
    """Make the entry of a timm network without importing timm.

    Args:
        name: with ``timm/`` in front.

    Returns:
        Its entry.
    """
    return Backbone(
        name=name,
        library="timm",
        make=partial(_make, name=name),
        find=_find,
        cut=_cut,
        sides=partial(_sides, name),
        pretrained=partial(_pretrained, name=name),
    )


def _timm(what_for: str) -> Any:
    return require_extra("timm", "timm", what_for)


def _make(inputs: Inputs, width: float, *, name: str) -> nn.Module:
    assert width == 1, "timm's networks do not scale"
    channels, height, width_pixels = inputs.shape
    timm = _timm(f"backbone '{name}'")
    plain = name.removeprefix(PREFIX)
    network: nn.Module = timm.create_model(
        plain, pretrained=False, num_classes=0, in_chans=channels, **_size(timm, plain, (height, width_pixels))
    )
    return network


def _size(timm: Any, plain: str, sides: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {"img_size": sides} if timm.get_pretrained_cfg(plain).fixed_input_size else {}


def _pretrained(inputs: Inputs, *, name: str) -> Mapping[str, Tensor]:
    timm = _timm(f"backbone '{name}'")
    plain = name.removeprefix(PREFIX)
    if not timm.is_model_pretrained(plain):
        raise UsageError(f"timm has no weights for '{name}'; choose another backbone, or give a file with --weights")
    # With its own classifier and channels timm wants every tensor; otherwise it leaves random what is missing. It fits
    # tables of positions to the size of the image.
    network: nn.Module = timm.create_model(plain, pretrained=True, **_size(timm, plain, inputs.shape[1:]))
    return network.state_dict()


def _find(network: nn.Module, example: Tensor) -> Chain:
    features = getattr(network, "features", None)
    if isinstance(features, nn.Sequential) and isinstance(features[0], nn.Conv2d) and _is_flat(features):
        return find_chain(network, example, convolution_groups(features, "features"))
    for style in _STYLES:
        try:
            places = match_names(network, [style])
        except UsageError:
            continue
        # What has no weights, such as a flattening, goes with the block behind it.
        blocks = [name for name in places if any(True for _ in network.get_submodule(name).parameters())]
        return find_chain(network, example, _with_their_layers(network, blocks))
    raise UsageError(f"its blocks stand nowhere where timm's families have them: {', '.join(_STYLES)}")


def _with_their_layers(network: nn.Module, names: list[str]) -> list[list[str]]:
    """Put single layers to the block that they belong to.

    A single layer in front of blocks of several, as StarNet's down-sampling convolutions, goes with the block behind
    it. A row of nothing but single layers, some of them bare, is no stage but a block itself, as in ConvMixer.

    Returns:
        Names by block.
    """
    blocks: list[list[str]] = []
    for parent, group in groupby(names, key=lambda name: name.rpartition(".")[0]):
        row = list(group)
        modules = [network.get_submodule(name) for name in row]
        single = [sum(isinstance(m, nn.Conv2d | nn.Linear) for m in module.modules()) <= 1 for module in modules]
        if all(single) and not all(any(True for _ in module.children()) for module in modules):
            blocks.append([parent])
            continue
        waiting: list[str] = []
        for name, alone in zip(row, single, strict=True):
            waiting.append(name)
            if all(single) or not alone:
                blocks.append(waiting)
                waiting = []
        blocks += names_alone(waiting)
    return blocks


def _is_flat(features: nn.Sequential) -> bool:
    return not any(True for layer in features for _ in layer.children())


def _cut(network: nn.Module, chain: Chain | None) -> Parts:
    assert chain is not None
    kind = getattr(network, "global_pool", "avg")
    if isinstance(kind, str) and kind not in ("avg", "token"):
        raise UsageError(f"it pools its features with '{kind}'; a head can take the mean or the class token")
    return cut(
        network,
        chain,
        Pooling(
            # A distilled network has a classifier for each of two tokens.
            first_tokens=(2 if hasattr(network, "head_dist") else 1) if kind == "token" else 0,
            skip=getattr(network, "num_prefix_tokens", 0),
            channels_last=getattr(network, "output_fmt", "NCHW") == "NHWC",
            tail=not hasattr(network, "pre_logits"),  # VGG's hidden layers belong to its classifier
        ),
    )


@cache
def _sides(name: str) -> tuple[int, int]:
    timm = _timm(f"backbone '{name}'")
    config = timm.get_pretrained_cfg(name.removeprefix(PREFIX))
    side = config.input_size[1]
    if not config.fixed_input_size:
        return side, 1
    with torch.device("meta"):
        network = timm.create_model(name.removeprefix(PREFIX), num_classes=0)
    first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    return side, first.stride[0] if first.stride == first.kernel_size else 1

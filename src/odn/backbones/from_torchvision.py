"""torchvision's classification networks, by their torchvision names; the ResNets also with a stem for small images.

One rule finds the blocks of all: they are the modules of torchvision's block classes. VGG has none: there a block is a
convolution with what follows it.
"""

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from odn.backbones.chain import Chain, find_chain
from odn.backbones.cut import Pooling, cut
from odn.backbones.parts import Backbone, Inputs, names_alone
from odn.errors import UsageError

_BLOCKS = {
    "BasicBlock",
    "Bottleneck",  # ResNet, ResNeXt, Wide ResNet
    "ResBottleneckBlock",  # RegNet
    "InvertedResidual",  # MobileNet
    "MBConv",
    "FusedMBConv",  # EfficientNet
    "CNBlock",  # ConvNeXt
    "EncoderBlock",  # ViT
    "SwinTransformerBlock",
    "SwinTransformerBlockV2",
}

NAMES = {
    "resnet": ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    "resnext": ("resnext50_32x4d", "resnext101_32x8d"),
    "wide_resnet": ("wide_resnet50_2",),
    "regnet": (
        *(f"regnet_y_{size}" for size in ("400mf", "800mf", "1_6gf")),
        *(f"regnet_x_{size}" for size in ("400mf", "800mf", "1_6gf")),
    ),
    "vgg": ("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
    "mobilenet": ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"),
    "efficientnet": (
        *(f"efficientnet_b{size}" for size in range(5)),
        *(f"efficientnet_v2_{size}" for size in "sm"),
    ),
    "convnext": ("convnext_tiny", "convnext_small", "convnext_base"),
    "vit": ("vit_b_16", "vit_b_32", "vit_l_16"),
    "swin": tuple(f"swin_{size}" for size in ("t", "s", "v2_t", "v2_s")),
}


def _make(inputs: Inputs, width: float, *, name: str, family: str, small: bool) -> nn.Module:
    assert width == 1, "torchvision's networks do not scale"
    channels, height, width_pixels = inputs.shape
    settings: dict[str, object] = {"num_classes": 1}
    if family in ("resnet", "resnext", "wide_resnet"):
        settings["zero_init_residual"] = True  # a new block whose shapes agree does not change the function
    if family == "vit":
        if height != width_pixels:
            raise UsageError("it takes square ones; resize them")
        settings["image_size"] = height
    network: nn.Module
    if family == "regnet" and torch.get_default_device().type == "meta":
        from accelerate import init_empty_weights  # here, because loading an artifact does without it

        # RegNet computes its widths with tensors, which need values.
        with torch.device("cpu"), init_empty_weights(include_buffers=False):
            network = get_model(name, weights=None, **settings).to("meta")
    else:
        network = get_model(name, weights=None, **settings)
    if small:
        network.maxpool = nn.Identity()
        network.conv1 = _convolution(nn.Conv2d(3, 64, 3, padding=1, bias=False, device="meta"), channels)
    elif channels != 3:
        place, first = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
        parent, _, child = place.rpartition(".")
        setattr(network.get_submodule(parent), child, _convolution(first, channels))
    return network


def _pretrained(_inputs: Inputs, *, name: str) -> Mapping[str, Tensor]:
    # A file with anything but tensors in it is refused: nothing is unpickled.
    weights: Mapping[str, Tensor] = get_model_weights(name).DEFAULT.get_state_dict(
        check_hash=True, weights_only=True, map_location="cpu"
    )
    return weights


def _convolution(like: nn.Conv2d, channels: int) -> nn.Conv2d:
    """Make a first convolution for another number of channels."""
    assert like.groups == 1
    fresh = nn.Conv2d(
        channels,
        like.out_channels,
        like.kernel_size,  # type: ignore[arg-type]
        stride=like.stride,  # type: ignore[arg-type]
        padding=like.padding,  # type: ignore[arg-type]
        bias=like.bias is not None,
    )
    if like.kernel_size == like.stride:  # patches: no activation follows
        nn.init.trunc_normal_(fresh.weight, std=math.sqrt(1 / (channels * math.prod(like.kernel_size))))
    else:
        nn.init.kaiming_normal_(fresh.weight, mode="fan_out", nonlinearity="relu")
    if fresh.bias is not None:
        nn.init.zeros_(fresh.bias)
    return fresh


def convolution_groups(features: nn.Module, prefix: str) -> list[list[str]]:
    """Find the blocks of a row of convolutions: each with the norm and activation behind it and the pooling before.

    Args:
        features: the row, a ``Sequential`` of layers.
        prefix: its name in the network.

    Returns:
        For each block the names of its layers; the first convolution is the stem.
    """
    groups: list[list[str]] = []
    pooling: list[str] = []
    for number, layer in features.named_children():
        name = f"{prefix}.{number}"
        if isinstance(layer, nn.MaxPool2d):
            pooling = [name]
        elif isinstance(layer, nn.Conv2d):
            groups.append([*pooling, name])
            pooling = []
        else:
            groups[-1].append(name)
    return groups[1:]


def _find(network: nn.Module, example: Tensor, *, family: str) -> Chain:
    if family == "vgg":
        return find_chain(network, example, convolution_groups(network.get_submodule("features"), "features"))
    blocks = [name for name, module in network.named_modules() if type(module).__name__ in _BLOCKS]
    return find_chain(network, example, names_alone(blocks))


def _step(name: str, family: str) -> tuple[int, int]:
    step = int(name.rpartition("_")[2]) if family == "vit" else 1
    return 224 // step * step, step


BACKBONES = tuple(
    Backbone(
        name=name + ("_small" if small else ""),
        library="torchvision",
        make=partial(_make, name=name, family=family, small=small),
        find=partial(_find, family=family),
        cut=partial(
            cut,
            pooling=Pooling(
                first_tokens=int(family == "vit"),
                channels_last=family == "swin",
                tail=family != "vgg",  # behind VGG's blocks stands a classifier of three layers
            ),
        ),
        sides=partial(_step, name, family),
        pretrained=None if small else partial(_pretrained, name=name),
    )
    for family, names in NAMES.items()
    for small in ((False, True) if family == "resnet" else (False,))
    for name in (names[:3] if small else names)
)

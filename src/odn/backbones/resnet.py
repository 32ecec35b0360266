"""torchvision's ResNets (He et al., arXiv 1512.03385), with their own stem or one for small images."""

from collections import OrderedDict
from functools import partial

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from odn.backbones.parts import Backbone, Parts
from odn.layers import small_image_stem


def _build(
    in_channels: int,
    width: float,
    *,
    block: type[BasicBlock] | type[Bottleneck],
    layers: tuple[int, int, int, int],
    small: bool,
) -> Parts:
    assert width == 1, "torchvision's ResNets do not scale"
    resnet = ResNet(block, list(layers), num_classes=1, zero_init_residual=True)
    stem: nn.Module
    if small:
        stem = small_image_stem(in_channels, resnet.conv1.out_channels)
    else:
        if in_channels != 3:
            resnet.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
        stem = nn.Sequential(OrderedDict(conv=resnet.conv1, norm=resnet.bn1, relu=resnet.relu, maxpool=resnet.maxpool))
    return Parts(stem=stem, blocks=(*resnet.layer1, *resnet.layer2, *resnet.layer3, *resnet.layer4))


BACKBONES = tuple(
    Backbone(
        name=name + ("_small" if small else ""),
        library="torchvision",
        build=partial(_build, block=block, layers=layers, small=small),
    )
    for small in (False, True)
    for name, block, layers in (
        ("resnet18", BasicBlock, (2, 2, 2, 2)),
        ("resnet34", BasicBlock, (3, 4, 6, 3)),
        ("resnet50", Bottleneck, (3, 4, 6, 3)),
    )
)

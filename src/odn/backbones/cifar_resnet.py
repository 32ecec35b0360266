"""The narrow, deep ResNets for small images of He et al. (arXiv 1512.03385, section 4.2), widths 16-32-64.

Down-sampling shortcuts are 1x1 projections, as in the published models of 272,474 parameters for depth 20.
"""

from collections import OrderedDict
from functools import partial

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from odn.backbones.chain import Chain, find_chain, match_names
from odn.backbones.cut import Pooling, cut
from odn.backbones.parts import Backbone, Inputs, names_alone
from odn.layers import small_image_stem


def _make(inputs: Inputs, width: float, *, blocks_per_stage: int) -> nn.Module:
    channels = [max(1, round(base * width)) for base in (16, 32, 64)]
    blocks: list[nn.Module] = []
    previous = channels[0]
    for stage, out_channels in enumerate(channels):
        for index in range(blocks_per_stage):
            stride = 2 if stage > 0 and index == 0 else 1
            blocks.append(_block(previous, out_channels, stride))
            previous = out_channels
    stem = small_image_stem(inputs.shape[0], channels[0])
    return nn.Sequential(OrderedDict(stem=stem, blocks=nn.Sequential(*blocks)))


def _block(in_channels: int, out_channels: int, stride: int) -> BasicBlock:
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
        )
    block = BasicBlock(in_channels, out_channels, stride=stride, downsample=shortcut)
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(block.bn2.weight)
    return block


def _find(network: nn.Module, example: Tensor) -> Chain:
    return find_chain(network, example, names_alone(match_names(network, ["blocks.#"])))


BACKBONES = tuple(
    Backbone(
        name=f"cifar_resnet{6 * blocks_per_stage + 2}",
        library="odn",
        make=partial(_make, blocks_per_stage=blocks_per_stage),
        find=_find,
        cut=partial(cut, pooling=Pooling()),
        scales=True,
    )
    for blocks_per_stage in (3, 5, 9, 18)
)

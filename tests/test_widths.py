import dataclasses
import sys

import pytest
import torch
from torch import nn

from odn.config import CompressConfig
from odn.errors import OdnError, UsageError
from odn.extraction import extract
from odn.layers import Head
from odn.narrowing import narrowed_sizes
from odn.network import NetworkSpec, PartitionedNetwork, build_network, build_prefix
from odn.pruning import check_request, cost_at, find_width, prune, sizes_of
from odn.storage import load_network, save_network
from odn.widths import channels_of, narrow

SPEC = NetworkSpec(backbone="cifar_resnet20", input_shape=(1, 8, 8), classes=3, depth=2)
SHAPE, LARGE, CLASSES = (3, 32, 32), (3, 64, 64), 7
# A deep and a shallow one of every family and style that can be narrowed, with the image they are made for here.
BACKBONES = {
    "cifar_resnet20": SHAPE,
    "cifar_resnet56": SHAPE,
    "resnet18": SHAPE,
    "resnet18_small": SHAPE,
    "resnet50": SHAPE,
    "wide_resnet50_2": LARGE,
    "vgg11_bn": LARGE,
    "mobilenet_v2": LARGE,
    "mobilenet_v3_small": LARGE,
    "efficientnet_b0": LARGE,
}
HALF = CompressConfig(width=0.5)


def fresh(name: str = "cifar_resnet20", depth: int = 2, shape=SHAPE, **options):
    torch.manual_seed(0)
    return extract(build_network(name, shape, CLASSES, **options), depth)


def halved(network, shape=SHAPE):
    return prune(network, narrowed_sizes(sizes_of(network), 0.5, 4), shape)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_convolutional_family_can_be_narrowed_at_every_depth(name):
    network = build_network(name, BACKBONES[name], CLASSES, device="meta")
    for depth in sorted({1, 2, network.max_depth // 2 + 1, network.max_depth}):
        check_narrowing(dataclasses.replace(network.spec, depth=depth))


def check_narrowing(spec):
    whole = build_prefix(spec)
    channels = narrowed_sizes(sizes_of(whole), 0.5, 4)
    small = build_prefix(NetworkSpec(**{**vars(whole.spec), "channels": channels}))
    assert channels_of(small) == {**channels, "head.linear": CLASSES}
    assert small.training == whole.training
    count, less = (sum(p.numel() for p in net.parameters()) for net in (whole, small))
    assert less < 0.4 * count


@pytest.mark.parametrize("name", BACKBONES)
def test_what_is_cut_is_rebuilt_from_json_bit_for_bit_and_the_original_stays(name, tmp_path):
    shape = BACKBONES[name]
    network = fresh(name, 3, shape)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    small = halved(network, shape)
    save_network(small, tmp_path / "small")
    loaded = load_network(tmp_path / "small")
    x = torch.randn(2, *shape)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x), small.eval()(x))
        assert small(x).shape == (2, CLASSES)
    assert loaded.spec == small.spec
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert network.spec.channels == {}


@pytest.mark.parametrize(
    ("name", "reason"),
    [("vit_b_32", "do not fit each other"), ("convnext_tiny", "normalized_shape"), ("resnext50_32x4d", "out of DATA")],
)
def test_what_cannot_be_narrowed_is_refused_before_it_is_trained(name, reason):
    for config in (HALF, CompressConfig(auto=True, step=0.5)):
        with pytest.raises(OdnError, match=rf"{name} cannot be narrowed \(.*{reason}.*\); leave --compress out"):
            check_request(fresh(name, 2, LARGE), config, LARGE)


def test_cutting_what_is_narrow_already_goes_on_from_there():
    small = halved(fresh())
    smaller = prune(small, narrowed_sizes(sizes_of(small), 0.5, 4), SHAPE)
    assert set(smaller.spec.channels.values()) == {4}
    assert smaller.spec.depth == 2


def test_the_channels_with_the_smallest_weights_go():
    network = fresh(depth=1)
    with torch.no_grad():
        network.blocks[0].conv1.weight.fill_(1.0)
        network.blocks[0].conv1.weight[::2] = 0.01
        network.blocks[0].conv2.weight[:, ::2] = 0.01
    small = halved(network)
    assert (small.blocks[0].conv1.weight == 1).all()
    assert torch.equal(small.blocks[0].bn1.running_var, torch.ones(8))


def test_a_network_built_by_hand_can_be_cut():
    def block() -> nn.Module:
        return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())

    network = PartitionedNetwork(nn.Conv2d(1, 8, 3, padding=1), [block(), block()], [Head(8, 3), Head(8, 3)])
    small = halved(extract(network, 2), (1, 8, 8))
    assert list(channels_of(small).values()) == [4, 4, 4, 3]
    assert small.spec is None


class Grouped(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=groups)
        self.head = Head(8, 2)

    def forward(self, x):
        return self.head(self.b(self.a(x)))


def test_depthwise_convolutions_follow_and_other_groups_that_do_not_fit_are_refused():
    network = Grouped(8).to("meta")
    narrow(network, {"a": 3}, (3, 8, 8), 2)
    assert (network.b.groups, network.b.weight.shape, network.head.linear.in_features) == (3, (3, 1, 3, 3), 3)
    with pytest.raises(UsageError, match="layer 'b' has 4 groups, which do not divide 6 channels"):
        narrow(Grouped(4).to("meta"), {"a": 6}, (3, 8, 8), 2)


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ({"stem.cnov": 8}, r"no layer 'stem\.cnov' to narrow\. Did you mean 'stem\.conv'\?"),
        ({"stem.conv": 17}, r"layer 'stem\.conv' has 17 channels; allowed: 1 to 16"),
        ({"stem.conv": 10**12}, "1000000000000 channels; allowed: 1 to 16"),
        ({"stem.conv": 0}, "0 channels; allowed: 1 to 16"),
        ({"stem.conv": 8}, "channels of these layers do not fit each other: .*dimension of length 8"),
        ({"head.linear": 2}, "gives 2 logits; allowed: 3, one per class"),
        ({"x" * 10_000: 2}, "no layer 'x{100}' to narrow"),
    ],
)
def test_hostile_tables_are_refused_before_memory_is_taken(channels, message, tmp_path):
    spec = NetworkSpec(**{**vars(SPEC), "channels": channels})
    with pytest.raises(UsageError, match=message):
        build_prefix(spec)
    (tmp_path / "spec.json").write_text(spec.to_json())
    with pytest.raises(OdnError, match=r"spec\.json asks for something impossible"):
        load_network(tmp_path)


def test_weights_of_another_width_do_not_load(tmp_path):
    save_network(halved(fresh()), tmp_path / "half")
    save_network(fresh(), tmp_path / "whole")
    (tmp_path / "half" / "spec.json").replace(tmp_path / "whole" / "spec.json")
    with pytest.raises(OdnError, match="has .* bytes, the spec accounts for"):
        load_network(tmp_path / "whole")


def test_the_costs_are_known_without_cutting():
    network = fresh(depth=3)
    small = halved(network)
    assert cost_at(network, 0.5, HALF, SHAPE).parameters == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize("figure", ["parameters", "macs"])
def test_the_widest_network_within_a_bound_is_found(figure):
    network = fresh("resnet18", 2)
    bound = getattr(cost_at(network, 0.5, HALF, SHAPE), figure)
    for slack, allowed in ((0, True), (-1, False)):
        width = find_width(network, CompressConfig(**{f"max_{figure}": bound + slack}), SHAPE)
        assert (narrowed_sizes({"stem": 64}, width, 4)["stem"] == 32) is allowed
        assert getattr(cost_at(network, width, HALF, SHAPE), figure) <= bound + slack
        assert getattr(cost_at(network, width + 0.001, HALF, SHAPE), figure) > bound + slack or allowed
    assert find_width(network, CompressConfig(**{f"max_{figure}": 10**12}), SHAPE) == 1.0


def test_an_impossible_bound_names_the_nearest_that_is_possible():
    network = fresh("resnet18", 1)
    with pytest.raises(
        UsageError, match=r"max_parameters is 100, but this network has 9\d\d at the least .*allowed: 9"
    ):
        find_width(network, CompressConfig(max_parameters=100), SHAPE)
    least = int(cost_at(network, 0.0, HALF, SHAPE).macs)
    with pytest.raises(UsageError, match=f"allowed: {least:,} or more"):
        find_width(network, CompressConfig(max_macs=least - 1), SHAPE)
    assert find_width(network, CompressConfig(max_macs=least), SHAPE) > 0


def test_a_width_that_leaves_no_channel_is_refused():
    with pytest.raises(UsageError, match=r"width 0\.01 leaves no channel .*allowed: 0\.0625 to 1"):
        find_width(fresh("resnet18", 1), CompressConfig(width=0.01), SHAPE)


def test_a_missing_library_is_named_with_the_command_and_loading_needs_none(monkeypatch, tmp_path):
    save_network(halved(fresh()), tmp_path / "small")
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert load_network(tmp_path / "small").spec.channels["stem.conv"] == 8
    with pytest.raises(OdnError, match=r"needs torch_pruning; .*pip install 'optimally-deep\[prune\]'"):
        halved(fresh())

"""The contract that every backbone keeps at every depth."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet34, resnet50

from odn.backbones import BACKBONES, find_backbone
from odn.errors import UsageError
from odn.extraction import extract
from odn.network import NetworkSpec, PartitionedNetwork, build_network, build_prefix
from odn.weights import weights_of

SHAPE, CLASSES = (3, 32, 32), 7
# Every depth of the shallow ones; the first, the last and those around each change of width of the deep ones.
DEPTHS = {
    name: range(1, depth + 1) if depth <= 16 else sorted({1, 2, depth // 3, depth // 3 + 1, 2 * depth // 3 + 1, depth})
    for name in BACKBONES
    for depth in [build_network(name, SHAPE, CLASSES, device="meta").max_depth]
}
CASES = [(name, depth) for name, depths in DEPTHS.items() for depth in depths]


@pytest.fixture(scope="module", params=BACKBONES)
def network(request) -> PartitionedNetwork:
    torch.manual_seed(0)
    network = build_network(request.param, SHAPE, CLASSES)
    # Fresh residual branches are zero, which would hide mistakes: give every norm a scale of its own.
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    return network.eval()


def test_every_depth_is_a_prefix_of_one_chain(network):
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        for depth, logits in enumerate(network(x), 1):
            assert logits.shape == (2, CLASSES)
            assert torch.equal(network.prefix(depth)(x), logits)


def test_extraction_is_bit_identical_shares_nothing_and_is_smaller(network):
    x = torch.randn(2, *SHAPE)
    depths = DEPTHS[network.spec.backbone]
    full = sum(p.numel() for p in network.prefix(network.max_depth).parameters())
    for depth in depths:
        small = extract(network, depth)
        with torch.no_grad():
            torch.testing.assert_close(small(x), network.prefix(depth)(x), rtol=0, atol=0)
        assert not {p.data_ptr() for p in small.parameters()} & {p.data_ptr() for p in network.parameters()}
        size = sum(p.numel() for p in small.parameters())
        assert size == full if depth == network.max_depth else size < full


def test_no_parameter_of_a_prefix_is_unused(network):
    for depth in DEPTHS[network.spec.backbone]:
        prefix = extract(network, depth)
        prefix.train()(torch.randn(2, *SHAPE)).sum().backward()
        unused = [name for name, p in prefix.named_parameters() if p.grad is None]
        assert unused == []


def test_the_spec_rebuilds_every_depth_from_json(network):
    x = torch.randn(1, *SHAPE)
    for depth in DEPTHS[network.spec.backbone]:
        prefix = network.prefix(depth)
        rebuilt = build_prefix(NetworkSpec.from_json(prefix.spec.to_json()))
        rebuilt.load_state_dict(weights_of(prefix), assign=True)
        with torch.no_grad():
            assert torch.equal(rebuilt.eval()(x), prefix(x))


@pytest.mark.parametrize(("name", "original"), [("resnet18", resnet18), ("resnet34", resnet34), ("resnet50", resnet50)])
def test_the_full_depth_equals_torchvisions_network(name, original):
    torch.manual_seed(0)
    theirs = original(num_classes=CLASSES).eval()
    ours = build_network(name, SHAPE, CLASSES)
    full = ours.prefix(ours.max_depth).eval()
    # Both list their weights in the order of the forward pass, our head last.
    state = dict(zip(full.state_dict(), theirs.state_dict().values(), strict=True))
    full.load_state_dict(state)
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(full(x), theirs(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_new_block_does_not_change_the_function_where_shapes_allow(name):
    torch.manual_seed(0)
    network = build_network(name, SHAPE, CLASSES).eval()
    x = torch.randn(2, *SHAPE)
    kept = 0
    with torch.no_grad():
        features = network.stem(x)
        for block in network.blocks:
            after = block(features)
            if after.shape == features.shape:
                assert torch.equal(after, features)
                kept += 1
            features = after
    assert kept >= network.max_depth - 4


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("cifar_resnet20", 272_474), ("cifar_resnet56", 855_770), ("cifar_resnet110", 1_730_714)],
)
def test_published_sizes(name, parameters):
    network = build_network(name, SHAPE, 10, device="meta")
    assert sum(p.numel() for p in network.prefix(network.max_depth).parameters()) == parameters


def test_width_scales_the_narrow_family():
    wide = build_network("cifar_resnet20", SHAPE, 10, width=2.0, device="meta")
    assert wide.heads[-1].linear.in_features == 128
    with pytest.raises(UsageError, match="'resnet18' has no width 2; allowed: width 1, or one of cifar_resnet20"):
        find_backbone("resnet18", 2.0)


def test_unknown_backbones_get_a_suggestion():
    with pytest.raises(UsageError, match=r"unknown backbone 'resnet19'; allowed: .*Did you mean 'resnet18'\?"):
        find_backbone("resnet19")


@pytest.mark.parametrize(("name", "smallest"), [("resnet18", 5), ("resnet18_small", 2), ("cifar_resnet20", 2)])
def test_too_small_images_name_the_smallest_that_fits(name, smallest):
    build_network(name, (1, smallest, smallest), 2, device="meta")
    message = (
        f"{smallest - 1}x{smallest - 1} are too small for '{name}'.* smallest it can take is {smallest}x{smallest}"
    )
    with pytest.raises(UsageError, match=message):
        build_network(name, (1, smallest - 1, smallest - 1), 2, device="meta")

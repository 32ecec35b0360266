import json

import pytest
import torch
from torch import nn

from conftest import tiny_data
from odn.errors import OdnError, UsageError
from odn.layers import Head
from odn.network import NetworkSpec, PartitionedNetwork, partition

SPEC = NetworkSpec(backbone="cifar_resnet20", input_shape=(1, 8, 8), classes=3, depth=2)


def by_hand(depth: int = 3, *, norm: bool = True) -> PartitionedNetwork:
    """A chain built without any registry."""

    def block() -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU())

    blocks = [block() for _ in range(depth)]
    return PartitionedNetwork(nn.Conv2d(1, 4, 3, padding=1), blocks, [Head(4, 3) for _ in range(depth)])


def test_a_prefix_holds_exactly_its_own_parameters():
    network = by_hand()
    names = {name for name, _ in network.prefix(2).named_parameters()}
    assert {name.split(".")[0] for name in names} == {"stem", "blocks", "head"}
    assert not [name for name in names if name.startswith("blocks.2")]
    shared = {id(p) for p in network.parameters()}
    assert all(id(p) in shared for p in network.prefix(2).parameters())


@pytest.mark.parametrize("depth", [0, 4, -1])
def test_depths_outside_the_network_are_refused(depth):
    with pytest.raises(UsageError, match=f"depth {depth}; allowed: 1 to 3"):
        by_hand().prefix(depth)


def test_a_network_needs_one_head_per_block():
    with pytest.raises(UsageError, match="1 blocks and 2 heads; allowed: one head per block"):
        PartitionedNetwork(nn.Identity(), [nn.Identity()], [nn.Identity(), nn.Identity()])


def test_partition_depends_on_the_seed_alone():
    data = tiny_data()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = partition("cifar_resnet20", data.spec, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    second, other = (partition("cifar_resnet20", data.spec, seed=seed) for seed in (3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.stem.conv.weight, other.stem.conv.weight)


def test_spec_round_trip():
    assert NetworkSpec.from_json(SPEC.to_json()) == SPEC


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 3}, "schema 3; this odn reads 2; install a newer odn"),
        ({"schema": 1, "channels": {"stem.conv": 8}}, "schema 1; this odn reads 2; export it again"),
        ({"classes": 10**9}, "1000000000 classes; allowed: 1 to 1000000"),
        ({"input_shape": [10**9, 8, 8]}, "input shape 1000000000x8x8; allowed: 1 or 3 channels"),
        ({"input_shape": [1, 8]}, "input shape 1x8; allowed: 1 or 3 channels, .*; for texts 1 to 8192 tokens"),
        ({"input_shape": [10**9]}, "input shape 1000000000; allowed: "),
        ({"vocabulary": 10**9}, "vocabulary of 1000000000 tokens; allowed: up to 10000000"),
        ({"width": 1e9}, "width 1000000000.0; allowed: above 0 to 64"),
        ({"depth": 0}, "depth 0; allowed: 1 or more"),
        ({"channel": 10**9}, "unknown key 'channel'"),
        ({"channels": 10**9}, "'channels' is 1000000000; allowed: a table"),
        ({"channels": {"stem.conv": 1.5}}, "'channels.stem.conv' is 1.5; allowed: a value of type int"),
        ({"depth": "2"}, "'depth' is '2'; allowed: a value of type int"),
    ],
)
def test_absurd_specs_are_refused(change, message):
    text = json.dumps({**json.loads(SPEC.to_json()), **change})
    with pytest.raises(OdnError, match=message):
        NetworkSpec.from_json(text)


def test_specs_from_before_channels_are_read():
    table = json.loads(SPEC.to_json())
    del table["channels"]
    assert NetworkSpec.from_json(json.dumps({**table, "schema": 1})) == SPEC


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000])
def test_text_that_is_no_spec_is_refused(text):
    with pytest.raises(OdnError, match=r"spec\.json"):
        NetworkSpec.from_json(text)

"""Networks of the user's own: what can be cut is found by running them, and what cannot is refused with the reason."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from odn.errors import OdnError, UsageError
from odn.extraction import extract
from odn.layers import Head
from odn.network import PartitionedNetwork, partition
from odn.storage import save_network

IMAGES = SimpleNamespace(input_shape=(1, 8, 8), classes=("a", "b", "c"))


class Block(nn.Module):
    def __init__(self, width: int = 4, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=stride, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        out = self.norm(self.conv(x))
        return F.relu(out + x) if out.shape == x.shape else F.relu(out)


class Own(nn.Module):
    """A stem of modules, four blocks with a pooling in the middle, a classifier."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.layers = nn.ModuleList([Block() for _ in range(4)])
        self.pool, self.drop = nn.MaxPool2d(2), nn.Dropout(0.5)
        self.linear = nn.Linear(4, 3)

    def stem(self, x):
        return self.act(self.norm(self.conv(x)))

    def between(self, number, x):
        return x

    def forward(self, x):
        x = self.stem(x)
        for number, layer in enumerate(self.layers):
            x = self.between(number, x)
            if number == 2:
                x = self.drop(self.pool(x))
            x = layer(x)
        return self.linear(x.mean((2, 3)))


def settled(network: nn.Module) -> nn.Module:
    """Run it in training mode once, so that its statistics are its own."""
    network.train()(torch.randn(8, 1, 8, 8))
    return network.eval()


def features_of(network: PartitionedNetwork, x: torch.Tensor) -> torch.Tensor:
    features = network.stem(x)
    for block in network.blocks:
        features = block(features)
    return features


def names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_children()]


def test_a_network_is_cut_where_its_blocks_stand():
    torch.manual_seed(0)
    own = settled(Own())
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    network = partition(own, IMAGES, blocks=["layers.#"]).eval()
    assert network.max_depth == 4
    assert names(network.stem) == ["conv", "norm", "act"]
    # What stands between two blocks goes with the one that needs it, the dropout too, which evaluation does not show.
    assert [type(block).__name__ for block in network.blocks] == ["Block", "Block", "Sequential", "Block"]
    assert names(network.blocks[2]) == ["pool", "drop", "layers_2"]
    x = torch.randn(3, 1, 8, 8)
    seen = []
    own.layers[3].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        own(x)
        assert torch.equal(features_of(network, x), seen[0])
        assert torch.equal(extract(network, 3)(x), network(x)[2])
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())
    assert not {p.data_ptr() for p in network.parameters()} & {p.data_ptr() for p in own.parameters()}
    assert not any(module._forward_hooks for module in network.modules())


def test_names_patterns_and_a_part_of_the_blocks_can_be_given():
    own = Own()
    assert partition(own, IMAGES, blocks=["layers.0", "layers.1"]).max_depth == 2
    assert partition(own, IMAGES, blocks=["layers.*"]).max_depth == 4
    later = partition(own, IMAGES, blocks=["layers.2", "layers.3"])
    assert names(later.stem) == ["conv", "norm", "act", "layers_0", "layers_1", "pool", "drop"]


def test_what_stands_behind_the_blocks_may_be_anything():
    class Branched(Own):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            for layer in self.layers:
                x = layer(x) if layer is not self.layers[0] else layer(self.stem(x))
            return self.linear((self.left(x) + self.right(x)).mean((2, 3)))

    assert partition(Branched(), IMAGES, blocks=["layers.#"]).max_depth == 4


class Tokens(nn.Module):
    """A stem in code: patches, a class token, positions; and parameters beside the modules that only its end needs."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, stride=4)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.encoder = nn.ModuleDict(
            {
                "early_drop": nn.Dropout(0.1),
                "layers": nn.Sequential(
                    *[nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True) for _ in range(3)]
                ),
                "norm": nn.LayerNorm(8),
            }
        )
        self.temperature = nn.Parameter(torch.ones(1))
        self.linear = nn.Linear(8, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        x = self.encoder["layers"](self.encoder["early_drop"](x))
        return self.linear(self.encoder["norm"](x)[:, 0] * self.temperature)


@pytest.fixture
def tokens() -> PartitionedNetwork:
    torch.manual_seed(0)
    return partition(Tokens(), IMAGES, blocks=["encoder.layers.#"], channel_dim=-1)


def test_a_stem_of_code_is_the_network_up_to_its_first_block(tokens):
    stem = {name for name, _ in tokens.stem.named_parameters()}
    assert stem == {f"network.{name}" for name in ("patches.weight", "patches.bias", "token", "positions")}
    assert tokens.heads[0].linear.in_features == 8
    for depth in (1, 3):
        prefix = extract(tokens, depth)
        prefix(torch.randn(2, 1, 8, 8)).sum().backward()
        assert [name for name, p in prefix.named_parameters() if p.grad is None] == []


def test_a_stem_of_code_can_be_exported(tokens):
    prefix, x = extract(tokens, 2).eval(), torch.randn(2, 1, 8, 8)
    exported = torch.export.export(prefix, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    other = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(exported(other), prefix(other))


def test_sequences_of_tokens_and_of_numbers():
    texts = SimpleNamespace(input_shape=(6,), classes=("a", "b"))
    layers = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2)]
    reader = nn.Sequential(nn.Embedding(20, 8), *layers)
    network = partition(reader, texts, blocks=["1", "2"], channel_dim=-1, input_dtype=torch.int64)
    assert [logits.shape for logits in network(torch.randint(20, (3, 6)))] == [(3, 2), (3, 2)]
    series = SimpleNamespace(input_shape=(2, 16), classes=("a", "b"))
    waves = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Conv1d(4, 6, 3, stride=2), nn.Conv1d(6, 6, 3))
    assert [head.linear.in_features for head in partition(waves, series, blocks=["1", "2"]).heads] == [6, 6]
    table = SimpleNamespace(input_shape=(5,), classes=("a", "b"))
    rows = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 9), nn.Linear(9, 9))
    assert [logits.shape for logits in partition(rows, table, blocks=["1", "2"])(torch.randn(3, 5))] == [(3, 2)] * 2


def test_heads_of_ones_own():
    network = partition(Own(), IMAGES, blocks=["layers.#"], head=lambda shape, classes: Head(shape[0], 2 * classes))
    assert network.prefix(2)(torch.randn(2, 1, 8, 8)).shape == (2, 6)


def refused(network: nn.Module, message: str, *, blocks=("layers.#",), data=IMAGES) -> None:
    with pytest.raises(UsageError, match=message) as error:
        partition(network, data, blocks=list(blocks))
    assert "\n" not in str(error.value)


def changed(method: str, function) -> nn.Module:
    network = Own()
    setattr(network, method, function)
    return network


def test_the_first_block_where_the_chain_breaks_is_named():
    message = "the chain breaks at block 3, 'layers.2': its input is not what 'layers.1' gave"
    refused(changed("between", lambda number, x: x * 2 if number == 2 else x), message)
    refused(changed("between", lambda number, x: x.mul_(2) if number == 2 else x), message)  # the same tensor, changed
    refused(
        Own(),
        "the chain breaks at block 2, 'layers.0': its input is not what 'layers.1'",
        blocks=["layers.1", "layers.0"],
    )
    refused(
        Own(), "the chain breaks at block 3, 'layers.2': .* 'layers.3'", blocks=["layers.0", "layers.3", "layers.2"]
    )


def test_a_shortcut_across_blocks_breaks_the_chain():
    class Shortcut(Own):
        def forward(self, x):
            first = self.layers[0](self.stem(x))
            second = self.layers[1](first)
            return self.layers[3](self.layers[2](second + first))

    refused(Shortcut(), "the chain breaks at block 3, 'layers.2'")


def test_a_module_between_blocks_that_reads_more_breaks_the_chain():
    class Gate(nn.Module):
        def forward(self, x, y):
            return x * y

    class Gated(Own):
        def __init__(self):
            super().__init__()
            self.gate = Gate()

        def between(self, number, x):
            return self.gate(x, x) if number == 1 else x

    refused(Gated(), "the chain breaks at block 2, 'layers.1'")


def test_shared_weights_are_refused():
    network = Own()
    network.layers[2].conv.weight = network.layers[1].conv.weight
    refused(network, r"block 3, 'layers.2', shares '.*conv.weight' with block 2, 'layers.1'; a network can be cut only")
    network = Own()
    network.layers[3].norm.running_mean = network.norm.running_mean
    refused(network, "block 4, 'layers.3', shares 'norm.running_mean' with the stem")


def test_a_block_that_runs_more_than_once_or_never_is_refused():
    network = Own()
    network.layers = nn.ModuleList([Block()] * 3)
    refused(network, "'layers.0' is called 3 times in a forward pass; allowed: once", blocks=["layers.0"])
    network = Own()
    network.idle = Block()
    refused(network, "'idle' is not called in a forward pass", blocks=["layers.0", "idle"])


def test_state_that_blocks_share_outside_of_their_weights_is_refused():
    class Counting(Block):
        calls = 0

        def forward(self, x):
            Counting.calls += 1
            return super().forward(x) * Counting.calls

    network = Own()
    network.layers = nn.ModuleList([Counting() for _ in range(3)])
    refused(network, "in evaluation mode the network gives other numbers for the same input at 'layers.2'")


def test_what_blocks_read_besides_their_input_is_refused():
    class Told(Block):
        def __init__(self, first):
            super().__init__()
            self.first = first

        def forward(self, x):
            x = super().forward(x)
            self.first.setdefault("x", x)
            return x + self.first["x"].mean()

    class Telling(Own):
        def stem(self, x):
            self.first.clear()
            return super().stem(x)

    network = Telling()
    network.first = {}
    network.layers = nn.ModuleList([Told(network.first) for _ in range(3)])
    refused(network, "the blocks up to 'layers.2' give other numbers on their own than within the network")


def test_code_that_looks_behind_the_blocks_is_refused_in_one_line():
    class Behind(Own):
        def stem(self, x):
            return super().stem(x.to(self.linear.weight.dtype)) + 0

    refused(Behind(), r"the network cannot be copied and run in parts \(.*\); build odn.PartitionedNetwork")


def test_frozen_weights_of_what_comes_behind_are_left_out(tokens):
    frozen = Tokens().requires_grad_(False)
    stem = partition(frozen, IMAGES, blocks=["encoder.layers.#"], channel_dim=-1).stem
    assert [name for name, _ in stem.named_parameters()] == [name for name, _ in tokens.stem.named_parameters()]


def test_paths_that_depend_on_the_input_are_refused():
    branching = changed("between", lambda number, x: x if x.sum() > 0 else -x)
    refused(branching, "the network's path depends on the values of its input")


def test_blocks_that_read_or_give_more_than_a_tensor_are_refused():
    class Two(Block):
        def forward(self, x, scale=None):
            return super().forward(x)

    class Pair(Block):
        def forward(self, x):
            return super().forward(x), x

    class Told(Own):
        def forward(self, x):
            return self.layers[1](self.layers[0](self.stem(x)), scale=2)

    class Paired(Own):
        def forward(self, x):
            return self.layers[1](self.layers[0](self.stem(x))[0])

    network = Told()
    network.layers = nn.ModuleList([Two(), Two()])
    refused(network, "block 'layers.1' is also given its argument scale; allowed: what the block before it gives")
    network = Paired()
    network.layers = nn.ModuleList([Pair(), Block()])
    refused(network, "block 'layers.0' does not turn one tensor into one tensor")


def test_a_further_argument_without_a_value_does_not_matter():
    class Two(Block):
        def forward(self, x, scale=None):
            return super().forward(x)

    class Told(Own):
        def stem(self, x):
            return super().stem(x) + 1  # code, so that the stem is the network up to its first block

        def forward(self, x):
            return self.layers[1](self.layers[0](self.stem(x), scale=None), None)

    network = Told()
    network.layers = nn.ModuleList([Two(), Two()])
    settled(network)
    x = torch.randn(2, 1, 8, 8)
    cut = partition(network, IMAGES, blocks=["layers.#"]).eval()
    torch.testing.assert_close(cut.blocks[1](cut.blocks[0](cut.stem(x))), network(x))


def test_requests_that_make_no_sense_are_refused():
    refused(
        Own(),
        "no module is called 'stages.*'; allowed: names or patterns of modules; at the top stand conv, norm",
        blocks=["stages.*"],
    )
    refused(Own(), r'needs to be told where its blocks are; .*, e.g. blocks=\["layer#.#"\]', blocks=[])
    wrong = SimpleNamespace(input_shape=(3, 8, 8), classes=("a", "b"))
    refused(Own(), "the network cannot take an input of shape 3x8x8: ", data=wrong)
    with pytest.raises(UsageError, match=r"blocks is 'layers.#'; allowed: a list of names or patterns, e.g. blocks=\["):
        partition(Own(), IMAGES, blocks="layers.#")
    with pytest.raises(UsageError, match="channel_dim is 3; allowed: 1 as after convolutions, -1 as in tokens"):
        partition(Own(), IMAGES, blocks=["layers.#"], channel_dim=3)
    refused(Own().half(), r"'conv.weight' is torch.float16; allowed: torch.float32, as network.float\(\) makes it")
    refused(lambda x: x, "a network is a name or a torch.nn.Module, not function")
    with pytest.raises(UsageError, match="blocks and head are for networks of your own; leave them out for 'resnet18'"):
        partition("resnet18", IMAGES, blocks=["layer#.#"])
    with pytest.raises(UsageError, match="width, vocabulary and weights are for backbones with a name; leave them out"):
        partition(Own(), IMAGES, blocks=["layers.#"], width=2.0)


def test_what_exporting_would_do_is_said(tmp_path):
    network = partition(Own(), IMAGES, blocks=["layers.#"])
    message = (
        "a network built by hand has no spec .*; save its weights with safetensors.torch.save_model and keep the code"
    )
    with pytest.raises(OdnError, match=message):
        save_network(extract(network, 2), tmp_path / "small")

import pytest
import torch
from torch import nn

from odn.measure import measure_cost, measure_latency, profile
from odn.network import build_network


@pytest.mark.parametrize(
    ("backbone", "shape", "depth", "parameters", "reduction"),
    [("resnet18", (1, 28, 28), 2, 151_882, 0.98641), ("resnet34", (3, 32, 32), 5, 758_346, 0.96438)],
)
def test_the_papers_networks(backbone, shape, depth, parameters, reduction):
    network = build_network(backbone, shape, 10, device="meta")
    rows = profile([network.prefix(d) for d in range(1, network.max_depth + 1)], shape)
    assert [row["depth"] for row in rows] == list(range(1, network.max_depth + 1))
    row = rows[depth - 1]
    assert (row["parameters"], row["reduction"]) == (parameters, reduction)
    assert row["parameter_bytes"] == 4 * parameters
    assert rows[-1]["reduction"] == 0
    assert [row["macs"] for row in rows] == sorted({row["macs"] for row in rows})


def test_macs_of_a_convolution_and_a_linear_layer():
    conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    assert measure_cost(conv, (3, 10, 12)).macs == 3 * 8 * 9 * 10 * 12
    linear = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    assert measure_cost(linear, (3, 4, 4)).macs == 48 * 5


def test_peak_activation_bytes_counts_what_is_alive_at_once():
    def conv(channels_in, channels_out):
        return nn.Conv2d(channels_in, channels_out, 1, bias=False)

    pixel = 4 * 6 * 6
    # A chain holds the input of a layer, its output, and the image the caller keeps.
    assert measure_cost(conv(1, 8), (1, 6, 6)).peak_activation_bytes == (1 + 8) * pixel
    chain = nn.Sequential(conv(1, 8), conv(8, 4), conv(4, 2))
    assert measure_cost(chain, (1, 6, 6)).peak_activation_bytes == (1 + 8 + 4) * pixel
    in_place = nn.Sequential(conv(1, 8), nn.ReLU(inplace=True))
    assert measure_cost(in_place, (1, 6, 6)).peak_activation_bytes == (1 + 8) * pixel
    views = nn.Sequential(conv(1, 8), nn.Flatten(), nn.Unflatten(1, (8, 6, 6)), conv(8, 1))
    assert measure_cost(views, (1, 6, 6)).peak_activation_bytes == (1 + 8 + 1) * pixel


def test_measuring_leaves_the_network_alone():
    network = build_network("cifar_resnet20", (3, 8, 8), 3).prefix(2).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    measure_cost(network, (3, 8, 8))
    latency = measure_latency(network, (3, 8, 8), seconds=0.01)
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert set(latency) == {"batch_1", "batch_64"}
    assert all(0 < value["p50"] <= value["p95"] for value in latency.values())
    assert latency["batch_64"]["p50"] > latency["batch_1"]["p50"]

import json

import pytest
import torch

from odn.config import ExpandConfig, TrainConfig
from odn.errors import UsageError
from odn.measure import macs_by_depth, measure_cost, training_bytes
from odn.network import build_network
from odn.plan import Hardware, Workload, plan

WORKLOAD = Workload(backbone="cifar_resnet20", input_shape=(3, 32, 32), classes=10, images=6400, valid_images=640)
KNOWN = Hardware(gmacs_per_second=10.0)


def test_with_a_known_speed_time_follows_from_macs_alone():
    network = build_network("cifar_resnet20", (3, 32, 32), 10, device="meta")
    macs = measure_cost(network.prefix(9), (3, 32, 32)).macs
    row = plan(WORKLOAD, KNOWN)
    assert row["batch_size"] == 64
    expected = macs * (3 * 6400 + 2048 + 640) / 10e9
    assert row["epoch_seconds"] == pytest.approx(expected, rel=1e-3)
    assert row["full_depth_seconds"] == pytest.approx(30 * expected, rel=1e-2)
    assert row["gmacs_per_second"] == 10.0


def test_processes_share_the_images_and_pay_for_the_exchange():
    alone = plan(WORKLOAD, KNOWN)["epoch_seconds"]
    four = plan(WORKLOAD, Hardware(gmacs_per_second=10.0, processes=4, gigabytes_per_second=1e9))["epoch_seconds"]
    assert four == pytest.approx(alone / 4, rel=1e-2)
    weights = 4 * 272_474
    slow = plan(WORKLOAD, Hardware(gmacs_per_second=10.0, processes=4, gigabytes_per_second=0.001))["epoch_seconds"]
    assert slow - four == pytest.approx(100 * 2 * 3 / 4 * weights / 1e6, rel=1e-3)


def test_the_longest_search_doubles_depths_and_trains_every_network_to_its_end():
    network = build_network("cifar_resnet20", (3, 32, 32), 10, device="meta")
    macs = macs_by_depth(network.prefixes(), (3, 32, 32))
    per_mac = (3 * 6400 + 2048 + 640) / 10e9
    # 100 steps per epoch: 5 epochs of growing, 30 of training to the end, 10 of refining. The deepest is not grown. All
    # are refined, then bisection refines three of the four other depths that the deepest adds, and what growing left of
    # some depth is fine-tuned.
    epochs = {1: 45, 2: 45, 4: 45, 9: 30 + 4 * 10 + 15}
    expected = sum(count * macs[depth - 1] * per_mac for depth, count in epochs.items())
    assert plan(WORKLOAD, KNOWN)["search_at_most_seconds"] == pytest.approx(expected, rel=1e-3)


def test_the_longest_search_passes_images_through_all_heads():
    shape = (3, 32, 32)
    trunk = build_network("mobilenet_v2", shape, 10, device="meta").trunk
    images = 3 * 6400 + 2048 + 640
    workload = Workload(
        backbone="mobilenet_v2",
        input_shape=shape,
        classes=10,
        images=6400,
        valid_images=640,
        expand=ExpandConfig(depths=(2, 3)),
    )
    # Two depths: a look at the first, which has a head for itself and for what is before it, both to their end.
    parts = {(2, 1): 5, (2, 2): 30 + 10, (3, 3): 30 + 10 + 15}
    expected = sum(epochs * measure_cost(trunk(*part), shape).macs for part, epochs in parts.items()) * images / 10e9
    assert plan(workload, KNOWN)["search_at_most_seconds"] == pytest.approx(expected, rel=1e-3)


def test_texts_are_planned_for_as_images_are():
    texts = Workload(backbone="bert_tiny", input_shape=(32,), classes=6, images=640, valid_images=64)
    network = build_network("bert_tiny", (32,), 6, device="meta")
    macs = macs_by_depth(network.prefixes(), (32,), torch.int64)
    row = plan(texts, KNOWN, depth=1)
    assert row["epoch_seconds"] == pytest.approx(macs[0] * (3 * 640 + 64) / 10e9, rel=1e-3)
    weights = 4 * sum(p.numel() for p in network.prefix(1).parameters())
    assert row["memory_bytes"] > 5 * weights  # Adam remembers two numbers for each
    assert plan(texts, Hardware(), depth=1)["epoch_seconds"] > 0  # as measured here


def test_money_is_time_at_its_price():
    row = plan(WORKLOAD, Hardware(gmacs_per_second=0.01, price_per_hour=36.0))
    assert row["full_depth_price"] == pytest.approx(row["full_depth_seconds"] / 100, rel=1e-3)


def test_parts_of_a_network_take_less_memory_than_copies():
    processes = Hardware(gmacs_per_second=10.0, processes=4)
    rows = [
        plan(
            Workload(
                backbone="resnet50", input_shape=(3, 32, 32), classes=10, images=256, training=TrainConfig(parallel=way)
            ),
            processes,
        )
        for way in ("ddp", "fsdp")
    ]
    weights = 4 * 23_528_522
    assert rows[0]["memory_bytes"] - rows[1]["memory_bytes"] == pytest.approx(4 * weights * 3 / 4, rel=1e-3)


@pytest.mark.parametrize(("backbone", "depth"), [("resnet18", 2), ("cifar_resnet20", 9)])
def test_memory_of_the_feature_maps_is_what_backward_keeps(backbone, depth):
    prefix = build_network(backbone, (3, 32, 32), 10).prefix(depth).train()
    weights = {p.untyped_storage().data_ptr() for p in prefix.parameters()}
    kept = {}

    def remember(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        loss = prefix(torch.randn(8, 3, 32, 32)).sum()
    assert loss.requires_grad
    planned = training_bytes(prefix, (3, 32, 32), 8, copies=0)
    assert planned == pytest.approx(sum(kept.values()), rel=0.05)


def test_the_speed_of_this_machine_is_measured(odn):
    code, out, _ = odn("plan", "cifar_resnet20", "--images", 6400, "--processes", 1, 2, "--json")
    one, two = json.loads(out)
    assert code == 0
    assert one["epoch_seconds"] > 0
    assert one["gmacs_per_second"] > 0
    assert (one["processes"], two["processes"]) == (1, 2)
    assert list(one) == list(two)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet18", "--images", 1), "images is 1; allowed: 2 or more in the training split"),
        (("resnet18", "--images", 100, "--processes", 0), "processes is 0; allowed: 1 to 65536"),
        (
            ("resnet18", "--images", 100, "--processes", 64),
            "16 images per step for 64 processes; BatchNorm needs 2 or more in each: plan for fewer processes",
        ),
        (
            ("resnet18", "--images", 100, "--gigabytes-per-second", 0, "--gmacs-per-second", 1),
            "gigabytes_per_second is 0.0; allowed: above 0",
        ),
        (("resnet18", "--images", 100, "--input-shape", "64"), "input shape 64 for 'resnet18'; allowed: channels x"),
        (("resnet99", "--images", 100), "unknown backbone 'resnet99'"),
        (("resnet18", "--images", 100, "--epochs", 0), "epochs is 0; allowed: 1 or more"),
        (("resnet18", "--images", 100, "--price-per-hour", -1), "price_per_hour is -1.0; allowed: 0 or more"),
    ],
)
def test_bad_plans_are_refused(refused, arguments, message):
    assert message in refused("plan", *arguments, code=2)


def test_a_search_of_one_depth_trains_nothing_else():
    only = Workload(
        backbone="cifar_resnet20",
        input_shape=(3, 32, 32),
        classes=10,
        images=6400,
        expand=ExpandConfig(depths=(9,), settle_epochs=0),
    )
    row = plan(only, KNOWN)
    assert row["search_at_most_seconds"] == pytest.approx(row["epoch_seconds"] * (5 + 15), rel=1e-2)


def test_unknown_shapes_are_refused():
    with pytest.raises(UsageError, match="too small"):
        plan(Workload(backbone="resnet18", input_shape=(1, 2, 2), classes=10, images=100), KNOWN)


def test_a_deepest_network_that_brings_one_depth_may_be_refined():
    only = Workload(
        backbone="cifar_resnet20", input_shape=(3, 32, 32), classes=10, images=64_000, expand=ExpandConfig(depths=(9,))
    )
    row = plan(only, KNOWN)
    # 30 epochs, a third of them for refining, and ten of fine-tuning.
    assert row["search_at_most_seconds"] == pytest.approx(row["epoch_seconds"] * (30 + 10 + 10), rel=1e-2)


def test_few_images_are_searched_with_more_epochs():
    def epochs(images: int) -> float:
        row = plan(
            Workload(
                backbone="cifar_resnet20",
                input_shape=(3, 32, 32),
                classes=10,
                images=images,
                training=TrainConfig(batch_size=8),
                expand=ExpandConfig(depths=(9,)),
            ),
            KNOWN,
        )
        return row["search_at_most_seconds"] / row["epoch_seconds"]

    assert epochs(2000) == pytest.approx(30 + 10 + 10, rel=1e-2)
    assert epochs(1000) == pytest.approx(60 + 20 + 10, rel=1e-2)

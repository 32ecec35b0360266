import json
import re
from html.parser import HTMLParser

import pytest

import odn
from conftest import tiny_data
from odn.config import ReportConfig
from odn.measure import measure_cost
from odn.page import render_page
from odn.stopping import wilson_interval
from test_stopping import records

NETWORK_KEYS = {
    "name", "runtime", "depth", "parameters", "parameter_bytes", "file_bytes", "macs", "peak_activation_bytes",
    "valid_accuracy", "valid_score", "test_accuracy", "test_score", "test_interval", "latency_ms",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What the example of the README leaves behind: an artifact alone, without history or settings."""
    data = tiny_data()
    network = odn.partition("cifar_resnet20", data.spec, width=0.25)
    small = odn.extract(network, 2)
    path = tmp_path_factory.mktemp("run")
    odn.export(small, path / "artifact", data.spec)
    report = odn.report(path, test=data.test, config=ReportConfig(latency_seconds=0.01))
    return path, data, small, report


def test_the_report_keeps_its_contract(run):
    path, _, small, report = run
    figures = json.loads((path / "report.json").read_text())
    assert figures == report.figures
    assert figures["schema"] == 1
    assert figures["dataset"] == {
        "name": "stripes", "train": 192, "valid": 96, "test": 96, "classes": 3, "input_shape": [1, 8, 8],
    }  # fmt: skip
    assert (figures["backbone"], figures["depth"], figures["max_depth"]) == ("cifar_resnet20", 2, 9)
    names = [network["name"] for network in figures["networks"]]
    assert names == ["full", "extracted", "cifar_resnet20"]
    assert all(set(network) == NETWORK_KEYS for network in figures["networks"])
    extracted = figures["networks"][1]
    cost = measure_cost(small, (1, 8, 8))
    assert (extracted["parameters"], extracted["macs"]) == (cost.parameters, cost.macs)
    assert extracted["file_bytes"] == (path / "artifact" / "weights.safetensors").stat().st_size
    assert set(extracted["latency_ms"]) == {"batch_1", "batch_64"}


def test_test_accuracy_is_that_of_the_artifact_with_its_interval(run):
    path, data, _, report = run
    loaded = odn.load(path / "artifact")
    predictions = loaded.predict(data.test.images)
    hits = sum(p.label == "abc"[y] for p, y in zip(predictions, data.test.labels.tolist(), strict=True))
    extracted = report.figures["networks"][1]
    assert extracted["test_accuracy"] == hits / 96
    assert extracted["test_interval"] == list(wilson_interval(hits, 96))


def test_what_was_not_measured_is_null(run):
    figures = run[3].figures
    assert [figures[key] for key in ("seed", "target_accuracy", "reached")] == [None, None, None]
    assert set(figures["cost"].values()) == {None}
    assert figures["networks"][0]["test_accuracy"] is None
    assert figures["networks"][1]["valid_accuracy"] is None


def test_the_printed_table_names_every_network(run):
    text = str(run[3])
    assert "depth 2 of 9" in text
    assert all(network["name"] in text for network in run[3].figures["networks"])
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


class Page(HTMLParser):
    """Collects the tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


NETWORK = {
    "name": "full", "runtime": "torch", "depth": 3, "parameters": 100, "parameter_bytes": 400, "file_bytes": 500,
    "macs": 1000, "peak_activation_bytes": 2000, "valid_accuracy": None, "valid_score": None,
    "test_accuracy": None, "test_score": None,
    "test_interval": None, "latency_ms": None,
}  # fmt: skip


def page(records_, **changes) -> str:
    figures = {
        "schema": 1,
        "dataset": {"name": "toy", "train": 10, "valid": 5, "test": 5, "classes": 2, "input_shape": [1, 8, 8]},
        "task": "classification", "metric": "accuracy", "classes": [],
        "backbone": "resnet18", "seed": 0, "target_accuracy": 0.9,
        "target_automatic": False, "reached": True, "depth": 2, "max_depth": 3,
        "networks": [NETWORK, {**NETWORK, "name": "extracted", "parameters": 40}],
        "cost": {
            "train_macs": 5, "full_depth_train_macs": 10, "reference_epochs": 30, "seconds": 1.0,
            "epochs_by_depth": {"1": 2, "2": 2}, "finetune_epochs": 0,
            "compress_epochs": 0,
        },
        "compression": None, "start": None, "routing": None, "truncated": None,
        "refused": [],
    }  # fmt: skip
    return render_page({**figures, **changes}, records_, [100, 200, 300])


RECORDS = [*records([800, 850]), *records([900, 910], depth=2)]


def test_the_page_speaks_of_compressing_only_where_something_was_compressed():
    text = page(RECORDS)
    assert "of fine-tuning. " in text
    assert "of compressing" not in text


def test_the_page_is_self_contained_and_draws_both_charts():
    text = page(RECORDS)
    tags = Page(text).tags
    assert [tag for tag, _ in tags].count("svg") == 2
    assert not [tag for tag, _ in tags if tag in ("script", "link", "img", "iframe")]
    references = [value for _, attributes in tags for name, value in attributes.items() if name in ("src", "href")]
    assert all(value.startswith("#") for value in references)
    assert "Target reached" in text
    assert "60.00%" in text


def test_a_target_far_below_all_scores_is_in_the_picture():
    text = page(records([1000, 1000]), target_accuracy=0.5)  # warnings of the layout are errors
    assert text.count("<!-- target 0.5 -->") == 2


def test_the_page_is_the_same_for_the_same_figures():
    assert page(RECORDS) == page(RECORDS)


def test_hostile_names_are_escaped():
    attack = "<script>alert(1)</script>"
    dataset = {"name": attack, "train": 10, "valid": 5, "test": 5, "classes": 2, "input_shape": [1, 8, 8]}
    rows = [{**NETWORK, "name": "full"}, {**NETWORK, "name": attack}]
    text = page(RECORDS, dataset=dataset, backbone='"><img src=x onerror=alert(1)>', networks=rows)
    assert attack not in text
    assert "<img" not in text
    assert not [tag for tag, _ in Page(text).tags if tag in ("script", "img")]


def test_a_page_without_history_or_target_says_so():
    nothing = dict.fromkeys(
        (
            "train_macs",
            "full_depth_train_macs",
            "reference_epochs",
            "seconds",
            "epochs_by_depth",
            "finetune_epochs",
            "compress_epochs",
        )
    )
    text = page([], cost=nothing, target_accuracy=None, reached=None)
    assert "<svg" not in text
    assert "Training was not recorded." in text
    assert not re.search("Target (not )?reached", text)


def test_an_automatic_target_is_told():
    assert "(validation accuracy 0.9000, found automatically)" in page(RECORDS, target_automatic=True)
    assert "automatically" not in page(RECORDS)


def test_a_missed_target_is_told():
    assert "Target not reached" in page(RECORDS, reached=False)

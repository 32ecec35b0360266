"""Device tables: measured, written, read, believed or refused."""

import dataclasses
import itertools
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odn.devices import DeviceTable, check_device, read_device_table, write_device_table
from odn.errors import OdnError, UsageError
from odn.spec import NetworkSpec
from odn.stopwatch import time_in_turn, time_parts

TABLE = DeviceTable(
    backbone="cifar_resnet20",
    width=0.25,
    input_shape=(1, 8, 8),
    classes=3,
    runtime="onnx",
    threads=1,
    machine={"processor": "a processor"},
    versions={"onnxruntime": "1.0"},
    date="2026-01-01T00:00:00+00:00",
    call_ms=0.01,
    stem_ms=0.11,
    blocks_ms=(0.21,) * 9,
    heads_ms=(0.05,) * 9,
    whole_ms={"1": 0.3, "9": 1.5},
    held_out_ms={"3": 0.6, "5": 0.9, "7": 1.2},
)


def test_depths_that_were_measured_whole_are_predicted_as_measured():
    assert TABLE.predict_ms(1) == pytest.approx(0.3)
    assert TABLE.predict_ms(9) == pytest.approx(1.5)


def test_in_between_parts_add_up_and_calibration_is_interpolated():
    # 0.11 + 5 * 0.21 + 0.05 less 6 calls; the factor lies halfway between those of depths 1 and 9.
    own = 0.11 + 5 * 0.21 + 0.05 - 6 * 0.01
    factors = 0.3 / (0.11 + 0.21 + 0.05 - 2 * 0.01), 1.5 / (0.11 + 9 * 0.21 + 0.05 - 10 * 0.01)
    assert TABLE.sum_ms(5) == pytest.approx(own)
    assert TABLE.predict_ms(5) == pytest.approx(own * sum(factors) / 2)


parts = st.floats(0.02, 10)


@given(stem=parts, blocks=st.lists(parts, min_size=1, max_size=12), head=parts, scale=st.floats(0.5, 2))
def test_a_machine_whose_parts_add_up_is_predicted_exactly(stem, blocks, head, scale):
    most = len(blocks)
    table = dataclasses.replace(
        TABLE,
        stem_ms=stem,
        blocks_ms=tuple(blocks),
        heads_ms=(head,) * most,
        whole_ms={"1": 1.0},
        held_out_ms={},
    )
    table = dataclasses.replace(table, whole_ms={str(d): scale * table.sum_ms(d) for d in {1, most}})
    for depth in range(1, most + 1):
        assert table.predict_ms(depth) == pytest.approx(scale * table.sum_ms(depth))


def test_predictions_are_held_against_what_was_held_out():
    found = TABLE.check()
    errors = [abs(TABLE.predict_ms(int(d)) - ms) / ms for d, ms in TABLE.held_out_ms.items()]
    assert found["mape"] == pytest.approx(sum(errors) / 3)
    assert found["spearman"] == pytest.approx(1)
    assert dataclasses.replace(TABLE, held_out_ms={}).check() == {"mape": None, "spearman": None}


def test_a_table_survives_the_disk(tmp_path):
    write_device_table(TABLE, tmp_path / "table.json")
    assert read_device_table(tmp_path / "table.json") == TABLE


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schema": 2}, "has schema 2; this odn reads 1"),
        ({"blocks_ms": []}, "is no device table (0 blocks and 9 heads)"),
        ({"heads_ms": [0.1]}, "9 blocks and 1 heads"),
        ({"whole_ms": {}}, "no depth was measured whole"),
        ({"whole_ms": {"10": 1.0}}, "depth '10' of 9"),
        ({"whole_ms": {"one": 1.0}}, "depth 'one' of 9"),
        ({"held_out_ms": {"3": -1.0}}, "depth 3 took -1.0 ms"),
        ({"stem_ms": -1.0}, "a part took -1.0 ms"),
        ({"stem_ms": "fast"}, "is no device table"),
        ({"colour": "red"}, "is no device table"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, change, text):
    path = tmp_path / "table.json"
    write_device_table(TABLE, path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(OdnError) as error:
        read_device_table(path)
    assert text in str(error.value)


@pytest.mark.parametrize("content", ["", "[]", "{", "3", "null", "[" * 100_000])
def test_what_is_no_table_is_refused(tmp_path, content):
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(OdnError, match=r"is no device table .*; make one with odn profile --latency"):
        read_device_table(path)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"backbone": "resnet18"}, "measured with backbone cifar_resnet20, the run has resnet18"),
        ({"width": 1.0}, "measured with width 0.25, the run has 1.0"),
        ({"input_shape": (3, 8, 8)}, r"measured with input_shape \(1, 8, 8\), the run has \(3, 8, 8\)"),
        ({"classes": 10}, "measured with classes 3, the run has 10"),
        ({"task": "segmentation"}, "measured with task classification, the run has segmentation"),
    ],
)
def test_a_table_of_another_network_is_refused(other, text):
    own = NetworkSpec(backbone="cifar_resnet20", width=0.25, input_shape=(1, 8, 8), classes=3, depth=1)
    check_device(TABLE, own, 9)
    with pytest.raises(UsageError, match=text):
        check_device(TABLE, dataclasses.replace(own, **other), 9)
    with pytest.raises(UsageError, match="measured with blocks 9, the run has 27"):
        check_device(TABLE, own, 27)


def test_calls_take_turns():
    order = []
    times = time_in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 1e-9)
    assert set(times) == {"a", "b"}
    switches = sum(one != other for one, other in itertools.pairwise(order))
    assert switches == 9  # five rounds of both


def test_parts_follow_each_other_as_in_the_network():
    order = []
    plan = {"call": "call", "stem": "stem", "blocks": ["one", "one", "two"], "heads": ["head", "head", "head"]}
    names = ("whole_1", "two", "one", "head", "stem", "call", "whole_3")
    times = time_parts(plan, {name: lambda name=name: order.append(name) for name in names}, 1e-9)
    assert set(times) == set(names)
    assert order[:10] == ["call", "stem", "one", "head", "two"] * 2
    end = order.index("whole_1")
    assert set(order[end:]) == {"whole_1", "whole_3"}
    assert end % 5 == 0  # every part as often as the others


PROFILE = ("profile", "cifar_resnet20", "--width", 0.25, "--input-shape", "1x8x8", "--classes", 3, "--seconds", 0.001)


def test_the_parts_are_measured_in_torch(odn, tmp_path):
    out = tmp_path / "table.json"
    code, text, err = odn(*PROFILE, "--latency", "--runtime", "torch", "--out", out)
    assert code == 0, err
    table = read_device_table(out)
    assert (table.backbone, table.width, table.runtime, table.threads) == ("cifar_resnet20", 0.25, "torch", 1)
    assert (len(table.blocks_ms), len(table.heads_ms)) == (9, 9)
    assert table.blocks_ms[0] == table.blocks_ms[1]  # the same kind of block at the same size is measured once
    assert set(table.whole_ms) == {"1", "3", "6", "9"}
    assert set(table.held_out_ms) == {"2", "4", "5", "7", "8"}
    assert "5 depths that were held out: off by" in text
    assert "torch" in table.versions


def test_the_script_needs_neither_torch_nor_odn(odn, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    parts, out = tmp_path / "parts", tmp_path / "table.json"
    parts.mkdir()
    (parts / "parts.json").write_text("{}")  # of an earlier call, so that they may be replaced
    code, text, err = odn(*PROFILE, "--parts", parts)
    assert code == 0, err
    assert f"{parts}; copy it to the device and run there: python measure.py --out table.json" in text
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['measure.py', '--seconds', '0.001', '--out', {str(out)!r}]\n"
        "try:\n"
        f"    runpy.run_path({str(parts / 'measure.py')!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "assert not {'torch', 'odn'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    table = read_device_table(out)
    assert table.runtime == "onnx"
    assert set(table.versions) == {"onnxruntime", "python"}
    assert all(ms > 0 for ms in (*table.blocks_ms, *table.heads_ms, table.stem_ms))


def test_parts_do_not_replace_what_is_not_theirs(refused, tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    assert "exists and holds no parts of a network" in refused(*PROFILE, "--parts", tmp_path, code=2)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--latency", "--runtime", "tensorrt"), "tensorrt"),
        (("--latency", "--seconds", 0), "--seconds is 0.0; allowed: above 0"),
        (("--latency", "--threads", 0), "--threads is 0; allowed: 1 to 1024"),
    ],
)
def test_wrong_requests(refused, flags, text):
    assert text in refused(*PROFILE[:-2], *flags, code=2)


def test_a_longer_network_that_was_measured_as_faster_counts_as_equally_long():
    noisy = dataclasses.replace(TABLE, whole_ms={"1": 3.0, "2": 2.0, "4": 9.0})
    assert [noisy.predict_ms(depth) for depth in (1, 2, 4)] == pytest.approx([2.5, 2.5, 9.0])


def test_a_table_whose_predictions_were_far_off_says_so():
    exact = dataclasses.replace(TABLE, held_out_ms={"3": TABLE.predict_ms(3)})
    assert exact.doubt() == ""
    rough = dataclasses.replace(TABLE, held_out_ms={"3": 2 * TABLE.predict_ms(3)})
    assert rough.doubt().startswith("its predictions were off by 50.0% in the mean, rank correlation 1.000; measure")

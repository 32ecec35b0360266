"""The commands after training, on a real run of the digits."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from odn.config import ReportConfig
from odn.reporting import report

pytest.importorskip("onnxruntime", reason="needs the extra onnx: pip install 'optimally-deep[onnx]'")
FAST = ("--backbone", "cifar_resnet20", "--precision", "fp32", "--finetune-epochs", 6, "--epochs-per-depth", 10)


def test_real_digits_go_from_training_to_predictions_in_int8(odn, tmp_path):
    run = tmp_path / "run"
    # One of the 288 validation images is 0.0035: int8 may answer two of them otherwise.
    (tmp_path / "recipe.toml").write_text(
        '[report]\nlatency_seconds = 0.01\n[export]\nto = ["onnx"]\nmax_drop = 0.007\n'
    )
    flags = ("--config", tmp_path / "recipe.toml", "--depths", 5, "--target", 0.9, "--run", run)
    code, out, err = odn("run", "digits", *FAST, *flags, "--to", "onnx,int8")
    assert code == 0, err
    figures = json.loads((run / "report.json").read_text())
    rows = {row["name"]: row for row in figures["networks"]}
    assert list(rows) == ["full", "extracted", "onnx", "int8", "cifar_resnet20"]
    assert rows["onnx"]["test_accuracy"] == rows["extracted"]["test_accuracy"] > 0.9
    assert rows["int8"]["test_accuracy"] >= rows["extracted"]["test_accuracy"] - 0.01
    assert rows["int8"]["file_bytes"] < 0.45 * rows["onnx"]["file_bytes"]
    assert rows["int8"]["parameter_bytes"] < rows["int8"]["file_bytes"]
    assert rows["int8"]["latency_ms"]["batch_1"]["p50"] > 0
    assert figures["refused"] == []
    assert "onnx" in out
    digits = load_digits()
    folder = tmp_path / "folder"
    folder.mkdir()
    for index in range(20):
        Image.fromarray((digits.images[index] * 255 / 16).round().astype(np.uint8)).save(folder / f"{index:02}.png")
    code, out, _ = odn("predict", run / "artifact", folder, "--runtime", "int8")
    labels = [line.split("\t")[1] for line in out.splitlines()]
    assert code == 0
    assert np.mean([label == str(y) for label, y in zip(labels, digits.target, strict=False)]) >= 0.9
    # The step alone replaces the files, and the report follows.
    code, out, _ = odn("export", run, "--to", "", "--weights", "bf16")
    assert code == 0
    assert not (run / "artifact" / "model.onnx").exists()
    again = report(run, config=ReportConfig(latency_seconds=0.0)).figures["networks"]
    assert [row["name"] for row in again] == ["full", "extracted", "cifar_resnet20"]
    assert again[1]["file_bytes"] < 0.6 * rows["extracted"]["file_bytes"]


def test_a_benchmark_stands_beside_what_one_would_pick_instead(odn, deployed):
    code, out, _ = odn("benchmark", deployed, "--runtime", "int8", "--threads", 2, "--seconds", 0.001, "--json")
    rows = json.loads(out)
    assert code == 0
    assert [(row["network"], row["runtime"], row["weights"], row["threads"]) for row in rows] == [
        (network, runtime, weights, threads)
        for network, runtime, weights in (
            ("artifact", "int8", "trained"),
            ("full cifar_resnet20", "onnx", "random"),
            ("resnet18", "onnx", "random"),
            ("cifar_resnet20", "onnx", "random"),
            ("mobilenet_v3_small", "onnx", "random"),
        )
        for threads in (1, 2)
    ]
    assert rows[0]["file_bytes"] == (deployed / "model.int8.onnx").stat().st_size
    assert all(row["batch_64_p95_ms"] >= row["batch_64_p50_ms"] > row["batch_1_p50_ms"] > 0 for row in rows)
    assert rows[8]["file_bytes"] > 5_000_000


def test_a_benchmark_in_pytorch_is_a_table(odn, deployed, monkeypatch):
    monkeypatch.setattr("odn.rivals.RIVALS", ("mobilenet_v3_small",))
    code, out, _ = odn("benchmark", deployed, "--runtime", "torch", "--threads", 1, "--seconds", 0.001)
    assert code == 0
    assert "mobilenet_v3_small (random weights)" in out
    assert "batch 64, p50 / p95" in out


def test_a_file_that_was_not_kept_is_told_with_exit_code_1(odn, npz, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert odn("run", npz, *FAST, "--target", 0.2, "--depths", 1, "--run", run)[0] in (0, 3)
    monkeypatch.setattr("odn.exporting.MAX_DIFFERENCE", 0.0)
    code, out, err = odn("export", run, "--to", "onnx")
    assert code == 1
    assert err.startswith("onnx: not kept: its logits differ from PyTorch's by")
    assert str(run / "artifact") in out

"""Files for further runtimes: written, run apart, compared, kept or refused."""

import json
import logging
import subprocess
import sys
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

import odn
from conftest import stripes, tiny_data
from odn.config import ExportConfig, ReportConfig
from odn.errors import OdnError, UsageError, require_extra
from odn.exporting import export
from odn.layers import Deployed
from odn.manifest import read_manifest
from odn.predicting import predict_files
from odn.runner import Job, run_apart
from odn.runtimes import RUNTIMES, Export, find_runtime, torch_session
from odn.sessions import run_all
from odn.storage import load_network
from test_artifact import change_json

DATA = tiny_data()
NEEDED = {"executorch": "executorch", "executorch-int8": "executorch", "openvino": "openvino"}


def logits_of(network, images):
    return run_all(torch_session(Deployed(network, DATA.spec.preprocessing).eval()), images, 64)


def test_files_are_kept_with_what_the_comparison_found(deployed):
    manifest = read_manifest(deployed)
    onnx, int8 = manifest.exports
    assert (onnx.runtime, int8.runtime, onnx.kept, int8.kept) == ("onnx", "int8", True, True)
    assert onnx.max_difference <= 1e-4
    assert onnx.agreement == 1.0
    assert onnx.valid_score > 0.9
    assert int8.valid_score_drop <= 0.002
    assert int8.max_difference > 1e-4
    assert manifest.runtimes == ("torch", "onnx", "int8")
    assert set(manifest.files) == {"spec.json", "weights.safetensors", "model.onnx", "model.int8.onnx"}
    assert {"onnx", "onnxruntime", "onnxscript"} <= set(manifest.versions)


def test_the_container_weighs_little_beside_the_weights(deployed, network):
    parameters = sum(p.numel() for p in network.parameters())
    onnx, int8 = read_manifest(deployed).exports
    for export_, name, byte in ((onnx, "model.onnx", 4), (int8, "model.int8.onnx", 1)):
        size = (deployed / name).stat().st_size
        assert export_.weight_bytes < size < export_.weight_bytes + 9000
        assert size < byte * parameters + 16_000


def test_an_onnx_file_says_what_it_is(deployed):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(deployed / "model.int8.onnx")
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(about["labels"]) == ["a", "b", "c"]
    assert about["exporter"].startswith("torch ")
    assert about["quantizer"].startswith("onnxruntime ")
    assert (model.producer_name, model.producer_version) == ("odn", "0.1.0")
    assert model.opset_import[0].version >= 18
    image = model.graph.input[0].type.tensor_type
    assert image.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in image.shape.dim] == ["batch", 1, 8, 8]
    assert next(node for node in model.graph.node if "logits" in node.output).op_type == "Gemm"  # fp32 logits
    assert not any(node.doc_string or node.name or node.metadata_props for node in model.graph.node)


def test_int8_layers_are_computed_in_int8(deployed, tmp_path):
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "as_run.onnx"), 3
    ort.InferenceSession(str(deployed / "model.int8.onnx"), options, providers=["CPUExecutionProvider"])
    run = [node.op_type for node in onnx.load(tmp_path / "as_run.onnx").graph.node]
    assert run.count("QLinearConv") == 19
    assert run.count("QLinearAdd") == 8
    assert "Conv" not in run


def test_int8_weights_leave_room_for_the_sums_of_processors_without_vnni(deployed):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(deployed / "model.int8.onnx")
    weights = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    largest = max(int(np.abs(weight.astype(int)).max()) for weight in weights)
    # Their instruction adds two products in 16 bits.
    assert 2 * 255 * largest < 2**15
    assert largest == 64


def test_a_file_runs_without_torch_in_a_process_of_its_own(deployed, network, tmp_path):
    images = stripes(70, seed=5)[0][:, None]
    np.save(tmp_path / "images.npy", images)
    job = Job(
        directory=str(deployed), runtime="onnx", inputs=str(tmp_path / "images.npy"),
        seconds=0.001, batches=(1, 64), preprocessing=DATA.spec.preprocessing,
    )  # fmt: skip
    outcome = run_apart(job)
    assert "torch" not in outcome.modules
    assert np.abs(outcome.logits - logits_of(network, images)).max() <= 1e-4
    assert set(outcome.latency_ms) == {"batch_1", "batch_64"}
    assert outcome.latency_ms["batch_64"]["p95"] >= outcome.latency_ms["batch_64"]["p50"] > 0
    if sys.platform == "linux":
        assert 10**7 < outcome.peak_memory_bytes < 10**9


@pytest.mark.parametrize("name", ["pt2", "openvino", "executorch", "executorch-int8"])
def test_every_further_runtime_agrees_with_pytorch(network, tmp_path, name):
    if name in NEEDED and find_spec(NEEDED[name]) is None:
        pytest.skip(f"{name} needs the library {NEEDED[name]}: pip install 'optimally-deep[{NEEDED[name]}]'")
    config = ExportConfig(to=(name,), max_drop=0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what their dependencies will change
        export(network, tmp_path / "a", DATA.spec, config=config, train=DATA.train, valid=DATA.valid)
    [done] = read_manifest(tmp_path / "a").exports
    assert done.kept, done.reason
    assert done.agreement >= (0.98 if name.endswith("int8") else 1.0)
    assert all((tmp_path / "a" / file).is_file() for file in RUNTIMES[name].files)


def test_int8_that_loses_too_much_gives_way_to_fp32(network, tmp_path, monkeypatch):
    # Every accuracy drop is too much.
    monkeypatch.setattr(ExportConfig, "__post_init__", lambda _: None)
    config = ExportConfig(to=("int8",), max_drop=-1.0)
    export(network, tmp_path / "a", DATA.spec, config=config, train=DATA.train, valid=DATA.valid)
    int8, onnx = read_manifest(tmp_path / "a").exports
    assert not int8.kept
    assert "of validation accuracy; allowed: -1 (odn export --max-drop); fp32 is kept" in int8.reason
    assert onnx.kept
    assert not (tmp_path / "a" / "model.int8.onnx").exists()
    assert (tmp_path / "a" / "model.onnx").is_file()
    report = odn.report(tmp_path_run(tmp_path), test=DATA.test, config=ReportConfig(latency_seconds=0.0))
    assert report.figures["refused"] == [{"name": "int8", "reason": int8.reason}]
    assert "not exported to int8: it costs" in " ".join(str(report).split())
    assert "Not exported to int8: it costs" in (tmp_path / "run" / "report.html").read_text()
    row = next(row for row in report.figures["networks"] if row["name"] == "onnx")
    assert (row["runtime"], row["test_accuracy"]) == ("onnxruntime", report.figures["networks"][1]["test_accuracy"])
    assert row["file_bytes"] == (tmp_path / "run" / "artifact" / "model.onnx").stat().st_size


def tmp_path_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "a").rename(tmp_path / "run" / "artifact")
    return tmp_path / "run"


def test_a_file_that_differs_from_pytorch_is_not_kept(network, tmp_path, monkeypatch):
    import odn.exporting

    monkeypatch.setattr(odn.exporting, "MAX_DIFFERENCE", 0.0)
    config = ExportConfig(to=("onnx",))
    export(network, tmp_path / "a", DATA.spec, config=config, train=DATA.train, valid=DATA.valid)
    [onnx] = read_manifest(tmp_path / "a").exports
    assert not onnx.kept
    assert "its logits differ from PyTorch's by" in onnx.reason
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"manifest.json", "spec.json", "weights.safetensors"}


def test_an_operator_without_a_translation_is_named(tmp_path):
    class Odd(nn.Module):
        def forward(self, images):
            return torch.linalg.eigvals(images[:, 0].float()).real

    source = Export(network=Odd().eval(), calibration=stripes(8)[0][:, None], metadata={})
    with pytest.raises(OdnError, match=r"onnx cannot express the operator aten[.:]+linalg_eig"):
        RUNTIMES["onnx"].write(source, tmp_path)


def test_calibration_is_on_training_images_and_few_are_warned_of(network, tmp_path, caplog, monkeypatch):
    import odn.exporting

    seen = []
    monkeypatch.setattr(odn.exporting, "_export_each", lambda _, source, *rest: seen.append(source) or [])
    few = tiny_data(train=24)
    with caplog.at_level(logging.WARNING, "odn"):
        config = ExportConfig(to=("int8",))
        export(network, tmp_path / "a", few.spec, config=config, train=few.train, valid=few.valid)
    assert "calibrating on 24 images; 32 or more are advised" in caplog.text
    known = {image.tobytes() for image in few.train.images.numpy()}
    assert len(seen[0].calibration) == 24
    assert all(image.tobytes() in known for image in seen[0].calibration)


def test_nothing_to_compare_on_is_a_usage_error(network, tmp_path):
    with pytest.raises(UsageError, match="compared on validation data; give valid="):
        export(network, tmp_path / "a", DATA.spec, config=ExportConfig(to=("onnx",)))
    with pytest.raises(UsageError, match="training data to calibrate on; give train="):
        export(network, tmp_path / "a", DATA.spec, config=ExportConfig(to=("onnx",)), valid=DATA.valid)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("weights", "share"), [("bf16", 0.53), ("fp16", 0.53), ("fp32", 1.0)])
def test_shorter_weights_halve_the_file_and_are_computed_with_in_fp32(network, tmp_path, weights, share):
    export(network, tmp_path / "exact", DATA.spec)
    config = ExportConfig(weights=weights)
    export(network, tmp_path / "a", DATA.spec, config=config, train=DATA.train, valid=DATA.valid)
    sizes = [(tmp_path / name / "weights.safetensors").stat().st_size for name in ("a", "exact")]
    assert sizes[0] <= share * sizes[1]
    small = load_network(tmp_path / "a")
    assert {t.dtype for t in small.state_dict().values()} == {torch.float32, torch.int64}
    images = DATA.valid.images.numpy()
    agreement = (logits_of(small.eval(), images).argmax(1) == logits_of(network, images).argmax(1)).mean()
    assert agreement >= 0.97


def test_shorter_weights_that_lose_too_much_are_not_written(network, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(ExportConfig, "__post_init__", lambda _: None)
    config = ExportConfig(weights="bf16", max_drop=-1.0)
    with caplog.at_level(logging.WARNING, "odn"):
        export(network, tmp_path / "a", DATA.spec, config=config, train=DATA.train, valid=DATA.valid)
    assert "bfloat16 weights cost" in caplog.text
    assert torch.equal(load_network(tmp_path / "a").head.linear.weight, network.head.linear.weight)


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(OdnError, match=r"exporting to onnx needs onnxscript; install it with: pip install 'optimally-"):
        require_extra("onnxscript", "onnx", "exporting to onnx")


def test_unknown_runtimes_get_a_hint():
    with pytest.raises(UsageError, match=r"unknown runtime 'onx'; allowed: onnx, int8, pt2, .*Did you mean 'onnx'"):
        find_runtime("onx")


def test_an_artifact_whose_file_was_swapped_is_refused(network, tmp_path):
    config = ExportConfig(to=("onnx",))
    one = export(network, tmp_path / "one", DATA.spec, config=config, train=DATA.train, valid=DATA.valid)
    content = bytearray((one / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (one / "model.onnx").write_bytes(content)
    with pytest.raises(OdnError, match=r"model\.onnx was changed since it was exported"):
        predict_files(one, [])
    (one / "model.onnx").unlink()
    with pytest.raises(OdnError, match=r"model\.onnx is missing"):
        predict_files(one, [])


def test_a_graph_that_breaks_while_it_runs_is_explained(tmp_path):
    import onnx

    helper = onnx.helper
    image = helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["batch", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.UINT8, None)
    shape = onnx.numpy_helper.from_array(np.array([7]), "shape")
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["images", "shape"], ["logits"])], "g", [image], [logits], [shape]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "model.onnx"
    )
    run = RUNTIMES["onnx"].open(tmp_path, 1)
    with pytest.raises(OdnError, match=r"model\.onnx cannot be run by onnxruntime \(.*Reshape.*\); export"):
        run(np.zeros((1, 1, 8, 8), np.uint8))


@pytest.mark.parametrize("shape", [(2, 4), (2,)])
def test_logits_that_are_not_one_per_label_are_refused(network, tmp_path, shape):
    manifest = read_manifest(export(network, tmp_path / "one", DATA.spec))
    with pytest.raises(OdnError, match=rf"logits of {shape[0]}.* for 3 labels; export the network again"):
        manifest.predictions(np.zeros(shape, np.float32))


def test_a_manifest_that_names_an_unknown_runtime_is_refused(network, tmp_path):
    one = export(network, tmp_path / "one", DATA.spec)
    change_json(one / "manifest.json", exports=[{"runtime": "../../evil", "kept": True}])
    with pytest.raises(OdnError, match=r"names the unknown runtime '\.\./\.\./evil'"):
        read_manifest(one)


def test_an_archive_that_may_run_code_is_not_opened(network, tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as archive:
        archive.writestr("model/data/constants/custom_obj_0", b"cos\nsystem\n")
    job = Job(
        directory=str(tmp_path),
        runtime="pt2",
        seconds=0.001,
        batches=(1,),
        preprocessing=tiny_data().spec.preprocessing,
    )
    with pytest.raises(OdnError, match="pt2 failed in a process of its own: .*custom_obj_0', which may run code"):
        run_apart(job)


def test_a_process_that_dies_is_explained(tmp_path):
    with pytest.raises(OdnError, match=r"onnx failed in a process of its own: .*model\.onnx cannot be run"):
        run_apart(Job(directory=str(tmp_path), runtime="onnx"))


def test_the_runner_needs_no_training_code(deployed):
    code = "import sys, odn.runner; print(sorted({'torch', 'accelerate', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

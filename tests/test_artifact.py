import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from conftest import stripes, tiny_data
from odn.artifact import load
from odn.errors import OdnError, UsageError
from odn.exporting import export
from odn.extraction import extract
from odn.manifest import _digest
from odn.network import partition
from odn.predicting import predict_files
from odn.predictions import Prediction
from test_network import by_hand

DATA = tiny_data()


@pytest.fixture
def network():
    return extract(partition("cifar_resnet20", DATA.spec, width=0.25, seed=0), 2)


@pytest.fixture
def artifact(tmp_path, network):
    return export(network, tmp_path / "artifact", DATA.spec)


def rewrite(artifact, name, content: bytes):
    """Change a file and its checksum, as someone who knows the format would."""
    (artifact / name).write_bytes(content)
    files = json.loads((artifact / "manifest.json").read_text())["files"]
    change_json(artifact / "manifest.json", files={**files, name: hashlib.sha256(content).hexdigest()})


def change_json(path, **changes):
    """Change the manifest and its own checksum."""
    table = {**json.loads(path.read_text()), **changes}
    table.pop("sha256")
    digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**table, "sha256": digest}))


def test_a_loaded_network_gives_the_same_logits(artifact, network):
    loaded = load(artifact)
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(loaded.network(x), network.eval()(x))
    assert loaded.network.spec == network.spec
    assert not loaded.network.training


def test_the_manifest_says_what_a_user_needs(artifact):
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert manifest["labels"] == ["a", "b", "c"]
    assert manifest["preprocessing"] == {"input_shape": [1, 8, 8], "mean": [0.36], "std": [0.23]}
    assert set(manifest["files"]) == {"spec.json", "weights.safetensors"}
    assert {"odn", "torch", "python"} <= set(manifest["versions"])
    assert {path.name for path in artifact.iterdir()} == {"spec.json", "weights.safetensors", "manifest.json"}


def test_predictions_of_tensors_and_files_agree(artifact, tmp_path):
    images, _ = stripes(3)
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    loaded = load(artifact)
    direct = loaded.predict(torch.from_numpy(images)[:, None])
    from_files = list(predict_files(artifact, [tmp_path / f"{index}.png" for index in range(3)]))
    assert [prediction for _, prediction in from_files] == direct
    logits = loaded.network(DATA.spec.preprocessing.normalise(torch.from_numpy(images)[:, None].float() / 255))
    assert [p.label for p in direct] == ["abc"[i] for i in logits.argmax(1)]
    assert [p.probability for p in direct] == pytest.approx(logits.softmax(1).max(1).values.tolist())


def test_files_of_another_size_are_resized(artifact, tmp_path):
    Image.fromarray(np.full((30, 20, 3), 200, np.uint8)).save(tmp_path / "big.png")
    [(_, prediction)] = predict_files(artifact, [tmp_path / "big.png"])
    assert isinstance(prediction, Prediction)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(1, 1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)],
)
def test_wrong_images_are_refused(artifact, images):
    with pytest.raises(UsageError, match=r"allowed: uint8 of shape \(B, 1, 8, 8\)"):
        load(artifact).predict(images)


@pytest.mark.parametrize("name", ["spec.json", "weights.safetensors"])
def test_a_changed_byte_is_noticed(artifact, name):
    content = bytearray((artifact / name).read_bytes())
    content[len(content) // 2] ^= 1
    (artifact / name).write_bytes(content)
    with pytest.raises(OdnError, match=f"{name} was changed since it was exported"):
        load(artifact)


@pytest.mark.parametrize(("old", "new"), [('"b"', '"q"'), ("0.36", "0.37"), ("stripes", "strikes")])
def test_a_changed_manifest_is_noticed(artifact, old, new):
    path = artifact / "manifest.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(OdnError, match=r"manifest\.json was changed since it was exported"):
        load(artifact)


def test_normalisation_that_cannot_be_is_refused(artifact):
    for preprocessing in (
        {"input_shape": [1, 8, 8], "mean": [0.1, 0.2], "std": [0.1, 0.2]},
        {"input_shape": [1, 8, 8], "mean": [0.1], "std": [0.0]},
    ):
        change_json(artifact / "manifest.json", preprocessing=preprocessing)
        with pytest.raises(OdnError, match="is not a valid manifest .*deviations"):
            load(artifact)


@pytest.mark.parametrize("name", ["spec.json", "weights.safetensors", "manifest.json"])
def test_a_missing_file_is_named(artifact, name):
    (artifact / name).unlink()
    with pytest.raises(OdnError, match=f"{name} is missing"):
        load(artifact)


def test_no_artifact_at_all(tmp_path):
    with pytest.raises(OdnError, match="there is no artifact at .*nowhere"):
        load(tmp_path / "nowhere")


def test_newer_schemas_are_refused(artifact):
    change_json(artifact / "manifest.json", schema=3)
    with pytest.raises(OdnError, match=r"manifest\.json has schema 3; this odn reads 2; install a newer odn"):
        load(artifact)


def test_a_manifest_from_before_there_were_tasks_is_read(artifact):
    path = artifact / "manifest.json"
    table = json.loads(path.read_text())
    for key in ("sha256", "task", "metric", "target_mean", "target_std"):
        del table[key]
    row = {"runtime": "onnx", "kept": False, "reason": "x", "valid_accuracy": 0.5, "valid_accuracy_drop": 0.25}
    table |= {"schema": 1, "exports": [row]}
    path.write_text(json.dumps({**table, "sha256": _digest(table)}))
    manifest = load(artifact).manifest
    assert (manifest.task, manifest.metric, manifest.scaling) == ("classification", "accuracy", None)
    assert (manifest.exports[0].valid_score, manifest.exports[0].valid_score_drop) == (0.5, 0.25)


def test_a_newer_spec_is_refused(artifact):
    spec = json.loads((artifact / "spec.json").read_text())
    rewrite(artifact, "spec.json", json.dumps({**spec, "schema": 7, "novelty": 1}).encode())
    with pytest.raises(OdnError, match=r"spec\.json has schema 7; this odn reads 2; install a newer odn"):
        load(artifact)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 10**9}, "1000000000 classes"),
        ({"input_shape": [10**9, 8, 8]}, "input shape 1000000000x8x8"),
        ({"depth": 10**9}, "depth 1000000000; allowed: 1 to 9"),
        ({"width": 64.0}, "does not fit spec.json at"),
        ({"classes": 1_000_000}, "does not fit spec.json at 'head.linear.bias'"),
        ({"depth": 3}, "does not fit spec.json at 'blocks.2"),
        ({"depth": 1}, "does not fit spec.json at 'blocks.1.*expected nothing"),
        ({"backbone": "resnet9"}, "unknown backbone 'resnet9'"),
        ({"input_shape": [1, 1, 1]}, "too small"),
    ],
)
def test_absurd_specs_are_refused_before_memory_is_taken(artifact, change, message):
    spec = json.loads((artifact / "spec.json").read_text())
    rewrite(artifact, "spec.json", json.dumps({**spec, **change}).encode())
    with pytest.raises(OdnError, match=message):
        load(artifact)


def test_weights_larger_than_the_spec_are_not_read(artifact):
    content = (artifact / "weights.safetensors").read_bytes()
    rewrite(artifact, "weights.safetensors", content + b"0" * 100_000)
    with pytest.raises(OdnError, match="bytes, the spec accounts for"):
        load(artifact)


def test_weights_of_another_type_are_refused(artifact):
    weights = load_file(artifact / "weights.safetensors")
    weights["head.linear.bias"] = weights["head.linear.bias"].half()
    save_file(weights, artifact / "weights.safetensors")
    rewrite(artifact, "weights.safetensors", (artifact / "weights.safetensors").read_bytes())
    with pytest.raises(OdnError, match=r"expected \(3,\) torch.float32, found \(3,\) torch.float16"):
        load(artifact)


def test_damaged_weights_are_explained(artifact):
    rewrite(artifact, "weights.safetensors", b"\xff" * 64)
    with pytest.raises(OdnError, match=r"weights\.safetensors is damaged"):
        load(artifact)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b'{"schema": "x"}', b'{"schema": 1}'])
def test_damaged_manifests_are_explained(artifact, content):
    (artifact / "manifest.json").write_bytes(content)
    with pytest.raises(OdnError, match=r"manifest\.json"):
        load(artifact)


def test_a_manifest_that_names_other_files_is_refused(artifact):
    change_json(artifact / "manifest.json", files={"../secret": "00"})
    with pytest.raises(OdnError, match="must list spec.json and weights.safetensors"):
        load(artifact)


def test_a_manifest_of_another_network_is_refused(artifact):
    change_json(artifact / "manifest.json", labels=["a", "b"])
    with pytest.raises(OdnError, match="manifest and spec disagree"):
        load(artifact)


def test_exporting_again_replaces_an_artifact_but_nothing_else(artifact, network, tmp_path):
    export(network, artifact, DATA.spec)
    load(artifact)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(OdnError, match="exists and is not an artifact; choose another place"):
        export(network, tmp_path / "other", DATA.spec)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "precious"


def test_a_failed_export_leaves_nothing_half_written(tmp_path, network, monkeypatch):
    import odn.manifest

    monkeypatch.setattr(odn.manifest, "to_table", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(network, tmp_path / "artifact", DATA.spec)
    assert list(tmp_path.iterdir()) == []


def test_a_network_built_by_hand_cannot_be_exported(tmp_path):
    with pytest.raises(OdnError, match="a network built by hand has no spec"):
        export(extract(by_hand(), 1), tmp_path / "artifact", DATA.spec)


def test_loading_needs_no_training_code(artifact):
    code = (
        "import sys, odn; odn.load(sys.argv[1])\n"
        "banned = {'odn.engine', 'odn.expansion', 'odn.extraction', 'accelerate', 'sklearn', 'pickle_module'}\n"
        "sys.exit(str(sorted(banned & set(sys.modules))) if banned & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(artifact)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["spec.json", "weights.safetensors", "manifest.json"])
def test_a_link_out_of_the_artifact_is_not_followed(artifact, tmp_path, name):
    (artifact / name).rename(tmp_path / name)
    (artifact / name).symlink_to(tmp_path / name)
    with pytest.raises(OdnError, match=f"{name} is a link out of its directory; put the file itself there"):
        load(artifact)
    (artifact / name).unlink()
    (tmp_path / name).rename(artifact / "inside")
    (artifact / name).symlink_to("inside")
    assert load(artifact).manifest.labels == ("a", "b", "c")

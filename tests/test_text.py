"""Texts: the tokenizer, its settings, and the whole line from a table to predictions."""

import hashlib
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import odn as library
from conftest import sentences
from odn.config import AugmentConfig, DataConfig, TrainConfig
from odn.data import load_data, plain_batches, training_batches
from odn.data.augment import drop_tokens
from odn.errors import OdnError, UsageError
from odn.optimizers import settled
from odn.texts import FEWEST, MASK, PADDING, fitting_length, fitting_vocabulary
from odn.tokenizer import Tokenizer, train_tokenizer

pytest.importorskip("tokenizers", reason="needs the extra text: pip install 'optimally-deep[text]'")
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer(train_tokenizer([text for text, _ in sentences(100, 0)], vocabulary=400, lowercase=True))


@given(st.text(st.characters(exclude_categories=["C", "Z", "M"]), max_size=60))
def test_no_text_is_unknown_and_no_id_is_out_of_range(tokenizer, text):
    ids = tokenizer.encode([text], 300)[0]
    assert ids.max() < tokenizer.vocabulary
    length = np.count_nonzero(ids)
    assert bool(length) == bool(text)
    assert not np.isin(ids[:length], (PADDING, MASK)).any()
    assert (ids[length:] == PADDING).all()


def test_texts_are_cut_and_filled_up(tokenizer):
    long, short = tokenizer.encode(["the apple " * 20, "the apple"], 6)
    assert long[:2].tolist() == short[:2].tolist()
    assert np.count_nonzero(long) == 6
    assert short[2:].tolist() == [0] * 4


def test_capitals_count_only_where_asked():
    sample = ["The Apple", "the apple"] * 3
    small, exact = (Tokenizer(train_tokenizer(sample, vocabulary=300, lowercase=low)) for low in (True, False))
    assert np.array_equal(*small.encode(["THE apple", "the APPLE"], 8))
    assert not np.array_equal(*exact.encode(["The apple", "the apple"], 8))


def test_accents_count(tokenizer):
    assert not np.array_equal(*tokenizer.encode(["schon", "schön"], 8))


def test_two_processes_train_the_same_tokenizer(texts):
    lines = [text for text, _ in sentences(300, 5)]
    code = "import sys; from odn.tokenizer import *\n"
    code += "sys.stdout.write(train_tokenizer(sys.stdin.read().split('\\n'), vocabulary=500, lowercase=True))"
    done = subprocess.run(
        [sys.executable, "-c", code], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    assert done.stdout == train_tokenizer(lines, vocabulary=500, lowercase=True)


def test_the_tokenizer_knows_only_the_training_split(texts, tmp_path):
    for name in ("train", "valid", "test"):
        rows = (texts / f"{name}.jsonl").read_text().replace("apple", "zebrafish" if name != "train" else "apple")
        (tmp_path / f"{name}.jsonl").write_text(rows)
    vocabulary = json.loads(load_data(str(tmp_path)).spec.tokenizer)["model"]["vocab"]
    assert "Ġapple" in vocabulary
    assert not any("zebra" in token for token in vocabulary)


@pytest.mark.parametrize(
    ("lengths", "positions", "tokens"), [([3] * 99 + [50], 512, 8), ([9], 512, 16), ([99], 64, 64)]
)
def test_texts_get_what_99_of_100_need(lengths, positions, tokens):
    assert fitting_length(lengths, positions) == tokens


@pytest.mark.parametrize(("words", "vocabulary"), [(1, 512), (24 * 2048, 2048), (24 * 4096 - 1, 2048), (10**6, 8192)])
def test_the_vocabulary_grows_with_the_training_texts(words, vocabulary):
    assert fitting_vocabulary(["word " * words]) == vocabulary


def test_splits_hold_ids_and_batches_are_int64(texts):
    data = load_data(str(texts))
    assert (len(data.train), len(data.valid), len(data.test)) == (320, 60, 60)
    assert data.spec.input_shape == (16,)
    assert data.spec.classes == ("fruit", "sea", "tool")
    ids, labels = next(plain_batches(data.valid, 60, CPU))
    assert ids.dtype == torch.int64
    expected = Tokenizer(data.spec.tokenizer).encode([text for text, _ in sentences(60, 1)], 16)
    assert np.array_equal(ids.numpy(), expected)
    assert [data.spec.classes[label] for label in labels] == [label for _, label in sentences(60, 1)]


def test_token_dropout_hides_that_share_and_never_the_padding(texts):
    data = load_data(str(texts), augment=AugmentConfig(token_dropout=0.3))
    hidden = seen = 0
    for ids, _ in training_batches(data.train, 64, CPU, seed=3):
        hidden += int((ids == MASK).sum())
        seen += int((ids != PADDING).sum())
    assert hidden / seen == pytest.approx(0.3, abs=0.05)
    assert seen == sum(int((data.train.images[i] != 0).sum()) for i in range(320))
    ids = torch.tensor([[5, 0]])
    assert drop_tokens(ids, data.spec.preprocessing, AugmentConfig(token_dropout=0.0), torch.Generator()) is ids
    assert torch.equal(*(next(training_batches(data.train, 64, CPU, seed=3))[0] for _ in range(2)))


def test_a_recipe_leaves_the_optimizer_to_the_kind_of_data():
    images, texts = (settled(TrainConfig(), texts=kind) for kind in (False, True))
    assert (images.optimizer, images.max_gradient_norm) == ("sgd", 0)
    assert (texts.optimizer, texts.max_gradient_norm) == ("adamw", 1)
    asked = TrainConfig(optimizer="sgd", max_gradient_norm=0.0)
    assert settled(asked, texts=True) == asked


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-tokens", "513"], "--max-tokens is 513, more than the encoder's positions; allowed: up to 512"),
        (["--image-size", "32"], "--image-size 32 is for image files, sentences holds texts; leave it out"),
        (
            ["--backbone", "resnet18"],
            "holds texts, backbone 'resnet18' reads images; choose another, e.g. --backbone bert",
        ),
        (["--to", "int8"], "--to int8 is for networks that read images; for texts allowed: onnx, pt2"),
        (["--compress", "width=0.5"], "encoders of texts cannot be narrowed yet; leave --compress out"),
    ],
)
def test_what_texts_cannot_have_is_refused_before_anything_is_written(texts, tmp_path, refused, flags, message):
    line = refused("run", texts, "--target", "0.9", "--run", tmp_path / "run", *flags, code=2)
    assert message in line
    assert not (tmp_path / "run").exists()


def test_what_images_cannot_have_is_refused(npz, refused):
    assert "--max-tokens 9 is for texts, stripes holds images" in refused(
        "run", npz, "--target", "0.9", "--max-tokens", 9, code=2
    )
    assert f"{npz} holds images, backbone 'bert_tiny' reads texts" in refused(
        "run", npz, "--target", "0.9", "--backbone", "bert_tiny", code=2
    )


def test_texts_too_large_for_the_memory_are_refused(texts, monkeypatch):
    from odn.data import tokens

    monkeypatch.setattr(tokens.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(OdnError, match=r"320 texts of 16 tokens take 20,480 bytes, but 1,000 bytes of memory are free"):
        load_data(str(texts))


# the whole line ----------------------------------------------------------------------------------------------------

FLAGS = ("--depths", "1,2", "--epochs-per-depth", "6", "--finetune-epochs", "1", "--target", "0.9", "--to", "onnx")


@pytest.fixture(scope="module")
def run(texts, tmp_path_factory):
    """A run on texts, done once; not to be changed."""
    pytest.importorskip("onnxruntime", reason="needs the extra onnx: pip install 'optimally-deep[onnx]'")
    from odn.cli import main

    path = tmp_path_factory.mktemp("run") / "texts"
    recipe = path.with_suffix(".toml")
    recipe.write_text("[report]\nlatency_seconds = 0.01\n")
    with pytest.raises(SystemExit) as exit_:
        main(["run", str(texts), *FLAGS, "--run", str(path), "--config", str(recipe)])
    assert exit_.value.code == 0
    return path


def test_a_run_on_texts_ends_in_a_report(run):
    figures = json.loads((run / "report.json").read_text())
    assert figures["backbone"] == "bert_tiny"
    assert figures["reached"]
    assert figures["dataset"]["input_shape"] == [16]
    rows = {row["name"]: row for row in figures["networks"]}
    assert list(rows) == ["full", "extracted", "onnx"]
    assert rows["extracted"]["test_accuracy"] == rows["onnx"]["test_accuracy"] > 0.9
    assert rows["onnx"]["latency_ms"]["batch_1"]["p50"] > 0
    assert "3 classes, texts of 16 tokens; 320 for training" in (run / "report.html").read_text()


def test_the_artifact_holds_the_tokenizer_and_checks_it(run, tmp_path):
    import shutil

    manifest = json.loads((run / "artifact" / "manifest.json").read_text())
    content = (run / "artifact" / "tokenizer.json").read_bytes()
    assert manifest["files"]["tokenizer.json"] == hashlib.sha256(content).hexdigest()
    assert manifest["preprocessing"].keys() == {"tokens", "vocabulary", "padding", "mask"}
    assert manifest["preprocessing"]["vocabulary"] >= FEWEST
    shutil.copytree(run / "artifact", tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").write_bytes(content.replace(b"apple", b"elppa"))
    with pytest.raises(OdnError, match=r"tokenizer.json was changed since it was exported"):
        library.load(tmp_path / "a")


def test_the_onnx_file_takes_int64_ids_and_agrees_with_pytorch(run):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(run / "artifact" / "model.onnx"), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert (entry.name, entry.type, entry.shape) == ("ids", "tensor(int64)", ["batch", 16])
    artifact = library.load(run / "artifact")
    ids = artifact.tokenizer.encode([text for text, _ in sentences(30, 8)], 16)
    with torch.no_grad():
        logits = artifact.deployed(torch.from_numpy(ids)).numpy()
    assert np.abs(session.run(None, {"ids": ids})[0] - logits).max() < 1e-4


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_predict_reads_texts_from_flags_files_and_stdin(run, odn, tmp_path, monkeypatch, runtime):
    (tmp_path / "a.txt").write_bytes(b"a big apple\n\nthe \xff tide\nmy hammer")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"under the reef\n")))
    flags = ("--text", "some plum", "--runtime", runtime)
    code, out, err = odn("predict", run / "artifact", tmp_path / "a.txt", "-", *flags)
    assert code == 1
    rows = [line.split("\t") for line in out.splitlines()]
    names = ["text 1", f"{tmp_path}/a.txt:1", f"{tmp_path}/a.txt:4", "stdin:1"]
    assert [row[:2] for row in rows] == [[n, k] for n, k in zip(names, ("fruit", "fruit", "tool", "sea"), strict=True)]
    assert f"odn: {tmp_path}/a.txt:2 is an empty text; fill it in or remove the line" in err
    assert f"odn: {tmp_path}/a.txt:3 is not UTF-8; save the file as UTF-8" in err


def test_texts_of_which_only_the_beginning_is_read_are_told(run, odn):
    tokens = json.loads((run / "artifact" / "manifest.json").read_text())["preprocessing"]["tokens"]
    code, out, err = odn("predict", run / "artifact", "--text", "a plum", "--text", "the plum " * tokens, "--json")
    assert code == 0
    assert [row.get("truncated") for row in map(json.loads, out.splitlines())] == [None, True]
    assert err.splitlines()[-1] == f"odn: 1 of the texts are longer than the {tokens} tokens that are read"
    told = json.loads((run / "report.json").read_text())["truncated"]
    known = json.loads((run / "data.json").read_text())
    assert told == {"train": known["train_truncated"], "valid": known["valid_truncated"]}


def test_predicting_with_onnx_does_not_import_torch(run):
    code = "import contextlib, sys\nfrom odn.cli import main\n"
    code += f"with contextlib.suppress(SystemExit): main(['predict', {str(run / 'artifact')!r}, '--text', 'a plum'])\n"
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("text 1\tfruit\t")


def test_images_and_texts_are_not_mixed_up(run, refused, deployed, tmp_path):
    assert 'reads texts; give --text "..." or files with one text a line' in refused(
        "predict", run / "artifact", code=2
    )
    assert "cannot read" in refused("predict", run / "artifact", tmp_path / "gone.txt", code=1)
    assert "reads images; give FILES in the place of --text" in refused("predict", deployed, "--text", "x", code=2)
    assert "--text is empty; give a text" in refused("predict", run / "artifact", "--text", " ", code=2)
    assert "reads texts, odn serve answers with images alone" in refused("serve", run / "artifact", code=2)
    artifact = library.load(run / "artifact")
    with pytest.raises(UsageError, match="this network reads texts; give a list of them"):
        artifact.predict(torch.zeros(1, 16))
    with pytest.raises(UsageError, match="this network reads texts; give a list of them"):
        artifact.predict("one text")
    assert [p.label for p in artifact.predict(["a saw", "an apple"])] == ["tool", "fruit"]


def test_a_run_on_texts_resumes_to_the_same_report(run, odn, tmp_path):
    before = (run / "artifact" / "weights.safetensors").read_bytes()
    code, _, err = odn("run", "--run", run, "--resume")
    assert code == 0, err
    assert (run / "artifact" / "weights.safetensors").read_bytes() == before


def test_the_benchmark_of_an_artifact_reads_texts(run):
    from odn.benchmark import benchmark

    rows = benchmark(run / "artifact", runtimes=["onnx"], threads=1, seconds=0.01)
    assert [row["network"] for row in rows] == ["artifact", "full bert_tiny"]


def test_the_library_does_the_line_without_the_command(texts):
    data = load_data(str(texts), config=DataConfig(max_tokens=12, train_limit=96))
    assert data.spec.input_shape == (12,)
    network = library.partition("bert_tiny", data.spec)
    assert network.spec.vocabulary == data.spec.vocabulary
    assert network.prefix(1)(next(plain_batches(data.train, 4, CPU))[0]).shape == (4, 3)

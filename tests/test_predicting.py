"""odn predict: files, folders and lists, in every usable runtime, with and without torch."""

import csv
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import stripes, tiny_data
from odn.artifact import load
from odn.images import BadImage, decode
from odn.predicting import find_files, predict_files

WITHOUT_TORCH = (
    "import sys\n"
    "class Refuse:\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    "        if name.split('.')[0] in ('torch', 'torchvision', 'sklearn', 'accelerate'):\n"
    "            raise ImportError(f'{name} must not be imported')\n"
    "sys.meta_path.insert(0, Refuse())\n"
    "from odn.cli import main\n"
    "main(sys.argv[1:])\n"
)


def run_without_torch(*arguments, **options):
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("runtime", [(), ("--runtime", "int8")])
def test_onnx_files_predict_without_torch(odn, deployed, pictures, runtime):
    done = run_without_torch("predict", deployed, pictures, "--json", *runtime)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    code, out, _ = odn("predict", deployed, pictures, "--json", "--runtime", "torch")
    reference = [json.loads(line) for line in out.splitlines()]
    assert (code, len(rows)) == (0, 70)
    assert [(row["path"], row["label"]) for row in rows] == [(row["path"], row["label"]) for row in reference]
    tolerance = 0.05 if runtime else 1e-4
    assert [row["probability"] for row in rows] == pytest.approx([r["probability"] for r in reference], abs=tolerance)


def test_predictions_are_right_and_in_order(deployed, pictures):
    paths = sorted(pictures.rglob("*.png"), key=lambda path: path.name)
    found = list(predict_files(deployed, paths))
    assert [path for path, _ in found] == paths
    labels = stripes(70, seed=4)[1]
    assert np.mean(["abc"[y] == p.label for (_, p), y in zip(found, labels, strict=True)]) > 0.95


def test_predicting_leaves_the_programs_threads_alone(deployed, pictures):
    before = torch.get_num_threads()
    list(predict_files(deployed, sorted(pictures.rglob("*.png")), runtime="torch", threads=before + 1))
    assert torch.get_num_threads() == before


def test_both_ways_of_predicting_see_identical_pixels(deployed, tmp_path):
    """The decoder is one: what torch is given is what onnxruntime is given."""
    big = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    Image.fromarray(big).save(tmp_path / "a.png")
    pixels = decode(tmp_path / "a.png", (1, 8, 8))
    assert (pixels.dtype, pixels.shape) == (np.uint8, (1, 8, 8))
    [(_, onnx)] = predict_files(deployed, [tmp_path / "a.png"], runtime="onnx")
    [torch_] = load(deployed).predict(torch.from_numpy(pixels)[None])
    assert onnx.label == torch_.label
    assert onnx.probability == pytest.approx(torch_.probability, abs=1e-5)


def test_a_list_on_stdin_a_folder_and_a_file_may_be_mixed(deployed, pictures, tmp_path):
    listed = [pictures / "0" / "00.png", pictures / "1"]
    done = run_without_torch(
        "predict", deployed, pictures / "0" / "02.png", "-", "--csv", input="\n".join(map(str, listed)) + "\n\n"
    )
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["path"] for row in rows][:2] == [str(pictures / "0" / "02.png"), str(pictures / "0" / "00.png")]
    assert len(rows) == 2 + 35
    assert set(rows[0]) == {"path", "label", "probability"}


def test_files_are_found_as_they_are_named(pictures, tmp_path):
    assert len(list(find_files([str(pictures)], []))) == 70
    assert list(find_files(["x.png", "-"], ["y.png\n", "\n", "z.png\r\n"])) == [
        *map(type(pictures), ("x.png", "y.png", "z.png"))
    ]


def test_one_bad_file_does_not_stop_the_others(odn, deployed, pictures, tmp_path):
    (tmp_path / "text.png").write_text("text")
    whole = (pictures / "0" / "00.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) - 30])
    good = pictures / "1" / "01.png"
    code, out, err = odn("predict", deployed, tmp_path / "text.png", good, tmp_path / "cut.png", tmp_path / "gone.png")
    assert code == 1
    assert [line.split("\t")[0] for line in out.splitlines()] == [str(good)]
    lines = err.splitlines()
    assert len(lines) == 3
    assert "text.png is not a readable image (no known image format)" in lines[0]
    assert "cut.png is not a readable image" in lines[1]
    assert "gone.png is not a readable image" in lines[2]


def test_an_oversized_image_is_a_bad_file(deployed, tmp_path, monkeypatch):
    Image.new("L", (40, 40)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    [(_, found)] = predict_files(deployed, [tmp_path / "bomb.png"])
    assert isinstance(found, BadImage)
    assert found.fault == "too large"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--runtime", "onx"), "unknown runtime 'onx'; allowed: onnx, int8, torch, routed. Did you mean 'onnx'"),
        (("--runtime", "pt2"), "unknown runtime 'pt2'; allowed: onnx, int8, torch"),
        (
            ("--jsn",),
            "unknown option '--jsn'; allowed: --text --runtime --threads --masks --json --csv",
        ),
        (("--threads", "0"), "--threads is 0; allowed: 1 to 1024"),
        (("--json", "--csv"), "--json and --csv exclude each other"),
    ],
)
def test_wrong_requests_get_one_line(refused, deployed, pictures, arguments, message):
    assert message in refused("predict", deployed, pictures, *arguments, code=2)


def test_a_runtime_without_a_file_names_those_that_have_one(refused, network, tmp_path, pictures):
    from odn.exporting import export

    export(network, tmp_path / "a", tiny_data().spec)
    err = refused("predict", tmp_path / "a", pictures, "--runtime", "int8", code=2)
    assert "has no file for 'int8'; it has torch; add one with: odn export RUN --to int8" in err


def test_an_empty_folder_is_told(refused, deployed, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty holds no file" in refused("predict", deployed, tmp_path / "empty", code=1)


def test_a_missing_onnxruntime_is_named(refused, deployed, pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    err = refused("predict", deployed, pictures, code=1)
    assert "needs onnxruntime; install it with: pip install 'optimally-deep[onnx]'" in err

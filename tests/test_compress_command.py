"""Narrowing as a user meets it: in the whole line, as a step, in a recipe, and every kind of wrong request."""

import json
import re
import shutil
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import odn as library
from conftest import stripes
from odn.cli import main
from odn.flags import Flags
from odn.storage import load_network
from test_cli import FAST, without_times
from test_durable import Killed, die_after

BRIEF = "[report]\nlatency_seconds = 0.01\n[compress]\nepochs = 4\n"
TO_HALF = ("--compress", "width=0.5")


@pytest.fixture(scope="module")
def common(tmp_path_factory):
    """The arguments of a brief run on stripes, which reaches its target at depth 1."""
    folder = tmp_path_factory.mktemp("stripes")
    x, y = stripes(240)
    np.savez(folder / "stripes.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (folder / "brief.toml").write_text(BRIEF)
    return ("run", folder / "stripes.npz", "--config", folder / "brief.toml", *FAST, "--target", 0.9)


@pytest.fixture(scope="module")
def finished(common, tmp_path_factory):
    """A run that was not narrowed."""
    run = tmp_path_factory.mktemp("finished") / "run"
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in (*common, "--run", run)])
    assert exit_.value.code == 0
    return run


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of that run."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def test_the_line_with_compress_reports_and_deploys_the_narrow_network(odn, common, tmp_path):
    run = tmp_path / "run"
    code, out, err = odn(*common, *TO_HALF, "--run", run)
    assert code in (0, 3), err
    report = json.loads((run / "report.json").read_text())
    names = [network["name"] for network in report["networks"]]
    assert names == ["full", "extracted", "pruned", "cifar_resnet20"]
    full, extracted, pruned, _ = report["networks"]
    assert pruned["parameters"] < 0.5 * extracted["parameters"] < full["parameters"]
    assert all(value is not None for value in {**extracted, **pruned}.values())
    assert pruned["file_bytes"] == (run / "artifact" / "weights.safetensors").stat().st_size
    small = load_network(run / "compressed")
    assert small.spec.channels["stem.conv"] == 4
    assert library.load(run / "artifact").network.spec == small.spec
    assert report["compression"] == {
        "bound": "width",
        "tried": [
            {
                "width": 0.5,
                "parameters": pruned["parameters"],
                "macs": pruned["macs"],
                "valid_score": pruned["valid_score"],
                "held": report["reached"],
            }
        ],
        "width": 0.5,
    }
    assert (report["cost"]["compress_epochs"], "4 of compressing" in (run / "report.html").read_text()) == (4, True)
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    macs = {"expand": None, "compress": pruned["macs"]}
    narrow = [record for record in history if record["phase"] == "compress"]
    assert {record["narrowed"]["macs"] for record in narrow} == {macs["compress"]}
    assert {record["narrowed"]["teacher_macs"] for record in narrow} == {extracted["macs"]}
    assert re.search(r"compress  depth \d  width 0\.5  epoch 4/4  valid [01]\.\d+", err)
    assert "width 0.5 was kept" in " ".join(out.split())
    assert "width 0.5 was kept" in (run / "report.html").read_text()
    assert tomllib.loads((run / "config.toml").read_text())["compress"]["width"] == 0.5
    # Nothing is done twice.
    code, _, err = odn("run", "--resume", "--run", run)
    assert (code, "compress" in err) == (0 if report["reached"] else 3, False)


def test_the_step_gives_what_the_line_gives_and_starts_again_after_another_finetuning(
    odn, refused, common, copied, tmp_path
):
    whole = tmp_path / "whole"
    assert odn(*common, *TO_HALF, "--run", whole)[0] in (0, 3)
    assert json.loads((copied / "report.json").read_text())["compression"] is None
    assert "say how narrow, e.g. --width 0.5" in refused("compress", copied, code=2)
    code, out, err = odn("compress", copied, "--width", 0.5)
    assert (code, f"next: odn export {copied}" in out.replace("\n", " ")) == (0, True), err
    assert not (copied / "artifact").exists()
    assert odn("export", copied)[0] == 0
    assert odn("report", copied)[0] in (0, 3)
    files = [(run / "artifact" / "weights.safetensors").read_bytes() for run in (whole, copied)]
    assert files[0] == files[1]
    reports = [json.loads((run / "report.json").read_text()) for run in (whole, copied)]
    assert without_times(reports[0]) == without_times(reports[1])
    assert odn("finetune", copied)[0] == 0
    assert not (copied / "compressed").exists()
    assert '"compress"' not in (copied / "history.jsonl").read_text()


def test_auto_that_misses_at_once_keeps_the_network_and_says_so(odn, common, hopeless, tmp_path):
    run = tmp_path / "run"
    code, out, _ = odn("run", hopeless, *common[2:], "--compress", "auto", "--depths", 1, "--run", run)
    assert code == 3
    report = json.loads((run / "report.json").read_text())
    assert [network["name"] for network in report["networks"]] == ["full", "extracted", "cifar_resnet20"]
    assert (report["compression"]["width"], report["compression"]["tried"][0]["held"]) == (None, False)
    assert len(report["compression"]["tried"]) == 1
    assert "so the network was not narrowed" in " ".join(out.split())
    weights = [run / name / "weights.safetensors" for name in ("finetuned", "artifact")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_an_interrupted_step_goes_on(odn, copied, tmp_path, monkeypatch):
    runs = copied, Path(shutil.copytree(copied, tmp_path / "killed"))
    assert odn("compress", runs[0], "--width", 0.5)[0] == 0
    with monkeypatch.context() as patch:
        die_after(patch, 2)  # at the first evaluation, after three epochs
        with pytest.raises(Killed):
            odn("compress", runs[1], "--width", 0.5)
    code, _, err = odn("compress", runs[1], "--resume")
    assert (code, "epoch 3/4" in err, "epoch 4/4" in err) == (0, False, True), err
    weights = [(run / "compressed" / "weights.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("width=0.5", {"width": 0.5}),
        ("max_parameters=20000", {"max_parameters": 20000}),
        (" max_macs=1000000 ", {"max_macs": 1000000}),
        ("auto", {"auto": True}),
    ],
)
def test_the_flag_replaces_the_bound_of_a_recipe(text, expected, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("[compress]\nmax_parameters = 7\nepochs = 9\n")
    compress = Flags(compress=text, config=path).settle("digits")[0].compress
    none = {"width": 0.0, "max_parameters": 0, "max_macs": 0, "auto": False}
    assert {name: getattr(compress, name) for name in none} == {**none, **expected}
    assert compress.epochs == 9
    assert Flags(config=path).settle("digits")[0].compress.max_parameters == 7


@pytest.mark.parametrize(
    ("flags", "width", "to"),
    [
        ({"compress": "width=0.5,int8"}, 0.5, ("int8",)),
        ({"compress": "int8, width=0.5", "to": "onnx"}, 0.5, ("onnx", "int8")),
        ({"compress": "int8"}, 0.0, ("int8",)),
        ({"compress": "width=0.5"}, 0.5, ()),
    ],
)
def test_the_flag_asks_for_int8_too(flags, width, to):
    config = Flags(**flags).settle("digits")[0]
    assert (config.compress.width, config.export.to) == (width, to)


ALLOWED = "allowed: one of width=SHARE, max_parameters=N, max_macs=N and auto, and int8"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width=0.5,int4", f"--compress is 'width=0.5,int4', of which 'int4' is not known; {ALLOWED}"),
        ("int8,int8", f"of which 'int8' is not known; {ALLOWED}"),
        ("", f"of which '' is not known; {ALLOWED}"),
        ("width", f"of which 'width' is not known; {ALLOWED}"),
        ("width=half", "of which 'width=half' is not known"),
        ("width=0", "of which 'width=0' is not known"),
        ("width=-1", "of which 'width=-1' is not known"),
        ("auto=1", "of which 'auto=1' is not known"),
        ("max_parameters=1e4", "of which 'max_parameters=1e4' is not known"),
        ("width=0.5,auto", "of which 'auto' is one bound too many"),
        ("width=50", "compress.width is 50.0; allowed: a share above 0 and at most 1; for 50 % write 0.5"),
        ("width=0.01", "width 0.01 leaves no channel .*allowed: 0.0625 to 1"),
        ("max_parameters=100", r"max_parameters is 100, but this network has \d+ at the least .* or more"),
        ("max_macs=100", r"max_macs is 100, but this network has [\d,]+ at the least"),
    ],
)
def test_wrong_requests_get_one_line_and_leave_no_run(refused, tmp_path, text, message):
    run = tmp_path / "run"
    err = refused("run", "digits", "--compress", text, "--run", run, code=2)
    assert re.search(message, err), err
    assert not run.exists()


def test_a_recipe_with_two_bounds_and_a_step_without_a_run_are_refused(refused, tmp_path):
    (tmp_path / "recipe.toml").write_text("[compress]\nwidth = 0.5\nauto = true\n")
    err = refused("run", "--config", tmp_path / "recipe.toml", "--run", tmp_path / "run", code=2)
    assert "compress was given width and auto; allowed: one of them" in err
    assert "nowhere is not a run directory" in refused("compress", "nowhere", "--auto", code=1)


def test_without_the_library_a_run_does_not_even_begin(refused, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    err = refused("run", "digits", "--compress", "auto", "--run", tmp_path / "run", code=1)
    assert "pip install 'optimally-deep[prune]'" in err
    assert not (tmp_path / "run").exists()

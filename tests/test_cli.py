"""The command as a user meets it: the whole line on real digits, its steps, and every kind of bad input."""

import dataclasses
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tomllib
from functools import partial

import numpy as np
import pytest
from PIL import Image

from conftest import stripes
from odn.records import EpochRecord, read_history, write_history
from test_data import image_folder

FAST = ("--backbone", "cifar_resnet20", "--width", "0.5", "--precision", "fp32", "--finetune-epochs", "3")


def without_times(report: dict) -> dict:
    report = json.loads(json.dumps(report))
    for network in report["networks"]:
        network.pop("latency_ms")
    report["cost"].pop("seconds")
    return report


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Measures latencies briefly; the rest is the default."""
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text("[report]\nlatency_seconds = 0.01\n")
    return path


def test_the_whole_line_on_digits(odn, tmp_path, recipe):
    run = tmp_path / "run"
    code, out, err = odn("run", "digits", "--config", recipe, "--run", run)
    assert code == 0, err
    assert "resnet18_small on digits, target 0.9800 reached" in out
    assert str(run / "report.html") in out.replace("\n", "")
    assert re.search(r"settle  depth 1  epoch \d+/53", err)
    report = json.loads((run / "report.json").read_text())
    assert report["reached"] is True
    assert report["networks"][1]["test_accuracy"] >= 0.975
    assert report["dataset"]["test"] == 359
    assert report["networks"][1]["valid_accuracy"] >= report["target_accuracy"] == 0.98
    for name in ("config.toml", "history.jsonl", "extracted/spec.json", "extracted/weights.safetensors", "report.html"):
        assert (run / name).is_file()
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    grown = [record for record in history if record["phase"] != "finetune"]
    assert report["cost"]["epochs_by_depth"]["1"] == sum(r["epochs"] for r in grown if r["depth"] == 1)
    assert report["cost"]["finetune_epochs"] == sum(r["epochs"] for r in history if r["phase"] == "finetune") == 10
    assert grown[-1]["phase"] == "settle"
    macs = {1: 4756096}
    if report["depth"] == 1:
        expected = sum(macs[1] * (3 * r["train_samples"] + r["evaluated_samples"]) for r in history)
        assert report["cost"]["train_macs"] == expected
    # The artifact predicts files.
    from sklearn.datasets import load_digits

    digit = load_digits()
    image = tmp_path / "digit.png"
    Image.fromarray((digit.images[0] * 255 / 16).round().astype(np.uint8)).save(image)
    code, out, _ = odn("predict", run / "artifact", image)
    path, label, probability = out.strip().split("\t")
    assert (code, path, label) == (0, str(image), str(digit.target[0]))
    assert 0.5 < float(probability) <= 1
    code, out, _ = odn("predict", run / "artifact", image, image, "--json")
    assert [json.loads(line)["label"] for line in out.splitlines()] == [label, label]


def test_what_growing_saw_confirms_no_target(odn, npz, tmp_path, recipe):
    run = tmp_path / "run"
    assert odn("run", npz, "--target", 0.9, "--config", recipe, *FAST, "--run", run)[0] == 0
    history = run / "history.jsonl"
    seen = read_history(history)
    depth = seen[-1].depth

    def told(phase: str, *epochs: int) -> list[EpochRecord]:
        base = dataclasses.replace(next(record for record in seen if record.depth == depth), phase=phase)
        scores = [{"valid_score": epoch / 100, "scores": (epoch / 100,), "errors": (0.01,)} for epoch in epochs]
        return [dataclasses.replace(base, epoch=i, **score) for i, score in enumerate(scores, start=1)]

    cases = (
        ((95, 95), (85, 95), 3),
        ((85, 85), (95, 95), 0),
        ((85, 95), (95, 85), 3),
        ((95, 96), (85, 85), 0),  # the grown network is kept
    )
    for grown, settled, code in cases:
        write_history(history, [*told("expand", *grown), *told("settle", *settled)])
        assert odn("report", run)[0] == code


def test_a_confidence_without_a_target_is_refused(refused, npz, tmp_path):
    words = "--confidence (expand.confidence of a recipe) is 0.95 with an automatic target, which is seen on the very"
    for flags in ((), ("--target", "auto"), ("--mode", "one-shot")):
        assert words in refused("run", npz, *flags, "--confidence", 0.95, "--run", tmp_path / "run", code=2)
    assert not (tmp_path / "run").exists()


def test_a_confidence_that_the_validation_samples_cannot_give_is_refused(refused, npz, tmp_path):
    flags = ("--backbone", "cifar_resnet20", "--target", 0.99, "--confidence", 0.95, "--run", tmp_path / "run")
    words = (
        "--confidence 0.95 asks for a lower bound of 0.99, and 48 validation samples give 0.9259 at most, without any"
    )
    for mode in ("expand", "one-shot"):
        assert words in refused("run", npz, *flags, "--mode", mode, code=2)
    assert not (tmp_path / "run").exists()


def test_the_same_seed_gives_the_same_figures_and_json_goes_to_stdout(odn, npz, tmp_path, recipe):
    arguments = ("run", npz, "--target", 0.9, "--config", recipe, *FAST, "--json")
    reports = []
    for name in ("one", "two"):
        code, out, _ = odn(*arguments, "--run", tmp_path / name)
        assert code == 0
        reports.append(json.loads(out))
    assert reports[0] == json.loads((tmp_path / "one" / "report.json").read_text())
    assert without_times(reports[0]) == without_times(reports[1])
    assert reports[0]["dataset"]["test"] == 60


def test_a_missed_target_is_told_with_exit_code_3(odn, npz, tmp_path, recipe):
    x, y = stripes(240)
    np.savez(tmp_path / "noise.npz", x=x, y=np.random.default_rng(0).permutation(y))
    arguments = ("run", tmp_path / "noise.npz", "--target", 0.99, "--config", recipe, *FAST)
    code, out, _ = odn(*arguments, "--depths", "1,2", "--epochs-per-depth", 2, "--run", tmp_path / "run")
    assert code == 3
    assert "not reached" in out
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["reached"] is False
    assert set(report["cost"]["epochs_by_depth"]) == {"1", "2"}
    assert (tmp_path / "run" / "artifact" / "manifest.json").is_file()


def test_the_steps_give_what_the_whole_line_gives(odn, npz, tmp_path, recipe):
    common = ("--target", 0.9, "--config", recipe, *FAST)
    assert odn("run", npz, *common, "--run", tmp_path / "whole")[0] == 0
    steps = tmp_path / "steps"
    code, out, _ = odn("expand", npz, *common, "--run", steps)
    assert (code, "next: odn extract" in out) == (0, True)
    for step in ("extract", "finetune", "export"):
        code, out, err = odn(step, steps)
        assert (code, err.count("Traceback")) == (0, 0), err
    assert odn("report", steps)[0] == 0
    whole, stepwise = (json.loads((tmp_path / n / "report.json").read_text()) for n in ("whole", "steps"))
    assert without_times(whole) == without_times(stepwise)
    weights = [(tmp_path / n / "artifact" / "weights.safetensors").read_bytes() for n in ("whole", "steps")]
    assert weights[0] == weights[1]


def test_extracting_another_depth_makes_the_rest_out_of_date(odn, hopeless, tmp_path, recipe, refused):
    run = tmp_path / "run"
    config = ("--config", recipe, *FAST, "--run", run, "--target", 0.9, "--depths", "1,2")
    assert odn("run", hopeless, *config, "--epochs-per-depth", 2)[0] == 3
    assert odn("extract", run, "--depth", 2)[0] == 0
    assert not (run / "artifact").exists()
    assert not (run / "report.json").exists()
    assert json.loads((run / "extracted" / "spec.json").read_text())["depth"] == 2
    assert "depth 7 was not trained; allowed: 1, 2" in refused("extract", run, "--depth", 7, code=2)
    # What fine-tuned the other depth is gone with it: the report counts none, and resuming starts it anew.
    assert odn("export", run)[0] == 0
    assert odn("report", run)[0] == 3
    assert json.loads((run / "report.json").read_text())["cost"]["finetune_epochs"] == 0
    shutil.rmtree(run / "artifact")
    assert odn("run", hopeless, *config, "--epochs-per-depth", 2, "--resume")[0] == 3
    report = json.loads((run / "report.json").read_text())
    assert (report["depth"], report["cost"]["finetune_epochs"]) == (2, 3)


def test_finetuning_longer_becomes_a_setting_of_the_run(odn, refused, npz, tmp_path, recipe):
    run = tmp_path / "run"
    assert odn("expand", npz, "--target", 0.5, "--config", recipe, *FAST, "--run", run)[0] == 0
    assert f"has no extracted network; run: odn extract {run}" in refused("finetune", run, code=1)
    assert odn("extract", run)[0] == 0
    code, _, err = odn("finetune", run, "--epochs", 2)
    assert (code, "epoch 2/2" in err) == (0, True)
    assert tomllib.loads((run / "config.toml").read_text())["finetune"]["epochs"] == 2


def test_flags_go_before_the_recipe_and_the_recipe_before_the_defaults(odn, tmp_path, npz):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'backbone = "cifar_resnet20"\nwidth = 0.25\nseed = 4\n[expand]\ntarget_accuracy = 0.5\nepochs_per_depth = 3\n'
        "[finetune]\nepochs = 0\n[report]\nlatency_seconds = 0.0\n"
    )
    code, _, err = odn("run", npz, "--config", recipe, "--seed", 5, "--run", tmp_path / "run")
    assert code in (0, 3), err
    config = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (config["seed"], config["backbone"], config["expand"]["epochs_per_depth"]) == (5, "cifar_resnet20", 3)
    assert config["train"]["optimizer"] == "auto"
    # The written recipe runs again.
    code, _, err = odn("run", "--config", tmp_path / "run" / "config.toml", "--run", tmp_path / "again")
    assert code in (0, 3), err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset = 3", "'dataset' is 3 in .*; allowed: a name or a path"),
        ("data = 3", "'data' is 3; allowed: a table of settings"),
        ("expand = 3", "'expand' is 3; allowed: a table of settings"),
        ("data_dir = 3", "'data_dir' is 3; allowed: a value of type str"),
        ("[expand]\npatienc = 3", r"unknown key 'expand\.patienc'; .*Did you mean 'patience'"),
        ("[", "cannot read the recipe .*recipe.toml"),
    ],
)
def test_wrong_recipes_get_one_line(refused, tmp_path, text, message):
    (tmp_path / "recipe.toml").write_text(text)
    err = refused("run", "--config", tmp_path / "recipe.toml", "--run", tmp_path / "run", code=2)
    assert re.search(message, err), err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["\\u0000", "x" * 5000])
def test_a_name_that_no_path_can_have_gives_no_run_directory(refused, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text(f'dataset = "{name}"')
    assert "unknown dataset" in refused("run", "--config", "recipe.toml", code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]


# what can be looked up ---------------------------------------------------------------------------------------------


def test_profile_prints_the_contract(odn):
    code, out, _ = odn("profile", "resnet18", "--input-shape", "1x28x28", "--classes", 10, "--json")
    rows = json.loads(out)
    assert code == 0
    assert list(rows[0]) == ["depth", "parameters", "parameter_bytes", "reduction", "macs", "peak_activation_bytes"]
    assert (rows[1]["depth"], rows[1]["parameters"], rows[1]["reduction"]) == (2, 151882, 0.98641)
    code, out, _ = odn("profile", "resnet34", "--input-shape", "3x32x32", "--json")
    assert (json.loads(out)[4]["parameters"], json.loads(out)[4]["reduction"]) == (758346, 0.96438)
    out = odn("profile", "resnet18", "--input-shape", "1x28x28")[1]
    assert "151,882" in out
    assert "…" not in out


def test_backbones_are_listed_and_filtered(odn):
    code, out, _ = odn("backbones", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert set(next(iter(rows.values()))) == {"name", "library", "task", "blocks", "parameters"}
    assert rows["cifar_resnet20"]["parameters"] == 272474
    assert rows["resnet34"]["blocks"] == 16
    assert "cifar_resnet110" in odn("backbones")[1]

    def names(*arguments):
        return [row["name"] for row in json.loads(odn("backbones", *arguments, "--json")[1])]

    assert names("CIFAR", "--library", "odn") == [f"cifar_resnet{depth}" for depth in (20, 32, 56, 110)]
    assert names("swin", "--library", "torchvision") == ["swin_t", "swin_s", "swin_v2_t", "swin_v2_s"]
    texts = {name for name, row in rows.items() if row["library"] == "transformers"}
    assert set(names("--task", "text-classification")) == texts
    assert {"convnext_tiny", "timm/convnext_atto"} <= set(names("convnext"))


def test_all_of_timms_networks_are_listed_when_asked_for(odn):
    timm = pytest.importorskip("timm")
    rows = {row["name"]: row for row in json.loads(odn("backbones", "--library", "timm", "--json")[1])}
    assert set(rows) == {f"timm/{name}" for name in timm.list_models()}
    assert rows["timm/convnext_atto"]["blocks"] == 12
    assert rows["timm/convnext_xlarge"]["parameters"] is None
    assert "timm/edgenext_small" in odn("backbones", "timm/edgenext")[1]


def test_profile_takes_texts(odn):
    pytest.importorskip("transformers")
    long = json.loads(odn("profile", "distilbert_tiny", "--json")[1])
    short = json.loads(odn("profile", "distilbert_tiny", "--input-shape", "16", "--json")[1])
    assert [row["depth"] for row in long] == [1, 2, 3, 4]
    assert long[-1]["macs"] > 8 * short[-1]["macs"]


def test_help_names_every_command(odn):
    code, out, _ = odn("--help")
    assert code == 0
    commands = (
        "run", "expand", "extract", "finetune", "export", "report", "profile", "backbones", "predict", "serve",
        "benchmark",
    )  # fmt: skip
    assert all(command in out for command in commands)
    assert odn("--version")[1].strip() == "0.1.0"


# bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "digits", "--target", "99.3"], 2, "target accuracy is 99.3; allowed: a fraction .* write 0.993"),
        (["run", "digits", "--backbone", "resnet19"], 2, "unknown backbone 'resnet19'; .*Did you mean 'resnet18'"),
        (["run", "x" * 5000, "--target", "0.9"], 2, "unknown dataset 'xxx"),
        (["run", "mnits", "--target", "0.9"], 2, "unknown dataset 'mnits'; .*Did you mean 'mnist'"),
        (["run", "digits", "--targt", "0.9"], 2, "--targt"),
        (["run", "digits", "--seed", "one"], 2, "--seed"),
        (["rnu", "digits"], 2, "rnu"),
        (["run", "digits", "--depths", "²"], 2, "--depths is '²'; allowed: whole numbers"),
        (["run", "digits", "--depths", "1,two"], 2, "--depths is '1,two'; allowed: whole numbers"),
        (["run", "digits", "--depths", "1,99"], 2, "depth 99 is in the plan; allowed: 1 to 8"),
        (["run", "digits", "--train-limit", "3"], 2, "--train-limit is 3 but digits has 10 classes"),
        (["run", "digits", "--image-size", "32"], 2, "--image-size 32 is for folders of image files"),
        (["run", "digits", "--width", "2"], 2, "backbone 'resnet18_small' has no width 2"),
        (["run", "digits", "--config", "nowhere.toml"], 2, "cannot read the recipe nowhere.toml"),
        (["run", "digits", "--force", "--resume"], 1, "not a run directory"),
        (["run", "mnist", "--data-dir", "nowhere", "--backbone", "resnet19"], 2, "unknown backbone"),
        (["run", "mnist", "--data-dir", "nowhere"], 1, "dataset 'mnist' is missing: .*nowhere"),
        (["profile", "resnet18", "--input-shape", "28x28"], 2, "--input-shape is '28x28'; allowed: channels x"),
        (["profile", "resnet18", "--input-shape", "2x28x28"], 2, "input shape 2x28x28; allowed: 1 or 3 channels"),
        (["profile", "resnet18", "--input-shape", "1x4x4"], 2, "smallest it can take is 5x5"),
        (["profile", "vit_b_16", "--input-shape", "3x28x28"], 2, "'vit_b_16': its sides have to be multiples of 16"),
        (["backbones", "resnext", "--library", "odn"], 2, "no backbone matches 'resnext --library odn'; odn backbones"),
        (["predict", "nowhere", "x.png"], 1, "there is no artifact at nowhere"),
        (["serve", "nowhere"], 1, "there is no artifact at nowhere"),
        (["benchmark", "nowhere"], 1, "there is no artifact at nowhere"),
        (["benchmark", "nowhere", "--seconds", "0"], 2, "--seconds is 0.0; allowed: above 0 and below 3600"),
        (["run", "digits", "--to", "onx"], 2, "unknown runtime 'onx'; .*Did you mean 'onnx'"),
        (["export", "nowhere", "--to", "onnx"], 1, "nowhere is not a run directory"),
        (["extract", "nowhere"], 1, "nowhere is not a run directory"),
        (["report", "nowhere"], 1, "nowhere is not a run directory"),
    ],
)
def test_wrong_requests_get_one_line(refused, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_args, **_options: (_ for _ in ()).throw(OSError("no network")))
    err = refused(*arguments, code=code)
    assert re.search(message, err), err
    assert list(tmp_path.iterdir()) == []


def test_wrong_data_gets_one_line_and_leaves_no_run(refused, tmp_path):
    own = image_folder(tmp_path / "own")
    (own / "class_0" / "notes.txt").write_text("no image")
    run = tmp_path / "run"
    assert "notes.txt is not a readable image" in refused("run", own, "--target", 0.9, "--run", run, code=1)
    np.savez(tmp_path / "bad.npz", x_train=np.zeros((9, 8, 8), np.int16), y_train=np.arange(9) % 3)
    assert "x_train is int16" in refused("run", tmp_path / "bad.npz", "--target", 0.9, "--run", run, code=1)
    np.savez(tmp_path / "tiny.npz", x=stripes(60, side=4)[0], y=stripes(60)[1])
    err = refused("run", tmp_path / "tiny.npz", "--target", 0.9, "--run", run, "--backbone", "resnet18", code=2)
    assert "images of 4x4 are too small for 'resnet18': the smallest it can take is 5x5" in err
    assert not run.exists()


def test_a_run_directory_is_never_overwritten_unasked(odn, refused, npz, tmp_path, recipe):
    run = tmp_path / "run"
    common = ("run", npz, "--target", 0.5, "--config", recipe, *FAST, "--run", run)
    assert odn(*common)[0] == 0
    before = (run / "report.json").read_text()
    assert "holds a run; continue it with --resume, replace it with --force" in refused(*common, code=2)
    assert "give one of them" in refused(*common, "--force", "--resume", code=2)
    assert "was started with seed = 0, not 3; leave that out to resume" in refused(
        *common, "--resume", "--seed", 3, code=2
    )
    assert (run / "report.json").read_text() == before
    assert odn(*common, "--resume")[0] == 0
    assert without_times(json.loads(before)) == without_times(json.loads((run / "report.json").read_text()))
    assert odn(*common, "--force")[0] == 0
    assert without_times(json.loads(before)) == without_times(json.loads((run / "report.json").read_text()))


def test_changed_data_is_noticed(odn, refused, npz, tmp_path, recipe):
    run = tmp_path / "run"
    common = ("run", npz, "--target", 0.5, "--config", recipe, *FAST, "--run", run)
    assert odn(*common)[0] == 0
    x, y = stripes(300, seed=77)
    np.savez(npz, x_train=x, y_train=y, x_test=x, y_test=y)
    assert "is not the data that" in refused(*common, "--resume", code=1)
    assert "is not the data that" in refused("report", run, code=1)


def test_force_never_removes_what_is_no_run(refused, npz, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    (precious / "config.toml").write_text("title = 'a web site'")
    err = refused("run", npz, "--target", 0.5, "--run", precious, "--force", code=2)
    assert "exists and is not a run directory" in err
    assert (precious / "thesis.txt").read_text() == "years of work"
    err = refused("run", npz, "--target", 0.5, "--run", precious / "thesis.txt", code=2)
    assert "is a file; choose a directory with --run" in err


def test_a_place_that_cannot_be_written_is_named(refused, npz, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.access(locked, os.W_OK):  # root may write anywhere but into the kernel's own folders
        locked = "/proc"
    err = refused("run", npz, "--target", 0.5, "--run", f"{locked}/run", code=1)
    assert re.search(f"cannot write .*{locked}/.*; choose another folder with --run", err), err


def test_a_full_disk_is_explained_and_what_was_saved_stands(odn, refused, npz, tmp_path, monkeypatch, recipe):
    import errno

    import odn.files as files

    run = tmp_path / "run"
    common = ("run", npz, "--target", 0.9, "--config", recipe, *FAST, "--run", run)
    original, calls = os.fsync, []

    def fill_up(descriptor):
        calls.append(descriptor)
        if len(calls) == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    monkeypatch.setattr(files.os, "fsync", fill_up)
    code, _, err = odn(*common)
    assert code == 1
    last = err.splitlines()[-1]
    assert "the disk is full at" in last
    assert "bytes are needed; free some space, then continue with --resume" in last
    assert not list(run.rglob("*.partial"))
    assert odn(*common, "--resume")[0] == 0


def test_without_a_target_the_knee_is_found(odn, npz, tmp_path, recipe):
    run = tmp_path / "run"
    code, out, err = odn("run", npz, "--config", recipe, *FAST, "--run", run)
    assert code == 0, err
    report = json.loads((run / "report.json").read_text())
    assert report["target_automatic"]
    assert report["reached"]
    assert report["networks"][1]["valid_accuracy"] >= report["target_accuracy"]
    assert "automatic target" in out
    assert "/ target auto" in err


def test_ctrl_c_leaves_a_run_that_resume_continues(odn, npz, tmp_path, recipe):
    (tmp_path / "often.toml").write_text(recipe.read_text() + "[train]\nevaluation_share = inf\n")
    flags = ("--target", 0.995, "--config", tmp_path / "often.toml", *FAST, "--run", tmp_path / "run")
    common = [str(a) for a in ("run", npz, *flags)]
    seen = []
    # What a shell starts in the background ignores Ctrl-C, and so would what the tests start there.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    command = [sys.executable, "-m", "odn", *common]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        for line in process.stderr:
            seen.append(line)
            if "epoch 3/" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 1, (seen, rest)
    assert rest.splitlines()[-1] == ("odn: interrupted; what a run finished is kept and goes on with --resume")
    assert "Traceback" not in rest
    code, _, err = odn(*common, "--resume")
    assert code in (0, 3), err
    assert "settle  depth 1  epoch 3/" not in err
    assert re.search(r"settle  depth 1  epoch [45]/", err)
    whole = tmp_path / "whole"
    assert odn(*common[:-1], whole)[0] == code
    reports = [json.loads((path / "report.json").read_text()) for path in (tmp_path / "run", whole)]
    assert without_times(reports[0]) == without_times(reports[1])


def test_a_bad_file_in_a_prediction_is_named(odn, refused, npz, tmp_path, recipe):
    run = tmp_path / "run"
    assert odn("run", npz, "--target", 0.5, "--config", recipe, *FAST, "--run", run)[0] == 0
    (tmp_path / "x.png").write_text("text")
    assert "x.png is not a readable image" in refused("predict", run / "artifact", tmp_path / "x.png", code=1)
    weights = run / "artifact" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "was changed since it was exported" in refused("predict", run / "artifact", tmp_path / "x.png", code=1)


# real data ---------------------------------------------------------------------------------------------------------


def test_real_fashion_mnist_runs_to_the_end(odn, data_dir, tmp_path):
    recipe = tmp_path / "brief.toml"
    recipe.write_text("[expand]\nsettle_epochs = 8\n[report]\nlatency_seconds = 0.01\n")
    arguments = ("--data-dir", data_dir, "--train-limit", 1000, "--depths", "1,2", "--epochs-per-depth", 4)
    code, out, _ = odn(
        "run", "fashion-mnist", *arguments, "--config", recipe, "--finetune-epochs", 2, "--run", tmp_path / "r"
    )
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert (code, report["reached"]) == (3, False)
    assert report["dataset"]["test"] == 10000
    assert report["networks"][1]["test_accuracy"] > 0.6
    assert "not reached" in out


def test_the_real_svhn_sample_runs_to_the_end(odn, data_dir, tmp_path, recipe):
    sample = data_dir / "SVHN-sample" / "svhn_recropped_train_305.npz"
    if not sample.is_file():
        pytest.skip(f"the SVHN sample is not in {data_dir}")
    arguments = ("--target", 0.2, "--depths", "1,2", "--epochs-per-depth", 6, "--finetune-epochs", 2)
    code, _, err = odn("run", sample, *arguments, "--config", recipe, "--run", tmp_path / "r")
    assert code in (0, 3), err
    assert json.loads((tmp_path / "r" / "report.json").read_text())["dataset"]["input_shape"] == [3, 32, 32]

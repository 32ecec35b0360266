"""Tasks besides classes: their metrics against scikit-learn, their losses, their data, and whole runs."""

import csv
import json
import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics as sklearn_metrics
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import odn as library
from odn.config import AugmentConfig
from odn.data.augment import augment_with_masks
from odn.data.npz import read_npz
from odn.data.targets import support
from odn.distillation import Teacher
from odn.errors import OdnError, UsageError
from odn.losses import soft_loss, task_loss
from odn.manifest import Manifest, TrainedOn
from odn.metrics import GROUPS, IGNORED, NotFiniteError, Tally, trivial_score
from odn.network import build_network
from odn.stopping import score_interval
from odn.tasks import METRICS, TASKS, choose_metric

CPU = torch.device("cpu")


def tally(task, outputs, targets, classes, *, batch=7):
    found = Tally(task, classes, len(outputs), CPU)
    for positions in torch.arange(len(outputs)).split(batch):
        found.add(outputs[positions], targets[positions], positions)
    return found


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 60), classes=st.integers(2, 6))
def test_classes_are_scored_as_by_scikit_learn(seed, count, classes):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(count, classes, generator=generator)
    targets = torch.randint(0, classes, (count,), generator=generator)
    found, answers, labels = tally("classification", outputs, targets, classes), outputs.argmax(1), targets.numpy()
    present = sorted(set(labels.tolist()))
    recall = sklearn_metrics.recall_score(labels, answers, labels=present, average=None)
    assert found.score("accuracy").value == sklearn_metrics.accuracy_score(labels, answers)
    assert found.score("balanced_accuracy").value == pytest.approx(recall.mean())
    assert found.score("macro_f1").value == pytest.approx(sklearn_metrics.f1_score(labels, answers, average="macro"))
    score = found.score("macro_f1")
    assert [value for value in score.per_class if value is not None] == pytest.approx(recall.tolist())
    assert [c for c in range(classes) if score.per_class[c] is not None] == present
    assert score.support == tuple(np.bincount(labels, minlength=classes).tolist())
    assert score.accuracy == found.score("accuracy").value


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), count=st.integers(4, 40), classes=st.integers(1, 4))
def test_several_labels_numbers_and_masks_are_scored_as_by_scikit_learn(seed, count, classes):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(count, classes, generator=generator)
    labels = torch.randint(0, 2, (count, classes), generator=generator).float()
    labels[0], labels[1] = 1, 0
    several = tally("multilabel", outputs, labels, classes)
    expected = sklearn_metrics.average_precision_score(labels, outputs, average="macro")
    assert several.score("mean_average_precision").value == pytest.approx(expected)
    if classes > 1:  # of one column scikit-learn takes the mean over yes and no
        f1 = sklearn_metrics.f1_score(labels, outputs > 0, average="macro", zero_division=0)
        assert several.score("macro_f1").value == pytest.approx(f1)

    numbers = tally("regression", outputs, labels + outputs, classes)
    assert numbers.score("r2").value == pytest.approx(
        sklearn_metrics.r2_score((labels + outputs).double(), outputs.double())
    )
    assert numbers.score("r2").accuracy is None

    maps = torch.randn(count, 3, 2, 2, generator=generator)
    masks = torch.randint(0, 3, (count, 2, 2), generator=generator)
    masks[0, 0, 0] = IGNORED
    kept = masks != IGNORED
    iou = sklearn_metrics.jaccard_score(masks[kept], maps.argmax(1)[kept], average="macro")
    score = tally("segmentation", maps, masks, 3).score("mean_iou")
    assert score.value == pytest.approx(iou)
    assert (sum(score.support), score.count) == (int(kept.sum()), count)


@pytest.mark.parametrize("task", TASKS)
def test_scores_do_not_depend_on_the_batches_or_the_processes(task):
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(23, 3, *([2, 2] if task == "segmentation" else []), generator=generator)
    targets = {
        "classification": torch.randint(0, 3, (23,), generator=generator),
        "segmentation": torch.randint(0, 3, (23, 2, 2), generator=generator),
    }.get(task, torch.randint(0, 2, (23, 3), generator=generator).float())
    whole = tally(task, outputs, targets, 3, batch=23)
    shared = [Tally(task, 3, 23, CPU) for _ in range(2)]
    for rank, part in enumerate(shared):
        mine = torch.arange(23)[rank::2]
        part.add(outputs[mine], targets[mine], mine)
    shared[0].sums += shared[1].sums
    for metric in METRICS[task]:
        scores = [found.score(metric) for found in (whole, tally(task, outputs, targets, 3, batch=4), shared[0])]
        assert scores[0].value == pytest.approx(scores[1].value) == pytest.approx(scores[2].value)
        assert scores[0].error == pytest.approx(scores[1].error) == pytest.approx(scores[2].error)


def test_the_standard_error_is_that_of_repeated_samples():
    generator = torch.Generator().manual_seed(0)

    def draw(count):
        targets = torch.randint(0, 4, (count,), generator=generator) % 3  # class 0 is twice as frequent
        outputs = torch.randn(count, 3, generator=generator) + 1.5 * F.one_hot(targets, 3)
        return tally("classification", outputs, targets, 3, batch=count).score("macro_f1")

    scores = [draw(600) for _ in range(200)]
    spread = np.std([score.value for score in scores])
    assert np.sqrt(np.mean([score.error**2 for score in scores])) == pytest.approx(spread, rel=0.25)
    covered = np.mean(
        [low <= np.mean([s.value for s in scores]) <= high for low, high in (
            score_interval(s.metric, s.value, s.error, s.count) for s in scores
        )]
    )  # fmt: skip
    assert 0.85 <= covered <= 1


def test_the_error_of_an_accuracy_is_binomial_and_of_a_constant_zero():
    targets = torch.tensor([0, 1] * 50)
    outputs = torch.tensor([[1.0, 0.0]] * 100)
    score = tally("classification", outputs, targets, 2).score("accuracy")
    assert (score.value, score.error) == (0.5, pytest.approx(0.05))
    perfect = tally("classification", F.one_hot(targets, 2).float(), targets, 2).score("macro_f1")
    assert (perfect.value, perfect.error) == (1.0, 0.0)
    few = tally("classification", F.one_hot(targets, 2).float()[:3], targets[:3], 2).score("macro_f1")
    assert (few.value, few.error) == (1.0, 0.0)  # fewer samples than groups
    assert GROUPS > 3


def test_what_no_sample_has_is_left_out_and_a_number_that_never_varies_too():
    targets = torch.tensor([0, 0, 1])
    score = tally("classification", F.one_hot(targets, 3).float(), targets, 3).score("balanced_accuracy")
    assert (score.value, score.per_class) == (1.0, (1.0, 1.0, None))
    targets = torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    score = tally("regression", targets, targets, 2).score("r2")
    assert (score.value, score.per_class) == (1.0, (1.0, None))


def test_intervals_stay_where_scores_can_be():
    assert score_interval("macro_f1", 0.99, 0.02, 100)[1] == 1.0
    assert score_interval("macro_f1", 0.01, 0.02, 100)[0] == 0.0
    assert score_interval("r2", -0.5, 0.1, 100)[0] < -0.5
    low, high = score_interval("mean_iou", 0.5, 0.1, 100, 0.95)
    assert (low, high) == (pytest.approx(0.5 - 0.196, abs=1e-3), pytest.approx(0.5 + 0.196, abs=1e-3))


def test_a_metric_belongs_to_its_task():
    assert [choose_metric(task, "auto") for task in TASKS] == [METRICS[task][0] for task in TASKS]
    with pytest.raises(UsageError, match="--metric r2 for classification; allowed: accuracy, balanced_acc"):
        choose_metric("classification", "r2")


def test_losses_are_smallest_at_the_targets():
    one_hot = 40 * F.one_hot(torch.tensor([0, 1]), 3).float() - 20
    assert task_loss("classification", one_hot, torch.tensor([0, 1])) < 1e-6
    assert task_loss("multilabel", one_hot, (one_hot > 0).float()) < 1e-6
    assert task_loss("regression", one_hot, one_hot) == 0
    maps = one_hot[:, :, None, None].expand(2, 3, 2, 2)
    masks = torch.tensor([0, 1])[:, None, None].expand(2, 2, 2).clone()
    masks[0, 0] = IGNORED
    assert task_loss("segmentation", maps, masks) < 1e-6
    nothing = torch.zeros(2, 3, 2, 2, requires_grad=True)
    loss = task_loss("segmentation", nothing, torch.full((2, 2, 2), IGNORED))
    loss.backward()
    assert (loss.item(), nothing.grad.abs().sum()) == (0, 0)
    smooth = task_loss("multilabel", one_hot, (one_hot > 0).float(), label_smoothing=0.1)
    assert smooth > 0.5  # certainty costs


@pytest.mark.parametrize("task", TASKS)
def test_a_student_that_says_the_same_has_nothing_to_learn(task):
    generator = torch.Generator().manual_seed(0)
    shape = (4, 3, 2, 2) if task == "segmentation" else (4, 3)
    wanted, other = (torch.randn(*shape, generator=generator) for _ in range(2))
    assert soft_loss(task, wanted, wanted, 4.0) == pytest.approx(0, abs=1e-6)
    assert soft_loss(task, other, wanted, 4.0) > 0.1


def test_soft_classes_are_those_of_hinton():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 3, generator=generator) for _ in range(2))
    expected = F.kl_div(F.log_softmax(student / 4, 1), F.softmax(teacher / 4, 1), reduction="batchmean") * 16
    assert soft_loss("classification", student, teacher, 4.0) == pytest.approx(float(expected), rel=1e-5)
    labels = torch.tensor(2.0)
    mixed = Teacher(nn.Identity(), "classification", temperature=4.0, share=0.9).loss(teacher, student, labels)
    assert mixed == pytest.approx(0.9 * float(expected) + 0.2, rel=1e-5)


def test_masks_move_with_their_images():
    images = torch.zeros(64, 1, 12, 12)
    images[:, :, 4:7, 5:9] = 1
    masks = images[:, 0].long() + 1
    config = AugmentConfig(shift=0.4, flip=True)
    moved, labels = augment_with_masks(images, masks, config, torch.Generator().manual_seed(0))
    inside = labels != IGNORED
    assert 0.3 < inside.float().mean() < 1  # some pixels came from outside
    assert torch.equal(moved[:, 0][inside].long() + 1, labels[inside])
    assert not torch.equal(moved, images)
    same = augment_with_masks(images, masks, AugmentConfig(shift=0.0), torch.Generator())
    assert torch.equal(same[1], masks)


X = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
LABELS = np.arange(40) % 2


def archive(tmp_path, **arrays):
    path = tmp_path / "own.npz"
    np.savez(path, **{"x": X, **arrays})
    return path


@pytest.mark.parametrize(
    ("y", "task", "names"),
    [
        (LABELS, "classification", ("0", "1")),
        (np.stack([LABELS, 1 - LABELS, LABELS], 1), "multilabel", ("y0", "y1", "y2")),
        (LABELS + 0.5, "regression", ("y",)),
        ((X > 128).astype(np.uint8), "segmentation", ("0", "1")),
    ],
)
def test_labels_say_what_is_asked(tmp_path, y, task, names):
    source = read_npz(archive(tmp_path, y=y))
    assert (source.task, source.classes, len(source.train.labels)) == (task, names, 40)
    data = library.load_data(str(archive(tmp_path, y=y)))
    assert (data.spec.task, data.spec.metric) == (task, METRICS[task][0])
    images, labels = next(data.train.batches(4, torch.arange(4), CPU))
    assert labels.shape == {"segmentation": (4, 8, 8), "classification": (4,)}.get(task, (4, len(names)))
    assert len(images) == 4


def test_numbers_are_learnt_standardised_by_the_training_split(tmp_path):
    y = np.random.default_rng(0).normal(1000, 50, (40, 2)).astype(np.float32)
    data = library.load_data(str(archive(tmp_path, y=y, classes=np.array(["age", "height"]))))
    assert data.spec.classes == ("age", "height")
    labels = torch.cat([labels for _, labels in data.train.batches(64, torch.arange(len(data.train)), CPU)])
    torch.testing.assert_close(labels.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(labels.std(0, correction=0), torch.ones(2), atol=1e-4, rtol=0)
    assert data.spec.target_mean == pytest.approx((1000, 1000), abs=40)
    same = library.load_data(str(archive(tmp_path, y=np.full(40, 2.5))))
    assert same.spec.target_std == (1.0,)


def test_numbers_far_from_zero_keep_their_differences(tmp_path):
    y = 1e9 + np.random.default_rng(0).normal(0, 1, 40)
    data = library.load_data(str(archive(tmp_path, y=y)))
    labels = torch.cat([labels for _, labels in data.train.batches(64, torch.arange(len(data.train)), CPU)])
    assert labels.dtype == torch.float32
    torch.testing.assert_close(labels.std(0, correction=0), torch.ones(1), atol=1e-4, rtol=0)


def test_answers_that_are_no_numbers_are_never_right():
    for task, shape, targets in (
        ("classification", (4, 3), torch.tensor([0, 1, 2, 0])),
        ("segmentation", (4, 3, 2, 2), torch.zeros(4, 2, 2).long()),
    ):
        assert tally(task, torch.full(shape, float("nan")), targets, 3).score(METRICS[task][0]).accuracy == 0
    for task in ("regression", "multilabel"):
        found = tally(task, torch.full((4, 3), float("nan")), torch.eye(4)[:, :3], 3)
        with pytest.raises(NotFiniteError, match="gives NaN or infinite values for some of 4 samples"):
            found.score(METRICS[task][0])


def test_pixels_marked_255_do_not_count(tmp_path):
    masks = (X > 128).astype(np.uint8)
    masks[:, 0] = 255
    data = library.load_data(str(archive(tmp_path, y=masks, classes=np.array(["back", "front"]))))
    _, labels = next(data.train.batches(4, torch.arange(4), CPU))
    assert set(labels[:, 0].unique().tolist()) == {IGNORED}
    assert set(labels[:, 1:].unique().tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("arrays", "config", "message"),
    [
        ({"y": LABELS.astype(float)}, {}, "holds whole numbers alone; say --task regression"),
        ({"y": LABELS[:, None].repeat(2, 1) * 2}, {}, "allowed: 0 or 1 for each of several labels"),
        ({"y": np.stack([LABELS, 0 * LABELS], 1)}, {}, "no training sample has the label 'y1'"),
        ({"y": np.where(LABELS, np.nan, 0.5)}, {}, "NaN, infinite or huge values, first for image 1"),
        ({"y": (LABELS + 0.5)[:5], "x": X[:5]}, {}, "has 5 training images; 10 or more"),
        ({"y": X[:, :4]}, {}, "allowed: one integer per pixel of images of 8x8"),
        ({"y": X.astype(np.int64) * 0 - 1}, {}, "has labels from -1 to -1"),
        ({"y": X * 0}, {}, "masks have one class"),
        ({"y": (X > 99) * np.uint8(255)}, {}, r"masks have one class.*so a foreground is written as 1"),
        ({"y": np.eye(2, dtype=int)[LABELS]}, {}, r"a single 1 in every row; say --task multilabel .* y.argmax\(1\)"),
        ({"y": LABELS + 0.5, "classes": np.array(["a", "b"])}, {}, "has 1 values per image for 2 names"),
        ({"y": LABELS}, {"task": "segmentation"}, "allowed: one integer per pixel"),
        ({"y": LABELS}, {"metric": "r2"}, "--metric r2 for classification; allowed: accuracy"),
        ({"y": LABELS[:-1] + 0.5}, {}, "allowed: one entry per image, 40 in all"),
    ],
)
def test_wrong_labels_are_explained(tmp_path, arrays, config, message):
    path = archive(tmp_path, **arrays)
    with pytest.raises((OdnError, UsageError), match=message):
        library.load_data(str(path), config=library.DataConfig(**config))


def test_other_tasks_need_labels_of_that_kind():
    with pytest.raises(UsageError, match="--task regression for digits, whose labels are classes; allowed: an .npz"):
        library.load_data("digits", config=library.DataConfig(task="regression"))
    with pytest.raises(UsageError, match="--metric r2 for multilabel"):
        library.DataConfig(task="multilabel", metric="r2")


def test_rows_of_tokens_have_no_pixels():
    with pytest.raises(UsageError, match="those of vit_b_32 are of shape .*: choose a convolutional backbone"):
        build_network("vit_b_32", (3, 224, 224), 3, task="segmentation", device="meta")


@pytest.mark.parametrize("backbone", ["resnet18", "cifar_resnet20", "mobilenet_v2", "swin_t", "vgg11_bn"])
def test_every_depth_labels_every_pixel(backbone):
    network = build_network(backbone, (3, 64, 96), 5, task="segmentation", device="meta")
    for logits in network(torch.zeros(2, 3, 64, 96, device="meta")):
        assert logits.shape == (2, 5, 64, 96)
    assert network.spec.task == "segmentation"


def manifest(task, labels, **changes):
    from odn.images import Preprocessing

    return Manifest(
        labels=labels, preprocessing=Preprocessing(input_shape=(1, 2, 2), mean=(0.0,), std=(1.0,)),
        dataset=TrainedOn(name="toy", train=1, valid=1, seed=0), versions={}, files={}, task=task, **changes,
    )  # fmt: skip


def test_predictions_speak_of_the_task():
    several = manifest("multilabel", ("a", "b", "c")).predictions(np.array([[5.0, -5.0, 0.1], [-800.0, -1.0, -1.0]]))
    assert (several[0].label, several[0].probability, several[1].label) == ("a,c", None, "")
    assert several[0].values["a"] == pytest.approx(1 / (1 + math.exp(-5)))
    numbers = manifest("regression", ("age",)).predictions(np.array([[41.5]], np.float32))
    assert (numbers[0].label, numbers[0].values) == ("41.5", {"age": 41.5})
    logits = np.zeros((1, 2, 2, 2), np.float32)
    logits[0, 1, 0] = 1
    masks = manifest("segmentation", ("back", "front")).predictions(logits)
    assert masks[0].mask.tolist() == [[1, 1], [0, 0]]
    assert masks[0].values == {"back": 0.5, "front": 0.5}
    with pytest.raises(OdnError, match="logits of 1 x 2 for 2 labels"):
        manifest("segmentation", ("back", "front")).predictions(np.zeros((1, 2), np.float32))


def digits_for(task):
    digits = load_digits()
    x = (digits.images * (255 / 16)).round().astype(np.uint8)
    y, ink = digits.target, digits.images.reshape(len(x), -1).mean(1)
    if task == "multilabel":
        return {"x": x, "y": np.stack([y % 2 == 0, y < 5], 1), "classes": np.array(["even", "small"])}
    if task == "regression":
        return {"x": x, "y": (1e6 + 1e3 * ink).astype(np.float32), "classes": np.array(["ink"])}
    masks = np.where(x > 100, 1 + y[:, None, None] % 2, 0).astype(np.uint8)
    return {"x": x, "y": masks, "classes": np.array(["back", "even", "odd"])}


RUNS = {"multilabel": (0.55, "mean average precision"), "regression": (0.5, "R²"), "segmentation": (0.4, "mean IoU")}


@pytest.mark.parametrize("task", RUNS)
def test_whole_runs_of_other_tasks_end_in_files_that_say_the_same(task, tmp_path, odn):
    target, metric = RUNS[task]
    np.savez(tmp_path / "own.npz", **digits_for(task))
    run, runtimes = tmp_path / "run", "onnx" if task == "segmentation" else "onnx,int8"
    recipe = tmp_path / "brief.toml"
    recipe.write_text("[expand]\nsettle_epochs = 10\n[report]\nlatency_seconds = 0.01\n")
    code, out, err = odn(
        "run", tmp_path / "own.npz", "--target", target, "--backbone", "cifar_resnet20", "--width", 0.5, "--depths",
        "1,2", "--epochs-per-depth", 6, "--finetune-epochs", 1, "--train-limit", 600, "--to", runtimes, "--run", run,
        "--config", recipe,
    )  # fmt: skip
    report = json.loads((run / "report.json").read_text())
    assert (code, report["task"], report["reached"]) == (0, task, True), err
    rows = {row["name"]: row for row in report["networks"]}
    mine = rows["extracted"]
    assert mine["valid_score"] >= target
    assert mine["test_interval"][0] <= mine["test_score"] <= mine["test_interval"][1]
    assert (mine["test_accuracy"] is None) == (task != "segmentation")
    assert rows["onnx"]["test_score"] == pytest.approx(mine["test_score"], abs=1e-3)
    if task != "segmentation":
        assert rows["int8"]["test_score"] == pytest.approx(mine["test_score"], abs=0.02)
    assert [row["name"] for row in report["classes"]] == digits_for(task)["classes"].tolist()
    page = (run / "report.html").read_text()
    assert f"validation {metric}" in page
    assert f"<th>test {'pixels' if task == 'segmentation' else 'samples'}</th>" in page
    outputs = {"multilabel": "2 classes", "regression": "1 number", "segmentation": "3 classes"}
    assert f">{outputs[task]}, images of 1x8x8" in page

    # What the file says of an image is what the network was taught, in its own units.
    data = digits_for(task)
    for index in range(4):
        Image.fromarray(data["x"][index]).save(tmp_path / f"{index}.png")
    files = [tmp_path / f"{index}.png" for index in range(4)]
    extra = ["--masks", tmp_path / "masks"] if task == "segmentation" else []
    out = odn("predict", run / "artifact", *files, "--json", "--runtime", "onnx", *extra)[1]
    said = [json.loads(line) for line in out.splitlines()]
    if task == "multilabel":
        assert set(said[0]["values"]) == {"even", "small"}
    elif task == "regression":
        errors = [abs(line["values"]["ink"] - float(data["y"][i])) for i, line in enumerate(said)]
        assert max(errors) < 2e3  # of numbers around a million
    else:
        masks = [np.asarray(Image.open(tmp_path / "masks" / f"{index}.png")) for index in range(4)]
        assert np.mean([(mask > 0) == (data["y"][i] > 0) for i, mask in enumerate(masks)]) > 0.8
        code, _, err = odn("predict", run / "artifact", files[0], "--masks", tmp_path / "masks")
        assert (code, "exists already; choose an empty folder" in err) == (1, True)
        for name in "ab":  # images of one name in two folders
            (tmp_path / "more" / name).mkdir(parents=True)
            Image.fromarray(data["x"][0]).save(tmp_path / "more" / name / "0.png")
        assert odn("predict", run / "artifact", tmp_path / "more", "--masks", tmp_path / "apart")[0] == 0
        found = sorted(path.relative_to(tmp_path / "apart").as_posix() for path in (tmp_path / "apart").rglob("*.png"))
        assert found == ["a/0.png", "b/0.png"]
    table = list(csv.reader(odn("predict", run / "artifact", *files, "--csv")[1].splitlines()))
    assert [row[1] for row in table[1:]] == [line["label"] for line in said]


def mask_table(tmp_path, masks, images=X):
    for index, (image, mask) in enumerate(zip(images, masks, strict=True)):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
        Image.fromarray(mask).save(tmp_path / f"{index}_mask.png")
    rows = [("path", "label"), *((f"{index}.png", f"{index}_mask.png") for index in range(len(masks)))]
    with (tmp_path / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(tmp_path / "train.csv")


@pytest.mark.parametrize("config", [{}, {"resident_bytes": 0, "workers": 2}])
def test_masks_in_files_are_those_of_an_archive(tmp_path, config):
    masks = (X > 128).astype(np.uint8)
    masks[:, 0] = 255
    table = library.load_data(mask_table(tmp_path, masks), config=library.DataConfig(task="segmentation", **config))
    packed = library.load_data(str(archive(tmp_path, y=masks)))
    assert (table.spec.task, table.spec.classes) == ("segmentation", ("0", "1"))
    for one, other in ((table.train, packed.train), (table.valid, packed.valid), (table.test, packed.test)):
        order = torch.randperm(len(one), generator=torch.Generator().manual_seed(0))
        for found, expected in zip(one.batches(9, order, CPU), other.batches(9, order, CPU), strict=True):
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
            assert found[1].dtype == torch.int64


def test_masks_are_resized_to_the_nearest_pixel_and_palettes_are_indices(tmp_path):
    masks = np.kron(np.arange(4).reshape(2, 2), np.ones((4, 4))).astype(np.uint8)[None].repeat(40, 0)
    path = mask_table(tmp_path, masks)
    colours = Image.fromarray(masks[0]).convert("P")
    colours.putdata(masks[0].ravel().tolist())
    colours.save(tmp_path / "0_mask.png")
    data = library.load_data(path, config=library.DataConfig(task="segmentation", image_size=4))
    expected = torch.tensor(np.kron(np.arange(4).reshape(2, 2), np.ones((2, 2)))).long()
    for split in (data.train, data.valid, data.test):
        for _, labels in split.batches(40, torch.arange(len(split)), CPU):
            assert (labels == expected).all()
    assert data.spec.classes == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.zeros((8, 6), np.uint8),
            r"the mask .*7_mask.png has 8x6 pixels, its image .*7.png has 8x8; they must agree",
        ),
        (
            np.zeros((8, 8, 3), np.uint8),
            r"7_mask.png is not a readable image \(RGB colours; allowed for a mask: a label",
        ),
        (np.full((8, 8), 255, np.uint8), "has no label but 255, which marks .* a foreground is written as 1"),
        (np.full((8, 8), 5000, np.uint16), "has the label 5000; allowed: 0 to 999"),
    ],
)
def test_wrong_masks_are_named(tmp_path, mask, message):
    path = mask_table(tmp_path, (X > 128).astype(np.uint8))
    Image.fromarray(mask).save(tmp_path / "7_mask.png")
    with pytest.raises(OdnError, match=message):
        library.load_data(path, config=library.DataConfig(task="segmentation"))


def test_a_label_of_test_masks_alone_and_a_missing_mask_are_named(tmp_path):
    config = library.DataConfig(task="segmentation")
    train, test = tmp_path / "own", tmp_path / "test"
    train.mkdir(), test.mkdir()
    mask_table(train, (X > 128).astype(np.uint8))
    mask_table(test, (X > 128) * np.uint8(2))
    lines = (test / "train.csv").read_text().splitlines()
    moved = [lines[0], *(f"../test/{one},../test/{two}" for one, two in (line.split(",") for line in lines[1:]))]
    (train / "test.csv").write_text("\n".join(moved))
    data = library.load_data(str(train), config=config)
    with pytest.raises(OdnError, match="has the label 2, which the training masks do not have"):
        data.test  # noqa: B018
    (train / "3_mask.png").unlink()
    with pytest.raises(OdnError, match=r"names 1 of 40 files that are not there, first .*3_mask.png"):
        library.load_data(str(train), config=config)


def test_imbalance_shows_class_by_class(tmp_path, odn):
    digits = load_digits()
    kept = np.flatnonzero((digits.target == 0) | ((digits.target == 1) & (np.arange(len(digits.target)) % 8 == 0)))
    x = (digits.images[kept] * (255 / 16)).round().astype(np.uint8)
    np.savez(tmp_path / "own.npz", x=x, y=digits.target[kept])
    code, out, err = odn(
        "run", tmp_path / "own.npz", "--target", 0.7, "--metric", "balanced_accuracy", "--backbone", "cifar_resnet20",
        "--depths", 1, "--epochs-per-depth", 4, "--finetune-epochs", 1, "--run", tmp_path / "run",
    )  # fmt: skip
    assert code in (0, 3), err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    recalls = [row["value"] for row in report["classes"]]
    row = report["networks"][1]
    assert row["test_score"] == pytest.approx(np.mean(recalls))
    counts = [row["count"] for row in report["classes"]]
    assert counts[0] > 4 * counts[1]
    assert row["test_accuracy"] == pytest.approx(np.dot(recalls, counts) / sum(counts))
    assert "balanced accuracy" in out


def table(tmp_path, labels, *, suffix="csv", column="text"):
    values = [f"word{index % 7} and {index}" for index in range(len(labels))]
    if column == "path":
        for index in range(len(labels)):
            Image.fromarray(X[index]).save(tmp_path / f"{index}.png")
        values = [f"{index}.png" for index in range(len(labels))]
    path = tmp_path / f"own.{suffix}"
    with path.open("w", newline="") as file:
        if suffix == "csv":
            csv.writer(file).writerows([(column, "label"), *zip(values, labels, strict=True)])
        else:
            rows = ({column: value, "label": label} for value, label in zip(values, labels, strict=True))
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


@pytest.mark.parametrize("column", ["text", "path"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_tables_hold_several_labels_or_numbers(tmp_path, suffix, column):
    several = ["b", "a;b", "", " a "] * 10
    if suffix == "jsonl":
        several = [["b"], ["a", "b"], [], ["a"]] * 10
    path = table(tmp_path, several, suffix=suffix, column=column)
    data = library.load_data(str(path), config=library.DataConfig(task="multilabel"))
    assert (data.spec.task, data.spec.classes, data.spec.metric) == ("multilabel", ("a", "b"), "mean_average_precision")
    labels = torch.cat([labels for _, labels in data.train.batches(64, torch.arange(len(data.train)), CPU)])
    assert {tuple(row) for row in labels.tolist()} == {(0, 1), (1, 1), (0, 0), (1, 0)}

    numbers = [f"{index};-{index / 2}" for index in range(40)]
    if suffix == "jsonl":
        numbers = [[index, -index / 2] for index in range(40)]
    path = table(tmp_path, numbers, suffix=suffix, column=column)
    data = library.load_data(str(path), config=library.DataConfig(task="regression"))
    assert (data.spec.classes, data.spec.scaling[0][1]) == (("y0", "y1"), pytest.approx(-10, abs=3))
    labels = torch.cat([labels for _, labels in data.train.batches(64, torch.arange(len(data.train)), CPU)])
    torch.testing.assert_close(labels.std(0, correction=0), torch.ones(2))
    torch.testing.assert_close(labels[:, 0], -labels[:, 1])


@pytest.mark.parametrize(
    ("labels", "task", "message"),
    [
        (["1", "x"], "regression", r"own\.csv line 3: the label is 'x'; allowed: numbers up to 1e\+30, several with"),
        (["1", "2;3"], "regression", r"own\.csv line 3 has 2 numbers, the first row has 1; they must agree"),
        (["nan", "2"], "regression", "line 2: the label is 'nan'; allowed: numbers"),
        (["2", "1e39"], "regression", r"line 3: the label is '1e39'; allowed: numbers up to 1e\+30"),
        (["0.5", "0.75"], "classification", "for numbers to predict say --task regression"),
        (["a;b", "a"], "classification", "for several labels per sample say --task multilabel"),
        (["", ""], "multilabel", r"no training sample has a label, from .*own\.csv line 2 on"),
        (["a", "b"], "segmentation", "--task segmentation for .*, which holds texts; allowed: images with masks"),
    ],
)
def test_wrong_labels_in_tables_are_explained(tmp_path, labels, task, message):
    path = table(tmp_path, labels)
    with pytest.raises((OdnError, UsageError), match=message):
        library.load_data(str(path), config=library.DataConfig(task=task))


# answers that are the same for every sample -------------------------------------------------------------------------


def constant_scores(task, metric, labels, classes):
    """Scores of all answers that are the same for every sample."""
    count = len(labels)
    answers = torch.eye(classes) if task == "classification" else torch.tensor([*product((-1.0, 1.0), repeat=classes)])
    for answer in answers:
        yield tally(task, answer.expand(count, -1), torch.from_numpy(labels), classes).score(metric).value


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1"])
def test_the_trivial_score_of_classes_is_that_of_the_best_constant_answer(metric):
    labels = np.array([0] * 12 + [1] * 5 + [2] * 3)
    found = trivial_score(metric, support("classification", 4, labels), len(labels))
    assert found == pytest.approx(max(constant_scores("classification", metric, labels, 4)))


@pytest.mark.parametrize("metric", ["macro_f1", "mean_average_precision"])
def test_the_trivial_score_of_labels_is_that_of_the_best_constant_answer(metric):
    labels = (np.random.default_rng(0).random((40, 3)) < [0.2, 0.5, 0.8]).astype(np.float32)
    found = trivial_score(metric, support("multilabel", 3, labels), len(labels))
    assert found == pytest.approx(max(constant_scores("multilabel", metric, labels, 3)))


def test_the_trivial_score_of_numbers_is_that_of_their_mean():
    numbers = torch.randn(20, 1, generator=torch.Generator().manual_seed(0))
    found = tally("regression", numbers.mean(0, keepdim=True).expand(20, 1), numbers, 1).score("r2").value
    assert trivial_score("r2", (), 20) == pytest.approx(found, abs=1e-6)
    assert trivial_score("mean_iou", (), 20) is None

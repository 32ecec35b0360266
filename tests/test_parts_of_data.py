"""Nothing of a dataset is left out silently: splits by their names, rare classes, and texts that are too long."""

import csv
import json

import numpy as np
import pytest
import torch
from benchmarks.text import text_folder
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import stripes
from odn.config import DataConfig
from odn.data import load_data
from odn.data.dividing import divide
from odn.data.sources import Samples, Source
from odn.errors import OdnError
from odn.split_names import split_of


def folder(root, classes=("a", "b"), count=12):
    for name in classes:
        (root / name).mkdir(parents=True)
        draw = np.random.default_rng([*str(root / name).encode()])  # no image is in two places
        for index, image in enumerate(draw.integers(0, 256, (count, 8, 8), dtype=np.uint8)):
            Image.fromarray(image).save(root / name / f"{index}.png")
    return root


def archive(tmp_path, *names):
    images, labels = stripes(30)
    path = tmp_path / "own.npz"
    np.savez(path, **{f"{kind}{name}": images if kind == "x" else labels for name in names for kind in "xy"})
    return str(path)


@pytest.mark.parametrize(
    "names", [("Train", "VAL", "Test"), ("training", "dev", "testing"), ("train", "valid", "test")]
)
def test_folders_of_splits_are_known_by_any_usual_name(tmp_path, names, caplog):
    for name, count in zip(names, (12, 5, 4), strict=True):
        folder(tmp_path / name, count=count)
    data = load_data(str(tmp_path))
    assert data.spec.classes == ("a", "b")
    assert (len(data.train), len(data.valid), len(data.test)) == (24, 10, 8)
    assert not caplog.records


def test_what_lies_beside_classes_and_splits_is_named(tmp_path, caplog):
    folder(tmp_path / "train", classes=("a", "b", "train"))  # a class may have such a name where there are splits
    (tmp_path / "masks").mkdir()
    for name in ("d.png", "c.png", "b.png", "a.png", ".hidden"):
        (tmp_path / "train" / name).write_bytes(b"")
    (tmp_path / "train" / "a" / ".thumbnails").mkdir()
    (tmp_path / "train" / "a" / ".thumbnails" / "1.png").write_bytes(b"")
    data = load_data(str(tmp_path))
    assert data.spec.classes == ("a", "b", "train")
    assert len(data.train) + len(data.valid) + len(data.test) == 36
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: left out masks, which are named for no split",
        f"{tmp_path / 'train'}: left out a.png, b.png, c.png and 1 more, which are in no class folder",
    ]


@pytest.mark.parametrize("name", ["test", "Validation"])
def test_a_split_is_no_class(tmp_path, name):
    folder(tmp_path, classes=("a", "b", name))
    with pytest.raises(
        OdnError, match=f"has the folder '{name}', which is named for a split, but no folder train; put"
    ):
        load_data(str(tmp_path))


@pytest.mark.parametrize("kind", ["folder", "table", "archive", "saved"])
def test_two_validation_splits_are_refused(tmp_path, kind):
    if kind == "folder":
        for name in ("train", "val", "valid"):
            folder(tmp_path / name)
    elif kind == "table":
        for name in ("train", "val", "valid"):
            (tmp_path / f"{name}.csv").write_text("text,label\nyes,a\n")
    elif kind == "saved":
        (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "val", "valid"]}')
    path = archive(tmp_path, "_train", "_val", "_valid") if kind == "archive" else str(tmp_path)
    with pytest.raises(OdnError, match=r"holds \w+(\.csv)? and \w+(\.csv)?, both for valid; keep one of them"):
        load_data(path)


@pytest.mark.parametrize("name", ["_valid", "_val", "_VALIDATION", "_dev"])
def test_an_archive_brings_its_own_validation_split(tmp_path, name):
    data = load_data(archive(tmp_path, "_train", name, "_test"))
    assert (len(data.train), len(data.valid), len(data.test)) == (30, 30, 30)


def test_arrays_and_tables_of_other_names_are_named(tmp_path, caplog):
    load_data(archive(tmp_path, "_train", "_test", "_extra", ""))
    assert caplog.messages == [f"{tmp_path}/own.npz: left out x, x_extra, y and 1 more, which are named for no split"]
    caplog.clear()
    for name in ("train", "dev", "unlabelled"):
        rows = [("text", "label"), *((f"word {index}", "ab"[index % 2]) for index in range(20))]
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    pytest.importorskip("tokenizers", reason="needs the extra text: pip install 'optimally-deep[text]'")
    assert len(load_data(str(tmp_path)).valid) == 20
    assert f"{tmp_path}: left out unlabelled.csv, which are named for no split" in caplog.messages


@given(st.sampled_from(["train", "training", "valid", "val", "validation", "dev", "test", "testing"]), st.booleans())
def test_capitals_do_not_count(name, capital):
    assert split_of(name.title() if capital else name) == split_of(name) is not None


@given(st.lists(st.integers(3, 9), min_size=1, max_size=6), st.integers(50, 400), st.integers(0, 9))
def test_every_class_is_in_every_split(rare, frequent, seed):
    labels = np.repeat(np.arange(len(rare) + 1), [frequent, *rare])
    images = torch.arange(len(labels)).view(-1, 1, 1, 1)
    source = Source(
        name="x", classes=tuple(map(str, range(len(rare) + 1))), train=Samples(images=images, labels=labels)
    )
    train, valid, read_test = divide(source, DataConfig(), seed)
    parts = (train, valid, read_test())
    for part in parts:
        assert set(part.labels.tolist()) == set(labels.tolist())
    assert sorted(torch.cat([part.images.flatten() for part in parts]).tolist()) == list(range(len(labels)))
    assert len(parts[2].labels) == round(0.2 * len(labels))


@given(st.lists(st.integers(3, 6), min_size=1, max_size=5), st.integers(0, 9))
def test_every_label_is_in_every_split(rare, seed):
    labels = np.zeros((200, len(rare)), np.float32)
    draw = np.random.default_rng(seed)
    for label, count in enumerate(rare):
        labels[draw.choice(200, count, replace=False), label] = 1
    images = torch.arange(200).view(-1, 1, 1, 1)
    names = tuple(map(str, range(len(rare))))
    source = Source(name="x", classes=names, train=Samples(images=images, labels=labels), task="multilabel")
    train, valid, read_test = divide(source, DataConfig(), seed)
    for part in (train, valid, read_test()):
        assert (part.labels.sum(0) > 0).all()


def test_classes_without_a_validation_sample_are_named(tmp_path, caplog):
    folder(tmp_path / "train", classes="abcdef")
    folder(tmp_path / "valid", classes="f")
    load_data(str(tmp_path))
    assert "5 of 6 classes have no validation sample, so no decision sees them: a, b, c and 2 more" in caplog.text


def test_questions_of_trec_are_read_whole_and_what_is_cut_is_counted(tmp_path, data_dir, caplog):
    pytest.importorskip("tokenizers", reason="needs the extra text: pip install 'optimally-deep[text]'")
    path = text_folder("trec", data_dir, tmp_path / "trec")
    data = load_data(str(path))
    spec = data.spec
    assert spec.classes == ("abbreviation", "description", "entity", "human", "location", "number")
    assert len(data.train) + len(data.valid) == sum(spec.train_support) + sum(spec.valid_support) == 5452
    assert len(data.test) == 500
    assert min(spec.valid_support) >= 8  # of 86 questions for an abbreviation
    lines = (path / "train.jsonl").read_text().splitlines()
    assert len({json.loads(line)["label"] for line in lines}) == 6
    assert 0 < spec.train_truncated <= len(data.train) / 100
    assert f"{spec.train_truncated} of {len(data.train)} training texts are longer than the" in caplog.text
    whole = load_data(str(path), config=DataConfig(max_tokens=128))
    assert (whole.spec.train_truncated, whole.spec.valid_truncated) == (0, 0)
    assert whole.spec.train_count == spec.train_count


def test_samples_that_are_judged_on_and_trained_on_are_counted(tmp_path, caplog):
    x = np.random.default_rng(0).integers(0, 256, (230, 8, 8), dtype=np.uint8)
    y = np.arange(230) % 2
    known = {"x_train": x[:100], "y_train": y[:100]}
    parts = {"x_valid": x[97:200], "y_valid": y[97:200], "x_test": x[99:230], "y_test": y[99:230]}
    np.savez(tmp_path / "own.npz", **known, **parts)
    data = load_data(str(tmp_path / "own.npz"))
    assert caplog.messages == ["3 of 103 validation samples are in the training split too, and will look easy"]
    caplog.clear()
    assert len(data.test) == 131
    assert not caplog.messages  # one of a hundred is what real data have

"""What Hugging Face's ``datasets`` saved is read without that library."""

import json
import warnings

import numpy as np
import pytest
from PIL import Image

from conftest import stripes
from odn.config import DataConfig
from odn.data import load_data
from odn.errors import OdnError
from odn.saved import find_saved, holds_texts

pyarrow = pytest.importorskip("pyarrow", reason="needs the extra datasets: pip install 'optimally-deep[datasets]'")
FEATURES = {"label": {"names": ["z", "a"], "_type": "ClassLabel"}}


def save(folder, columns, features=None, *, parquet=False, group=7):
    """Write a table in the layout that the library writes."""
    import pyarrow.parquet

    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"huggingface": json.dumps({"info": {"features": features or {}}})}
    table = pyarrow.table(columns).replace_schema_metadata(metadata)
    if parquet:
        pyarrow.parquet.write_table(table, folder / "train-0.parquet", row_group_size=group)
        return folder
    with pyarrow.OSFile(str(folder / "data-0.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as file:
        file.write_table(table, max_chunksize=group)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features or {}}))
    return folder


def encoded(tmp_path, count=36):
    images, labels = stripes(count, classes=2)
    contents = []
    for image in images:
        Image.fromarray(image).save(tmp_path / "one.png")
        contents.append({"bytes": (tmp_path / "one.png").read_bytes(), "path": None})
    return images, labels, contents


@pytest.mark.parametrize("parquet", [False, True])
@pytest.mark.parametrize("settings", [{}, {"resident_bytes": 0, "workers": 2}])
def test_images_are_those_that_were_saved(tmp_path, parquet, settings):
    images, labels, contents = encoded(tmp_path)
    features = {**FEATURES, "picture": {"_type": "Image"}}
    path = save(tmp_path / "set", {"picture": contents, "label": labels}, features, parquet=parquet)
    assert not holds_texts(str(path))
    data = load_data(str(path), config=DataConfig(**settings))
    assert data.spec.classes == ("z", "a")
    known = {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    indices = np.arange(len(data.train))[::-1].copy()
    import torch

    for batch, classes in data.train.batches(5, torch.from_numpy(indices), torch.device("cpu")):
        assert [known[image.numpy().tobytes()] for image in batch] == classes.tolist()


@pytest.mark.parametrize("kind", ["Sequence", "List", "old"])
def test_several_labels_and_numbers_are_read(tmp_path, kind):
    names = {"_type": "ClassLabel", "names": ["sea ", "land", "air"]}
    feature = [names] if kind == "old" else {"_type": kind, "feature": names}
    labels = [[0], [1, 2], [], [0, 1, 2]] * 10
    path = save(tmp_path / "several", {"text": [f"text {i}" for i in range(40)], "label": labels}, {"label": feature})
    data = load_data(str(path), config=DataConfig(task="multilabel"))
    assert (data.spec.task, data.spec.classes) == ("multilabel", ("sea", "land", "air"))
    assert data.train.labels.sum() + data.valid.labels.sum() + data.test.labels.sum() == 60
    with pytest.raises(OdnError, match=r"row 0: the label is \['sea'\]; allowed: a name or a whole number"):
        load_data(str(path))
    numbers = {"text": [f"text {i}" for i in range(40)], "label": [i / 7 for i in range(40)]}
    path = save(tmp_path / "numbers", numbers, {"label": {"_type": "Value", "dtype": "float64"}})
    assert load_data(str(path), config=DataConfig(task="regression")).spec.classes == ("y",)
    path = save(tmp_path / "nothing", {**numbers, "label": [None] * 40}, {"label": None})
    with pytest.raises(OdnError, match="row 0: the label is None; allowed"):
        load_data(str(path))


def test_splits_of_other_names_are_named_and_images_with_texts_are_refused(tmp_path, caplog):
    columns = {"text": [f"text {i}" for i in range(30)], "label": ["a", "b", "c"] * 10}
    for name in ("train", "unsupervised"):
        save(tmp_path / "set" / name, columns)
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "unsupervised"]}')
    load_data(str(tmp_path / "set"))
    assert f"{tmp_path / 'set'}: left out unsupervised, which are named for no split" in caplog.messages
    both = save(tmp_path / "both", {**columns, "picture": [b""] * 30}, {"picture": {"_type": "Image"}})
    with pytest.raises(OdnError, match="has images and texts; leave one out with remove_columns"):
        load_data(str(both))


def test_texts_in_splits_are_read(tmp_path):
    columns = {"text": [f"text {i}" for i in range(30)], "label": ["a", "b", "c"] * 10}
    for name in ("train", "validation", "test"):
        save(tmp_path / "set" / name, columns)
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "validation", "test"]}')
    assert holds_texts(str(tmp_path / "set"))
    data = load_data(str(tmp_path / "set"))
    assert (len(data.train), len(data.valid), len(data.test)) == (30, 30, 30)
    assert data.spec.classes == ("a", "b", "c")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sentence": ["x"], "label": [0]}, "has the columns sentence, label; allowed: image,label or text,label"),
        ({"text": ["x"], "labels": [0]}, "has the columns text, labels; allowed: image,label or text,label"),
        ({"text": ["x", " "], "label": [0, 1]}, "data-0.arrow row 1 has an empty text; fill it in or remove the row"),
        ({"text": ["x", None], "label": [0, 1]}, "row 1 has an empty text"),
        ({"text": ["x"], "label": [-1]}, "row 0: the label is None; allowed: a name or a whole number"),
        (
            {"text": pyarrow.array([], "string"), "label": pyarrow.array([], "int64")},
            "data-0.arrow has no rows; add some",
        ),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(tmp_path, refused, columns, message):
    path = save(tmp_path / "set", columns, FEATURES)
    assert message in refused("run", path, "--target", "0.9", "--run", tmp_path / "run", code=1)


def test_damaged_files_are_refused_in_one_line(tmp_path):
    path = save(tmp_path / "set", {"text": ["x"] * 20, "label": ["a", "b"] * 10})
    content = (path / "data-0.arrow").read_bytes()
    (path / "data-0.arrow").write_bytes(content[:100])
    with pytest.raises(OdnError, match=r"data-0.arrow is damaged \(.*\); save the dataset again"):
        load_data(str(path))
    (path / "data-0.arrow").unlink()
    with pytest.raises(OdnError, match=r"data-0.arrow is damaged \(.*\); save the dataset again"):
        load_data(str(path))
    (path / "state.json").write_text("{}")
    with pytest.raises(OdnError, match=r"state.json lists no files; save the dataset again"):
        load_data(str(path))


def test_a_dataset_without_training_data_is_refused(tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["dev"]}')
    with pytest.raises(OdnError, match="has the splits dev; one named train is needed"):
        find_saved(tmp_path)


def test_without_pyarrow_the_command_to_install_it_is_named(tmp_path, monkeypatch, refused):
    path = save(tmp_path / "set", {"text": ["x"] * 20, "label": ["a", "b"] * 10})
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    line = refused("run", path, "--target", "0.9", code=1)
    assert "reading saved datasets needs pyarrow; install it with: pip install 'optimally-deep[datasets]'" in line


def test_what_the_library_itself_saves_is_read(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("datasets", reason="the library itself is not needed to read")
        library.disable_progress_bars()
        images, labels = stripes(30)
        pictures = [Image.fromarray(image) for image in images]
        names = library.ClassLabel(names=["low", "mid", "top"])
        features = library.Features({"image": library.Image(), "label": names})
        made = library.Dataset.from_dict({"image": pictures, "label": labels.tolist()}, features=features)
        made.save_to_disk(str(tmp_path / "one"))
        library.DatasetDict({"train": made, "validation": made}).save_to_disk(str(tmp_path / "dict"))
        (tmp_path / "parquet").mkdir()
        made.to_parquet(str(tmp_path / "parquet" / "train-00000-of-00001.parquet"))
    for name, count in (("one", 30), ("parquet", 30), ("dict", 60)):
        data = load_data(str(tmp_path / name), config=DataConfig(test_fraction=0.3))
        assert data.spec.classes == ("low", "mid", "top")
        assert len(data.train) + len(data.valid) + len(data.test) == count
        known = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
        for image, label in zip(data.train.images, data.train.labels, strict=True):
            assert known[image.numpy().tobytes()] == label

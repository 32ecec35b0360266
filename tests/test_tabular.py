"""Datasets that are listed: tables of paths or texts, and shards."""

import io
import json
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import stripes
from odn.data import load_data
from odn.data.shards import find_shards, read_shards
from odn.errors import OdnError
from odn.saved import holds_texts
from odn.tabular import find_tables, read_rows


def write_csv(path, rows, header="path,label"):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def pictures(folder, count=36):
    images, labels = stripes(count)
    rows = []
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / "files").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "files" / f"{index}.png")
        rows.append((f"files/{index}.png", "abc"[label]))
    return images, rows


def test_a_csv_of_paths_gives_the_images_and_classes_in_order(tmp_path):
    images, rows = pictures(tmp_path)
    data = load_data(str(write_csv(tmp_path / "train.csv", rows)))
    assert data.spec.classes == ("a", "b", "c")
    assert data.spec.input_shape == (1, 8, 8)
    known = {image.tobytes(): label for image, (_, label) in zip(images, rows, strict=True)}
    for split in (data.train, data.valid, data.test):
        for image, label in zip(split.images, split.labels, strict=True):
            assert known[image[0].numpy().tobytes()] == data.spec.classes[label]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_folder_of_tables_brings_its_own_splits(tmp_path, suffix):
    _, rows = pictures(tmp_path)
    for name, part in (("train", rows[:18]), ("val", rows[18:27]), ("test", rows[27:])):
        if suffix == "csv":
            write_csv(tmp_path / f"{name}.csv", part)
        else:
            lines = (json.dumps({"path": path, "label": label, "more": 1}) for path, label in part)
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    data = load_data(str(tmp_path))
    assert (len(data.train), len(data.valid), len(data.test)) == (18, 9, 9)
    assert list(find_tables(tmp_path)) == ["train", "valid", "test"]


@given(
    st.lists(
        st.tuples(st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip), st.sampled_from("ab")),
        min_size=1,
    )
)
def test_what_the_csv_module_writes_is_read_back(tmp_path_factory, rows):
    import csv

    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("label", "text"), *((label, text) for text, label in rows)])
    assert [(row.value, row.label) for row in read_rows(path, "text")] == rows


def test_a_table_says_whether_it_holds_texts(tmp_path):
    assert holds_texts(str(write_csv(tmp_path / "t.csv", [("x", "a")], "text,label")))
    assert not holds_texts(str(write_csv(tmp_path / "p.csv", [("x", "a")])))
    assert not holds_texts("digits")


TEXTS = "text,label\ngood day,a\nbad day,b\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "train.csv has no rows; add some"),
        (b"text,label\n", "train.csv has no rows; add some"),
        (b"sentence,class\nx,a\n", "train.csv has the columns sentence, class; allowed: path,label or text,label"),
        (b"text,path,label\nx,y,a\n", "has the columns text, path, label; allowed"),
        (TEXTS.encode() + b"caf\xe9,a\n", r"train.csv line 4 is not UTF-8 \(byte 0xe9\); save the file as UTF-8"),
        (b"text,label\nx,a\n  ,b\n", "train.csv line 3 has an empty text; fill it in or remove the row"),
        (b"text,label\nx, \n", "train.csv line 2: the label is ' '; allowed: a name or a whole number"),
        (
            b"text,label\na, b,c\n",
            "line 2 has 3 fields, the header has 2; a text with commas or quotes stands in quotes",
        ),
        (b'text,label\n"open,a\n', "train.csv line 2 is damaged .unexpected end of data.; repair it"),
    ],
)
def test_damaged_tables_are_refused_in_one_line(tmp_path, refused, content, message):
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(OdnError, match=message):
        load_data(str(tmp_path))
    refused("run", tmp_path, "--target", "0.9", "--run", tmp_path / "run", code=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "train.jsonl line 2 is not JSON"),
        ("[]", "train.jsonl line 2 is no object; allowed:"),
        ('{"text": "x"}', "train.jsonl line 2 has the columns text; allowed: path,label or text,label"),
        ('{"text": "x", "label": null}', "line 2: the label is None; allowed: a name or a whole number"),
        ('{"text": 3, "label": "a"}', "line 2: 'text' is 3; allowed: a text"),
        ('{"path": "x", "label": "a"}', "line 2 has a path, rows of the training table have a text"),
    ],
)
def test_damaged_lines_of_json_are_refused_by_number(tmp_path, line, message):
    (tmp_path / "train.jsonl").write_text('{"text": "fine", "label": 0}\n' + line)
    with pytest.raises(OdnError, match=message):
        load_data(str(tmp_path))


def test_missing_files_are_counted_and_the_first_is_named(tmp_path, refused):
    _, rows = pictures(tmp_path)
    rows[4] = ("files/gone.png", "a")
    rows[9] = ("x" * 300, "b")
    write_csv(tmp_path / "train.csv", rows)
    line = refused("run", tmp_path, "--target", "0.9", code=1)
    assert "train.csv names 2 of 36 files that are not there, first " in line
    assert "files/gone.png" in line


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_label_that_training_does_not_have_is_refused(tmp_path, split):
    (tmp_path / "train.csv").write_text("text,label\n" + "x,a\ny,b\n" * 4)
    (tmp_path / f"{split}.csv").write_text("text,label\nx,a\ny,new\n")
    with pytest.raises(OdnError, match=rf"{split}.csv line 3 has the label 'new', which the training rows do not have"):
        load_data(str(tmp_path))


def test_two_kinds_of_tables_in_one_folder_are_refused(tmp_path):
    for name in ("train.csv", "train.jsonl"):
        (tmp_path / name).write_text(TEXTS)
    with pytest.raises(OdnError, match=r"holds train.csv and train.jsonl, both for train; keep one of them"):
        load_data(str(tmp_path))


# shards ------------------------------------------------------------------------------------------------------------


def png(image):
    content = io.BytesIO()
    Image.fromarray(image).save(content, "png")
    return content.getvalue()


def write_shard(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(count=24, kind="cls", start=0):
    images, labels = stripes(count, seed=start)
    for index, (image, label) in enumerate(zip(images, labels, strict=True), start):
        yield f"a/{index:04}.png", png(image)
        yield f"a/{index:04}.{kind}", {"cls": b"%d\n" % label, "json": b'{"label": "%d", "x": [1]}' % label}[kind]


@pytest.mark.parametrize("kind", ["cls", "json"])
def test_shards_give_the_images_and_labels_of_their_members(tmp_path, kind):
    write_shard(tmp_path / "s-00.tar", samples(kind=kind))
    write_shard(tmp_path / "s-01.tar", samples(kind=kind, start=24))
    source = read_shards(str(tmp_path / "s-{00..01}.tar"))
    assert source.classes == ("0", "1", "2")
    assert source.train.labels.tolist() == [index % 3 for index in range(48)]
    assert source.train.files[25].read_bytes() == png(stripes(24, seed=24)[0][1])
    data = load_data(str(tmp_path))
    assert len(data.train) + len(data.valid) + len(data.test) == 48
    assert np.unique(data.test.labels).tolist() == [0, 1, 2]


@pytest.mark.parametrize("layout", ["{}/0.tar", "{}-0.tar"])
def test_shards_bring_their_own_splits(tmp_path, layout):
    for start, split in enumerate(("train", "val", "test")):
        write_shard(tmp_path / layout.format(split), samples(12 * (3 - start), start=start))
    data = load_data(str(tmp_path))
    assert (len(data.train), len(data.valid), len(data.test)) == (36, 24, 12)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.png", b"x")], "sample '1' has no label; add KEY.cls, or KEY.json with 'label'"),
        ([("1.png", b"x"), ("1.json", b'{"lable": 3}')], "has no label: 1.json has no 'label'; add it"),
        ([("1.png", b"x"), ("1.json", b"{")], "1.json is damaged"),
        ([("1.png", b"x"), ("1.cls", b"\xff")], "1.cls is damaged"),
        ([("1.png", b"x"), ("1.cls", b" ")], "the label is ' '; allowed: a name or a whole number"),
        ([("1.cls", b"0")], "sample '1' has no images among cls; one is needed, e.g. KEY.jpg"),
        ([("1.png", b"x"), ("1.jpg", b"x"), ("1.cls", b"0")], "sample '1' has 2 images among png, jpg, cls"),
        ([("1.png", b"x"), ("1.png", b"x")], "holds 1.png twice; write the shard again"),
        ([], "holds no samples; leave it out"),
    ],
)
def test_shards_with_odd_samples_are_refused(tmp_path, members, message):
    write_shard(tmp_path / "s.tar", members)
    with pytest.raises(OdnError, match=message):
        load_data(str(tmp_path / "s.tar"))


@pytest.mark.parametrize("length", [4 * 512 - 100, 4 * 512, 4 * 512 + 100, 5 * 512])
def test_a_damaged_or_cut_shard_is_refused(tmp_path, refused, length):
    path = write_shard(tmp_path / "s.tar", samples())
    path.write_bytes(path.read_bytes()[:length])
    line = refused("run", path, "--target", "0.9", code=1)
    assert f"the shard {path} is damaged (" in line
    assert line.endswith("; restore it or leave it out\n")
    path.write_bytes(b"no tar at all" * 100)
    assert "is damaged" in refused("run", path, "--target", "0.9", code=1)


def test_a_link_in_a_shard_is_refused(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        info = tarfile.TarInfo("1.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(OdnError, match=r"holds 1.png, which is no plain file; write the shard again"):
        load_data(str(tmp_path / "s.tar"))


def test_missing_shards_of_a_pattern_are_named(tmp_path):
    write_shard(tmp_path / "s-0.tar", samples())
    with pytest.raises(OdnError, match=r"the shard .*s-1.tar is missing; restore it, or name those that are there"):
        load_data(str(tmp_path / "s-{0..1}.tar"))
    with pytest.raises(OdnError, match=r"asks for shards 5 to 1; allowed: ascending"):
        find_shards(str(tmp_path / "s-{5..1}.tar"))


def test_shards_without_training_data_are_refused(tmp_path):
    write_shard(tmp_path / "test-0.tar", samples())
    with pytest.raises(OdnError, match="has files for test, but none for train; add some"):
        load_data(str(tmp_path))
    write_shard(tmp_path / "train-0.tar", samples())
    write_shard(tmp_path / "other.tar", samples())
    with pytest.raises(OdnError, match=r"other.tar belongs to no split; allowed: names that begin with train, valid"):
        load_data(str(tmp_path))

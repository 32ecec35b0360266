import pytest

from odn.errors import OdnError
from odn.records import append_history, read_history, write_history
from test_stopping import records


def test_history_round_trip(tmp_path):
    path, entries = tmp_path / "history.jsonl", records([900, 910, 920])
    write_history(path, entries[:2])
    append_history(path, entries[2])
    assert read_history(path) == entries


def test_a_missing_history_is_empty(tmp_path):
    assert read_history(tmp_path / "history.jsonl") == []


def test_a_last_line_cut_short_is_dropped(tmp_path):
    path, entries = tmp_path / "history.jsonl", records([900, 910])
    write_history(path, entries)
    path.write_text(path.read_text()[:-20])
    assert read_history(path) == entries[:1]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "history.jsonl"
    write_history(path, records([900, 910]))
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(OdnError, match=r"history\.jsonl, line 1 is damaged"):
        read_history(path)


@pytest.mark.parametrize("line", [b'{"phase": "expand"}\n', b"5\n", b"null\n", b"\xff\n", b"9" * 5000 + b"\n"])
def test_a_record_of_another_shape_is_named(tmp_path, line):
    path = tmp_path / "history.jsonl"
    path.write_bytes(line)
    with pytest.raises(OdnError, match="line 1 is damaged"):
        read_history(path)

import pytest
from benchmarks.fuzz import ATTACKS, MOST_BYTES, assault


@pytest.mark.parametrize("kind", ATTACKS)
def test_damaged_input_is_refused_in_one_line_or_read(kind, tmp_path):
    row = assault(kind, 40, tmp_path, seed=1)
    assert (row["tracebacks"], row["hangs"]) == (0, 0)
    assert row["read"] + row["refused"] == 40
    assert row["refused"] > 0
    assert row["memory_bytes"] < MOST_BYTES

import runpy

from conftest import ROOT


def test_the_one_page_example_finds_a_depth(capsys):
    main = runpy.run_path(str(ROOT / "examples" / "onepage.py"))["main"]
    depth, reached, test_accuracy = main()
    assert reached
    assert 1 <= depth <= 6
    assert test_accuracy > 0.95
    assert f"kept depth {depth} of 6" in capsys.readouterr().out


def test_the_one_page_example_stays_on_one_page():
    assert (ROOT / "examples" / "onepage.py").read_text().count("\n") <= 120


def test_the_time_series_example_cuts_a_network_of_ones_own(capsys):
    main = runpy.run_path(str(ROOT / "examples" / "time_series.py"))["main"]
    result, test_accuracy = main()
    assert result.reached
    assert test_accuracy > 0.9
    assert f"kept depth {result.depth} of 8" in capsys.readouterr().out

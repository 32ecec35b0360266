"""What the documents show runs as they show it."""

import re
import tomllib

import torch

from conftest import ROOT
from odn.defaults import complete
from odn.recipe import RunConfig
from odn.tables import from_table, to_table


def block(path: str, language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", (ROOT / path).read_text(), re.DOTALL).group(1)


def test_the_recipe_page_shows_every_setting_with_its_default(monkeypatch):
    monkeypatch.delenv("ODN_DATA_DIR", raising=False)
    shown = tomllib.loads(block("docs/recipe.md", "toml"))
    defaults = to_table(complete({"dataset": "digits"}))
    assert shown.keys() == defaults.keys()
    for name, value in defaults.items():
        if name == "augment":  # the page shows those of a user's own data
            assert shown[name] == to_table(RunConfig(dataset="x", data_dir="x", backbone="x").augment)
        elif name != "data_dir":
            assert shown[name] == value, name
    from_table(RunConfig, shown)


def test_the_python_example_of_the_readme(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(block("README.md", "python"), "README.md", "exec"), names)
    out = capsys.readouterr().out
    assert names["result"].reached
    assert f"depth {names['result'].depth} of 8" in out
    assert out.count("Prediction(label=") == 3
    assert isinstance(names["small"], torch.nn.Module)
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()


def test_the_readme_names_every_module():
    tree = (ROOT / "README.md").read_text().split("## The code")[1]
    for path in sorted((ROOT / "src" / "odn").iterdir()):
        if path.suffix == ".py" and not path.stem.startswith("__"):
            assert re.search(rf"\b{path.stem}\b", tree), path.stem

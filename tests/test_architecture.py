"""What holds for the code as a whole."""

import ast
import subprocess
import sys

import pytest

from conftest import ROOT

SOURCE = ROOT / "src" / "odn"
# A module imports only from rows above its own; modules that share a row do not import each other.
ROWS = [
    ["errors", "allocator", "launch", "weights", "stopwatch"],
    ["tasks", "split_names"],
    ["tables", "files", "images", "tabular", "command"],
    ["texts", "saved", "gates", "tokenizer_rules"],
    ["runtimes", "tokenizer"],
    ["config", "predictions"],
    ["manifest", "route_record"],
    ["records", "recipe", "batching", "guard", "webpage", "choosing"],
    ["defaults", "metrics"],
    ["losses"],
    ["data", "layers", "measure", "stopping", "schedules", "widths"],
    ["starting", "calibration", "growth"],
    ["outcome"],
    ["backbones", "search", "narrowing", "spec", "catalog"],
    ["curve", "devices"],
    ["partitioned"],
    ["network", "processes"],
    [
        "sharding",
        "rundata",
        "costs",
        "charts",
        "routing_page",
        "pruning",
        "probing",
        "optimizers",
        "distillation",
        "supervision",
    ],
    ["stage", "evaluation", "page"],
    ["engine"],
    ["storage"],
    ["checkpoint", "artifact"],
    ["durable", "rundir", "rivals", "sessions"],
    ["annealing"],
    ["routing", "expansion", "oneshot", "extraction", "compression", "predicting", "runner", "plan", "judging"],
    ["exporting", "benchmark", "service", "trained", "profiling"],
    ["runtime_rows", "routing_report", "serve", "latencies"],
    ["reporting"],
    ["training"],
    ["run", "flags", "display"],
    ["specializing", "routed_artifact"],
    ["survey", "compress_command", "predict_command", "specialize_command", "route_command"],
    ["deploy"],
    ["cli", "__init__"],
    ["__main__"],
]
RANK = {name: row for row, names in enumerate(ROWS) for name in names}
FILES = sorted(SOURCE.rglob("*.py"))


def unit(path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[0]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "odn":
            yield [*node.module.split("."), "__init__"][1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("odn."))


def test_every_module_has_a_row():
    assert {unit(path) for path in FILES} == set(RANK)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_upwards_only(path):
    here = unit(path)
    wrong = [name for name in imports(path) if name != here and RANK[name] >= RANK[here]]
    assert wrong == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_modules_stay_small(path):
    assert path.read_text().count("\n") <= 300


def public_functions():
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            # The docstring of a command is its help text.
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.name[-8:] != "_command":
                yield pytest.param(node, id=f"{unit(path)}.{node.name}")


@pytest.mark.parametrize("function", list(public_functions()))
def test_public_functions_document_arguments_and_result(function):
    text = ast.get_docstring(function) or ""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    for argument in arguments:
        assert f"{argument.arg}:" in text, f"argument {argument.arg} is not described"
    if function.returns is not None and ast.unparse(function.returns) not in ("None", "NoReturn"):
        assert "Returns:" in text or "Yields:" in text


def modules_after(code: str) -> set[str]:
    probe = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_odn_does_not_import_torch():
    assert not {"torch", "numpy", "sklearn", "torchvision"} & modules_after("import odn")


def test_help_does_not_import_torch():
    code = "import contextlib, io\nfrom odn.cli import main\n"
    code += "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main(['--help'])"
    assert not {"torch", "numpy", "matplotlib"} & modules_after(code)


def test_listing_backbones_imports_neither_torch_nor_their_libraries():
    code = "import contextlib, io\nfrom odn.cli import main\n"
    code += "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): "
    code += "main(['backbones', 'resnet', '--json'])"
    assert not {"torch", "timm", "transformers"} & modules_after(code)


def test_the_registry_imports_neither_timm_nor_transformers():
    assert not {"timm", "transformers"} & modules_after("import odn.backbones")


def test_the_public_names_exist_and_are_listed():
    import odn

    assert all(getattr(odn, name) is not None for name in odn.__all__)
    assert set(odn.__all__) <= set(dir(odn))
    with pytest.raises(AttributeError, match="module 'odn' has no attribute 'nothing'"):
        odn.nothing  # noqa: B018


def test_no_module_hides_a_public_function_of_its_name():
    import odn

    modules = {path.stem for path in SOURCE.iterdir()}
    assert not modules & set(odn.__all__)


def test_nothing_is_pickled():
    for path in FILES:
        text = path.read_text()
        assert "import pickle" not in text
        assert "torch.load(" not in text
        assert "torch.save(" not in text
        assert "allow_pickle=True" not in text

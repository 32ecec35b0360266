"""Feed damaged and hostile files to everything that reads one: each must be refused in one line, or be read.

Sound files are made first; then bytes are flipped, cut, doubled and inserted at random, and values of JSON and TOML
files are replaced by extreme ones. Anything but success or an ``OdnError`` is a traceback; more than five seconds is a
hang.
"""

import base64
import contextlib
import functools
import hashlib
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tomli_w
from PIL import Image

import odn
from benchmarks.common import ROOT, Cells, Row, parse, write_page
from odn.checkpoint import Checkpoints
from odn.devices import DeviceTable, check_device, read_device_table, write_device_table
from odn.expansion import expand_epochs
from odn.flags import Flags
from odn.gates import Exit, Route
from odn.images import decode, image_warnings
from odn.predicting import predict_files
from odn.pruning import prune, sizes_of
from odn.records import read_history
from odn.route_record import read_routing
from odn.routing_page import render_routing
from odn.runtimes import routed
from odn.stage import Stage
from odn.starting import Probe, Start, first_depth, read_start, write_start
from odn.storage import load_network, save_network
from odn.tables import to_table

HANG_SECONDS = 5
MOST_BYTES = 1024**3
SIDE, CLASSES = 8, 3
EXTREMES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**12, 10**400, -0.5, 1e308, float("inf"), float("nan"), "", "x" * 10_000,
    "\x00", "../../../etc/passwd", "/etc/passwd", "<script>alert(1)</script>", "\ud800", [], {}, [[]] * 100,
    [1, 2, 3], {"a": {}},
)  # fmt: skip


class Hang(BaseException):
    """More time was taken than a reader may take."""


def corpus(folder: Path) -> None:
    """Make one sound file of every kind.

    Args:
        folder: receives ``artifact`` (ONNX too), ``narrow``, ``run``, ``data.npz``, ``images``, ``recipe.toml``.
    """
    chance = np.random.default_rng(0)
    labels = np.arange(60) % CLASSES
    images = chance.integers(0, 80, (60, SIDE, SIDE)).astype(np.uint8)
    images[np.arange(60), labels * 2] = 255
    np.savez_compressed(folder / "data.npz", x=images, y=labels)
    (folder / "images").mkdir()
    for name, mode in (
        ("a.png", "L"),
        ("b.png", "P"),
        ("c.jpg", "RGB"),
        ("d.gif", "L"),
        ("e.bmp", "RGB"),
        ("f.tif", "I;16"),
    ):
        pixels = images[0].astype(np.uint16) * 200 if mode == "I;16" else images[0]
        image = Image.fromarray(pixels)
        (image if mode == "I;16" else image.convert(mode)).save(folder / "images" / name)
    (folder / "recipe.toml").write_text(
        'dataset = "digits"\nseed = 1\n[data]\nvalid_fraction = 0.1\n[train]\nbatch_size = 16\nprecision = "fp32"\n'
        "[expand]\ntarget_accuracy = 0.9\ndepths = [1, 2]\n[compress]\nwidth = 0.5\nepochs = 3\n"
    )
    data = odn.load_data(str(folder / "data.npz"))
    network = odn.partition("cifar_resnet20", data.spec, width=0.25)
    (folder / "run").mkdir()
    config = odn.ExpandConfig(target_accuracy=0.9999, depths=(1,), epochs_per_depth=2)
    checkpoints = Checkpoints("expand", folder / "run")
    for _ in expand_epochs(network, data.train, data.valid, config=config, checkpoints=checkpoints):
        pass
    small = odn.extract(network, 1).cpu()
    narrow = prune(small, dict.fromkeys(sizes_of(small), 2), data.spec.input_shape)
    save_network(narrow, folder / "narrow")
    config = odn.ExportConfig(to=("onnx",))
    odn.export(narrow, folder / "artifact", data.spec, config=config, train=data.train, valid=data.valid)


def mutate_bytes(content: bytes, chance: random.Random) -> bytes:
    """Damage a file at random.

    Args:
        content: of the sound file.
        chance: the source of randomness.

    Returns:
        The damaged content.
    """
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << chance.randrange(8)
            case 1:
                del data[at:]
            case 2:
                del data[at : at + chance.randrange(1, 64)]
            case 3:
                data[at:at] = chance.randbytes(chance.randrange(1, 64))
            case 4:
                data[at:at] = data[at : at + chance.randrange(1, 256)] * chance.choice((1, 2, 50))
            case _:
                width = chance.choice((1, 2, 4, 8))
                data[at : at + width] = chance.choice((b"\x00", b"\xff", b"\x7f", b"0", b"9")) * width
    return bytes(data)


def mutate_table(table: Any, chance: random.Random) -> Any:
    """Replace, remove or add one value somewhere in a nested table.

    Args:
        table: changed in place.
        chance: the source of randomness.

    Returns:
        The table.
    """
    place = table
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = chance.choice(keys)
        inner = place[key]
        if isinstance(inner, dict | list) and inner and chance.random() < 0.7:
            place = inner
            continue
        match chance.randrange(6):
            case 0:
                del place[key]
            case 1 if isinstance(place, dict):
                place[str(chance.choice(EXTREMES))[:50]] = inner
            case _:
                place[key] = chance.choice(EXTREMES)
        break
    return table


def damaged_json(path: Path, chance: random.Random) -> None:
    """Change a JSON file by value, and mend the checksums that lie in it, so that what reads on is reached.

    Args:
        path: the file; a manifest has its own SHA-256 in it.
        chance: the source of randomness.
    """
    table = mutate_table(json.loads(path.read_text()), chance)
    if path.name == "manifest.json" and isinstance(table, dict) and chance.random() < 0.9:
        table.pop("sha256", None)
        with contextlib.suppress(ValueError):
            table["sha256"] = hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(table), encoding="utf-8", errors="surrogatepass")


def mend_manifest(artifact: Path) -> None:
    """Make the checksums of a manifest fit the files beside it, as an attacker would.

    Args:
        artifact: the directory.
    """
    table = json.loads((artifact / "manifest.json").read_text())
    del table["sha256"]
    table["files"] = {name: hashlib.sha256((artifact / name).read_bytes()).hexdigest() for name in table["files"]}
    table["sha256"] = hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
    (artifact / "manifest.json").write_text(json.dumps(table))


def attack_artifact(folder: Path, chance: random.Random) -> Callable[[], object]:
    """Damage an artifact, half of the time with checksums that fit.

    Args:
        folder: a copy of the corpus.
        chance: the source of randomness.

    Returns:
        What a user would do with it.
    """
    artifact = folder / "artifact"
    path = artifact / chance.choice(("spec.json", "weights.safetensors", "manifest.json"))
    if path.suffix == ".json" and chance.random() < 0.6:
        damaged_json(path, chance)
    else:
        path.write_bytes(mutate_bytes(path.read_bytes(), chance))
    if path.name != "manifest.json" and chance.random() < 0.7:
        mend_manifest(artifact)
    return lambda: odn.load(artifact)


def attack_onnx(folder: Path, chance: random.Random) -> Callable[[], object]:
    """Damage an ONNX file, with checksums that fit: onnxruntime gets to see it.

    Args:
        folder: a copy of the corpus.
        chance: the source of randomness.

    Returns:
        What ``odn predict`` does with it.
    """
    artifact = folder / "artifact"
    path = artifact / "model.onnx"
    path.write_bytes(mutate_bytes(path.read_bytes(), chance))
    mend_manifest(artifact)
    return lambda: list(predict_files(artifact, [folder / "images" / "a.png"], runtime="onnx", threads=1))


def attack_network(folder: Path, chance: random.Random) -> Callable[[], object]:
    """Damage a network's spec and weights, which have no checksums of their own.

    Args:
        folder: a copy of the corpus.
        chance: the source of randomness.

    Returns:
        What reads it.
    """
    kept = chance.choice((folder / "run" / "checkpoints" / "depth_001", folder / "narrow"))
    if chance.random() < 0.6:
        damaged_json(kept / "spec.json", chance)
    else:
        path = kept / "weights.safetensors"
        path.write_bytes(mutate_bytes(path.read_bytes(), chance))
    return lambda: load_network(kept)


def attack_state(folder: Path, chance: random.Random) -> Callable[[], object]:
    """Damage one or both training states, or the history.

    Args:
        folder: a copy of the corpus.
        chance: the source of randomness.

    Returns:
        What ``--resume`` does with them.
    """
    run = folder / "run"
    states = [run / "checkpoints" / name for name in ("expand.safetensors", "expand.previous.safetensors")]
    for path in chance.choice(((states[0],), (states[1],), tuple(states), (run / "history.jsonl",))):
        path.write_bytes(mutate_bytes(path.read_bytes(), chance))

    def resume() -> None:
        checkpoints = Checkpoints("expand", run, resume=True)
        data = odn.load_data(str(folder / "data.npz"))
        network = odn.partition("cifar_resnet20", data.spec, width=0.25)
        if checkpoints.position is not None:
            checkpoints.restore(Stage(network.trunk(checkpoints.position.depth), odn.TrainConfig(), data.train))

    return resume


def attack_start(folder: Path, chance: random.Random) -> Callable[[], object]:
    """Damage weights to start from, or what a run knows of those that it started from.

    Args:
        folder: a copy of the corpus.
        chance: the source of randomness.

    Returns:
        What reads it.
    """
    if chance.random() < 0.5:
        path = folder / "run" / "checkpoints" / "depth_001" / "weights.safetensors"
        path.write_bytes(mutate_bytes(path.read_bytes(), chance))
        data = odn.load_data(str(folder / "data.npz"))
        return lambda: odn.partition("cifar_resnet20", data.spec, width=0.25, weights=path)
    probes = tuple(Probe(depth=depth, valid_correct=depth, valid_count=12) for depth in (1, 2, 4))
    write_start(Start(source="x", blocks=9, probes=probes, depth=4, images=60), folder / "run")
    path = folder / "run" / "start.json"
    if chance.random() < 0.6:
        damaged_json(path, chance)
    else:
        path.write_bytes(mutate_bytes(path.read_bytes(), chance))

    def resume() -> None:
        start = read_start(folder / "run")
        first_depth(start, range(1, 10), odn.ExpandConfig())
        if start is not None:
            start.macs(range(1, 10))

    return resume


def attack_device(folder: Path, chance: random.Random) -> Callable[[], object]:
    """Damage a device table.

    Args:
        folder: a copy of the corpus.
        chance: the source of randomness.

    Returns:
        What reads it and predicts by it.
    """
    path = folder / "device.json"
    table = DeviceTable(
        backbone="cifar_resnet20",
        width=0.25,
        input_shape=(1, SIDE, SIDE),
        classes=CLASSES,
        runtime="onnx",
        threads=1,
        machine={"processor": "a processor"},
        versions={"onnxruntime": "1.0"},
        date="2026-01-01T00:00:00+00:00",
        call_ms=0.01,
        stem_ms=0.1,
        blocks_ms=(0.2,) * 9,
        heads_ms=(0.05,) * 9,
        whole_ms={"1": 0.3, "9": 1.5},
        held_out_ms={"3": 0.6, "5": 0.9},
    )
    write_device_table(table, path)
    damaged_json(path, chance) if chance.random() < 0.7 else path.write_bytes(mutate_bytes(path.read_bytes(), chance))

    def predict() -> None:
        found = read_device_table(path)
        found.check()
        spec = odn.NetworkSpec(
            backbone="cifar_resnet20", width=0.25, input_shape=(1, SIDE, SIDE), classes=CLASSES, depth=1
        )
        check_device(found, spec, 9)
        for depth in range(1, 10):
            found.predict_ms(depth)

    return predict


def attack_routed(folder: Path, chance: random.Random) -> Callable[[], object]:
    """Damage stages with exits, mostly with checksums that fit, or what calibration left in a run.

    Args:
        folder: a copy of the corpus.
        chance: the source of randomness.

    Returns:
        What runs them, or reads and shows that.
    """
    directory = folder / "stages"
    write_toy_stages(directory)
    if chance.random() < 0.3:
        route = json.loads((directory / "routed.json").read_text())["route"]
        figures = dict.fromkeys(("accuracy", "full_accuracy", "static_accuracy"), 0.9)
        costs = dict.fromkeys(("mean_cost", "full_cost", "static_cost", "seconds"), 5.0)
        known = {"samples": 100, "static_depth": 2, "costs": [1.0, 2.0], "unit": "macs", "worthwhile": True}
        path = folder / "run" / "routing.json"
        path.write_text(json.dumps({**route, **figures, **costs, **known}))
        damaged_json(path, chance)
        return lambda: render_routing({**to_table(read_routing(folder / "run")), "test": None}, ())
    path = directory / chance.choice(("routed.json", "routed/stage_1.onnx", "routed/stage_2.onnx"))
    if path.suffix == ".json" and chance.random() < 0.7:
        damaged_json(path, chance)
    else:
        path.write_bytes(mutate_bytes(path.read_bytes(), chance))
    if path.suffix == ".onnx" and chance.random() < 0.8:
        table = json.loads((directory / "routed.json").read_text())
        table["sha256"] = [hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in table["files"]]
        (directory / "routed.json").write_text(json.dumps(table))
    return lambda: routed.open_chain(directory, 1)(np.zeros((5, 1, SIDE, SIDE), np.uint8))


def write_toy_stages(directory: Path) -> None:
    """Write the smallest chain with an exit: two linear heads on the pixels.

    Args:
        directory: receives ``routed.json`` and the stages.
    """
    size = SIDE * SIDE
    weights = np.random.default_rng(0).normal(size=(size, CLASSES)).astype(np.float32)
    head = onnx.helper.make_node("MatMul", ["features", "w"], ["logits"])
    first = [
        onnx.helper.make_node("Cast", ["images"], ["pixels"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Flatten", ["pixels"], ["features"]),
        head,
    ]
    floats, logits = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", width])
        for name, width in (("features", size), ("logits", CLASSES))
    )
    images = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["n", 1, SIDE, SIDE])
    (directory / "routed").mkdir(parents=True)
    names = ("routed/stage_1.onnx", "routed/stage_2.onnx")
    for name, nodes, given, gives in (
        (names[0], first, images, [floats, logits]),
        (names[1], [head], floats, [logits]),
    ):
        graph = onnx.helper.make_graph(nodes, "toy", [given], gives, [onnx.numpy_helper.from_array(weights, "w")])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
        (directory / name).write_bytes(model.SerializeToString())
    route = Route(policy="margin", exits=(Exit(depth=1, temperature=1.0, threshold=0.5),), last=2)
    sums = tuple(hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in names)
    stages = routed.Stages(route=route, files=names, sha256=sums)
    (directory / "routed.json").write_text(json.dumps(to_table(stages)))


def attack_history(folder: Path, chance: random.Random) -> Callable[[], object]:
    """Damage the history of a run, by bytes or by value.

    Args:
        folder: a copy of the corpus.
        chance: the source of randomness.

    Returns:
        What reads it.
    """
    path = folder / "run" / "history.jsonl"
    if chance.random() < 0.5:
        lines = [json.dumps(mutate_table(json.loads(line), chance)) for line in path.read_text().splitlines()]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_bytes(mutate_bytes(path.read_bytes(), chance))
    return lambda: read_history(path)


def attack_archive(folder: Path, chance: random.Random) -> Callable[[], object]:
    """Damage an ``.npz`` file, or fill a sound one with odd arrays.

    Args:
        folder: a copy of the corpus.
        chance: the source of randomness.

    Returns:
        What reads it.
    """
    path = folder / "data.npz"
    if chance.random() < 0.7:
        path.write_bytes(mutate_bytes(path.read_bytes(), chance))
    else:
        shape = tuple(chance.choice((0, 1, 2, 3, 8, 60)) for _ in range(chance.randrange(5)))
        kind = chance.choice(("u1", "i8", "f2", "f4", "f8", "c8", "U5", "S5", "M8[s]", "?"))
        arrays = dict(np.load(path))
        arrays[chance.choice(("x", "y", "x_train", "y_train", "x_test", "y_test"))] = np.zeros(shape, kind)
        np.savez_compressed(path, **arrays)
    return lambda: odn.load_data(str(path)).test


def attack_image(folder: Path, chance: random.Random) -> Callable[[], object]:
    """Damage an image file.

    Args:
        folder: a copy of the corpus.
        chance: the source of randomness.

    Returns:
        What decodes it.
    """
    path = chance.choice(sorted((folder / "images").iterdir()))
    path.write_bytes(mutate_bytes(path.read_bytes(), chance))

    def read() -> None:
        with image_warnings():
            decode(path, (chance.choice((1, 3)), SIDE, SIDE))

    return read


def attack_recipe(folder: Path, chance: random.Random) -> Callable[[], object]:
    """Damage a recipe, by bytes or by value.

    Args:
        folder: a copy of the corpus.
        chance: the source of randomness.

    Returns:
        What reads it.
    """
    import tomllib

    path = folder / "recipe.toml"
    if chance.random() < 0.5:
        path.write_bytes(mutate_bytes(path.read_bytes(), chance))
    else:
        table = mutate_table(tomllib.loads(path.read_text()), chance)
        with contextlib.suppress(TypeError, ValueError):  # TOML has no null
            path.write_text(tomli_w.dumps(table), encoding="utf-8", errors="surrogatepass")
    return lambda: Flags(config=path).settle(None)


def attack_request(folder: Path, chance: random.Random) -> Callable[[], object]:
    """Damage a request to ``odn serve``: its body, an image in it, or what it says of itself.

    Args:
        folder: a copy of the corpus.
        chance: the source of randomness.

    Returns:
        What sends it, and demands an answer that is a prediction or a refusal.
    """
    path = chance.choice(sorted((folder / "images").iterdir()))
    image = mutate_bytes(path.read_bytes(), chance) if chance.random() < 0.5 else path.read_bytes()
    if chance.random() < 0.5:
        kind, table = "application/json", {"images": [base64.b64encode(image).decode()]}
        body = json.dumps(mutate_table(table, chance) if chance.random() < 0.5 else table, default=str).encode()
    else:
        kind = "multipart/form-data; boundary=b"
        head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'
        body = head.encode() + image + b"\r\n--b--\r\n"
    if chance.random() < 0.5:
        body = mutate_bytes(body, chance)
    if chance.random() < 0.1:
        kind = str(chance.choice(EXTREMES))[:100].encode("ascii", "replace").decode()

    def send() -> None:
        answer = _client(folder.parent / "sound" / "artifact").post(
            "/predict", content=body, headers={"content-type": kind}
        )
        if answer.status_code >= 500 or not isinstance(answer.json(), dict):
            raise AssertionError(f"{answer.status_code} {answer.text[:200]}")
        if answer.status_code != 200:
            raise odn.OdnError(answer.json()["error"]["message"])

    return send


@functools.cache
def _client(artifact: Path) -> Any:
    from fastapi.testclient import TestClient

    from odn.guard import Limits
    from odn.serve import build_app

    client = TestClient(build_app(artifact, limits=Limits(request_bytes=100_000, pixels=10_000)))
    client.__enter__()  # it works as long as this process does
    return client


ATTACKS = {
    "artifact": attack_artifact,
    "onnx": attack_onnx,
    "network": attack_network,
    "state": attack_state,
    "start": attack_start,
    "device": attack_device,
    "routed": attack_routed,
    "history": attack_history,
    "npz": attack_archive,
    "image": attack_image,
    "recipe": attack_recipe,
    "request": attack_request,
}


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Interrupt what takes too long.

    Yields:
        Nothing.
    """

    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def assault(kind: str, count: int, keep: Path | None = None, seed: int = 0) -> Row:
    """Attack one reader.

    Args:
        kind: which one.
        count: damaged inputs.
        keep: receives the inputs that were not refused as they should be.
        seed: of the damage.

    Returns:
        How the inputs were met.
    """
    met: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        sound, copy = Path(temporary) / "sound", Path(temporary) / "copy"
        sound.mkdir()
        corpus(sound)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(count):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(sound, copy)
            use = ATTACKS[kind](copy, random.Random(f"{seed}/{kind}/{number}"))
            try:
                with limited():
                    use()
                met["read"] += 1
            except odn.OdnError as error:
                met["refused" if "\n" not in str(error) else "tracebacks"] += 1
                continue
            except Hang:
                met["hangs"] += 1
            except Exception:
                met["tracebacks"] += 1
                print(f"{kind} {number}:", traceback.format_exc(), file=sys.stderr, flush=True)
            else:
                continue
            if keep is not None:
                shutil.copytree(copy, keep / f"{kind}-{number}", dirs_exist_ok=True)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    names = ("read", "refused", "tracebacks", "hangs")
    return {"inputs": count, **{name: met[name] for name in names}, "memory_bytes": 1024 * (after - before)}


def summarise(rows: list[Row]) -> Row:
    """Compute the figures of the contract.

    Args:
        rows: of all cells.

    Returns:
        Figure by name.
    """
    return {name: sum(row[name] for row in rows) for name in ("inputs", "tracebacks", "hangs")}


def main() -> None:
    """Attack every reader, then print and write the page."""
    options = parse("fuzz", __doc__ or "")
    cells = Cells(options, summarise)
    keep = ROOT / "runs" / "fuzz"
    count = 50 if options.quick else 1200
    for kind in ATTACKS:
        cells.run({"kind": kind}, partial(assault, kind, count, keep))
    cells.save()
    summary = summarise(cells.rows)
    summary["memory_bytes_max"] = max(row["memory_bytes"] for row in cells.rows)
    wanted = {"inputs": ">= 10,000", "tracebacks": "0", "hangs": "0", "memory_bytes_max": f"<= {MOST_BYTES:,}"}
    bars: list[Row] = [{"figure": name, "bar": bar, "measured": summary[name]} for name, bar in wanted.items()]
    text = (
        "Damaged and hostile files against everything that reads one. `read` are those that were still sound, or sound "
        "again; `refused` got one line. `memory_bytes` is how much the process grew at its peak."
    )
    columns = ("kind", "inputs", "read", "refused", "tracebacks", "hangs", "memory_bytes", "commit")
    write_page(cells.path, "Fuzz: damaged and hostile input", text, bars, cells.rows, columns)


if __name__ == "__main__":
    main()

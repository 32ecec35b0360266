"""What several tests share: small data made on the spot, the command, and real data where it is at hand."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from odn.cli import main
from odn.config import AugmentConfig, ExportConfig
from odn.data import Data, DataSpec, TensorSplit
from odn.exporting import export
from odn.images import Preprocessing

ROOT = Path(__file__).parents[1]
# How long an example takes says something of the machine, nothing of the code.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with MNIST and Fashion-MNIST in torchvision's layout."""
    candidates = [os.environ.get("ODN_DATA_DIR"), ROOT.parent / "shared" / "data"]
    for candidate in candidates:
        if candidate and (Path(candidate) / "MNIST" / "raw").is_dir():
            return Path(candidate)
    pytest.skip("MNIST is not at hand: set ODN_DATA_DIR to the folder that holds MNIST/raw")


@pytest.fixture
def odn(capsys):
    """Run the command in this process; returns (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return exit_.value.code, out, err

    return run


@pytest.fixture
def refused(odn):
    """Run the command, and check that it fails with one line on stderr and without a traceback."""

    def run(*arguments: object, code: int) -> str:
        got, out, err = odn(*arguments)
        assert got == code, (got, err)
        assert out == ""
        assert err.startswith("odn: ")
        assert err.count("\n") == 1, err
        return err

    return run


def stripes(count: int, *, classes: int = 3, side: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Easy images: class k is a bright horizontal band at its own height, on noise. uint8 (N, side, side)."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = generator.integers(0, 120, (count, side, side), dtype=np.uint8)
    band = side // classes
    for image, label in zip(images, labels, strict=True):
        image[label * band : (label + 1) * band] += 100
    return images, labels.astype(np.int64)


def tiny_data(train: int = 192, valid: int = 96, *, classes: int = 3, side: int = 8) -> Data:
    """A dataset of stripes, split."""

    def split(count: int, seed: int) -> TensorSplit:
        images, labels = stripes(count, classes=classes, side=side, seed=seed)
        return TensorSplit(torch.from_numpy(images)[:, None], torch.from_numpy(labels), spec)

    spec = DataSpec(
        name="stripes",
        classes=tuple("abcdefghij"[:classes]),
        preprocessing=Preprocessing(input_shape=(1, side, side), mean=(0.36,), std=(0.23,)),
        train_count=train,
        valid_count=valid,
        seed=0,
        augment=AugmentConfig(shift=0.0),
    )
    return Data(split(train, 1), split(valid, 2), spec, lambda: split(96, 3))


@pytest.fixture
def npz(tmp_path) -> Path:
    """A dataset of stripes as an archive with a test split."""
    x, y = stripes(240)
    x_test, y_test = stripes(60, seed=9)
    path = tmp_path / "stripes.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture
def hopeless(tmp_path) -> Path:
    """An archive like ``npz`` whose labels say nothing of the images: targets well above a third are missed."""
    x, y = stripes(240)
    path = tmp_path / "hopeless.npz"
    shuffled = np.random.default_rng(0).permutation(y)
    np.savez(path, x_train=x, y_train=shuffled, x_test=x[:60], y_test=shuffled[:60])
    return path


@pytest.fixture(scope="session")
def network():
    """A small network that tells stripes apart; not to be changed."""
    import odn as library

    data = tiny_data()
    small = library.extract(library.partition("cifar_resnet20", data.spec, width=0.5, seed=0), 8)
    library.finetune(small, data.train, data.valid, config=library.FinetuneConfig(epochs=10))
    return small.cpu().eval()


@pytest.fixture(scope="session")
def deployed(network, tmp_path_factory) -> Path:
    """Its artifact with onnx and int8 files; not to be changed."""
    pytest.importorskip("onnxruntime", reason="needs the extra onnx: pip install 'optimally-deep[onnx]'")
    data = tiny_data()
    config = ExportConfig(to=("int8", "onnx"))
    directory = tmp_path_factory.mktemp("deployed") / "artifact"
    return export(network, directory, data.spec, config=config, train=data.train, valid=data.valid)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of 70 stripes as PNG files, in two sub-folders, and one hidden file."""
    folder = tmp_path_factory.mktemp("pictures")
    for index, image in enumerate(stripes(70, seed=4)[0]):
        path = folder / f"{index % 2}" / f"{index:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    (folder / ".hidden").write_text("no image")
    return folder


WORDS = {"fruit": ("apple", "pear", "plum"), "tool": ("hammer", "saw", "drill"), "sea": ("wave", "tide", "reef")}
FILLERS = ["the", "a", "some", "my", "your", "of", "with", "near", "under", "very", "big", "small"]


def sentences(count, seed):
    """Easy texts: one word among fillers tells the class."""
    draw = random.Random(seed)
    for index in range(count):
        label = list(WORDS)[index % 3]
        words = draw.choices(FILLERS, k=draw.randint(2, 8))
        words.insert(draw.randrange(len(words)), draw.choice(WORDS[label]))
        yield " ".join(words), label


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "sentences"
    folder.mkdir()
    for seed, (name, count) in enumerate((("train", 320), ("valid", 60), ("test", 60))):
        lines = (json.dumps({"text": text, "label": label}) for text, label in sentences(count, seed))
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder

import contextlib
import dataclasses
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import stripes
from odn.config import AugmentConfig, DataConfig
from odn.data import FileSplit, derive_seed, load_data, plain_batches, training_batches
from odn.data.dividing import stratified_subset
from odn.data.npz import read_npz
from odn.data.splits import TensorSplit
from odn.errors import OdnError, UsageError

CPU = torch.device("cpu")


def image_folder(root, *, side=12, count=12, mode="L", classes=3):
    images, labels = stripes(count * classes, classes=classes, side=side)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / f"class_{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).convert(mode).save(folder / f"{index:03d}.png")
    return root


def test_digits_are_split_stratified_and_disjoint():
    data = load_data("digits")
    assert (len(data.train), len(data.valid), len(data.test)) == (1150, 288, 359)
    share = torch.bincount(data.train.labels) / len(data.train)
    for split in (data.valid, data.test):
        assert torch.allclose(torch.bincount(split.labels) / len(split), share, atol=0.01)


def test_the_seed_changes_the_validation_split_but_not_the_test_split():
    first, second = load_data("digits", seed=0), load_data("digits", seed=1)
    assert not torch.equal(first.valid.labels, second.valid.labels)
    assert torch.equal(first.test.images, second.test.images)
    assert torch.equal(load_data("digits", seed=1).train.images, second.train.images)


def test_no_image_is_in_two_splits(npz):
    x = np.arange(300, dtype=np.int64)
    unique = np.stack([x // 256, x % 256, x * 0, x * 0], axis=1).astype(np.uint8).reshape(-1, 2, 2)
    np.savez(npz, x=unique, y=x % 3)
    data = load_data(str(npz))
    seen = [tuple(image.flatten().tolist()) for s in (data.train, data.valid, data.test) for image in s.images]
    assert len(seen) == len(set(seen)) == 300


def test_normalisation_comes_from_the_training_split_alone(npz):
    data = load_data(str(npz))
    pixels = data.train.images.double() / 255
    assert data.spec.preprocessing.mean == pytest.approx([pixels.mean().item()])
    assert data.spec.preprocessing.std == pytest.approx([pixels.std(correction=0).item()])
    x = torch.cat([x for x, _ in plain_batches(data.train, 64, CPU)])
    assert abs(x.mean()) < 1e-5
    assert abs(x.std() - 1) < 1e-3


def test_the_test_split_is_not_read_before_it_is_asked_for(tmp_path, monkeypatch):
    root = image_folder(tmp_path / "own" / "train")
    image_folder(tmp_path / "own" / "test")
    opened = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda path, **rest: opened.append(str(path)) or original(path, **rest))
    data = load_data(str(root.parent))
    assert opened
    assert not [path for path in opened if "/test/" in path]
    assert len(data.test) == 36
    assert [path for path in opened if "/test/" in path]


def test_train_limit_keeps_every_class_and_its_share(data_dir):
    data = load_data("mnist", data_dir=data_dir, config=DataConfig(train_limit=1000))
    full = load_data("mnist", data_dir=data_dir)
    assert (len(data.train), len(data.valid), len(full.train), len(full.valid)) == (1000, 1000, 54000, 6000)
    share = torch.bincount(full.train.labels) / len(full.train)
    assert torch.allclose(torch.bincount(data.train.labels) / 1000, share, atol=0.005)


def test_stratified_subset_takes_one_of_each_class_first():
    labels = np.array([0] * 97 + [1, 2, 3])
    chosen = stratified_subset(labels, 4, seed=0)
    assert sorted(labels[chosen]) == [0, 1, 2, 3]
    assert len(set(stratified_subset(labels, 50, seed=0))) == 50


def test_a_limit_below_the_number_of_classes_is_refused():
    with pytest.raises(UsageError, match="--train-limit is 5 but digits has 10 classes"):
        load_data("digits", config=DataConfig(train_limit=5))


def test_training_batches_repeat_for_a_seed_and_differ_between_seeds():
    data = load_data("digits")

    def epoch(seed):
        return torch.cat([x for x, _ in training_batches(data.train, 64, CPU, seed=seed)])

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))
    assert len(epoch(1)) == 1150 // 64 * 64


def test_plain_batches_visit_everything_in_order_or_a_fixed_subset():
    data = load_data("digits")
    labels = torch.cat([y for _, y in plain_batches(data.valid, 50, CPU)])
    assert torch.equal(labels, data.valid.labels)
    first, second = (torch.cat([y for _, y in plain_batches(data.train, 50, CPU, count=99)]) for _ in range(2))
    assert torch.equal(first, second)
    assert len(first) == 99


def test_derived_seeds_differ_by_every_part():
    seeds = {derive_seed(0, "a"), derive_seed(0, "b"), derive_seed(1, "a"), derive_seed(0, "a", 1), derive_seed(0)}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


# npz ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW"])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_npz_layouts_and_types_mean_the_same(tmp_path, layout, kind):
    x, y = stripes(120, side=6)
    x = x if kind == np.uint8 else (x / 255).astype(np.float32)
    shaped = {"NHW": x, "NHWC": x[..., None].repeat(3, -1), "NCHW": x[:, None]}[layout]
    np.savez(tmp_path / "a.npz", x_train=shaped, y_train=y)
    data = load_data(str(tmp_path / "a.npz"))
    assert data.spec.input_shape == ((3, 6, 6) if layout == "NHWC" else (1, 6, 6))
    reference = {image.tobytes() for image in stripes(120, side=6)[0]}
    assert {image[0].numpy().tobytes() for image in data.train.images} <= reference


def test_npz_with_one_pool_and_text_labels(tmp_path):
    x, y = stripes(120)
    np.savez(tmp_path / "pool.npz", X=x, y=np.array(["low", "mid", "top"])[y])
    data = load_data(str(tmp_path / "pool.npz"))
    assert data.spec.classes == ("low", "mid", "top")
    assert len(data.train) + len(data.valid) + len(data.test) == 120


def test_whole_numbers_count_the_classes_that_an_archive_names(tmp_path):
    x, y = stripes(120)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y, classes=["low", "mid", "top"])
    data = load_data(str(tmp_path / "a.npz"))
    assert data.spec.classes == ("low", "mid", "top")
    assert data.test.labels.tolist() == y.tolist()


X, Y = stripes(60)
NAN = X.astype(np.float32) / 255
NAN[7, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": X[:0], "y_train": Y[:0]}, "x_train has no images; add some"),
        ({"x_train": X, "y_train": Y, "x_test": X[:0], "y_test": Y[:0]}, "x_test has no images; add some or leave it"),
        ({"x_train": X}, "holds x_train; allowed: x_train and y_train"),
        ({"x_train": X, "y_train": Y[:-1]}, r"y_train is int64 of shape \(59,\); allowed: one entry per image, 60"),
        ({"x_train": X, "y_train": Y.astype(np.float32)}, "y_train is float32"),
        ({"x_train": X, "y_train": Y[:, None]}, r"y_train is int64 of shape \(60, 1\)"),
        ({"x_train": X.astype(np.int32), "y_train": Y}, "x_train is int32; allowed: uint8, or floats in"),
        ({"x_train": X.astype(np.float32), "y_train": Y}, "x_train is float32 from .* to .*; allowed: uint8"),
        ({"x_train": NAN, "y_train": Y}, "x_train has NaN or infinite values, first in image 7"),
        ({"x_train": X[0], "y_train": Y}, r"x_train has shape \(8, 8\); allowed: \(N, H, W\)"),
        ({"x_train": X[:, None].repeat(2, 1), "y_train": Y}, r"x_train has shape \(60, 2, 8, 8\)"),
        ({"x_train": X, "y_train": Y * 0}, "has 1 class .0.; a classifier needs two or more"),
        ({"x_train": X[:2], "y_train": Y[:2]}, "has 1 training images; 3 or more"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "holds only one of x_test and y_test"),
        ({"x_train": X, "y_train": Y, "x_test": X[:, :4], "y_test": Y}, "x_test has images of shape"),
        (
            {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y + 1},
            "y_test has the label '3', which is not one of",
        ),
        (
            {"x_train": X, "y_train": Y + 1, "x_test": X, "y_test": Y},
            "y_test has the label '0', which is not one of",
        ),
        (
            {"x_train": X, "y_train": np.array([0, 1, 3])[Y], "x_test": X, "y_test": Y},
            "y_test has the label '2', which is not one of",
        ),
        ({"x_train": X, "y_train": np.array([object()] * 60)}, "without pickled objects"),
    ],
)
def test_wrong_archives_are_explained(tmp_path, arrays, message):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays, allow_pickle=True)
    with pytest.raises(OdnError, match=message):
        load_data(str(path))


@pytest.mark.parametrize("kind", ["text", "array", "flipped", "cut"])
def test_a_file_that_is_no_archive_is_explained(tmp_path, kind):
    path = tmp_path / "bad.npz"
    np.savez_compressed(path, x_train=X, y_train=Y)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 3] ^= 255
    if kind == "array":
        with path.open("wb") as file:
            np.save(file, X)
    else:
        path.write_bytes({"text": b"no zip", "flipped": bytes(whole), "cut": bytes(whole[: len(whole) // 2])}[kind])
    with pytest.raises(OdnError, match="cannot read .*bad.npz"):
        load_data(str(path))


# folders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("1", 1)])
def test_folders_of_any_mode(tmp_path, mode, channels):
    data = load_data(str(image_folder(tmp_path / "own", mode=mode)))
    assert data.spec.input_shape == (channels, 12, 12)
    assert data.spec.classes == ("class_0", "class_1", "class_2")
    assert len(data.train) + len(data.valid) + len(data.test) == 36


def test_class_names_and_files_are_sorted_whatever_the_disk_lists_first(tmp_path, monkeypatch):
    image_folder(tmp_path, classes=4)
    expected = load_data(str(tmp_path)).train
    listed = type(tmp_path).iterdir, os.scandir
    monkeypatch.setattr(type(tmp_path), "iterdir", lambda path: reversed(list(listed[0](path))))
    monkeypatch.setattr(os, "scandir", lambda path: contextlib.nullcontext(reversed(list(listed[1](path)))))
    train = load_data(str(tmp_path)).train
    assert train.spec.classes == tuple(f"class_{label}" for label in range(4))
    assert torch.equal(train.images, expected.images)


def test_folder_with_its_own_splits(tmp_path):
    for name, count in (("train", 12), ("valid", 5), ("test", 4)):
        image_folder(tmp_path / "own" / name, count=count)
    data = load_data(str(tmp_path / "own"))
    assert (len(data.train), len(data.valid), len(data.test)) == (36, 15, 12)


def test_a_test_folder_need_not_show_every_class(tmp_path):
    image_folder(tmp_path / "own" / "train")
    image_folder(tmp_path / "own" / "test", classes=2)
    data = load_data(str(tmp_path / "own"))
    assert set(data.test.labels.tolist()) == {0, 1}
    assert data.spec.classes == ("class_0", "class_1", "class_2")


def test_16_bit_images_keep_their_upper_bits(tmp_path):
    from odn.images import decode

    samples = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(samples).save(tmp_path / "deep.png")
    assert np.array_equal(decode(tmp_path / "deep.png", (1, 8, 8))[0], samples >> 8)
    Image.fromarray(np.full((8, 8), 200, np.uint16)).save(tmp_path / "dark.png")
    assert decode(tmp_path / "dark.png", (1, 8, 8)).max() == 0


def test_a_decompression_bomb_is_a_bad_image(tmp_path, monkeypatch):
    root = image_folder(tmp_path / "own")
    Image.new("L", (40, 40)).save(root / "class_0" / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(OdnError, match=r"bomb\.png is not a readable image .*decompression bomb"):
        load_data(str(root))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(OdnError, match="is not a readable image .*decompression bomb"):
        load_data(str(root))


def test_streamed_and_resident_folders_give_the_same_batches(tmp_path):
    root = str(image_folder(tmp_path / "own", mode="RGB"))
    resident = load_data(root)
    streamed = load_data(root, config=DataConfig(resident_bytes=0, workers=2))
    assert isinstance(resident.train, TensorSplit)
    assert isinstance(streamed.train, FileSplit)
    assert dataclasses.asdict(streamed.spec) == dataclasses.asdict(resident.spec)
    for one, two in zip(
        training_batches(resident.train, 8, CPU, seed=3), training_batches(streamed.train, 8, CPU, seed=3), strict=True
    ):
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])


def test_mixed_sizes_need_an_image_size(tmp_path):
    root = image_folder(tmp_path / "own")
    Image.new("L", (20, 10)).save(root / "class_0" / "odd.png")
    with pytest.raises(OdnError, match=r"images differ in size: .* 12x12 pixels, .* 10x20.*--image-size 64"):
        load_data(str(root))
    assert load_data(str(root), config=DataConfig(image_size=16)).spec.input_shape == (1, 16, 16)


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_unreadable_files_are_named_and_skipped_only_on_request(tmp_path, content, caplog):
    root = image_folder(tmp_path / "own")
    bad = root / "class_1" / "bad.png"
    whole = (root / "class_1" / "001.png").read_bytes()
    bad.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(OdnError, match=r"bad\.png is not a readable image \(.*\); .*--skip-bad-files"):
        load_data(str(root))
    data = load_data(str(root), config=DataConfig(skip_bad_files=True))
    assert len(data.train) + len(data.valid) + len(data.test) == 36
    assert "bad.png" in caplog.text


def test_a_streamed_file_that_goes_bad_is_named(tmp_path):
    data = load_data(str(image_folder(tmp_path / "own")), config=DataConfig(resident_bytes=0, workers=1))
    data.train.paths[3].write_bytes(b"gone")
    with pytest.raises(OdnError, match="is not a readable image"):
        list(plain_batches(data.train, 4, CPU))


def test_a_split_without_a_readable_file_is_named(tmp_path):
    image_folder(tmp_path / "own" / "train")
    for path in image_folder(tmp_path / "own" / "test", count=2).rglob("*.png"):
        path.write_bytes(b"bad")
    data = load_data(str(tmp_path / "own"), config=DataConfig(skip_bad_files=True))
    with pytest.raises(OdnError, match="none of 6 files is a readable image"):
        data.test  # noqa: B018


def test_empty_folders_and_classes_are_named(tmp_path):
    with pytest.raises(OdnError, match="has no class folders; put the images of each class"):
        load_data(str(tmp_path))
    root = image_folder(tmp_path / "own")
    (root / "class_9").mkdir()
    with pytest.raises(OdnError, match=r"the class folder .*class_9 has no image"):
        load_data(str(root))


def test_one_class_is_refused(tmp_path):
    with pytest.raises(OdnError, match="has 1 class .*; a classifier needs two or more"):
        load_data(str(image_folder(tmp_path / "own", classes=1)))


def test_fewer_images_than_a_split_needs_are_refused(tmp_path):
    with pytest.raises(OdnError, match="class 'class_0' has 1 training images; 3 or more are needed"):
        load_data(str(image_folder(tmp_path / "own", count=1)))


def test_a_class_of_the_test_folder_alone_is_refused(tmp_path):
    image_folder(tmp_path / "own" / "train")
    image_folder(tmp_path / "own" / "test", classes=4)
    with pytest.raises(OdnError, match="has the class 'class_3', which the training images do not have"):
        load_data(str(tmp_path / "own"))


# names -------------------------------------------------------------------------------------------------------------


def test_unknown_names_get_a_suggestion():
    with pytest.raises(
        UsageError, match=r"unknown dataset 'fashon-mnist'; allowed: digits.*Did you mean 'fashion-mnist'"
    ):
        load_data("fashon-mnist")


@pytest.mark.parametrize("exists", [True, False])
def test_a_missing_dataset_that_cannot_be_downloaded_leaves_nothing_behind(tmp_path, monkeypatch, exists):
    import torchvision

    def no_network(*_args, **_options):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", no_network)
    root = tmp_path if exists else tmp_path / "deep" / "data"
    with pytest.raises(OdnError, match="dataset 'mnist' is missing: .*no network.*name their folder with --data-dir"):
        load_data("mnist", data_dir=root)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_a_damaged_named_dataset_is_explained(tmp_path, data_dir, name):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (data_dir / "MNIST" / "raw").iterdir():
        (raw / path.name).symlink_to(path)
    (raw / name).unlink()
    (raw / name).write_bytes((data_dir / "MNIST" / "raw" / name).read_bytes()[:5000])
    with pytest.raises(OdnError, match="dataset 'mnist' in .* is damaged .*restore its files"):
        load_data("mnist", data_dir=tmp_path)


def test_real_mnist(data_dir):
    data = load_data("mnist", data_dir=data_dir)
    assert (data.spec.classes, data.spec.input_shape) == (tuple("0123456789"), (1, 28, 28))
    assert data.spec.preprocessing.mean == pytest.approx((0.1307,), abs=5e-4)
    assert len(data.test) == 10000


def test_augment_policy_follows_the_dataset():
    assert not load_data("digits").spec.augment.flip
    assert load_data("digits", augment=AugmentConfig(flip=True)).spec.augment.flip


def test_an_archive_that_unpacks_to_more_than_fits_is_refused_before_it_is_read(npz, monkeypatch):
    # 300 images of 8x8 bytes and as many labels of 8 bytes, each with a header of 128 bytes
    needed = 300 * (64 + 8) + 4 * 128
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=needed - 1))
    with pytest.raises(OdnError, match=f"unpacks to {needed:,} bytes, but {needed - 1:,} bytes of memory are free"):
        read_npz(npz)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=needed))
    assert len(read_npz(npz).train.images) == 240


def test_arrays_of_other_names_are_not_even_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "more.npz"
    np.savez_compressed(path, x=X, y=Y, notes=np.zeros(10_000_000))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=100_000))
    assert len(read_npz(path).train.images) == len(X)

"""Whatever mode an image file has, its pixels are those that a viewer would show."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import stripes
from odn.config import DataConfig
from odn.data import load_data, training_batches
from odn.images import BadImage, decode, image_facts

RED, WHITE, HALF = [255, 0, 0], [255, 255, 255], [255, 127, 127]


def pixels(path, channels=3, side=2):
    return decode(path, (channels, side, side))


def at(array, row, column):
    return array[:, row, column].tolist()


def rgba(alpha):
    image = Image.new("RGBA", (2, 2), (255, 0, 0, alpha))
    image.putpixel((1, 1), (0, 0, 0, 0))
    return image


@pytest.mark.parametrize(("alpha", "shown"), [(255, RED), (128, HALF), (0, WHITE)])
def test_transparent_pixels_lie_on_white(tmp_path, alpha, shown):
    rgba(alpha).save(tmp_path / "a.png")
    array = pixels(tmp_path / "a.png")
    assert at(array, 0, 0) == shown
    assert at(array, 1, 1) == WHITE


def test_gray_with_transparency_stays_gray_on_white(tmp_path):
    image = Image.new("LA", (2, 2), (40, 255))
    image.putpixel((1, 0), (40, 0))
    image.save(tmp_path / "a.png")
    assert image_facts(tmp_path / "a.png") == (2, 2, True)
    assert pixels(tmp_path / "a.png", 1).tolist() == [[[40, 255], [40, 40]]]


def test_a_transparent_entry_of_a_palette_lies_on_white(tmp_path):
    image = Image.new("P", (2, 2), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 1), 1)
    image.save(tmp_path / "a.png", transparency=1)
    array = pixels(tmp_path / "a.png")
    assert at(array, 0, 0) == RED
    assert at(array, 1, 0) == WHITE


def test_a_palette_without_transparency_keeps_its_colours(tmp_path):
    image = Image.new("P", (2, 2), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "a.gif")
    assert at(pixels(tmp_path / "a.gif"), 0, 1) == [0, 0, 255]


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert at(pixels(tmp_path / "a.tif"), 1, 0) == RED


def test_one_bit_becomes_black_and_white(tmp_path):
    Image.fromarray(np.eye(2, dtype=bool)).save(tmp_path / "a.png")
    assert image_facts(tmp_path / "a.png")[2]
    assert pixels(tmp_path / "a.png", 1).tolist() == [[[255, 0], [0, 255]]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_keep_their_upper_eight(tmp_path, suffix):
    Image.fromarray(np.array([[0, 255], [256, 65535]], dtype=np.uint16)).save(tmp_path / f"a.{suffix}")
    assert image_facts(tmp_path / f"a.{suffix}")[2]
    assert pixels(tmp_path / f"a.{suffix}", 1).tolist() == [[[0, 0], [1, 255]]]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_exif_orientation_is_followed(tmp_path, suffix):
    image = Image.new("RGB", (32, 16), "white")
    image.paste((255, 0, 0), (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held on its side: turned clockwise, the left half is the upper one
    image.save(tmp_path / f"a.{suffix}", exif=exif, quality=95)
    assert image_facts(tmp_path / f"a.{suffix}")[:2] == (32, 16)
    array = decode(tmp_path / f"a.{suffix}", (3, 32, 16)).astype(int)
    assert np.abs(array[:, 4, 4] - RED).max() < 40  # but for what JPEG loses
    assert np.abs(array[:, 28, 4] - WHITE).max() < 40


def test_of_an_animation_the_first_picture_counts(tmp_path):
    first, second = Image.new("RGB", (2, 2), (255, 0, 0)), Image.new("RGB", (2, 2), (0, 0, 255))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert at(pixels(tmp_path / "a.gif"), 0, 0) == RED


MODES = ("RGBA", "LA", "P", "CMYK", "1", "L", "RGB", "I;16")


def mixed_images(count):
    """Images of many modes and sizes as (name, encoded bytes, label)."""
    images, labels = stripes(count, classes=2, side=16)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        mode = MODES[index % len(MODES)]
        wide = np.tile(image, (1, 1 + index % 3))
        picture = Image.fromarray(wide.astype(np.uint16) * 256 if mode == "I;16" else wide)
        content = io.BytesIO()
        (picture if mode == "I;16" else picture.convert(mode)).save(content, "tiff" if mode == "CMYK" else "png")
        yield f"{index:03}.{'tif' if mode == 'CMYK' else 'png'}", content.getvalue(), f"class{label}"


def as_folder(root):
    for name, content, label in mixed_images(48):
        (root / label).mkdir(parents=True, exist_ok=True)
        (root / label / name).write_bytes(content)
    return root


def as_manifest(root):
    lines = ["path,label"]
    for name, content, label in mixed_images(48):
        (root / "files").mkdir(parents=True, exist_ok=True)
        (root / "files" / name).write_bytes(content)
        lines.append(f"files/{name},{label}")
    (root / "all.csv").write_text("\n".join(lines))
    return root / "all.csv"


def as_shards(root):
    root.mkdir()
    for number in range(2):
        with tarfile.open(root / f"part-{number}.tar", "w") as archive:
            for name, content, label in list(mixed_images(48))[number * 24 : number * 24 + 24]:
                for member, data in ((name, content), (f"{name[:3]}.cls", label.encode())):
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return root


@pytest.mark.parametrize("make", [as_folder, as_manifest, as_shards])
def test_streamed_with_workers_they_are_those_of_memory_bit_for_bit(tmp_path, make):
    dataset = make(tmp_path / "data")

    def batches(**settings):
        data = load_data(str(dataset), config=DataConfig(image_size=12, **settings))
        assert data.spec.input_shape == (3, 12, 12)
        cpu = torch.device("cpu")
        return data, [
            *training_batches(data.train, 8, cpu, seed=1),
            *training_batches(data.train, 8, cpu, seed=1, first=2),
        ]

    (memory, expected), (streamed, found) = batches(), batches(resident_bytes=0, workers=2)
    assert memory.spec == streamed.spec
    assert type(memory.train) is not type(streamed.train)
    assert len(expected) == len(found) > 3
    for (x, labels), (other, other_labels) in zip(expected, found, strict=True):
        assert torch.equal(x, other)
        assert torch.equal(labels, other_labels)
    assert torch.equal(expected[2][0], expected[-2 if len(expected) > 4 else -1][0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((2, 2), 0.5, np.float32), "floating-point samples, whose range no file says"),
        (np.full((2, 2), 1 << 20, np.int32), "samples from 1048576 to 1048576; allowed: 16 bits"),
        (np.full((2, 2), -1, np.int32), "samples from -1 to -1; allowed: 16 bits"),
    ],
)
def test_samples_of_an_unknown_range_are_refused(tmp_path, values, message):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(BadImage, match=message):
        pixels(tmp_path / "a.tif", 1)

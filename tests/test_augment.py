import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odn.config import AugmentConfig
from odn.data.augment import augment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nothing_to_do_changes_nothing():
    x = torch.rand(4, 1, 8, 8)
    assert augment(x, AugmentConfig(shift=0.0), generator()) is x


@pytest.mark.parametrize("config", [AugmentConfig(shift=0.45), AugmentConfig(shift=0.0, rotate_degrees=20)])
def test_every_sample_gets_its_own_change(config):
    x = torch.rand(1, 1, 64, 64).expand(32, -1, -1, -1)
    changed = augment(x, config, generator())
    assert len({image.numpy().tobytes() for image in changed}) == 32


@settings(max_examples=25)
@given(height=st.integers(4, 20), width=st.integers(4, 20), seed=st.integers(0, 1000))
def test_shifts_move_whole_pixels_and_bring_in_zeros(height, width, seed):
    x = torch.rand(3, 2, height, width) + 1
    config = AugmentConfig(shift=0.25)
    for before, after in zip(x, augment(x, config, generator(seed)), strict=True):
        reach_y, reach_x = round(0.25 * height), round(0.25 * width)
        candidates = [
            (dy, dx) for dy in range(-reach_y, reach_y + 1) for dx in range(-reach_x, reach_x + 1)
        ]  # fmt: skip
        assert any(torch.equal(after, shifted(before, dy, dx)) for dy, dx in candidates)


def shifted(image: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    """The image whose pixel (y, x) is the original's (y + dy, x + dx)."""
    result = torch.zeros_like(image)
    height, width = image.shape[1:]
    ys = [y for y in range(height) if 0 <= y + dy < height]
    xs = [x for x in range(width) if 0 <= x + dx < width]
    for y in ys:
        for x in xs:
            result[:, y, x] = image[:, y + dy, x + dx]
    return result


def test_flip_mirrors_about_half_of_the_images():
    x = torch.rand(400, 1, 5, 7)
    changed = augment(x, AugmentConfig(shift=0.0, flip=True), generator())
    mirrored = sum(torch.equal(a, b.flip(-1)) for a, b in zip(changed, x, strict=True))
    same = sum(torch.equal(a, b) for a, b in zip(changed, x, strict=True))
    assert mirrored + same == 400
    assert 150 < mirrored < 250


def test_rotation_turns_around_the_centre_without_distortion():
    # Pixels on a ring around the centre stay on it, also when height and width differ.
    y, x = torch.meshgrid(torch.arange(24.0) - 11.5, torch.arange(36.0) - 17.5, indexing="ij")
    ring = ((y**2 + x**2).sqrt().sub(8).abs() < 1.5).float()[None, None].expand(16, -1, -1, -1)
    turned = augment(ring, AugmentConfig(shift=0.0, rotate_degrees=180), generator())
    assert (turned - ring).abs().mean() < 0.05


def test_no_flip_unless_asked():
    left = torch.zeros(64, 1, 8, 8)
    left[..., :2] = 1
    changed = augment(left, AugmentConfig(shift=0.1), generator())
    assert (changed[..., 4:] == 0).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_draws_repeat_for_a_seed(seed):
    x = torch.rand(8, 3, 9, 9)
    config = AugmentConfig(shift=0.2, rotate_degrees=10, flip=True)
    assert torch.equal(augment(x, config, generator(seed)), augment(x, config, generator(seed)))

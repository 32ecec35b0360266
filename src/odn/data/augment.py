"""Random changes to a batch of training samples, drawn per sample and computed on the training device.

Shapes: B batch, C channels, H height, W width, T tokens.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from odn.config import AugmentConfig
from odn.metrics import IGNORED
from odn.texts import TextPreprocessing


def drop_tokens(
    ids_BT: Tensor, preprocessing: TextPreprocessing, config: AugmentConfig, generator: torch.Generator
) -> Tensor:
    """Hide tokens of texts at random (word dropout; Iyyer et al., ACL 2015), the padding left as it is.

    Args:
        ids_BT: ids of tokens, shape (B, T).
        preprocessing: says which are padding, and which hides others.
        config: the share to hide.
        generator: a CPU generator; the draws do not depend on the device of the ids.

    Returns:
        Changed ids, same shape, type and device.
    """
    if not config.token_dropout:
        return ids_BT
    hidden = (torch.rand(ids_BT.shape, generator=generator) < config.token_dropout).to(ids_BT.device)
    return ids_BT.masked_fill(hidden & (ids_BT != preprocessing.padding), preprocessing.mask)


def augment(x_BCHW: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Shift, rotate and mirror every image of a batch by its own random amounts.

    Without rotation, shifts are whole pixels, so that images stay sharp. What moves in from outside is zero.

    Args:
        x_BCHW: floating point images with zero as the background, shape (B, C, H, W).
        config: the largest amounts.
        generator: a CPU generator; the draws do not depend on the device of the images.

    Returns:
        Changed images, same shape, type and device.
    """
    grid = _draw_grid(x_BCHW, config, generator)
    return x_BCHW if grid is None else _move(x_BCHW, grid, config)


def augment_with_masks(
    x_BCHW: Tensor, masks_BHW: Tensor, config: AugmentConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Do what ``augment`` does, and move the labels of the pixels along.

    Args:
        x_BCHW: images, as for ``augment``.
        masks_BHW: int64 labels of their pixels.
        config: the largest amounts.
        generator: a CPU generator.

    Returns:
        Changed images and masks; a pixel that moved in from outside has no label, ``IGNORED``.
    """
    grid = _draw_grid(x_BCHW, config, generator)
    if grid is None:
        return x_BCHW, masks_BHW
    # Counted from the mark of no label, so that the zeros from outside stand for it.
    counted = (masks_BHW - IGNORED)[:, None].to(grid)
    masks = F.grid_sample(counted, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return _move(x_BCHW, grid, config), masks[:, 0].round().long() + IGNORED


def _draw_grid(x_BCHW: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor | None:
    """Draw where every pixel of a batch comes from; None where nothing is to be changed."""
    if not (config.shift or config.rotate_degrees or config.flip):
        return None
    batch, _, height, width = x_BCHW.shape

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(batch, generator=generator) - 1) * limit

    angle = uniform(math.radians(config.rotate_degrees))
    shift_x, shift_y = uniform(config.shift * width), uniform(config.shift * height)
    mirror = torch.ones(batch)
    if config.flip:
        mirror -= 2 * (torch.rand(batch, generator=generator) < 0.5).float()
    if not config.rotate_degrees:
        shift_x, shift_y = shift_x.round(), shift_y.round()
    # affine_grid wants the matrix from output to input positions, in units of half the image's side.
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([cos * mirror, -sin * height / width, shift_x * 2 / width], dim=1),
        torch.stack([sin * mirror * width / height, cos, shift_y * 2 / height], dim=1),
    ]
    theta = torch.stack(rows, dim=1).to(x_BCHW.device, x_BCHW.dtype)
    return F.affine_grid(theta, list(x_BCHW.shape), align_corners=False)


def _move(x_BCHW: Tensor, grid: Tensor, config: AugmentConfig) -> Tensor:
    mode = "bilinear" if config.rotate_degrees else "nearest"
    return F.grid_sample(x_BCHW, grid, mode=mode, padding_mode="zeros", align_corners=False)

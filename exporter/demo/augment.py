"""How the demo's digits are varied in training, written the way a user's own file would be: torch alone.

A recipe names it as `training.augment = "augment.py:augment"`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

LARGEST_ANGLE_DEGREES = 12
LARGEST_SCALING = 0.12
LARGEST_SHIFT_PIXELS = 3


def augment(inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Return the batch with every image `[N, 1, H, W]` rotated, scaled and shifted a little, each differently."""
    return {**inputs, "image": vary(inputs["image"], generator)}


def vary(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return `[N, 1, H, W]` images, each rotated up to 12°, scaled up to 12 % and shifted up to 3 pixels."""

    def uniform(limit: float) -> Tensor:
        drawn = torch.rand(len(images), generator=generator, device=generator.device)
        return (drawn.to(images.device) * 2 - 1) * limit

    angle, scale = uniform(math.radians(LARGEST_ANGLE_DEGREES)), 1 + uniform(LARGEST_SCALING)
    # Shifts are fractions of half the image: affine_grid's coordinates run from -1 to 1.
    half = images.shape[-1] / 2
    shift_x, shift_y = uniform(LARGEST_SHIFT_PIXELS / half), uniform(LARGEST_SHIFT_PIXELS / half)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    matrix = torch.stack((cosine, -sine, shift_x, sine, cosine, shift_y), dim=1).reshape(-1, 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)

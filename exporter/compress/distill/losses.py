"""How far a student's insides are from its teacher's: features, attention, relations. Pure functions of tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from exporter.training.objectives import scaled_mse

LARGEST_RELATION_BATCH = 128
"""Angles are taken over all triples of a batch: their memory grows with its cube."""


def pooled(features: Tensor) -> Tensor:
    """Return `[N, C]`: the mean of `[N, C, H, W]` over space, or of `[N, T, C]` over tokens."""
    if features.ndim == 4:
        return features.mean((2, 3))
    return features.mean(1) if features.ndim == 3 else features.flatten(1)


def pooled_width(shape: tuple[int, ...]) -> int:
    """Return the width of `pooled` features, given the shape of one sample's."""
    if len(shape) == 3:
        return shape[0]
    return shape[-1] if len(shape) == 2 else math.prod(shape)


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return two feature maps `[N, C, H, W]` at the smaller of their sizes, by mean over cells."""
    height, width = (min(pair) for pair in zip(student.shape[2:], teacher.shape[2:], strict=True))
    return _shrunk(student, height, width), _shrunk(teacher, height, width)


def _shrunk(features: Tensor, height: int, width: int) -> Tensor:
    if features.shape[2:] == (height, width):
        return features
    return functional.adaptive_avg_pool2d(features, (height, width))


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error over the teacher's variance, of features of one shape (Romero et al. 2015).

    The student's come through a learned projection (arXiv:1412.6550); the scale makes layers count alike.
    """
    return scaled_mse(student.float(), teacher.float())


def attention_transfer_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return ‖q_s/‖q_s‖ − q_t/‖q_t‖‖² with q = Σ_c |a_c|² over space, the mean over samples; 0..2.

    Feature maps `[N, C, H, W]` of one size, any channels (Zagoruyko and Komodakis 2017, arXiv:1612.03928).
    """
    maps = (functional.normalize(one.float().pow(2).sum(1).flatten(1), dim=1) for one in (student, teacher))
    ours, theirs = maps
    return (ours - theirs).pow(2).sum(1).mean()


def attention_map_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher ‖ student) of attention maps `[N, (heads,) T, T]`, heads averaged, the mean over rows."""
    ours, theirs = (one.float().mean(1) if one.ndim == 4 else one.float() for one in (student, teacher))
    return functional.kl_div(
        ours.clamp_min(1e-8).log().flatten(0, -2), theirs.clamp_min(1e-8).log().flatten(0, -2),
        reduction="batchmean", log_target=True,
    )  # fmt: skip


def token_relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher ‖ student) of softmax(X·Xᵀ/√C) for tokens X `[N, T, C]`, any width, the mean over rows.

    The relation between tokens that MiniLM distils (Wang et al. 2021, arXiv:2012.15828), with one head.
    """
    ours, theirs = (
        functional.log_softmax(one @ one.transpose(1, 2) / one.shape[-1] ** 0.5, dim=-1).flatten(0, -2)
        for one in (student.float(), teacher.float())
    )
    return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return distance loss + 2 · angle loss between embeddings `[N, …]`, any widths (Park et al. 2019, arXiv:1904.05068).

    Both are Huber losses between the relations that samples of the batch have among each other in the two
    spaces. Of large batches the first 128 samples are taken; of one sample there is nothing to relate: 0.
    """
    ours, theirs = (one.float().flatten(1)[:LARGEST_RELATION_BATCH] for one in (student, teacher))
    if len(ours) < 2:
        return ours.sum() * 0.0
    distance = functional.smooth_l1_loss(_distances(ours), _distances(theirs))
    angle = functional.smooth_l1_loss(_angles(ours), _angles(theirs))
    return distance + 2 * angle


def _distances(points: Tensor) -> Tensor:
    """Return all pairwise distances `[N, N]` over their mean; the diagonal is 0."""
    squared = (points.unsqueeze(0) - points.unsqueeze(1)).pow(2).sum(-1)
    # The root has no gradient at 0, where a point meets itself.
    apart = torch.where(squared > 0, squared, torch.ones_like(squared)).sqrt() * (squared > 0)
    count = (apart > 0).sum().clamp_min(1)
    return apart / (apart.sum() / count).clamp_min(1e-12)


def _angles(points: Tensor) -> Tensor:
    """Return the cosines `[N, N, N]` of the angles at j between i and k."""
    edges = points.unsqueeze(0) - points.unsqueeze(1)
    edges = functional.normalize(edges, dim=2, eps=1e-6)
    return torch.bmm(edges, edges.transpose(1, 2))

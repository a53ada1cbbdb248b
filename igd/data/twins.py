"""Near-twins: photographs of one object under other light, which a split must not part.

A twin in the training set of a test image inflates every accuracy measured on that image, so a
dataset with twins is split by cluster; one in the training set of a calibration image makes the
threshold too low, so normals are held out by group.

Legend: N images, D pixels of a thumbnail, B rows of a block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from igd.config import Config
from igd.errors import ConfigError, DataError

__all__ = ["MIN_CORRELATION", "cluster_near_duplicates", "cluster_near_twins", "draw_groups",
           "split_by_cluster"]

MIN_CORRELATION = 0.98
"""Thumbnails that correlate more are near-twins."""

THUMBNAIL = 32
RESAMPLE = Image.Resampling.BILINEAR
"""Antialiased in Pillow. A sharper filter keeps more of the noise in which twins differ: on the
magnetic tiles bilinear finds 409 clusters in 952 images, bicubic 439, Lanczos 456."""

BLOCK = 256
"""Images compared at a time with all others; with 20,000 images a block takes some 100 MB."""


def cluster_near_twins(images: Iterable[NDArray[np.uint8]], *,
                       min_correlation: float = MIN_CORRELATION) -> NDArray[np.int64]:
    """Groups images that look alike: two are near-twins, or a chain of near-twins joins them.

    Near-twins are images whose 32x32 grey thumbnails have a Pearson correlation above
    `min_correlation`; brightness and contrast do not count. A constant thumbnail correlates with
    nothing, so it is the twin of constant ones of the same grey and of no other.

    The arithmetic is exact up to the last square root: the same clusters on every machine.

    Args:
        images: uint8 (H, W, 3), of any sizes, read one at a time.
        min_correlation: above 0 and below 1.

    Returns:
        int64 (N,), the cluster of each image, numbered from 0 in order of first appearance.

    Raises:
        ConfigError: `min_correlation` out of range.
        DataError: an array that is no uint8 RGB image.
    """
    if not 0 < min_correlation < 1:
        raise ConfigError(f"min_correlation is {min_correlation}, expected above 0 and below 1")
    thumbnails = [_thumbnail(image, index) for index, image in enumerate(images)]
    grey_ND = np.array(thumbnails, dtype=np.uint8).reshape(-1, THUMBNAIL * THUMBNAIL)
    first_N = _equal_constants(grey_ND)
    for start in range(0, len(grey_ND), BLOCK):
        first_N = _join(first_N, _near(grey_ND, start, min_correlation), start)
    return np.unique(first_N, return_inverse=True)[1].astype(np.int64)


def cluster_near_duplicates(images: Iterable[NDArray[np.uint8]], *,
                            min_correlation: float) -> NDArray[np.int64]:
    """Groups near-duplicates among the images of one product, which all look alike.

    As `cluster_near_twins`, but of what an image's thumbnail has beside the mean thumbnail of all:
    parts photographed in one pose under one light correlate by .997 (MVTec AD's bottles) and are
    no twins. Equal images always are.

    Args:
        min_correlation: above 0, at most 1; at 1 only equal thumbnails are near-duplicates.

    Returns:
        int64 (N,), as `cluster_near_twins`.

    Raises:
        DataError: an array that is no uint8 RGB image.
    """
    grey_ND = np.array([_thumbnail(image, index) for index, image in enumerate(images)], np.uint8)
    grey_ND = grey_ND.reshape(len(grey_ND), -1)
    _, same_N = np.unique(grey_ND, axis=0, return_inverse=True)
    first_N = np.unique(same_N, return_index=True)[1][same_N]
    starts = range(0, len(grey_ND), BLOCK)
    mean_D = sum(_standardised(grey_ND[at:at + BLOCK]).sum(0) for at in starts) / len(grey_ND)

    def own(at: int) -> NDArray[np.float64]:
        return _standardised(_standardised(grey_ND[at:at + BLOCK]) - mean_D)

    for start in starts:
        own_BD = own(start)
        near_BN = np.hstack([own_BD @ own(at).T > min_correlation
                             for at in range(start, len(grey_ND), BLOCK)])
        first_N = _join(first_N, near_BN, start)
    return np.unique(first_N, return_inverse=True)[1].astype(np.int64)


def draw_groups(images: Iterable[NDArray[np.uint8]], sha256_N: Sequence[str],
                config: Config) -> NDArray[np.int64]:
    """Groups of near-duplicates among normals, numbered in an order drawn with the config's seed.

    A group's place is a hash of the seed and of its files' checksums, so that most of the images
    held out of one training are held out of the next, when images were added.

    Args:
        sha256_N: of each image's file.

    Returns:
        int64 (N,), for `igd.model.groups`.
    """
    label_N = cluster_near_duplicates(
        images, min_correlation=config.calibration.twin_correlation)
    name_G: dict[int, str] = {}
    for label, digest in zip(label_N.tolist(), sha256_N, strict=True):
        name_G[label] = min(digest, name_G.get(label, digest))
    drawn = sorted(name_G, key=lambda label: hashlib.sha256(
        f"{config.seed} {name_G[label]}".encode()).digest())
    place_G = np.empty(len(drawn), np.int64)
    place_G[drawn] = np.arange(len(drawn))
    return place_G[label_N]


def _standardised(x_ND: NDArray[Any]) -> NDArray[np.float64]:
    """Rows of mean 0 and length 1; a constant row becomes 0."""
    x_ND = x_ND - x_ND.mean(1, keepdims=True, dtype=np.float64)
    length_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
    return np.where(length_N1 > 1e-9, x_ND / np.maximum(length_N1, 1e-9), 0.0)


def split_by_cluster(label_N: NDArray[np.int64], share: float,
                     seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Holds out whole clusters, drawn at random, as near to a share of the images as they allow.

    Args:
        label_N: the cluster of each image.
        share: of the images to hold out, above 0 and below 1.
        seed: the same one draws the same clusters.

    Returns:
        Sorted indices of the rest and of those held out, neither empty.

    Raises:
        ConfigError: `share` out of range.
        DataError: fewer than two clusters.
    """
    if not 0 < share < 1:
        raise ConfigError(f"the share to hold out is {share}, expected above 0 and below 1")
    clusters, size = np.unique(label_N, return_counts=True)
    if len(clusters) < 2:
        raise DataError(f"{len(label_N)} images in {len(clusters)} clusters of near-twins: "
                        "expected at least two clusters, one for each side of the split; add "
                        "images of other objects")
    target, held, taken = share * len(label_N), 0, []
    order = np.random.default_rng(seed).permutation(len(clusters))
    for cluster in order:
        after = held + int(size[cluster])
        if abs(after - target) < abs(held - target) and after < len(label_N):
            taken.append(cluster)
            held = after
    if not taken:  # every cluster is more than twice the target
        taken = [order[np.argmin(size[order])]]
    is_held = np.isin(label_N, clusters[taken])
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def _thumbnail(image_HWC: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3:
        raise DataError(f"image {index} is {image_HWC.dtype} {image_HWC.shape}, expected uint8 "
                        "(H, W, 3); decode it to RGB")
    grey = Image.fromarray(image_HWC).convert("L")
    return np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), RESAMPLE))


def _equal_constants(grey_ND: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For each image itself, for a constant one the first constant one of its grey."""
    first_N = np.arange(len(grey_ND))
    constant = np.flatnonzero((grey_ND == grey_ND[:, :1]).all(axis=1))
    _, where, which = np.unique(grey_ND[constant, 0], return_index=True, return_inverse=True)
    first_N[constant] = constant[where[which]]
    return first_N


def _near(grey_ND: NDArray[np.uint8], start: int, min_correlation: float) -> NDArray[np.bool_]:
    """Whether images `start` to `start + BLOCK` are near-twins of images from `start` on."""
    # Less 128, all sums of products stay within 2**24: exact in float32, in whatever order.
    x_ND = grey_ND[start:].astype(np.float32) - 128
    pixels = x_ND.shape[1]
    sum_N = x_ND.sum(axis=1, dtype=np.float64)
    square_N = np.square(x_ND).sum(axis=1, dtype=np.float64)
    spread_N = np.sqrt(pixels * square_N - sum_N**2)
    product_BN = (x_ND[:BLOCK] @ x_ND.T).astype(np.float64)
    covariance_BN = pixels * product_BN - np.outer(sum_N[:BLOCK], sum_N)
    near_BN: NDArray[np.bool_] = covariance_BN > min_correlation * np.outer(
        spread_N[:BLOCK], spread_N)
    return near_BN


def _join(first_N: NDArray[np.int64], near_BN: NDArray[np.bool_],
          start: int) -> NDArray[np.int64]:
    """Joins clusters, each named by its first image, by what a block of rows found."""
    count = len(first_N)
    row, column = np.nonzero(near_BN)
    rows = np.concatenate([np.arange(count), row + start])
    columns = np.concatenate([first_N, column + start])
    graph = coo_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(count, count))
    _, component_N = connected_components(graph, directed=False)
    _, first, which = np.unique(component_N, return_index=True, return_inverse=True)
    return np.asarray(first[which], dtype=np.int64)

"""Which version of a category goes in production after a training, and why."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from igd import registry
from igd.config import ImageConfig
from igd.data.trees import ImageRef, read_image
from igd.errors import LostRaceError, ModelError
from igd.pipelines.progress import Event, Meter, Report, silent
from igd.score.compare import compare

Policy = Literal["always", "if-better", "never"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
TRIES = 5
"""Comparisons with versions that others put in production meanwhile."""


def promote(models: str, category: str, version: str, policy: Policy, refs: Sequence[ImageRef],
            image: ImageConfig, report: Report = silent) -> str:
    """Puts a version in production, if it is to be; says what was done and why.

    With `if-better` it takes the place of the very version it was compared with: where another
    was put in production meanwhile, it is compared with that one.

    Args:
        refs: the category's normal images, to compare on.
        image: how they are decoded.

    Raises:
        ModelError: the version is damaged.
        LostRaceError: others kept putting versions in production.
    """
    if policy == "never":
        return "not put in production, as asked for"
    if policy == "always":
        registry.promote(models, category, version, why="trained")
        return "in production"
    for _ in range(TRIES):
        present = registry.in_use(models, category)
        takes, why = (True, "trained") if present is None else _better(
            models, category, version, present.version, refs, image, report)
        if not takes:
            return why
        try:
            registry.promote(models, category, version, why=why,
                             after=0 if present is None else present.sequence)
        except LostRaceError as error:
            report(Event(category, "comparing", text=f"again: {error}"))
            continue
        return "in production" if present is None else why
    raise LostRaceError(f"category {category!r}: {TRIES} times another version was put in "
                        f"production while {version} was compared; it is kept, and not in "
                        "production; run again when no other training promotes")


def _better(models: str, category: str, version: str, present: str, refs: Sequence[ImageRef],
            image: ImageConfig, report: Report) -> tuple[bool, str]:
    """Whether a version takes the present one's place, and why."""
    candidate = registry.load_bundle(models, category, version)
    try:
        production = registry.load_bundle(models, category, present)
    except ModelError as error:
        return True, f"in production: {present} was, and cannot be used: {error}"
    ref_of = {ref.key: ref for ref in refs}
    rows = candidate.calibration.select(["image", "sha256"]).to_pylist()
    comparison = compare(
        candidate, production,
        {row["sha256"]: partial(_read, ref_of[row["image"]], image) for row in rows
         if row["image"] in ref_of},
        progress=Meter(category, report, "comparing", images_per_step=2))
    return comparison.takes_candidate, comparison.why


def _read(ref: ImageRef, image: ImageConfig) -> NDArray[np.uint8]:
    return read_image(ref, image)[0]

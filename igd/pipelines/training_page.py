"""What the page of a `train-all` shows, read back from the bundles."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

from igd import registry, storage
from igd.errors import IgdError
from igd.pipelines.category import Outcome
from igd.report.training import CategoryRow, render_training


def training_page(models: str, outcomes: Sequence[Outcome], *, commit: str | None) -> str:
    """The page of these outcomes as HTML."""
    return render_training([_row(models, outcome) for outcome in outcomes],
                           preset=outcomes[0].preset if outcomes else "",
                           facts={"models": models, "commit": commit})


def _row(models: str, outcome: Outcome) -> CategoryRow:
    state = ("failed" if outcome.error else "finished before" if outcome.already else "trained")
    facts = {"images": outcome.images, "seconds": outcome.seconds, "attempts": outcome.attempts}
    if outcome.version is None:
        return CategoryRow(category=outcome.category, state=state, error=outcome.error or "",
                           facts=facts)
    training = registry.describe(models, outcome.category, outcome.version)["training"]
    return CategoryRow(
        category=outcome.category, state=state, curve=training["curve"],
        findings=training["findings"], strips=_strips(outcome.tensorboard),
        facts={"version": outcome.version, "production": outcome.why, **facts,
               "near-duplicate groups": training.get("near_duplicate_groups"),
               "smallest false-positive rate": outcome.smallest_alpha})


def _strips(folder: str | None) -> dict[str, Image.Image]:
    """By branch; what is gone is left out."""
    found = {}
    for branch in ("global", "local") if folder else ():
        try:
            data = storage.read_bytes(storage.join(folder or "", f"reconstruction-{branch}.png"))
            found[branch] = Image.open(io.BytesIO(data)).convert("RGB")
        except (IgdError, OSError):
            continue
    return found

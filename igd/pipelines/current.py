"""Whether a frozen plan still says what is there."""

from __future__ import annotations

import itertools
from typing import Any

from igd import registry
from igd.config import config_from_dict
from igd.data.sources import select_inputs
from igd.pipelines.listing import InputsHash
from igd.pipelines.run import Run
from igd.score.scorer import score_fingerprint


def unchanged(run: Run, plan: dict[str, Any]) -> bool:
    """Whether the inputs and the models in production are still those of a plan.

    A plan that a limit ended is of the first so many objects, and of no others.
    """
    wanted = run.request
    inputs = InputsHash()
    listed = (entry for source in wanted.sources
              for entry in select_inputs(source, wanted.selection.wants))
    for entry in itertools.islice(listed, plan.get("limited_to")):
        inputs.add(entry)
    if inputs.value != plan["inputs"]:
        return False
    known = registry.list_categories(wanted.models)
    if set(known) & set(plan["unknown_categories"]):
        return False
    return all(registry.production_version(wanted.models, category) == bundle["version"]
               for category, bundle in plan["bundles"].items())


def same_arithmetic(run: Run, plan: dict[str, Any]) -> bool:
    """Whether this installation would score with the bits that a plan's first shards have."""
    for category, bundle in plan["bundles"].items():
        document = registry.describe(plan["models"], category, bundle["version"])
        config = config_from_dict(document["config"], where=f"model {category}")
        if score_fingerprint(config, run.request.device) != bundle["score_fingerprint"]:
            return False
    return True

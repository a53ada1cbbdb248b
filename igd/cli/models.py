"""`igd-ray models`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from igd.cli.app import models_app
from igd.cli.options import Models, StorageOption
from igd.errors import ConfigError, ModelError


@models_app.command("list")
def models_list(models: Models, storage_option: StorageOption = None) -> None:
    """List every category's versions; `*` marks the one in production, with since when and why.

    No weights are read: `igd-ray models verify` does that.

    Example: `igd-ray models list --models ./models`
    """
    from igd import registry

    row = "{:1} {:24} {:26} {:6} {:>7} {:>14}"
    lines = [row.format("", "category", "version", "preset", "images", "smallest fpr")]
    for name in registry.category_folders(models):
        current = registry.in_use(models, name)
        for version in registry.list_versions(models, name):
            used = current is not None and version == current.version
            try:
                document = registry.describe(models, name, version)
                known = document["training"]
                told = [document["config"]["preset"], known["images"],
                        f"{known['smallest_alpha']:.4f}"]
                problem = ""
            except ModelError as error:
                told, problem = ["-"] * 3, f"  damaged: {error}"
            lines.append(row.format("*" if used else "", name, version, *told) + problem)
            if current is not None and used:
                lines.append(f"    since {current.at}: {current.why or 'it is not known why'}")
    if len(lines) == 1:
        raise ConfigError(f"no models in {models}; run igd-ray train-all first")
    print("\n".join(lines))


@models_app.command("show")
def models_show(
    category: Annotated[str, typer.Argument(metavar="CATEGORY[/VERSION]")], models: Models,
    storage_option: StorageOption = None,
) -> None:
    """Show a model's config, training, calibration and history as JSON (default: the one in
    production).

    Example: `igd-ray models show bottle --models ./models`
    """
    from igd import registry
    from igd.score.conformal import Calibrator

    name, _, version = category.partition("/")
    bundle = registry.load_bundle(models, name, version or None)
    calibrator = Calibrator(bundle.calibration["score"].to_numpy())
    rules = {str(fpr): vars(calibrator.rule(fpr)) for fpr in (0.01, 0.05)}
    history = [vars(promotion) for promotion in registry.history(models, name)]
    print(json.dumps({**registry.describe(models, name, bundle.version),
                      "calibration_images": len(bundle.calibration),
                      "thresholds_at_fpr": rules, "history": history,
                      "in_production": bool(history)
                      and history[-1]["version"] == bundle.version}, indent=2, sort_keys=True))


@models_app.command("promote")
def models_promote(
    version: Annotated[str, typer.Argument(metavar="CATEGORY/VERSION")], models: Models,
    why: Annotated[str, typer.Option(metavar="TEXT", help="Kept in the history.")] = "asked for",
    storage_option: StorageOption = None,
) -> None:
    """Put a version in production, if it is whole. Runs that have begun keep theirs.

    Example: `igd-ray models promote bottle/20261123T081500-1a2b3c4d --models ./models`
    """
    from igd import registry

    category, slash, name = version.partition("/")
    if not slash:
        raise ConfigError(f"{version!r}: expected CATEGORY/VERSION; see igd-ray models list")
    sequence = registry.promote(models, category, name, why)
    print(f"{category}: {name} is in production (promotion {sequence})")


@models_app.command("rollback")
def models_rollback(
    category: Annotated[str, typer.Argument(metavar="CATEGORY")], models: Models,
    storage_option: StorageOption = None,
) -> None:
    """Put the version in production that was before the present one.

    Again: the one before that. A version that was rolled back from returns only by promotion.

    Example: `igd-ray models rollback bottle --models ./models`
    """
    from igd import registry

    promotion = registry.rollback(models, category)
    print(f"{category}: {promotion.version} is in production instead of {promotion.rolled_back} "
          f"(promotion {promotion.sequence})")


@models_app.command("verify")
def models_verify(
    models: Models,
    categories: Annotated[list[str] | None, typer.Argument(
        metavar="[CATEGORY...]", help="Default: all.")] = None,
    storage_option: StorageOption = None,
) -> None:
    """Read every version as a run would: checksums, keys, NaN (exit 3: one is damaged).

    A folder without bundle.json is incomplete (a training is at work, or was killed): no fault,
    unless it is in production.

    Example: `igd-ray models verify bottle --models ./models`
    """
    from igd import registry

    counts = {"whole": 0, "incomplete": 0, "damaged": 0}
    for check in registry.verify(models, categories or []):
        counts[check.state] += 1
        at = f"{check.category}/{check.folder}".rstrip("/")
        state = "DAMAGED" if check.state == "damaged" else check.state
        print(f"{state} {at}: {check.detail}{', in production' if check.in_production else ''}",
              flush=True)
    if not any(counts.values()):
        raise ConfigError(f"no models in {models}; run igd-ray train-all first")
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    if counts["damaged"]:
        raise typer.Exit(3)

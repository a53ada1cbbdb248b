"""The command line: thin over the library. Imports stand inside the commands, so that --help
is quick."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date as Date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from igd import __version__
from igd.errors import ConfigError, IgdError

if TYPE_CHECKING:
    from igd.config import Config
    from igd.pipelines.category import CategoryTask, Outcome
    from igd.pipelines.cluster import Resources
    from igd.pipelines.progress import Report
    from igd.pipelines.score import Progress
    from igd.pipelines.train_all import Queue
    from igd.pipelines.watch import JsonLines

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  rich_markup_mode="markdown", help="""
Distributed anomaly scoring of images: train one model per product category, score image dumps
into Delta tables, serve one image at a time.

Exit codes: 0 complete; 2 usage, configuration or too little data; 3 finished with something to
look at; 4 held by the audit; 5 storage or cluster out of reach; 130/143 interrupted (run the same
command again); 1 anything else.
""")
models_app = typer.Typer(no_args_is_help=True, help="Look at the models of a registry, and "
                         "choose which are in production.")
app.add_typer(models_app, name="models")
data_app = typer.Typer(no_args_is_help=True,
                       help="Bring public datasets into the layout of MVTec AD.")
app.add_typer(data_app, name="data")

Models = Annotated[str, typer.Option("--models", metavar="URI", help="Model registry: a folder "
                                     "or s3://bucket/prefix.")]
Data = Annotated[str, typer.Argument(metavar="DATA", help="Folder of category folders: MVTec AD "
                                     "trees (train/good) or plain folders of normal images; a tar "
                                     "or zip may stand for any folder.")]
PresetOption = Annotated[str | None, typer.Option(
    "--preset", metavar="fast|small|paper", help="fast: Gaussian descriptors on features of a "
    "frozen ImageNet network, seconds to fit. small, paper: the nets of the IGD paper, narrow or "
    "at full width. Default: paper where the cluster has GPUs, else fast.")]
SetOption = Annotated[list[str] | None, typer.Option(
    "--set", metavar="KEY=VALUE", help="Change a setting, such as train.epochs=4 or "
    "image.fit=squash. Repeatable.")]
Seed = Annotated[int, typer.Option(help="Seed of all randomness.")]
RayAddress = Annotated[str | None, typer.Option(
    "--ray-address", metavar="ADDRESS", help="Ray cluster to use. Default: RAY_ADDRESS, or a "
    "cluster of this machine's cores that is stopped afterwards.")]
Out = Annotated[str, typer.Option("--out", metavar="URI", help="Where the tables are.")]
DateOption = Annotated[str, typer.Option("--date", metavar="YYYY-MM-DD",
                                         help="The date the rows belong to.")]
Retrain = Annotated[bool, typer.Option(
    "--retrain", help="Also where a model of the same images, settings and code is there.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", dir_okay=False,
                                               help="Also write the result as JSON.")]


def main() -> NoReturn:
    """Runs the command line and exits with its code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        code = app(standalone_mode=False) or 0  # an exit code, where a command raised Exit
    except IgdError as error:
        _say(f"igd-ray: {error}")
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _say("igd-ray: interrupted; run the same command again to go on")
        code = 130
    except typer.TyperException as error:
        error.show()  # type: ignore[attr-defined]
        code = error.exit_code
    except Exception as error:  # a defect: one line, the traceback on request
        if os.environ.get("IGD_TRACEBACK"):
            raise
        _say(f"igd-ray: unexpected {type(error).__name__}: {error} (set IGD_TRACEBACK=1 for the "
             "traceback)")
        code = 1
    sys.exit(code)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
          ) -> None:
    if version:
        print(f"igd-ray {__version__}")
        raise typer.Exit()


@app.command()
def synth(
    out: Annotated[str, typer.Argument(metavar="OUT", help="New folder for the images.")],
    categories: Annotated[str | None, typer.Option(metavar="A,B", help="Default: all.")] = None,
    train: Annotated[int, typer.Option(help="Normal training images per category.")] = 60,
    test: Annotated[int, typer.Option(help="Normal test images per category.")] = 12,
    defective: Annotated[int, typer.Option(
        help="Test images per kind of defect; each category has three.")] = 5,
    size: Annotated[int, typer.Option(min=32, max=4096, help="Side in pixels.")] = 256,
    seed: Seed = 0,
) -> None:
    """Make synthetic product images with planted defects and masks, as an MVTec AD tree.

    Example: `igd-ray synth /tmp/products --categories weave,washer`
    """
    from igd.data.products import CATEGORIES
    from igd.data.synthetic import generate

    names = _names(categories) or list(CATEGORIES)
    count = generate(out, categories=names, train=train, test=test, defective=defective,
                     size=size, seed=seed)
    print(f"{count} images of {len(names)} categories ({', '.join(names)}) in {out}")


@app.command()
def train(
    category: Annotated[str, typer.Argument(metavar="CATEGORY", help="A folder of DATA.")],
    data: Data, models: Models, preset: PresetOption = None, settings: SetOption = None,
    seed: Seed = 0, retrain: Retrain = False, ray_address: RayAddress = None,
) -> None:
    """Train one category's model and put it in production.

    A training that was interrupted goes on from its last checkpoint; a finished one is not done
    again.

    Example: `igd-ray train bottle mvtec_ad --models ./models --preset fast`
    """
    from igd.config import preset_config
    from igd.pipelines.train_all import Queue

    _check_enough(category, data, preset_config(preset or "fast", settings or [], seed=seed))
    outcomes = _train([category], data, models, preset, settings or [], seed, Queue(), ray_address,
                      retrain=retrain)
    if outcomes[0].exit_code:
        raise typer.Exit(outcomes[0].exit_code)


@app.command("train-all")
def train_all(
    data: Data, models: Models,
    categories: Annotated[str | None, typer.Option(metavar="A,B", help="Default: all.")] = None,
    preset: PresetOption = None, settings: SetOption = None, seed: Seed = 0,
    min_images: Annotated[int | None, typer.Option(
        min=4, help="Categories with fewer normals fail. [default: 10]")] = None,
    calibration_fraction: Annotated[float | None, typer.Option(
        help="Share of normals that nets are not trained on. [default: 0.2]")] = None,
    at_once: Annotated[int | None, typer.Option(
        help="Categories at the same time. [default: as many as the cluster holds]")] = None,
    gpus_per_model: Annotated[float | None, typer.Option(
        help="0.25 packs four nets on a GPU; 0: CPUs. [default: 1 where there are GPUs]")] = None,
    cpus_per_model: Annotated[int | None, typer.Option(
        help="CPUs, and torch threads, of each worker. [default: 1 beside a GPU, else an even "
        "share, 8 at most]")] = None,
    workers_per_model: Annotated[int, typer.Option(
        help="Workers that share the batches of one category's nets.")] = 1,
    retries: Annotated[int, typer.Option(
        help="Further attempts after a crash, from the last checkpoint.")] = 2,
    trainer: Annotated[str, typer.Option(
        metavar="auto|always|never", help="Nets that run under Ray Train's TorchTrainer, which "
        "takes half a minute to start; auto: those that see 20,000 images or more (normals times "
        "epochs) and those of several workers. The others, and preset fast, are plain tasks on "
        "workers that are reused.")] = "auto",
    promote: Annotated[str, typer.Option(
        metavar="always|if-better|never", help="Which new versions go in production. if-better: "
        "those not worse than the version there, by defects planted in normal images that "
        "both were calibrated on.")] = "always",
    checkpoint_every: Annotated[float, typer.Option(
        min=0, metavar="SECONDS", help="Time between two checkpoints of a category's nets, at "
        "least.")] = 30.0,
    retrain: Retrain = False,
    html: Annotated[str | None, typer.Option(
        "--html", metavar="FILE", help="Also write a page, also s3://: what became of each "
        "category, loss curves, reconstructions.")] = None,
    json_lines: Annotated[str | None, typer.Option(
        "--json", metavar="FILE", help="Also write events and the summary as JSON, an object per "
        "line; - is standard output, and text then goes to standard error.")] = None,
    ray_address: RayAddress = None,
) -> None:
    """Train a model for every category, in parallel, the largest first; one that fails fails
    alone (exit 3).

    Run again, it goes on: what is finished (same images, settings and code) is skipped, what was
    interrupted is taken up from its last checkpoint, to the same weights on CPUs.

    Example: `igd-ray train-all mvtec_ad --models s3://models/igd --set image.fit=squash`

    Example: `igd-ray train-all s3://data/parts --models s3://models/igd --preset paper
    --gpus-per-model 0.25 --json events.jsonl`
    """
    from igd.data import datasets
    from igd.pipelines.train_all import Queue

    queue = Queue(gpus_per_model=gpus_per_model, cpus_per_model=cpus_per_model,
                  workers_per_model=workers_per_model, at_once=at_once, retries=retries,
                  trainer=trainer)  # type: ignore[arg-type]  # Queue checks it
    settings = [*(settings or []),
                *([f"calibration.min_images={min_images}"] if min_images else []),
                *([f"calibration.fraction={calibration_fraction}"] if calibration_fraction
                  is not None else [])]
    names = _names(categories) or datasets.categories(data)
    outcomes = _train(names, data, models, preset, settings, seed, queue, ray_address,
                      retrain=retrain, html=html, json_lines=json_lines,
                      checkpoint_s=checkpoint_every, promote=promote)
    if any(outcome.error is not None for outcome in outcomes):
        raise typer.Exit(3)


@app.command()
def evaluate(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Folder of category folders (MVTec AD "
                                        "trees), or with the files of the protocol's dataset.")],
    models: Annotated[str | None, typer.Option(
        "--models", metavar="URI", help="Model registry, for mvtec: a folder or "
        "s3://bucket/prefix.")] = None,
    categories: Annotated[str | None, typer.Option(
        metavar="A,B", help="Default: all that have a model.")] = None,
    protocol: Annotated[str, typer.Option(
        metavar="NAME", help="mvtec, or one-class mnist, fashion-mnist, cifar-10: one class is "
        "normal, nine are anomalous; models are trained for it and thrown away.")] = "mvtec",
    classes: Annotated[str | None, typer.Option(
        metavar="A,B", help="One-class: names or numbers. Default: all ten.")] = None,
    seeds: Annotated[int, typer.Option(
        min=1, help="One-class: trainings per class, or ensembles.")] = 1,
    ensemble: Annotated[int, typer.Option(
        min=1, help="One-class: models whose scores are averaged.")] = 1,
    ablation: Annotated[bool, typer.Option(
        "--ablation", help="One-class: all rows of the paper's ablation.")] = False,
    preset: Annotated[str | None, typer.Option(
        metavar="small|paper", help="One-class. Default: paper where the cluster has GPUs, else "
        "small.")] = None,
    settings: SetOption = None, seed: Seed = 0, ray_address: RayAddress = None,
    fpr: Annotated[float, typer.Option(
        help="False-positive rate of the calibrated decision that is judged.")] = 0.05,
    with_ladder: Annotated[bool, typer.Option(
        "--ladder", help="Also fit and judge the descriptors between the paper's and preset "
        "fast's, on the same features.")] = False,
    equalise: Annotated[bool, typer.Option(
        "--equalise-brightness", help="Bring every image to the normals' mean grey level first: "
        "what is left is not brightness alone.")] = False,
    html: Annotated[str | None, typer.Option(
        "--html", metavar="FILE", help="Also write a page, also s3://: tables, curves, and the "
        "images that the model gets most wrong.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Score test images, beside baselines, against labels and masks.

    Prints metrics with 95% intervals over resampled test images. A category that cannot be
    evaluated fails alone (exit 3).

    Example: `igd-ray evaluate mvtec_ad --models ./models --json result.json`

    Example: `igd-ray evaluate fashion --protocol fashion-mnist --classes 0,Sandal --ablation`
    """
    _check_protocol_options(protocol, {
        "--models": models, "--categories": categories, "--ladder": with_ladder,
        "--equalise-brightness": equalise}, {
        "--classes": classes, "--ablation": ablation, "--preset": preset, "--set": settings,
        "--seeds": seeds > 1, "--ensemble": ensemble > 1, "--ray-address": ray_address})
    if protocol != "mvtec":
        _evaluate_one_class(data, protocol, classes, seeds, ensemble, ablation, preset,
                            settings or [], seed, ray_address, html, json_file)
        return
    if models is None:
        raise ConfigError("--models is missing; expected the registry that holds the models")
    _evaluate_mvtec(data, models, categories, fpr, with_ladder, equalise, html, json_file)


def _evaluate_mvtec(data: str, models: str, categories: str | None, fpr: float,
                    with_ladder: bool, equalise: bool, html: str | None,
                    json_file: Path | None) -> None:
    from igd import registry, storage
    from igd.data import datasets
    from igd.data.images import overlay
    from igd.report.evaluation import render_evaluation
    from igd.report.text import evaluation_lines, evaluation_notes
    from igd.score.evaluate import Evaluation, evaluate_category
    from igd.score.scorer import Scorer

    known = datasets.categories(data)
    names = _names(categories) or [name for name in registry.list_categories(models)
                                   if name in known]
    if not names:
        raise ConfigError(f"no category of {data} ({', '.join(known)}) has a model in {models}; "
                          "run igd-ray train-all first")
    documents: dict[str, Any] = {}
    shown: list[Evaluation] = []  # with its images, so only where a page is asked for
    for name in names:
        try:
            found = evaluate_category(
                data, name, Scorer(registry.load_bundle(models, name)), fpr=fpr,
                with_ladder=with_ladder, equalise=equalise, progress=partial(_say_of, name))
        except IgdError as error:
            if len(names) == 1 or isinstance(error, ConfigError):
                raise
            _say(f"FAILED {name}: {error}")
            continue
        documents[name] = found.document()
        shown += [found] if html is not None else []
        print("\n".join(evaluation_lines(found)), flush=True)
        for text in evaluation_notes(found):
            _say_of(name, text)
        _write_json(json_file, {"categories": documents, "commit": _commit(), "data": data,
                                "models": models, "version": __version__,
                                "peak_memory_mb": _peak_memory_mb()})
    if html is not None and shown:
        page = render_evaluation(shown, overlay=overlay, facts={
            "data": data, "models": models, "commit": _commit()})
        storage.write_bytes(html, page.encode())
        print(html)
    if len(documents) < len(names):
        raise typer.Exit(3)


def _evaluate_one_class(data: str, protocol: str, classes: str | None, seeds: int, ensemble: int,
                        ablation: bool, preset: str | None, settings: list[str], seed: int,
                        ray_address: str | None, html: str | None,
                        json_file: Path | None) -> None:
    from igd import storage
    from igd.data.oneclass import CLASS_NAMES, Dataset
    from igd.pipelines.cluster import connected
    from igd.pipelines.oneclass import protocol_config, run_protocol
    from igd.report.protocol import render_protocol
    from igd.report.text import protocol_lines

    if protocol not in CLASS_NAMES:
        raise ConfigError(f"unknown protocol {protocol!r}; expected mvtec, "
                          f"{', '.join(CLASS_NAMES)}")
    dataset: Dataset = protocol
    labels = [_label(name, CLASS_NAMES[dataset])
              for name in _names(classes) or CLASS_NAMES[dataset]]
    protocol_config(preset or "small", "igd", settings)  # refused before a cluster is started
    with connected(ray_address) as resources:
        chosen = preset or ("paper" if resources.gpus else "small")
        print(f"{dataset}, preset {chosen}: {len(labels)} classes, {seeds * ensemble} models each"
              f"{' and row of the ablation' if ablation else ''}", flush=True)
        began = time.monotonic()

        def finished(done: int, of: int, text: str) -> None:
            left = (time.monotonic() - began) * (of - done) / done
            _say(f"  {done}/{of} tasks: {text}; {left:.0f} s left")

        result = run_protocol(dataset, storage.canonical(data), resources, labels=labels,
                              preset=chosen, settings=settings, seeds=seeds, ensemble=ensemble,
                              ablation=ablation, seed=seed, finished=finished)
    print("\n".join(protocol_lines(result)))
    _write_json(json_file, {**result.document(), "commit": _commit(), "data": data,
                            "version": __version__})
    if html is not None:
        page = render_protocol(result, facts={
            "data": data, "settings": " ".join(settings) or None, "seeds": str(seeds),
            "models of an ensemble": str(ensemble), "first seed": str(seed),
            "commit": _commit()})
        storage.write_bytes(html, page.encode())
        print(html)
    if result.failed:
        raise typer.Exit(3)


def _check_protocol_options(protocol: str, of_mvtec: dict[str, object],
                            of_one_class: dict[str, object]) -> None:
    foreign = of_one_class if protocol == "mvtec" else of_mvtec
    given = [option for option, value in foreign.items() if value]
    if given:
        raise ConfigError(f"{', '.join(given)} cannot be used with --protocol {protocol}; see "
                          "igd-ray evaluate --help")


def _label(name: str, known: tuple[str, ...]) -> int:
    if name in known:
        return known.index(name)
    if name.isdecimal() and int(name) < len(known):
        return int(name)
    raise ConfigError(f"unknown class {name!r}; expected 0 to {len(known) - 1} or one of "
                      f"{', '.join(known)}")


@data_app.command("magnetic-tile")
def data_magnetic_tile(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder with MT_Free, MT_Crack "
                                          "...; local or s3://.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Gets the category `tile`.")],
    test_share: Annotated[float, typer.Option(
        help="Share of the normal images that goes to the test set, about.")] = 0.2,
    seed: Seed = 0,
) -> None:
    """Split the magnetic-tile dataset without near-twins on both sides.

    Most of its normal tiles were photographed under several exposures; all of one tile's
    photographs go to training or all to test.

    Example: `igd-ray data magnetic-tile Magnetic-tile-defect-datasets tiles`
    """
    from igd.data.magnetic_tile import CATEGORY, arrange

    found = arrange(source, out, test_share=test_share, seed=seed)
    print(f"{out}/{CATEGORY}: {found.train} normal images of {found.train_clusters} tiles to "
          f"train, {found.test_good} of {found.test_clusters} to test, "
          f"{sum(found.defects.values())} defective ones")
    for key in found.empty_masks:
        _say(f"  {key} marks nothing")


@models_app.command("list")
def models_list(models: Models) -> None:
    """List every category's versions; `*` marks the one in production, with since when and why.

    Example: `igd-ray models list --models ./models`
    """
    from igd import registry

    row = "{:1} {:24} {:26} {:6} {:>7} {:>14}"
    lines = [row.format("", "category", "version", "preset", "images", "smallest fpr")]
    for name in registry.category_folders(models):
        current = registry.in_use(models, name)
        for version in registry.list_versions(models, name):
            document = registry.describe(models, name, version)
            known = document["training"]
            used = current is not None and version == current.version
            lines.append(row.format("*" if used else "", name, version,
                                    document["config"]["preset"], known["images"],
                                    f"{known['smallest_alpha']:.4f}"))
            if current is not None and used:
                lines.append(f"    since {current.at}: {current.why or 'it is not known why'}")
    if len(lines) == 1:
        raise ConfigError(f"no models in {models}; run igd-ray train-all first")
    print("\n".join(lines))


@models_app.command("show")
def models_show(
    category: Annotated[str, typer.Argument(metavar="CATEGORY[/VERSION]")], models: Models,
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


@app.command()
def score(
    sources: Annotated[list[str], typer.Argument(
        metavar="SRC...", help="Directories, tar, zip or images; local or s3://.")],
    models: Models, out: Out, date: DateOption,
    category: Annotated[str | None, typer.Option(metavar="NAME",
                                                 help="Score everything with one model.")] = None,
    category_from: Annotated[str | None, typer.Option(
        metavar="PATTERN", help="Read the category from each path below its source (in an "
        "archive: each member's name), such as '{category}/*'; * stands for any characters, "
        "also /.")] = None,
    heatmaps: Annotated[str, typer.Option(
        metavar="all|flagged|none", help="Which heatmaps are kept; flagged: those of images "
        "that are not normal.")] = "flagged",
    fpr: Annotated[float, typer.Option(
        help="Rate of normal images that may be called anomalous.")] = 0.01,
    review_fpr: Annotated[float, typer.Option(
        help="Rate of normal images that may be called review or anomalous.")] = 0.05,
    max_reject_share: Annotated[float, typer.Option(
        min=0, max=1,
        help="More rejects than this: exit 3 (the run is published all the same).")] = 0.01,
    shard_members: Annotated[int, typer.Option(
        min=1, help="Images per unit of work; does not affect results.")] = 256,
    json_file: JsonFile = None, ray_address: RayAddress = None,
) -> None:
    """Score an image dump and publish scores, decisions and heatmaps in one commit.

    Killed at any moment, the same command goes on and finishes: no image is lost or doubled.

    Example: `igd-ray score dump.tar s3://line1/2026-11-23 --models ./models --out ./out
    --date 2026-11-23 --category-from '{category}/*'`
    """
    from igd.data.routing import Routing
    from igd.pipelines.run import request
    from igd.pipelines.score import score as run_score

    wanted = request(sources, models=models, out=out, date=_date(date),
                     routing=Routing(category=category, pattern=category_from), fpr=fpr,
                     review_fpr=review_fpr, heatmaps=heatmaps)
    try:
        summary = run_score(wanted, ray_address=ray_address, shard_members=shard_members,
                            max_reject_share=max_reject_share, report=_ProgressLines())
    except IgdError as error:
        state = "held" if error.exit_code == 4 else "failed"
        _write_json(json_file, {"date": date, "state": state, "error": str(error)})
        raise
    _print_summary(summary)
    _write_json(json_file, summary)
    if summary["exit_code"]:
        raise typer.Exit(summary["exit_code"])


@app.command()
def verify(out: Out, date: DateOption, json_file: JsonFile = None) -> None:
    """Check a published date against the plans of the runs that wrote it (exit 3: mismatch).

    Example: `igd-ray verify --out ./out --date 2026-11-23`
    """
    from igd.pipelines.verify import verify as run_verify

    result = run_verify(out, _date(date))
    rejected = sum(result["rejected"].values())
    print(f"{result['date']}: {result['rows']} rows, {result['scored']} scored, {rejected} "
          f"rejected, {len(result['runs'])} runs")
    for problem in result["problems"]:
        print(f"MISMATCH {problem}")
    _write_json(json_file, result)
    if result["problems"]:
        raise typer.Exit(3)
    print("every planned image has one row")


@app.command()
def serve(
    models: Models,
    host: Annotated[str, typer.Option(help="Address to listen on; loopback only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    fpr: Annotated[float, typer.Option(
        help="Rate of normal images that may be called anomalous.")] = 0.01,
    review_fpr: Annotated[float, typer.Option(
        help="Rate of normal images that may be called review or anomalous.")] = 0.05,
    ray_address: RayAddress = None,
) -> None:
    """Answer for one image at a time over HTTP, with the same score as a batch run.

    Example: `igd-ray serve --models ./models`, then
    `curl --data-binary @part.png 127.0.0.1:8000/v1/categories/bottle/score`
    """
    from igd import registry
    from igd.serve.endpoint import EndpointConfig

    if host not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigError(f"--host {host}: this endpoint asks for no password, so it listens on "
                          "loopback only; put a proxy with authentication before it")
    names = registry.list_categories(models)
    if not names:
        raise ConfigError(f"no models in {models}; run igd-ray train-all first")
    from igd import storage
    from igd.pipelines.cluster import connected
    from igd.pipelines.serve import running

    config = EndpointConfig(models=storage.canonical(models), fpr=fpr, review_fpr=review_fpr)
    with connected(ray_address), running(config, host=host, port=port) as url:
        print(f"serving {', '.join(names)} on {url} (docs: {url}/docs); Ctrl-C stops", flush=True)
        signal.pause()


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for everything.")] = Path("demo"),
) -> None:
    """Run everything on synthetic data: train, evaluate, score an archive, verify, report.

    Example: `igd-ray demo --out /tmp/demo`
    """
    import subprocess

    from igd.demo import run_demo

    def command(line: list[str]) -> None:
        subprocess.run([sys.executable, "-m", "igd.cli", *line], check=True)

    try:
        run_demo(out, command, lambda text: print(text, flush=True))
    except subprocess.CalledProcessError as failed:
        raise typer.Exit(failed.returncode) from failed


@app.command()
def report(
    out: Out, date: DateOption,
    html: Annotated[str | None, typer.Option("--html", metavar="FILE", help="Where to write the "
                                             "page, also s3://. Default: OUT/reports/D.html.")]
    = None,
) -> None:
    """Write a published date's HTML report: decisions, histograms, images with heatmaps, rejects.

    Example: `igd-ray report --out ./out --date 2026-11-23`
    """
    from igd.pipelines.report import report as write_report

    print(write_report(out, _date(date), html))


def _train(names: list[str], data: str, models: str, preset: str | None, settings: list[str],
           seed: int, queue: Queue, ray_address: str | None, *, retrain: bool = False,
           html: str | None = None, json_lines: str | None = None,
           checkpoint_s: float = 30.0, promote: str = "always") -> list[Outcome]:
    from igd import storage
    from igd.config import preset_config
    from igd.pipelines.category import PROMOTIONS, CategoryTask

    if promote not in PROMOTIONS:
        raise ConfigError(f"--promote {promote!r}: expected {', '.join(PROMOTIONS)}")
    preset_config(preset or "fast", settings, seed=seed)  # refused before a cluster is started
    _check_known(names, data)
    from igd.pipelines.cluster import connected

    with _text_and_json(json_lines) as (text, events), connected(ray_address) as resources:
        chosen, reason = _choose_preset(preset, resources)
        config = preset_config(chosen, settings, seed=seed)
        tasks = [CategoryTask(data=storage.canonical(data), category=name,
                              models=storage.canonical(models), config=config,
                              preset_reason=reason, retrain=retrain, checkpoint_s=checkpoint_s,
                              promote=promote)
                 for name in names]
        print(f"preset {chosen} ({reason}); {len(tasks)} categories on {resources.cpus} Ray CPUs, "
              f"{resources.gpus} GPUs", file=text, flush=True)
        outcomes = _run_tasks(tasks, resources, queue, text, events)
        failed = [outcome for outcome in outcomes if outcome.error is not None]
        already = sum(outcome.already for outcome in outcomes)
        print(f"{len(outcomes) - len(failed)} of {len(outcomes)} categories have a model in "
              f"{models}" + (f"; {already} had it before" if already else ""), file=text,
              flush=True)
        for outcome in failed if len(outcomes) > 1 else []:
            print(f"  FAILED {outcome.category}: {outcome.error}", file=text, flush=True)
        if html is not None:
            print(_write_training_page(html, models, outcomes), file=text, flush=True)
        if events is not None:
            events.write("summary", {
                "categories": [vars(outcome) for outcome in outcomes], "commit": _commit(),
                "data": data, "models": models, "version": __version__})
    return outcomes


def _write_training_page(html: str, models: str, outcomes: list[Outcome]) -> str:
    from igd import storage
    from igd.pipelines.training_page import training_page

    storage.write_bytes(html, training_page(models, outcomes, commit=_commit()).encode())
    return html


@contextlib.contextmanager
def _text_and_json(json_lines: str | None) -> Iterator[tuple[TextIO, JsonLines | None]]:
    """Where text goes, and where JSON goes if it is asked for."""
    from igd.pipelines.watch import JsonLines

    if json_lines is None:
        yield sys.stdout, None
    elif json_lines == "-":
        yield sys.stderr, JsonLines(sys.stdout)
    else:
        Path(json_lines).parent.mkdir(parents=True, exist_ok=True)
        with open(json_lines, "w") as stream:
            yield sys.stdout, JsonLines(stream)


def _check_known(names: list[str], data: str) -> None:
    from igd.config import check_name
    from igd.data import datasets
    from igd.errors import DataError

    known = datasets.categories(data)
    for name in names:
        if check_name(name, "category") not in known:
            raise DataError(f"no category {name!r} in {data}; there are: {', '.join(known)}")


def _check_enough(category: str, data: str, config: Config) -> None:
    """Refuses too few files before a cluster is started; those that cannot be read show later."""
    from igd.data import datasets
    from igd.errors import DataError

    _check_known([category], data)
    found = len(datasets.normal_images(data, category))
    if found < config.calibration.min_images:
        raise DataError(f"category {category!r} has {found} normal images in {data}; expected at "
                        f"least {config.calibration.min_images}; add normal images")


def _choose_preset(preset: str | None, resources: Resources) -> tuple[str, str]:
    if preset is not None:
        return preset, "asked for"
    if resources.gpus:
        return "paper", f"default: the cluster has {resources.gpus} GPUs"
    return "fast", "default: the cluster has no GPU"


def _run_tasks(tasks: list[CategoryTask], resources: Resources, queue: Queue, text: TextIO,
               events: JsonLines | None) -> list[Outcome]:
    from rich.console import Console

    from igd.pipelines.train_all import train_all as run
    from igd.pipelines.watch import Lines, LiveTable, to_all

    table = LiveTable(Console(file=text), len(tasks))
    live = table.console.is_terminal
    watchers: list[Report] = [table if live else Lines(text), *([events] if events else [])]
    say = table.say if live else partial(print, file=text, flush=True)
    with table.shown():
        return run(tasks, resources, queue=queue, report=to_all(watchers),
                   finished=partial(_tell_outcome, say))


def _tell_outcome(say: Callable[[str], None], outcome: Outcome) -> None:
    import shlex

    from igd import storage

    name = outcome.category
    if outcome.error is not None:
        _say(f"FAILED {name}: {outcome.error}"
             + (f" (attempt {outcome.attempts})" if outcome.attempts > 1 else ""))
        return
    if outcome.already:
        say(f"finished before: {name} ({outcome.preset}), version {outcome.version}, "
            f"{outcome.why}")
        return
    say(f"trained {name} ({outcome.preset}): {outcome.images} images, "
        f"{outcome.seconds:.1f} s, smallest false-positive rate "
        f"{outcome.smallest_alpha:.4f}, version {outcome.version}, {outcome.why}")
    if outcome.tensorboard:
        at = outcome.tensorboard
        at = shlex.quote(storage.local_path(at) if storage.is_local(at) else at)
        say(f"  {name}: losses and reconstructions: tensorboard --logdir {at}")
    for key, reason in outcome.skipped:
        _say(f"  {name}: skipped {key} ({reason})")
    if outcome.near_duplicate_groups < outcome.images:
        say(f"  {name}: {outcome.images - outcome.near_duplicate_groups} normals are "
            "near-duplicates of others; they are held out together")
    if outcome.unseen > 0.005:
        _say(f"  {name}: the centre crop leaves out {outcome.unseen:.0%} of the pixels; "
             "--set image.fit=squash looks at the whole image")


class _ProgressLines:
    """One line per stage and, while scoring, per few seconds."""

    EVERY_S = 5.0

    def __init__(self) -> None:
        self._stage = ""
        self._began = self._last = 0.0
        self._first = 0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.stage != self._stage:
            self._stage, self._began, self._first = progress.stage, now, progress.done
            _say(f"{progress.stage}: {progress.total} images" if progress.total
                 else f"{progress.stage} ...")
        elif now - self._last < self.EVERY_S and progress.done != progress.total:
            return
        self._last = now
        if progress.total and progress.done > self._first:
            rate = (progress.done - self._first) / max(now - self._began, 1e-9)
            left = (progress.total - progress.done) / rate
            _say(f"{progress.stage}: {progress.done}/{progress.total} images, {rate:.1f} "
                 f"images/s, {progress.rejected} rejected, {left:.0f} s left")


def _print_summary(summary: dict[str, Any]) -> None:
    done = "already published" if summary["already_published"] else summary["state"]
    print(f"run {summary['run_id']}: {done}; {summary['planned']} planned, {summary['scored']} "
          f"scored, {sum(summary['rejected'].values())} rejected; {summary['seconds']:.1f} s, "
          f"{summary['images_per_s']} images/s")
    if not summary["planned"]:
        _say("  the sources hold no image: what was published for this date before is replaced by "
             "nothing; check that the dump is there")
    for category, counts in summary["decisions"].items():
        bundle = summary["bundles"].get(category)
        if bundle:
            said = ", ".join(f"{number} {decision}" for decision, number in counts.items())
            print(f"  {category} ({bundle['preset']}, {bundle['version']}): {said}")
            if summary["fpr"] < bundle["smallest_alpha"]:
                _say(f"  {category}: {bundle['calibration_images']} calibration normals support no "
                     f"false-positive rate below {bundle['smallest_alpha']:.4f}; that was used "
                     f"instead of {summary['fpr']}")
    for reason, number in summary["rejected"].items():
        print(f"  rejected {number}: {reason}")
    for source in summary["odd_sources"]:
        print(f"  source {source['source_uri']}: {source['status']} ({source['detail']})")
    for name, uri in summary["tables"].items():
        print(f"  {name}: {uri}")
    if summary["reject_share"] > summary["max_reject_share"]:
        print(f"  {summary['reject_share']:.1%} rejected, more than the "
              f"{summary['max_reject_share']:.1%} allowed: exit 3")


def _names(text: str | None) -> list[str]:
    names = (name.strip() for name in (text or "").split(","))
    return list(dict.fromkeys(name for name in names if name))


def _date(text: str) -> Date:
    try:
        return Date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--date {text!r}: expected YYYY-MM-DD") from None


def _write_json(file: Path | None, document: dict[str, Any]) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


def _commit() -> str | None:
    """The commit of the checkout this code runs from, marked where the tree was changed."""
    import subprocess

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(Path(__file__).parent), *words], check=True,
                              capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if git(
            "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _peak_memory_mb() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _say_of(category: str, text: str) -> None:
    _say(f"  {category}: {text}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

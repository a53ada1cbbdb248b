"""`igd-ray evaluate`."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from igd import __version__
from igd.cli.app import app
from igd.cli.options import JsonFile, RayAddress, Seed, SetOption, StorageOption
from igd.cli.output import commit, names_of, peak_memory_mb, say, say_of, write_json
from igd.errors import ConfigError, IgdError

FPR = 0.05


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
        help="False-positive rate of the calibrated decision that is judged.")] = FPR,
    with_ladder: Annotated[bool, typer.Option(
        "--ladder", help="Also fit and judge the descriptors between the paper's and preset "
        "fast's, on the same features.")] = False,
    equalise: Annotated[bool, typer.Option(
        "--equalise-brightness", help="Bring every image to the normals' mean grey level first: "
        "what is left is not brightness alone.")] = False,
    html: Annotated[str | None, typer.Option(
        "--html", metavar="FILE", help="Also write a page, also s3://: tables, curves, and the "
        "images that the model gets most wrong.")] = None,
    json_file: JsonFile = None, storage_option: StorageOption = None,
) -> None:
    """Score test images, beside baselines, against labels and masks.

    Prints metrics with 95% intervals over resampled test images. A category that cannot be
    evaluated fails alone (exit 3).

    Example: `igd-ray evaluate mvtec_ad --models ./models --json result.json`

    Example: `igd-ray evaluate fashion --protocol fashion-mnist --classes 0,Sandal --ablation`
    """
    _check_protocol_options(protocol, {
        "--models": models, "--categories": categories, "--ladder": with_ladder,
        "--equalise-brightness": equalise, "--fpr": fpr != FPR}, {
        "--classes": classes, "--ablation": ablation, "--preset": preset, "--set": settings,
        "--seed": seed, "--seeds": seeds > 1, "--ensemble": ensemble > 1,
        "--ray-address": ray_address})
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
    names = names_of(categories) or [name for name in registry.list_categories(models)
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
                with_ladder=with_ladder, equalise=equalise, progress=partial(say_of, name))
        except IgdError as error:
            if len(names) == 1 or isinstance(error, ConfigError):
                raise
            say(f"FAILED {name}: {error}")
            continue
        documents[name] = found.document()
        shown += [found] if html is not None else []
        print("\n".join(evaluation_lines(found)), flush=True)
        for text in evaluation_notes(found):
            say_of(name, text)
        write_json(json_file, {"categories": documents, "commit": commit(), "data": data,
                                "models": models, "version": __version__,
                                "peak_memory_mb": peak_memory_mb()})
    if html is not None and shown:
        page = render_evaluation(shown, overlay=overlay, facts={
            "data": data, "models": models, "commit": commit()})
        storage.write_bytes(html, page.encode())
        print(html)
    if len(documents) < len(names):
        raise typer.Exit(3)


def _evaluate_one_class(data: str, protocol: str, classes: str | None, seeds: int, ensemble: int,
                        ablation: bool, preset: str | None, settings: list[str], seed: int,
                        ray_address: str | None, html: str | None,
                        json_file: Path | None) -> None:
    from igd import storage
    from igd.data.oneclass import CLASS_NAMES, Dataset, load
    from igd.pipelines.cluster import connected
    from igd.pipelines.oneclass import protocol_config, run_protocol
    from igd.report.protocol import render_protocol
    from igd.report.text import protocol_lines

    if protocol not in CLASS_NAMES:
        raise ConfigError(f"unknown protocol {protocol!r}; expected mvtec, "
                          f"{', '.join(CLASS_NAMES)}")
    dataset: Dataset = protocol
    labels = [_label(name, CLASS_NAMES[dataset])
              for name in names_of(classes) or CLASS_NAMES[dataset]]
    # refused before a cluster is started
    protocol_config(preset or "small", "igd", settings)
    images = load(dataset, storage.canonical(data))
    with connected(ray_address) as resources:
        chosen = preset or ("paper" if resources.gpus else "small")
        print(f"{dataset}, preset {chosen}: {len(labels)} classes, {seeds * ensemble} models each"
              f"{' and row of the ablation' if ablation else ''}", flush=True)
        began = time.monotonic()

        def finished(done: int, of: int, text: str) -> None:
            left = (time.monotonic() - began) * (of - done) / done
            say(f"  {done}/{of} tasks: {text}; {left:.0f} s left")

        result = run_protocol(dataset, storage.canonical(data), resources, labels=labels,
                              preset=chosen, settings=settings, seeds=seeds, ensemble=ensemble,
                              ablation=ablation, seed=seed, data=images, finished=finished)
    print("\n".join(protocol_lines(result)))
    write_json(json_file, {**result.document(), "commit": commit(), "data": data,
                            "version": __version__})
    if html is not None:
        page = render_protocol(result, facts={
            "data": data, "settings": " ".join(settings) or None, "seeds": str(seeds),
            "models of an ensemble": str(ensemble), "first seed": str(seed),
            "commit": commit()})
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

"""`igd-ray score`, `verify` and `report`: a date's batch run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import date as Date
from typing import TYPE_CHECKING, Annotated, Any

import typer

from igd.cli.app import app
from igd.cli.options import (
    UNKNOWN_CATEGORY,
    Category,
    CategoryColumn,
    CategoryFrom,
    DateOption,
    Exclude,
    Include,
    JsonFile,
    Limit,
    Models,
    NewOnly,
    Out,
    RayAddress,
    ShardMembers,
    Sources,
    StorageOption,
    UnknownCategory,
)
from igd.cli.output import (
    EVERY_S,
    Counting,
    counted,
    date_of,
    one_of,
    say,
    tell,
    warn_of_listing,
    write_json,
)
from igd.errors import IgdError
from igd.report.sizes import size_of

HELD_UP = {"score": "scoring is the bottleneck",
           "read": "reading and decoding are the bottleneck, or there were too few images",
           "write": "writing is the bottleneck, or there were too few images"}

if TYPE_CHECKING:
    from igd.pipelines.meter import Progress


@app.command()
def score(
    sources: Sources, models: Models, out: Out, date: DateOption,
    category: Category = None, category_from: CategoryFrom = None,
    category_column: CategoryColumn = None,
    unknown_category: UnknownCategory = "reject",
    include: Include = None, exclude: Exclude = None, limit: Limit = None,
    new_only: NewOnly = False,
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
    catch_up: Annotated[int, typer.Option(
        min=0, max=366, metavar="DAYS", help="Also score the dates before that were missed: those "
        "after the last one that this same command has published, oldest first, or none where "
        "more than so many are missing. One that fails is told and does not hold up the next; "
        "the exit code is the worst: 1, then 5, 4, 2, 3. --json is then a list.")] = 0,
    shard_members: ShardMembers = 256,
    gpus_per_scorer: Annotated[float, typer.Option(
        min=0, help="Score on GPUs, so many (or such a share of one) each: the last bits, and the "
        "score fingerprint, are others than on CPUs, where models are calibrated. Default: on "
        "CPUs.")] = 0.0,
    null_scorer: Annotated[bool, typer.Option(
        "--null-scorer", help="Measurements only: read, decode, write and publish, with score 0 "
        "for every image. Give an --out of its own.")] = False,
    stall_timeout: Annotated[float, typer.Option(
        min=0.1, metavar="MINUTES", help="Give up (exit 5, to be run again) when no unit of work "
        "was finished for so long.")] = 30.0,
    price_per_hour: Annotated[float | None, typer.Option(
        min=0, help="What the cluster costs an hour, in any currency: the cost per million images "
        "is told.")] = None,
    json_file: JsonFile = None, ray_address: RayAddress = None,
    storage_option: StorageOption = None,
) -> None:
    """Score an image dump and publish scores, decisions and heatmaps in one commit.

    Killed at any moment, the same command goes on and finishes: no image is lost or doubled.

    Example: `igd-ray score dump.tar s3://line1/2026-11-23 --models ./models --out ./out
    --date 2026-11-23 --category-from '{category}/*'`

    What is new in a prefix that grows: `igd-ray score s3://line1/all --models ./models --out ./out
    --date 2026-11-24 --category-from '{category}/*' --new-only`

    Every night: `igd-ray score 's3://line1/{date}' --models ./models --out ./out --date yesterday
    --category-from '{category}/*' --catch-up 7`
    """
    from igd.data.routing import Routing
    from igd.data.selection import selection
    from igd.pipelines.dated import dated
    from igd.pipelines.nightly import failed, missed, score_each, worst
    from igd.pipelines.run import Request, request
    from igd.pipelines.score import score as run_score

    one_of("--unknown-category", unknown_category, UNKNOWN_CATEGORY)
    last = date_of(date)

    def ask(day: Date) -> Request:
        return request(dated(sources, day), models=models, out=out, date=day,
                       routing=Routing(category=category, pattern=category_from,
                                       column=category_column),
                       selection=selection(include or (), exclude or (), limit), fpr=fpr,
                       review_fpr=review_fpr, heatmaps=heatmaps, new_only=new_only,
                       null_scorer=null_scorer, gpu=gpus_per_scorer > 0)

    def run(day: Date) -> dict[str, Any]:
        if len(days) > 1:
            say(f"{day}:")
        summary = run_score(ask(day), ray_address=ray_address, shard_members=shard_members,
                            max_reject_share=max_reject_share,
                            unknown_category=unknown_category,
                            stall_timeout_s=60 * stall_timeout,
                            gpus_per_scorer=gpus_per_scorer, report=_ProgressLines())
        if price_per_hour is not None and summary["images_per_s"]:
            summary["cost_per_million"] = round(
                price_per_hour * 1e6 / 3600 / summary["images_per_s"], 4)
        return summary

    try:
        before = missed(ask, last, catch_up) if catch_up else []
    except IgdError as error:
        write_json(json_file, [failed(last, error)])
        raise
    if before is None:
        say(f"nothing is published for the {catch_up + 1} days before {last}: none is caught up")
    days = [*(before or ()), last]
    nights = []
    for night in score_each(days, run, ray_address=ray_address):
        nights.append(night)
        _print_night(night)
    write_json(json_file, nights if catch_up else nights[0])
    if code := worst(night["exit_code"] for night in nights):
        raise typer.Exit(code)


@app.command()
def verify(
    out: Out, date: DateOption,
    inputs: Annotated[bool, typer.Option(
        "--inputs/--no-inputs", help="Also list the sources and index the archives again; without, "
        "rows are held against the plans of their runs alone.")] = True,
    json_file: JsonFile = None, storage_option: StorageOption = None,
) -> None:
    """Check a published date against the plans of its runs and against the inputs themselves.

    Every image that is in the inputs now, and was when they were listed, has one row; every row
    has its image, or its object is gone or changed since, which is told. Exit 3: a mismatch.

    Example: `igd-ray verify --out ./out --date 2026-11-23`
    """
    from igd.pipelines.verify import verify as run_verify

    result = run_verify(out, date_of(date), inputs=inputs,
                        progress=Counting("{} images counted again"))
    rejected = sum(result["rejected"].values())
    tell(f"{result['date']}: {result['rows']} rows, {result['scored']} scored, {rejected} "
         f"rejected, {counted(len(result['runs']), 'run')}")
    for source in result["inputs"] or ():
        _print_source(source)
    for problem in result["problems"]:
        tell(f"MISMATCH {problem}")
    write_json(json_file, result)
    if result["problems"]:
        raise typer.Exit(3)
    tell("every planned image has one row" + (", and so has every image found again in the inputs"
                                              if inputs else ""))


@app.command()
def report(
    out: Out, date: DateOption,
    html: Annotated[str | None, typer.Option("--html", metavar="FILE", help="Where to write the "
                                             "page, also s3://. Default: OUT/reports/D.html.")]
    = None,
    storage_option: StorageOption = None,
) -> None:
    """Write a published date's HTML report: decisions, histograms, images with heatmaps, rejects.

    Example: `igd-ray report --out ./out --date 2026-11-23`
    """
    from igd.pipelines.report import report as write_report

    print(write_report(out, date_of(date), html))


class _ProgressLines:
    """One line per stage and, while listing and scoring, per few seconds.

    Planning may go on while the first images are scored; it is told in their lines then.
    """

    def __init__(self) -> None:
        self._listed = Counting("plan: {} images listed")
        self._scoring = False
        self._last = 0.0

    def __call__(self, progress: Progress) -> None:
        if progress.stage == "score":
            self._score(progress)
        elif progress.stage != "plan":
            doing = "starting Ray and its scorers for" if progress.stage == "start" else (
                f"{progress.stage}:")
            say(f"{doing} {counted(progress.total - progress.done, 'image')}")
        elif not self._scoring:
            self._listed(progress.done)
        self._scoring = self._scoring or progress.stage != "plan"

    def _score(self, progress: Progress) -> None:
        now = time.monotonic()
        last_one = progress.done == progress.total and not progress.planning
        if now - self._last < EVERY_S and not last_one:
            return
        self._last = now
        total = f"{progress.total} so far" if progress.planning else f"{progress.total}"
        say(f"score: {progress.done}/{total} images{_rates(progress)}"
            f"{_reasons(progress.rejected)}")


def _rates(progress: Progress) -> str:
    if progress.images_per_s is None:
        return ""
    parts = [f"{progress.images_per_s:.1f} images/s",
             f"{size_of(progress.bytes_per_s or 0)}/s",
             f"scorers {progress.busy or 0:.0%} busy",
             f"{progress.waiting or 0:.1f} shards waiting"]
    if progress.left_s is not None:
        parts.append(f"{progress.left_s:.0f} s left")
    return "".join(f", {part}" for part in parts)


def _reasons(rejected: Mapping[str, int]) -> str:
    if not rejected:
        return ""
    counts = ", ".join(f"{number} {reason}" for reason, number in sorted(rejected.items()))
    return f", rejected {counts}"


def _print_source(source: dict[str, Any]) -> None:
    """One source of `verify`."""
    tell(f"  {source['source_uri']}: {source['images']} images counted again have their row")
    told = {
        "images are of categories that another run has replaced": source["replaced"],
        "objects are new since": source["new_objects"],
        "rows are of objects that are gone": source["gone"]["rows"],
        "rows are of objects that have changed since": source["changed"]["rows"],
        "rows could not be counted again and are as planned": source["from_plan"],
    }
    for what, count in told.items():
        if count:
            tell(f"    {count} {what}")
    if source["not_listed"]:
        tell(f"    not listed again: {source['not_listed']}")
    for uri, reason in source["not_recounted"].items():
        tell(f"    not counted again: {uri}: {reason}")


def _print_night(night: dict[str, Any]) -> None:
    if "error" in night:
        say(f"igd-ray: {night['date']}: {night['error']}")
    else:
        _print_summary(night)


def _print_summary(summary: dict[str, Any]) -> None:
    done = "already published" if summary["already_published"] else summary["state"]
    tell(f"run {summary['run_id']}: {done}; {summary['planned']} planned, {summary['scored']} "
         f"scored, {sum(summary['rejected'].values())} rejected; {summary['seconds']:.1f} s, "
         f"{summary['images_per_s']} images/s")
    _print_pace(summary)
    for category, counts in summary["decisions"].items():
        bundle = summary["bundles"].get(category)
        if bundle:
            said = ", ".join(f"{number} {decision}" for decision, number in counts.items())
            tell(f"  {category} ({bundle['preset']}, {bundle['version']}): {said}")
            if summary["fpr"] < bundle["smallest_alpha"]:
                say(f"  {category}: {bundle['calibration_images']} calibration normals support no "
                     f"false-positive rate below {bundle['smallest_alpha']:.4f}; that was used "
                     f"instead of {summary['fpr']}")
    for reason, number in summary["rejected"].items():
        tell(f"  rejected {number}: {reason}")
    if summary.get("published_meanwhile"):
        tell(f"  {summary['published_meanwhile']} images are published by another run since this "
             "one was planned, and left to it")
    warn_of_listing(summary["planned"], summary)
    if summary["state"] != "nothing new":
        for name, uri in summary["tables"].items():
            tell(f"  {name}: {uri}")
    if summary["reject_share"] > summary["max_reject_share"]:
        tell(f"  {summary['reject_share']:.1%} rejected, more than the "
             f"{summary['max_reject_share']:.1%} allowed"
             f"{'' if summary['already_published'] else ': exit 3'}")


def _print_pace(summary: dict[str, Any]) -> None:
    """Where the time of this attempt went; nothing of a run that had nothing left to score."""
    if summary["already_published"] or "step_seconds" not in summary:
        return
    spent = ", ".join(f"{stage} {seconds:.1f} s"
                      for stage, seconds in summary["stage_seconds"].items())
    tell(f"  {spent}")
    if "held_up_by" in summary:
        tell(f"  {summary['steady_images_per_s']} images/s and "
             f"{size_of(summary['steady_bytes_per_s'])}/s once the scorers were warm, which were "
             f"{summary['busy']:.0%} busy: {HELD_UP[summary['held_up_by']]}")
    if "cost_per_million" in summary:
        tell(f"  {summary['cost_per_million']} per million images at this pace")

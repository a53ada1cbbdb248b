"""The report of a published date, with the images found again where the plan says they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import date as Date
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from igd import registry, storage
from igd.config import ImageConfig
from igd.data.fetch import fetch
from igd.data.images import Geometry, decode, decode_heatmap, overlay, prepare
from igd.data.members import Member
from igd.errors import IgdError, ImageError, StorageError
from igd.pipelines.plan import members_of, shard_rows
from igd.pipelines.run import read_document
from igd.records import Reason
from igd.report.pictures import Original, Pictures
from igd.report.run import Normals, render_run_report
from igd.report.summary import Row


def report(out: str, date: Date, target: str | None = None) -> str:
    """Writes the HTML report of a published date and returns where it is.

    Args:
        target: a local path or s3:// URI; by default `<out>/reports/<date>.html`.

    Raises:
        DataError: nothing is published for the date.
    """
    target = target or storage.join(out, "reports", f"{date.isoformat()}.html")
    out = storage.canonical(out)
    found = _Found(out)
    html = render_run_report(
        out, date, normals=found.normals,
        pictures=Pictures(load=found.originals, overlay=overlay, decode_heatmap=decode_heatmap))
    storage.write_bytes(target, html.encode())
    return target


class _Found:
    """What the plans of a date's runs lead to: images and calibrations."""

    def __init__(self, out: str) -> None:
        self._out = out
        self._plans: dict[str, dict[str, Any] | None] = {}

    def normals(self, run_id: str, category: str, version: str) -> Normals | None:
        """The calibration of a model; None where plan or model are gone or damaged."""
        plan = self._plan(run_id)
        if plan is None:
            return None
        try:
            rows = registry.load_bundle(plan["models"], category, version).calibration
        except IgdError:
            return None
        return Normals(scores=rows["score"].to_numpy(),
                       heatmap_peaks=rows["heatmap_max"].to_numpy())

    def originals(self, rows: Sequence[Row]) -> Mapping[str, Original]:
        """Images by id; an image that cannot be had says why."""
        found: dict[str, Original] = {}
        for run_id in {row["run_id"] for row in rows}:
            plan = self._plan(run_id)
            if plan is not None:
                mine = {row["image_id"]: row for row in rows if row["run_id"] == run_id}
                found |= _of_run(storage.join(self._out, "runs", run_id), plan, mine)
        return found

    def _plan(self, run_id: str) -> dict[str, Any] | None:
        if run_id not in self._plans:
            self._plans[run_id] = read_document(
                storage.join(self._out, "runs", run_id, "plan.json"))
        return self._plans[run_id]


def _of_run(run_at: str, plan: dict[str, Any], rows: dict[str, Row]) -> dict[str, Original]:
    planned = list(_planned(run_at, plan, rows))
    found: dict[str, Original] = {}
    contents = fetch([member for _, member in planned])
    problem = None
    for shard, member in planned:
        row = rows[member.image_id]
        config = ImageConfig(**plan["bundles"][row["category"]]["image"])
        content: bytes | ImageError
        try:
            content = ImageError(Reason.VANISHED, "") if problem else next(contents)
        except StorageError:  # says nothing about an image: none of the rest can be had
            problem, content = "its storage is out of reach", ImageError(Reason.VANISHED, "")
        found[member.image_id] = _original(row, content, config, shard, problem)
    return found


def _planned(run_at: str, plan: dict[str, Any], wanted: Iterable[str]
             ) -> Iterable[tuple[int, Member]]:
    """Shards and members of some image ids, in plan order."""
    left = set(wanted)
    for shard in range(plan["shards"]):
        if not left:
            return
        try:
            rows = shard_rows(run_at, plan, shard)
        except StorageError:
            return  # the plan was removed: its images can no longer be found
        hits = rows.filter(pc.is_in(rows["image_id"], pa.array(sorted(left))))
        left -= set(hits["image_id"].to_pylist())
        yield from ((shard, member) for member in members_of(hits))


def _original(row: Row, content: bytes | ImageError, config: ImageConfig, shard: int,
              problem: str | None) -> Original:
    box = Geometry.of(row["width"], row["height"], config).box
    try:
        if isinstance(content, ImageError):
            raise content
        if hashlib.sha256(content).hexdigest() != row["sha256"]:
            raise ImageError(Reason.CHANGED, "other bytes than those that were scored")
        pixels_HWC = prepare(decode(content, max_pixels=config.max_pixels), config)
    except ImageError as error:
        return Original(problem=problem or str(error.reason), box=box, shard=shard)
    return Original(pixels_HWC=pixels_HWC, box=box, shard=shard)

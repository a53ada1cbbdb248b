"""The published rows of a date, read file by file into a ledger and counts."""

from __future__ import annotations

from collections import Counter
from datetime import date as Date

import pyarrow as pa
import pyarrow.compute as pc

from igd import storage, tables
from igd.errors import IgdError
from igd.pipelines.recount.ledger import Ids, Ledger, find, packed, union
from igd.pipelines.run import read_document
from igd.records import Decision, Status

COLUMNS = ["image_id", "run_id", "status", "reject_reason", "score", "decision", "category"]


class PublishedRows:
    """What a date's table holds.

    Attributes:
        ledger: every row with a valid id.
        problems: files that cannot be read, or have other rows than their commit says.
    """

    def __init__(self, out: str, date: Date) -> None:
        self.ledger = Ledger()
        self.problems: list[str] = []
        self.rows = self.scored = 0
        self.rejected: Counter[str] = Counter()
        self._out, self._date = out, date
        self._wrong: Counter[str] = Counter()
        self._due: dict[str, list[Ids]] = {}
        self._policies: dict[str, str] = {}
        for file in tables.live_files(out, "scores", date):
            self._read(file)
        self.ledger.close()

    def senseless(self) -> list[str]:
        """Rows that contradict themselves, by how."""
        return [f"{count} {what}" for what, count in self._wrong.items() if count]

    def heatmaps_missing(self) -> list[str]:
        """Scored rows without the heatmap that the policy of their run promises."""
        have: dict[str, list[Ids]] = {}
        for file in tables.live_files(self._out, "heatmaps", self._date) if self._due else ():
            rows = tables.read(self._out, "heatmaps", self._date, columns=["image_id", "run_id"],
                               files=[file])
            for run_id in pc.unique(rows["run_id"]).to_pylist():
                have.setdefault(run_id, []).append(_ids_where(rows, rows["run_id"], run_id))
        missing = 0
        for run_id, parts in self._due.items():
            there = union(have.get(run_id, ()))
            missing += sum(int((~find(there, ids)[1]).sum()) for ids in parts)
        return [f"{missing} heatmaps are missing"] if missing else []

    def _read(self, file: tables.StagedFile) -> None:
        try:
            part = tables.read(self._out, "scores", self._date, columns=COLUMNS, files=[file])
        except (IgdError, pa.ArrowInvalid, OSError) as error:
            self.problems.append(f"file {file.path} cannot be read: {error}")
            return
        if len(part) != file.rows:
            self.problems.append(
                f"file {file.path} has {len(part)} rows, its commit says {file.rows}")
        self.rows += len(part)
        self.scored += pc.sum(pc.equal(part["status"], Status.SCORED)).as_py() or 0
        self.rejected.update(filter(None, part["reject_reason"].to_pylist()))
        valid = pc.match_substring_regex(part["image_id"], "^[0-9a-f]{32}$")
        self._judge(part, valid)
        part = part.filter(valid)
        if len(part):
            self.ledger.add(str(file.category), part["image_id"].to_pylist(),
                            part["run_id"].to_pylist())
        for run_id in pc.unique(part["run_id"]).to_pylist():
            self._promise(run_id, part.filter(pc.equal(part["run_id"], run_id)))

    def _judge(self, part: pa.Table, valid: pa.ChunkedArray) -> None:
        scored = pc.equal(part["status"], Status.SCORED)
        finite = pc.fill_null(pc.is_finite(part["score"]), False)
        wrong = {
            "rows without a valid image id": pc.invert(valid),
            "scored rows without a finite score": pc.and_(scored, pc.invert(finite)),
            "scored rows without a decision": pc.and_(scored, pc.is_null(part["decision"])),
            "rejected rows without a reason": pc.and_(pc.invert(scored),
                                                      pc.is_null(part["reject_reason"])),
            "rejected rows with a score": pc.and_(pc.invert(scored), pc.is_valid(part["score"])),
        }
        self._wrong.update({what: pc.sum(mask).as_py() or 0 for what, mask in wrong.items()})

    def _promise(self, run_id: str, part: pa.Table) -> None:
        """Notes which rows of a run must have a heatmap."""
        if run_id not in self._policies:
            plan = read_document(storage.join(self._out, "runs", run_id, "plan.json")) or {}
            self._policies[run_id] = plan.get("heatmaps", "none")
        policy = self._policies[run_id]
        due = pc.equal(part["status"], Status.SCORED)
        if policy == "flagged":
            due = pc.and_(due, pc.fill_null(pc.not_equal(part["decision"], Decision.NORMAL), True))
        if policy != "none":
            self._due.setdefault(run_id, []).append(_ids_where(part, due, True))


def _ids_where(rows: pa.Table, column: pa.ChunkedArray, value: object) -> Ids:
    return packed(rows.filter(pc.equal(column, value))["image_id"].to_pylist())

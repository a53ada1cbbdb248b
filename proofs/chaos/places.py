"""Objects and Delta tables, on a local disk or on S3 past the proxy, without code of igd-ray."""

from __future__ import annotations

import io
import itertools
import os
from dataclasses import dataclass
from datetime import date as Date
from typing import Any

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError
from obstore.store import LocalStore, S3Store


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder or prefix.

    Attributes:
        uri: s3://bucket/prefix, or a path.
        settings: AWS_* of the server itself.
    """

    uri: str
    settings: dict[str, str]

    def below(self, name: str) -> Place:
        return Place(uri=f"{self.uri}/{name}", settings=self.settings)

    @property
    def _store(self) -> Any:
        if not self.uri.startswith("s3://"):
            return LocalStore(self.uri, mkdir=True)
        bucket, _, prefix = self.uri.removeprefix("s3://").partition("/")
        return S3Store(
            bucket, prefix=prefix, endpoint=self.settings["AWS_ENDPOINT_URL"],
            access_key_id=self.settings["AWS_ACCESS_KEY_ID"],
            secret_access_key=self.settings["AWS_SECRET_ACCESS_KEY"],
            region=self.settings["AWS_REGION"], client_options={"allow_http": True})

    def names(self, prefix: str = "") -> list[str]:
        pages = obstore.list(self._store, prefix or None)
        return sorted(entry["path"] for page in pages for entry in page)

    def read(self, name: str) -> bytes:
        return bytes(obstore.get(self._store, name).bytes())

    def write(self, name: str, data: bytes) -> None:
        obstore.put(self._store, name, data)

    def delete(self, name: str) -> None:
        obstore.delete(self._store, name)

    def table(self, name: str, version: int | None = None) -> DeltaTable | None:
        """A Delta table at a version, or at its newest; None where there is none."""
        remote = self.uri.startswith("s3://")
        options = {**self.settings, "AWS_ALLOW_HTTP": "true"} if remote else {}
        if not remote and not os.path.isdir(f"{self.uri}/{name}"):
            return None
        try:
            return DeltaTable(f"{self.uri}/{name}", version=version, storage_options=options)
        except TableNotFoundError:
            return None

    def rows(self, name: str, date: str, version: int | None = None,
             columns: list[str] | None = None) -> pa.Table:
        """A date's rows in a table; without columns where there is no table."""
        table = self.table(name, version)
        if table is None:
            return pa.table({})
        return table.to_pyarrow_table(
            filters=[("date", "=", Date.fromisoformat(date))], columns=columns)

    def version(self, name: str) -> int:
        """The newest version of a table; -1 where there is none."""
        table = self.table(name)
        return -1 if table is None else table.version()

    def live(self, name: str, version: int | None = None, date: str | None = None) -> set[str]:
        """The files of a table that a version names, below this place."""
        table = self.table(name, version)
        if table is None:
            return set()
        files = (f"{name}/{uri.rpartition(f'/{name}/')[2]}" for uri in table.file_uris())
        return {file for file in files if date is None or f"/date={date}/" in file}

    def publications(self, date: str) -> int:
        """How often a commit changed what stands in `scores` for a date."""
        views = [set[str](), *(self.live("scores", version, date)
                               for version in range(self.version("scores") + 1))]
        return sum(one != other for one, other in itertools.pairwise(views))

    def shards_done(self) -> set[str]:
        """Run and number of the shards that have a completion record."""
        records = (name.split("/") for name in self.names("runs"))
        return {f"{path[1]}/{path[3].removesuffix('.json')}" for path in records
                if len(path) == 4 and path[2] == "done"}

    def unreadable(self) -> list[str]:
        """The Parquet files of all tables that cannot be read, named by a commit or not."""
        return [name for table in ("scores", "heatmaps", "sources") for name in self.names(table)
                if name.endswith(".parquet") and "/_delta_log/" not in name
                and not self._readable(name)]

    def _readable(self, name: str) -> bool:
        try:
            pq.read_table(io.BytesIO(self.read(name)))
        except (pa.ArrowInvalid, OSError):
            return False
        return True

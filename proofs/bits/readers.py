"""Published tables as Polars, DuckDB, pandas and deltalake read them, without code of igd-ray."""

from __future__ import annotations

import hashlib
import io
import math
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pandas
import polars
from chaos.commands import igd_ray
from chaos.places import Place
from obstore.fsspec import FsspecStore
from PIL import Image
from pyarrow import fs

Values = tuple[Any, ...]
Read = Callable[[Place, str, Sequence[str]], Iterable[Values]]
"""A place, a table's name and columns to the rows, in any order."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one library sees.

    Attributes:
        score_sum: exact before it is rounded, so that the order of rows is of no account.
        ids: digest of the sorted ids.
        heatmaps: how many there are.
        heatmap_sizes: width and height of each, as Pillow decodes it, without repetition.
        heatmap_bytes: digest of ids and PNGs.
    """

    rows: int
    score_sum: float
    ids: str
    heatmaps: int
    heatmap_sizes: list[tuple[int, int]]
    heatmap_bytes: str


def seen(read: Read, place: Place) -> Seen:
    """What a library sees in an output."""
    scores = list(read(place, "scores", ["image_id", "score"]))
    heatmaps = sorted(read(place, "heatmaps", ["image_id", "heatmap"]))
    return Seen(rows=len(scores), score_sum=math.fsum(score for _, score in scores),
                ids=_digest(sorted(name.encode() for name, _ in scores)),
                heatmaps=len(heatmaps),
                heatmap_sizes=sorted({_size(png) for _, png in heatmaps}),
                heatmap_bytes=_digest(part for name, png in heatmaps
                                      for part in (name.encode(), png)))


def by_polars(place: Place, table: str, columns: Sequence[str]) -> Iterable[Values]:
    options = {**place.settings, "AWS_ALLOW_HTTP": "true"} if _is_remote(place) else None
    return polars.read_delta(f"{place.uri}/{table}", storage_options=options,
                             columns=list(columns)).rows()


def by_duckdb(place: Place, table: str, columns: Sequence[str]) -> Iterable[Values]:
    """The files that `igd-ray files` prints."""
    with duckdb.connect() as connection:
        if _is_remote(place):
            connection.register_filesystem(FsspecStore(
                "s3", endpoint=place.settings["AWS_ENDPOINT_URL"],
                access_key_id=place.settings["AWS_ACCESS_KEY_ID"],
                secret_access_key=place.settings["AWS_SECRET_ACCESS_KEY"],
                region=place.settings["AWS_REGION"], client_options={"allow_http": True}))
        return connection.execute(f"select {', '.join(columns)} from read_parquet($1)",
                                  [_files(place, table)]).fetchall()


def by_pandas(place: Place, table: str, columns: Sequence[str]) -> Iterable[Values]:
    """The same files, one by one."""
    at = fs.S3FileSystem(
        access_key=place.settings["AWS_ACCESS_KEY_ID"],
        secret_key=place.settings["AWS_SECRET_ACCESS_KEY"], region=place.settings["AWS_REGION"],
        endpoint_override=place.settings["AWS_ENDPOINT_URL"]) if _is_remote(place) else None
    frames = [pandas.read_parquet(file.removeprefix("s3://"), columns=list(columns), filesystem=at)
              for file in _files(place, table)]
    return pandas.concat(frames).itertuples(index=False, name=None)


def by_deltalake(place: Place, table: str, columns: Sequence[str]) -> Iterable[Values]:
    found = place.table(table)
    assert found is not None
    rows = found.to_pyarrow_table(columns=list(columns)).to_pylist()
    return [tuple(row[name] for name in columns) for row in rows]


READERS: dict[str, Read] = {"Polars": by_polars, "DuckDB": by_duckdb, "pandas": by_pandas,
                            "deltalake": by_deltalake}


def _files(place: Place, table: str) -> list[str]:
    return subprocess.run(igd_ray("files", "--out", place.uri, "--table", table), check=True,
                          capture_output=True, text=True).stdout.splitlines()


def _is_remote(place: Place) -> bool:
    return place.uri.startswith("s3://")


def _size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        image.load()
        return image.size


def _digest(parts: Iterable[bytes]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()

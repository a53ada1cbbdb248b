"""The same photographs in every container, written by the libraries that usually write them."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq
from chaos.places import Place
from tars import tar

Photographs = Mapping[str, bytes]
"""Name, of three segments (MT_Free/Imgs/exp1_num_1.jpg), and content."""
ROW_GROUP = 100


def pack(place: Place, kind: str, photographs: Photographs) -> str:
    """Puts photographs into a place, in a container of `KINDS`; where it is."""
    if kind == "directory":
        for name, content in photographs.items():
            place.write(f"tiles/{name}", content)
        return f"{place.uri}/tiles"
    file = f"tiles.{kind}"
    place.write(file, _ARCHIVES[kind](photographs))
    return f"{place.uri}/{file}"


def _tar(photographs: Photographs) -> bytes:
    return tar(*photographs.items())


def _tar_gz(photographs: Photographs) -> bytes:
    return gzip.compress(_tar(photographs), compresslevel=1)


def _webdataset(photographs: Photographs) -> bytes:
    return tar(*_samples(photographs))


def _samples(photographs: Photographs) -> Iterator[tuple[str, bytes]]:
    for name, content in photographs.items():
        yield name, content
        kind = name.split("/")[0].removeprefix("MT_")
        yield name.removesuffix(".jpg") + ".json", json.dumps({"kind": kind}).encode()


def _zip(photographs: Photographs) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in photographs.items():
            archive.writestr(name, content)
    return sink.getvalue()


def _parquet(photographs: Photographs) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"path": list(photographs), "image": list(photographs.values())}),
                   sink, row_group_size=ROW_GROUP)
    return sink.getvalue()


_ARCHIVES: dict[str, Callable[[Photographs], bytes]] = {
    "tar": _tar, "tar.gz": _tar_gz, "zip": _zip, "wds.tar": _webdataset, "parquet": _parquet}
KINDS = ("directory", *_ARCHIVES)

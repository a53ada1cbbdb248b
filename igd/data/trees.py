"""The image files of a dataset tree: folders, or tar, zip and Parquet files in a folder's place.

`DATA/bottle.tar` stands for the folder `DATA/bottle`, whether or not its members' names begin
with `bottle/`, and `DATA` itself may be an archive of category folders. So may `bottle.parquet`,
with its rows for files. Archives are read by the sources of a scoring run: indexed, never
extracted.
"""

from __future__ import annotations

import functools
import hashlib
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from igd.config import ImageConfig
from igd.data.fetch import fetch
from igd.data.images import decode
from igd.data.members import Member, escape_name
from igd.data.sources import (
    ARCHIVE_SUFFIXES,
    SourceRecord,
    archive_stem,
    check_source,
    file_member,
    is_archive,
    list_inputs,
    scan,
)
from igd.errors import DataError, ImageError
from igd.records import SourceStatus
from igd.storage import exists_dir, join, stat

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""What counts as an image file in a dataset; the content still decides the format. A row of a
Parquet file needs no extension."""


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image file.

    Attributes:
        key: path relative to the category's folder, with `/`; bytes that are not UTF-8 are
            escaped, as in the tables (`igd.data.members.escape_name`).
        member: where its bytes are.
    """

    key: str
    member: Member

    @property
    def uri(self) -> str:
        """For people: the file, or the archive and the name within."""
        inside = f" ({self.member.name})" if self.member.raw_name else ""
        return self.member.source_uri + inside

    @property
    def version(self) -> str:
        """Changes when the content does: etag, or size and mtime in ns, of file or archive."""
        return self.member.source_version


def is_there(uri: str) -> bool:
    """Whether there is a folder, or an archive that stands for one, with images or without."""
    return exists_dir(uri) or any(stat(place) for place in (uri, *_archives(uri)))


def list_tree(uri: str) -> list[ImageRef]:
    """The image files below a folder or in the archive that stands for it, sorted by key.

    Dotfiles and what is in dot-folders are left out.

    Raises:
        DataError: an archive is damaged, or is of a kind that is not read.
    """
    places = [uri] if exists_dir(uri) else []
    places += [place for place in (uri, *_archives(uri)) if not exists_dir(place) and stat(place)]
    found = [ref for place in places for ref in _refs(place)]
    return sorted((ref for ref in found if _is_image(ref.key) or (
        ref.member.kind == "parquet" and not _is_hidden(ref.key))), key=lambda ref: ref.key)


def outline(data_uri: str) -> list[str]:
    """Paths of a dataset's images, sorted; an archive below a folder is not opened: `bottle/*`.

    Raises:
        DataError: the dataset is itself an archive, and a damaged one.
    """
    if not exists_dir(data_uri):
        return [ref.key for ref in list_tree(data_uri)]
    return sorted(archive_stem(key) + "/*" if is_archive(entry) else key
                  for entry in list_inputs(data_uri) for key in [_escaped(entry.key)]
                  if _is_image(key) or (is_archive(entry) and not _is_hidden(key)))


def below(refs: Sequence[ImageRef], folder: str) -> list[ImageRef]:
    """Those in a folder, their keys relative to it."""
    return [ImageRef(ref.key.removeprefix(f"{folder}/"), ref.member) for ref in refs
            if ref.key.startswith(f"{folder}/")]


def category_tree(data_uri: str, category: str) -> list[ImageRef]:
    """As `list_tree`, of one category of a dataset."""
    if exists_dir(data_uri):
        return list_tree(join(data_uri, category))
    return below(list_tree(data_uri), category)


def read_images(refs: Sequence[ImageRef], config: ImageConfig
                ) -> Iterator[tuple[NDArray[np.uint8], str] | ImageError]:
    """Each image, in order: uint8 (H, W, 3) and the hex SHA-256 of its file; or why not.

    Reads run ahead of decoding.
    """
    for data in fetch([ref.member for ref in refs]):
        try:
            if isinstance(data, ImageError):
                raise data
            found = decode(data, max_pixels=config.max_pixels), hashlib.sha256(data).hexdigest()
        except ImageError as error:
            yield error
            continue
        yield found


def read_image(ref: ImageRef, config: ImageConfig) -> tuple[NDArray[np.uint8], str]:
    """One image: uint8 (H, W, 3), and the hex SHA-256 of its file.

    Raises:
        ImageError: it cannot be read or decoded.
    """
    found, = read_images([ref], config)
    if isinstance(found, ImageError):
        raise found
    return found


def _is_image(key: str) -> bool:
    return key.lower().endswith(EXTENSIONS) and not _is_hidden(key)


def _is_hidden(key: str) -> bool:
    return any(part.startswith(".") for part in key.split("/"))


def _archives(uri: str) -> list[str]:
    return [uri.rstrip("/") + case(suffix) for suffix in ARCHIVE_SUFFIXES
            for case in (str.lower, str.upper)]


def _refs(place: str) -> Iterator[ImageRef]:
    """Keys are relative to a folder, or to the one that an archive stands for."""
    check_source(place)
    alone = not exists_dir(place)
    for entry in list_inputs(place):
        if not is_archive(entry):
            yield ImageRef(_escaped(entry.key), file_member(entry))
            continue
        place_of = archive_stem(entry.key)
        stem, folder = posixpath.basename(place_of), "" if alone else place_of + "/"
        for name, member in _members(entry.uri, entry.version):
            inside = posixpath.normpath(name).removeprefix(f"{stem}/")
            yield ImageRef(_escaped(folder + inside), member)


@functools.lru_cache(maxsize=1)
def _members(archive: str, version: str) -> tuple[tuple[str, Member], ...]:
    """Names and members of one version of an archive: that of many categories is walked once."""
    ends: list[SourceRecord] = []
    found = tuple(scan(archive, ends.append))
    if ends[0].status == SourceStatus.SCHEMA:
        raise DataError(f"{archive} has {ends[0].detail}; name the column so, or move the file "
                        "out of the dataset")
    if ends[0].status != SourceStatus.COMPLETE:
        raise DataError(f"archive {archive} is {ends[0].status} ({ends[0].detail}); expected a "
                        "whole tar, zip or Parquet file; copy it again")
    return found


def _escaped(key: str) -> str:
    return escape_name(os.fsencode(key))

"""Samples of a WebDataset: neighbours in a tar whose names are equal up to their first dot.

What stands beside an image in its sample (labels, captions, arrays, pickles) is a sidecar: no
image, so no row; it is counted, and none is ever opened but the `.json` that routes its sample.
Ordinals count sidecars too, so that no identity depends on what is one.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Iterator

from igd.data.members import ArchiveEnd, Member
from igd.records import Reason

IMAGE_EXTENSIONS = frozenset(
    b"jpg jpeg jpe jfif png apng webp bmp dib tif tiff gif ppm pgm pbm pnm jp2 j2k jxl avif heic "
    b"heif svg ico psd exr hdr dds tga dcm dng cr2 nef arw".split())
"""Never a sidecar, whether the format is read or not."""
MAX_HELD = 64
"""Members of one sample that wait for its image, or for the category of its images."""
MAX_JSON_BYTES = 1024 * 1024
MAX_EXTENSIONS = 20


def samples(members: Iterable[tuple[Member, bytes]], end: ArchiveEnd, field: str | None = None
            ) -> Iterator[tuple[Member, str]]:
    """Members that are no sidecars, in order, each with the category that its sample states.

    A member is a sidecar where an image stands before it in its sample, or behind it among the
    first `MAX_HELD`. A category behind the first `MAX_HELD` is that of the images behind it.

    Args:
        members: of a tar, with the bodies of those that `is_routing`; other bodies are not used.
        end: its `sidecars` are counted.
        field: a top-level field of a sample's `.json` that holds text or a whole number.
    """
    sample = _Sample(None, field)
    for member, body in members:
        key = _key(member.raw_name)
        if key is None or key != sample.key:
            yield from sample.release(end)
            sample = _Sample(key, field)
        sample.add(member, body)
        if not sample.waits:
            yield from sample.release(end)
    yield from sample.release(end)


def is_routing(name: bytes, size: int) -> bool:
    """Whether a member may state the category of its sample."""
    key = _key(name)
    return key is not None and name[len(key):].lower() == b".json" and size <= MAX_JSON_BYTES


def describe(sidecars: dict[str, int]) -> str | None:
    """What to say of the sidecars of an archive."""
    if not sidecars:
        return None
    return f"{sum(sidecars.values())} sidecar members ({', '.join(sorted(sidecars))})"


class _Sample:
    """Members of one key, held until it is known what they are."""

    def __init__(self, key: bytes | None, field: str | None) -> None:
        self.key = key
        self.waits = key is not None
        self.has_image = False
        self._field = field
        self._category: str | None = None if field else ""
        self._held: list[Member] = []

    def add(self, member: Member, body: bytes) -> None:
        self._held.append(member)
        if _extension(member.raw_name) in IMAGE_EXTENSIONS:
            self.has_image = True
        if self._field and self._category is None and is_routing(member.raw_name, member.size):
            self._category = _category(body, self._field)
        is_settled = self.has_image and self._category is not None
        if is_settled or len(self._held) >= MAX_HELD:
            self.waits = False

    def release(self, end: ArchiveEnd) -> Iterator[tuple[Member, str]]:
        held, self._held = self._held, []
        for member in held:
            if self.has_image and _may_be_sidecar(member):
                _count(end.sidecars, _extension(member.raw_name))
            else:
                yield member, self._category or ""


def _key(name: bytes) -> bytes | None:
    """The name up to the first dot of its last segment; None where that is nothing, or all."""
    folder, slash, base = name.rpartition(b"/")
    stem, dot, _ = base.partition(b".")
    return folder + slash + stem if stem and dot else None


def _extension(name: bytes) -> bytes:
    return posixpath.splitext(name)[1][1:].lower()


def _may_be_sidecar(member: Member) -> bool:
    return (_extension(member.raw_name) not in IMAGE_EXTENSIONS
            and member.reject_reason != Reason.NESTED)  # there may be images in it


def _count(sidecars: dict[str, int], extension: bytes) -> None:
    name = f".{extension.decode()}" if extension.isalnum() and len(extension) <= 10 else "others"
    if name not in sidecars and len(sidecars) >= MAX_EXTENSIONS:
        name = "others"
    sidecars[name] = sidecars.get(name, 0) + 1


def _category(body: bytes, field: str) -> str:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    value = document.get(field) if isinstance(document, dict) else None
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""

"""What a trained model follows from: so that nothing is trained twice, and nothing is mixed up.

Data, config and code of a training are recorded in its bundle and in its checkpoints. Equal ones
are not trained again; a training that was interrupted is taken up by one of equal ones only.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import igd
from igd import registry
from igd.config import Config, config_to_dict
from igd.data.images import DECODE_PATH
from igd.data.trees import ImageRef
from igd.errors import ModelError

TRAINING_CODE = ("config.py", "data/images.py", "data/formats.py", "data/png.py",
                 "data/datasets.py", "data/trees.py", "data/twins.py", "data/scratch.py", "model",
                 "train", "pipelines/category.py", "pipelines/ingest.py", "pipelines/room.py")
"""Of this package: what decides how a model comes out."""
LIBRARIES = ("torch", "numpy")


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Of one category's training.

    Attributes:
        data: of the images' paths and contents.
        listing: of their paths and versions, which is known before any is read; equal listings
            have equal data, and equal data may have other listings.
        images: how many were read.
        config: as `config_to_dict` has it.
        code: of the code that trains, the libraries it computes with, and the teacher's weights.
    """

    data: str
    listing: str
    images: int
    config: Mapping[str, Any]
    code: str

    @property
    def key(self) -> str:
        """Equal for equal trainings: 16 hex digits."""
        text = json.dumps([self.data, dict(self.config), self.code], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def document(self) -> dict[str, Any]:
        """Plain data, without the config, which a bundle has anyway."""
        return {"data": self.data, "listing": self.listing, "code": self.code, "key": self.key}


def listing_of(refs: Sequence[ImageRef]) -> str:
    """Hex SHA-256 of paths and versions."""
    lines = (f"{ref.version} {ref.key}\n" for ref in refs)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def code_fingerprint(config: Config) -> str:
    """Of what trains a config: sources, libraries, the way images are read, teacher weights.

    Raises:
        ModelError: the teacher's weights cannot be read.
    """
    return hashlib.sha256(f"{_sources()} {registry.teacher_digest(config)}".encode()).hexdigest()


@functools.cache
def _sources() -> str:
    root = Path(igd.__file__).parent
    digest = hashlib.sha256()
    for name in TRAINING_CODE:
        found = [root / name] if (root / name).is_file() else sorted((root / name).rglob("*.py"))
        for path in found:
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    digest.update(" ".join([*map(version, LIBRARIES), DECODE_PATH]).encode())
    return digest.hexdigest()


def finished_version(models: str, category: str, config: Config, code: str, *,
                     listing: str | None = None, data: str | None = None,
                     since: str = "") -> str | None:
    """The newest version of equal config and code, and of equal listing or data; None if none.

    Args:
        since: name of the oldest version that counts.
    """
    wanted = config_to_dict(config)
    for name, document in _bundles(models, category):
        if name < since:
            break
        known = document["training"].get("fingerprint", {})
        same_data = ((listing is not None and known.get("listing") == listing)
                     or (data is not None and known.get("data") == data))
        if (same_data and document["config"] == wanted and known.get("code") == code
                and registry.has_files(models, category, name)):
            return name
    return None


def changes(models: str, category: str, fingerprint: Fingerprint) -> list[str]:
    """What differs from the newest version, in words; nothing where there is none."""
    name, document = next(_bundles(models, category), (None, None))
    if document is None:
        return []
    known = document["training"].get("fingerprint", {})
    found = []
    if known.get("data") != fingerprint.data:
        found.append(f"the images ({document['training'].get('images', '?')} then, "
                     f"{fingerprint.images} now)")
    found += config_changes(document["config"], fingerprint.config)
    if known.get("code") != fingerprint.code:
        found.append("the code or its libraries")
    return [f"other than in version {name}: {', '.join(found)}"] if found else []


def config_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Settings that differ, as `train.epochs 4, was 2`."""
    before, after = dict(_flat(old)), dict(_flat(new))
    return [f"{key} {after.get(key, 'none')}, was {before.get(key, 'none')}"
            for key in {**after, **before} if before.get(key) != after.get(key)]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _bundles(models: str, category: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The complete versions of a category, newest first; what cannot be read is passed over."""
    for name in reversed(registry.list_versions(models, category)):
        try:
            yield name, registry.describe(models, category, name)
        except ModelError:
            continue

"""Model bundles: weights as safetensors, everything else as JSON and Parquet, never a pickle.

    <models>/<category>/<version>/weights.safetensors, bundle.json, calibration.parquet
    <models>/<category>/<version>/tensorboard/    of the nets, for people; never read back
    <models>/<category>/production/<seq>.json     `igd.registry.production`

`bundle.json` is written last and names the checksums of the others: a version without it is
incomplete.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import safetensors.torch
import torch
from torch import nn

from igd import __version__, storage
from igd.config import (
    NAME_PATTERN,
    Config,
    check_name,
    config_from_dict,
    config_to_dict,
)
from igd.errors import ConfigError, ModelError, ObjectDeniedError, ObjectMissingError
from igd.model.dense import DenseGaussian
from igd.model.igd import IGD
from igd.model.resnet import ResNet18
from igd.records import CALIBRATION
from igd.registry import production
from igd.registry.production import Promotion, history, in_use
from igd.registry.teachers import (
    load_net_teacher,
    load_resnet18,
    load_teacher,
    teacher_digest,
    training_teacher,
)

__all__ = ["Bundle", "Check", "Promotion", "build_model", "category_folders", "describe",
           "history", "in_use", "list_categories", "list_versions", "load_bundle",
           "load_bundle_at", "load_net_teacher", "load_resnet18", "load_teacher",
           "production_version", "promote", "rollback", "save_bundle", "teacher_digest",
           "training_teacher", "verify"]

BUNDLE_SCHEMA = 1
BUNDLE_KEYS = {"schema_version", "category", "version", "config", "weights_sha256",
               "calibration_sha256", "code_version", "created_at", "training"}


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A model with all that is known of it.

    Attributes:
        training: provenance and metrics, as `bundle.json` has them: data fingerprint, counts,
            seconds, score fingerprint, loss terms by epoch.
        calibration: rows of `igd.records.CALIBRATION`.
        sha256: of `bundle.json`, which names the checksums of the rest.
    """

    category: str
    version: str
    config: Config
    model: nn.Module
    calibration: pa.Table
    training: dict[str, Any]
    created_at: str
    code_version: str
    sha256: str

    @property
    def preset(self) -> str:
        return self.config.preset


def build_model(config: Config) -> nn.Module:
    """An unfitted model for a config, the teacher attached where it has one."""
    if config.preset == "fast":
        return DenseGaussian(config, load_teacher())
    if "teacher" not in config.net.encoders.values():
        return IGD(config)
    # a ResNet18 is the user's, so its weights come with the bundle's
    return IGD(config, ResNet18(None) if config.net.teacher == "resnet18" else load_teacher())


def save_bundle(models_uri: str, category: str, model: nn.Module, config: Config,
                calibration: pa.Table, training: dict[str, Any],
                beside: Mapping[str, bytes] = {}) -> str:
    """Writes a bundle and returns its version; not in production until `promote`.

    Args:
        beside: further files by their path in the bundle's folder, there before the bundle is.
    """
    check_name(category, "category")
    weights = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()})
    sink = io.BytesIO()
    pq.write_table(calibration.cast(CALIBRATION), sink, compression="zstd")
    now = datetime.now(UTC)
    weights_sha = hashlib.sha256(weights).hexdigest()
    # versions are in order of their names: to the millisecond, or two of one second are not
    version = f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03d}-{weights_sha[:8]}"
    document = {
        "schema_version": BUNDLE_SCHEMA, "category": category, "version": version,
        "config": config_to_dict(config), "weights_sha256": weights_sha,
        "calibration_sha256": hashlib.sha256(sink.getvalue()).hexdigest(),
        "code_version": __version__, "created_at": now.isoformat(timespec="seconds"),
        "training": training,
    }
    at = storage.join(models_uri, category, version)
    storage.write_bytes(storage.join(at, "weights.safetensors"), weights)
    storage.write_bytes(storage.join(at, "calibration.parquet"), sink.getvalue())
    for path, data in beside.items():
        storage.write_bytes(storage.join(at, path), data)
    storage.put_if_absent(storage.join(at, "bundle.json"), _json(document))
    return version


def load_bundle(models_uri: str, category: str, version: str | None = None) -> Bundle:
    """Reads a bundle, by default the one in production.

    Raises:
        ModelError: it is missing, damaged, holds NaN or has unknown keys.
    """
    version = version or production_version(models_uri, category)
    at = storage.join(models_uri, check_name(category, "category"),
                      check_name(version, "model version"))
    raw = _read(storage.join(at, "bundle.json"))
    document = _parse(raw, at)
    try:
        config = config_from_dict(document["config"], where=f"{at}/bundle.json")
    except ConfigError as error:
        raise ModelError(str(error)) from error
    weights = _checked(storage.join(at, "weights.safetensors"), document["weights_sha256"])
    table = _checked(storage.join(at, "calibration.parquet"), document["calibration_sha256"])
    model = build_model(config)
    _load_weights(model, weights, at)
    return Bundle(category=category, version=version, config=config, model=model.eval(),
                  calibration=_calibration(table, at),
                  training=document["training"], created_at=document["created_at"],
                  code_version=document["code_version"], sha256=hashlib.sha256(raw).hexdigest())


def load_bundle_at(uri: str) -> Bundle:
    """Reads `<models>/<category>` (in production) or `<models>/<category>/<version>`."""
    head, _, tail = storage.canonical(uri).rpartition("/")
    if storage.stat(storage.join(uri, "bundle.json")) is None:
        return load_bundle(head, tail)
    models, _, category = head.rpartition("/")
    return load_bundle(models, category, tail)


def describe(models_uri: str, category: str, version: str) -> dict[str, Any]:
    """`bundle.json` of a bundle, unchecked but for its form."""
    at = storage.join(models_uri, check_name(category, "category"),
                      check_name(version, "model version"))
    return _parse(_read(storage.join(at, "bundle.json")), at)


def has_files(models_uri: str, category: str, version: str) -> bool:
    """Whether a bundle's files are all there; `verify` says whether they are whole."""
    at = storage.join(models_uri, category, version)
    return all(storage.stat(storage.join(at, name)) is not None
               for name in ("bundle.json", "weights.safetensors", "calibration.parquet"))


def category_folders(models_uri: str) -> list[str]:
    """Folders that may be a category's, whatever is in them."""
    return [name for name in storage.list_dirs(models_uri) if NAME_PATTERN.fullmatch(name)]


def list_categories(models_uri: str) -> list[str]:
    """Categories with a model in production."""
    return [name for name in category_folders(models_uri) if production.numbers(models_uri, name)]


def list_versions(models_uri: str, category: str) -> list[str]:
    """Complete versions of a category, oldest first."""
    at = storage.join(models_uri, check_name(category, "category"))
    return [name for name in _version_folders(at) if NAME_PATTERN.fullmatch(name)
            and storage.stat(storage.join(at, name, "bundle.json")) is not None]


def production_version(models_uri: str, category: str) -> str:
    """The version of a category that is in use.

    Raises:
        ModelError: there is none; names the categories that have one.
    """
    present = in_use(models_uri, category)
    if present is None:
        raise _no_model(models_uri, category)
    return present.version


def promote(models_uri: str, category: str, version: str, why: str = "asked for",
            after: int | None = None) -> int:
    """Puts a whole version in use and returns its number in the history.

    Two at once both succeed, one after the other; nothing is overwritten.

    Args:
        why: one line for people, kept in the history.
        after: only if this still is the last number of the history, 0 where there is none.

    Raises:
        ModelError: there is no such version, or it is damaged; names those there are.
        LostRaceError: another version was put in use after number `after`.
    """
    _check_whole(models_uri, category, version)
    return production.append(models_uri, category, version, why, after).sequence


def rollback(models_uri: str, category: str) -> Promotion:
    """Puts the version in use that was before the present one, by the rule of `production.before`.

    Raises:
        ModelError: there is none before, or it is missing or damaged.
        LostRaceError: another version was put in use meanwhile.
    """
    promotions = history(models_uri, category)
    if not promotions:
        raise _no_model(models_uri, category)
    present = promotions[-1]
    version = production.before(promotions)
    if version is None:
        raise ModelError(f"category {category!r}: nothing was in use before {present.version} that "
                         "has not been rolled back from; promote a version; "
                         f"{_versions_there_are(models_uri, category)}")
    _check_whole(models_uri, category, version)
    return production.append_rollback(models_uri, category, present, version)


@dataclass(frozen=True, kw_only=True)
class Check:
    """What `verify` found in one folder.

    Attributes:
        folder: a version or `production`; empty for the category itself.
        state: `incomplete` is no fault: a training may be at work, or was killed.
        detail: one line for people.
    """

    category: str
    folder: str
    state: Literal["whole", "incomplete", "damaged"]
    detail: str
    in_production: bool = False


def verify(models_uri: str, categories: Sequence[str] = ()) -> Iterator[Check]:
    """Reads every version as a run would, and every record of what was in use.

    Args:
        categories: by default all.

    Raises:
        ModelError: no such category.
    """
    known = category_folders(models_uri)
    for category in categories:
        if check_name(category, "category") not in known:
            raise ModelError(f"no category {category!r} in {models_uri}; there are: "
                             f"{', '.join(known) or 'none'}")
    for category in categories or known:
        yield from _verify_category(models_uri, category)


def _verify_category(models_uri: str, category: str) -> Iterator[Check]:
    at = storage.join(models_uri, category)
    names = _version_folders(at)
    used: str | None = None
    try:
        present = in_use(models_uri, category)
        used = present.version if present else None
        history(models_uri, category)
    except (ModelError, ObjectDeniedError) as error:
        yield Check(category=category, folder=production.FOLDER, state="damaged",
                    detail=str(error))
    if not names and not production.numbers(models_uri, category):
        yield Check(category=category, folder="", state="incomplete", detail="holds no version")
    for name in sorted({*names, *([used] if used else [])}):
        state, detail = _state(models_uri, category, name)
        if name == used and state == "incomplete":
            state = "damaged"
        yield Check(category=category, folder=name, state=state, detail=detail,
                    in_production=name == used)


def _state(models_uri: str, category: str,
           version: str) -> tuple[Literal["whole", "incomplete", "damaged"], str]:
    if not NAME_PATTERN.fullmatch(version):
        return "incomplete", "no version has such a name"
    uri = storage.join(models_uri, category, version, "bundle.json")
    if storage.stat(uri) is None:
        return "incomplete", "no bundle.json"
    try:
        bundle = load_bundle(models_uri, category, version)
        trained_for = describe(models_uri, category, version)["category"]
    except (ModelError, ObjectDeniedError) as error:
        return "damaged", str(error)
    if trained_for != category:
        return "damaged", f"{uri} is a model of {trained_for!r}; move the folder back there"
    return "whole", f"{bundle.preset}, {len(bundle.calibration)} calibration images"


def _check_whole(models_uri: str, category: str, version: str) -> None:
    check_name(category, "category")
    check_name(version, "model version")
    state, detail = _state(models_uri, category, version)
    if state != "whole":
        raise ModelError(f"category {category!r} has no whole version {version!r} in {models_uri} "
                         f"({detail}); {_versions_there_are(models_uri, category)}")


def _no_model(models_uri: str, category: str) -> ModelError:
    known = list_categories(models_uri)
    return ModelError(f"no model for category {category!r} in {models_uri}; "
                      + (f"there are: {', '.join(known)}" if known else
                         "there are no models at all; run igd-ray train-all first"))


def _versions_there_are(models_uri: str, category: str) -> str:
    known = list_versions(models_uri, category)
    return (f"its versions are: {', '.join(known)}" if known else
            "it has no version at all; train it first")


def _version_folders(at: str) -> list[str]:
    return [name for name in storage.list_dirs(at) if name != production.FOLDER]


def _json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def _read(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri)
    except ObjectMissingError as error:
        raise ModelError(f"model file {uri} is missing; train the category again") from error


def _checked(uri: str, sha256: str) -> bytes:
    data = _read(uri)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ModelError(f"{uri} is damaged: sha256 {found[:16]}..., bundle.json says "
                         f"{str(sha256)[:16]}...; restore it or train the category again")
    return data


def _parse(raw: bytes, at: str) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except ValueError as error:
        raise ModelError(f"{at}/bundle.json is not JSON: {error}") from error
    keys = set(document) if isinstance(document, dict) else set()
    if keys != BUNDLE_KEYS:
        raise ModelError(f"{at}/bundle.json has unknown or missing keys: "
                         f"{', '.join(sorted(keys ^ BUNDLE_KEYS))}")
    if document["schema_version"] != BUNDLE_SCHEMA:
        raise ModelError(f"{at}/bundle.json has schema version {document['schema_version']!r}: "
                         f"expected {BUNDLE_SCHEMA}; train the category again")
    return dict(document)


def _calibration(data: bytes, at: str) -> pa.Table:
    where = f"{at}/calibration.parquet"
    try:
        rows = pq.read_table(pa.BufferReader(data)).cast(CALIBRATION)
    except (pa.ArrowException, ValueError) as error:
        raise ModelError(f"{where} is not a calibration table: {error}") from error
    for name in ("score", "heatmap_max"):
        if not len(rows) or not bool(pc.all(pc.is_finite(rows[name])).as_py()):
            raise ModelError(f"{where}: {name} is empty or holds NaN or infinity; train the "
                             "category again")
    return rows


def _load_weights(model: nn.Module, data: bytes, at: str) -> None:
    where = f"{at}/weights.safetensors"
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:  # the parser's own error types, on a file that passed its checksum
        raise ModelError(f"{where} is not a safetensors file: {error}") from error
    expected = model.state_dict()
    if set(tensors) != set(expected):
        raise ModelError(f"{where} has unknown or missing tensors: "
                         f"{', '.join(sorted(set(tensors) ^ set(expected))[:5])}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            raise ModelError(f"{where}: {name} is {tensor.dtype} {tuple(tensor.shape)}, expected "
                             f"{expected[name].dtype} {tuple(expected[name].shape)}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{where}: {name} holds NaN or infinity; train the category again")
    model.load_state_dict(tensors)

"""Bundles: what is saved comes back bit for bit, and anything else is refused by name."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from igd import registry, storage
from igd.config import preset_config
from igd.errors import ConfigError, LostRaceError, ModelError
from igd.model.igd import IGD
from igd.model.resnet import ResNet18
from igd.records import CALIBRATION
from igd.registry import production, teachers
from igd.score.scorer import Scorer

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.fixture
def models(tiny_models: Path, tmp_path: Path) -> Path:
    """A registry with one model, `weave`, that a test may damage."""
    shutil.copytree(tiny_models / "weave", tmp_path / "weave")
    return tmp_path


def folder(models: Path) -> Path:
    return models / "weave" / registry.production_version(str(models), "weave")


def rewrite(at: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((at / "bundle.json").read_text())
    change(document)
    (at / "bundle.json").write_text(json.dumps(document))


def test_a_saved_model_loads_with_equal_bits(tiny_models: Path, tmp_path: Path) -> None:
    first = registry.load_bundle(str(tiny_models), "weave")
    again = registry.save_bundle(str(tmp_path), "other", first.model, first.config,
                                 first.calibration, first.training)
    second = registry.load_bundle(str(tmp_path), "other", again)
    before, after = first.model.state_dict(), second.model.state_dict()
    assert set(before) == set(after) and len(before) == 5
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert second.calibration.equals(first.calibration) and len(first.calibration) == 24
    assert (second.config, second.training) == (first.config, first.training)
    one, two = Scorer(first).score([IMAGE]), Scorer(second).score([IMAGE])
    assert one.scores.tobytes() == two.scores.tobytes()
    assert one.heatmaps.tobytes() == two.heatmaps.tobytes()
    with pytest.raises(ModelError, match="no model for category 'other'"):
        registry.load_bundle(str(tmp_path), "other")  # saved, but not promoted


def test_nets_load_with_equal_bits(tiny_models: Path, tmp_path: Path) -> None:
    config = preset_config("small", ["net.width=1", "net.latent=4",
                                     "net.global_encoder=trained",
                                     "net.local_encoder=trained"])
    model = IGD(config)
    calibration = registry.load_bundle(str(tiny_models), "weave").calibration
    version = registry.save_bundle(str(tmp_path), "nets", model, config, calibration, {})
    loaded = registry.load_bundle(str(tmp_path), "nets", version)
    assert loaded.config == config and not loaded.model.training
    before, after = model.state_dict(), loaded.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", ["weights.safetensors", "calibration.parquet"])
def test_a_flipped_bit_is_refused_naming_the_file(models: Path, name: str) -> None:
    path = folder(models) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match=rf"{name} is damaged: sha256"):
        registry.load_bundle(str(models), "weave")


@pytest.mark.parametrize("name", ["weights.safetensors", "calibration.parquet", "bundle.json"])
def test_a_missing_file_is_named(models: Path, name: str) -> None:
    (folder(models) / name).unlink()
    with pytest.raises(ModelError, match=rf"model file .*{name} is missing"):
        registry.load_bundle(str(models), "weave")


def change_weights(at: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Rewrites the weights with a checksum that is right."""
    tensors = safetensors.torch.load((at / "weights.safetensors").read_bytes())
    change(tensors)
    data = safetensors.torch.save(tensors)
    (at / "weights.safetensors").write_bytes(data)
    rewrite(at, lambda d: d.update(weights_sha256=hashlib.sha256(data).hexdigest()))


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t["mean_PC"][3].fill_(torch.nan), "mean_PC holds NaN or infinity"),
    (lambda t: t["scale_22"].fill_(torch.inf), "scale_22 holds NaN or infinity"),
    (lambda t: t.pop("mean_PC"), "unknown or missing tensors: mean_PC"),
    (lambda t: t.update(extra=torch.zeros(1)), "unknown or missing tensors: extra"),
    (lambda t: t.update(mean_PC=t["mean_PC"][:-1].clone()), r"mean_PC is .*\(15, 152\), expected"),
    (lambda t: t.update(scale_22=t["scale_22"].float()), "scale_22 is torch.float32"),
], ids=["nan", "inf", "missing", "extra", "shape", "dtype"])
def test_weights_with_a_right_checksum_and_wrong_tensors_are_refused(
        models: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str) -> None:
    change_weights(folder(models), change)
    with pytest.raises(ModelError, match=rf"weights\.safetensors.*{message}"):
        registry.load_bundle(str(models), "weave")


@pytest.mark.parametrize(("change", "message"), [
    (lambda rows: rows.to_pylist()[:0], "score is empty or holds NaN"),
    (lambda rows: [{**row, "score": math.nan} for row in rows.to_pylist()], "score is .* NaN"),
    (lambda rows: [{**row, "heatmap_max": math.inf} for row in rows.to_pylist()],
     "heatmap_max is .* infinity"),
    (lambda rows: rows.drop_columns("score"), "is not a calibration table"),
], ids=["empty", "nan", "inf", "column"])
def test_a_calibration_with_a_right_checksum_and_wrong_rows_is_refused(
        models: Path, change: Callable[[pa.Table], Any], message: str) -> None:
    path = folder(models) / "calibration.parquet"
    changed = change(pq.read_table(path))
    if isinstance(changed, list):
        changed = pa.Table.from_pylist(changed, schema=CALIBRATION)
    pq.write_table(changed, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    rewrite(folder(models), lambda d: d.update(calibration_sha256=digest))
    with pytest.raises(ModelError, match=rf"calibration\.parquet.*{message}"):
        registry.load_bundle(str(models), "weave")


@pytest.mark.parametrize(("change", "message"), [
    (lambda d: d.update(colour="red"), "unknown or missing keys: colour"),
    (lambda d: d.pop("training"), "unknown or missing keys: training"),
    (lambda d: d.update(schema_version=99), "schema version 99: expected 1"),
    (lambda d: d["config"]["dense"].update(depth=2), r"unknown config key dense\.depth"),
    (lambda d: d["config"]["image"].update(size=65), r"image\.size is 65"),
], ids=["unknown", "missing", "schema", "config key", "config value"])
def test_a_bundle_json_of_another_form_is_refused(
        models: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    rewrite(folder(models), change)
    with pytest.raises(ModelError, match=rf"bundle\.json.*{message}"):
        registry.load_bundle(str(models), "weave")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff"])
def test_a_bundle_json_that_is_none_is_refused(models: Path, text: bytes) -> None:
    (folder(models) / "bundle.json").write_bytes(text)
    with pytest.raises(ModelError, match=r"bundle\.json"):
        registry.load_bundle(str(models), "weave")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"version": 3}',
                                  b'{"version": "../../x"}'])
def test_a_damaged_promotion_is_refused_naming_the_file(models: Path, text: bytes) -> None:
    (models / "weave" / "production" / "00000009.json").write_bytes(text)
    with pytest.raises(ModelError, match=r"production/00000009\.json does not name a version"):
        registry.load_bundle(str(models), "weave")


def test_a_missing_model_names_the_categories_there_are(tiny_models: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'bottle' in .*; there are: washer, weave"):
        registry.load_bundle(str(tiny_models), "bottle")
    with pytest.raises(ModelError, match="no models at all; run igd-ray train-all"):
        registry.load_bundle(str(tmp_path / "none"), "bottle")


@pytest.mark.parametrize("name", ["../x", "", "x" * 65, "..", "a/b"])
def test_a_bad_name_is_refused_before_storage_is_touched(models: Path, name: str) -> None:
    model = torch.nn.Identity()
    config = preset_config("fast")
    calls: list[Callable[[], object]] = [
        lambda: registry.load_bundle(str(models), name),
        lambda: registry.load_bundle(str(models), name, "v1"),
        lambda: registry.production_version(str(models), name),
        lambda: registry.list_versions(str(models), name),
        lambda: registry.describe(str(models), name, "v1"),
        lambda: registry.promote(str(models), name, "v1"),
        lambda: registry.promote(str(models), "weave", name),
        lambda: registry.rollback(str(models), name),
        lambda: registry.history(str(models), name),
        lambda: list(registry.verify(str(models), [name])),
        lambda: registry.save_bundle(str(models), name, model, config, None, {}),
    ]
    if name:  # no version is the one in production
        calls.append(lambda: registry.load_bundle(str(models), "weave", name))
    before = sorted(models.parent.rglob("*"))
    for call in calls:
        with pytest.raises(ConfigError, match="cannot be used as a name"):
            call()
    assert sorted(models.parent.rglob("*")) == before


def add_version(models: Path, name: str) -> str:
    """A further whole version of `weave`."""
    shutil.copytree(folder(models), models / "weave" / name)
    return name


PROMOTE = """
import sys, threading
from igd import registry

models, mine = sys.argv[1:]
registry.load_teacher()
print("ready", flush=True)
input()

def promote(thread):
    for turn in range(5):
        registry.promote(models, "weave", ("one", "two")[turn % 2], f"{mine} {thread} {turn}")

threads = [threading.Thread(target=promote, args=(i,)) for i in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_promotions_of_many_processes_at_once_are_all_kept_in_order(
        models: Path, where: str, request: pytest.FixtureRequest) -> None:
    for name in ("one", "two"):
        add_version(models, name)
    uri = str(models)
    if where == "s3":
        uri = request.getfixturevalue("bucket")
        for entry in list(storage.list_objects(str(models))):
            storage.write_bytes(f"{uri}/{entry.key}", storage.read_bytes(entry.uri))
    first, = registry.history(uri, "weave")
    processes = [subprocess.Popen([sys.executable, "-c", PROMOTE, uri, f"process-{i}"], text=True,
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                 for i in range(2)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    found = registry.history(uri, "weave")
    assert found[0] == first and [record.sequence for record in found] == list(range(1, 42))
    whys = [record.why for record in found[1:]]
    assert sorted(whys) == sorted(f"process-{p} {thread} {turn}" for p in range(2)
                                  for thread in range(4) for turn in range(5))
    for p in range(2):  # each one's promotions stand in the order in which it made them
        for thread in range(4):
            turns = [why for why in whys if why.startswith(f"process-{p} {thread} ")]
            assert turns == sorted(turns)
    assert [record.at for record in found] == sorted(record.at for record in found)
    assert registry.production_version(uri, "weave") == found[-1].version
    assert not list(models.rglob("*.tmp"))


def test_equal_promotions_in_one_instant_are_two_records(
        models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = add_version(models, "one")
    instant = datetime.now(UTC)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return instant

    monkeypatch.setattr(production, "datetime", Clock)
    monkeypatch.setattr(production, "numbers", lambda *_: [1])  # each sees the others not yet
    assert [registry.promote(str(models), "weave", version) for _ in range(3)] == [2, 3, 4]


def test_a_promotion_says_when_and_why(models: Path) -> None:
    before = datetime.now(UTC)
    version = add_version(models, "next")
    assert registry.promote(str(models), "weave", version, "better on Monday's parts") == 2
    first, second = registry.history(str(models), "weave")
    assert (second.version, second.why) == (version, "better on Monday's parts")
    assert before <= datetime.fromisoformat(second.at) <= datetime.now(UTC)
    assert registry.in_use(str(models), "weave") == second != first
    assert registry.history(str(models), "none") == []


@pytest.mark.parametrize("extra", [{}, {"colour": "red"}, {"why": "x", "rolled_back": None}])
def test_records_of_older_and_newer_releases_are_read(models: Path, extra: dict[str, Any]) -> None:
    record = {"version": add_version(models, "old"), "at": "2026-01-02T03:04:05+00:00", **extra}
    (models / "weave" / "production" / "00000002.json").write_text(json.dumps(record))
    assert registry.history(str(models), "weave")[1] == registry.Promotion(
        sequence=2, version="old", at=record["at"], why=extra.get("why", ""))
    assert registry.production_version(str(models), "weave") == "old"
    (models / "weave" / "production" / "00000002.json").write_text('{"version": "old"}')
    assert registry.history(str(models), "weave")[1].at == ""


@pytest.mark.parametrize("name", ["9", "9.json", "00000009", "00000009.json.tmp", "note.json",
                                  "\u00b2.json", "x/00000009.json"])
def test_foreign_files_among_the_records_are_left_alone(models: Path, name: str) -> None:
    version = registry.production_version(str(models), "weave")
    path = models / "weave" / "production" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"version": "foreign"}')
    assert registry.production_version(str(models), "weave") == version
    assert registry.promote(str(models), "weave", version) == 2


def test_only_a_whole_version_is_put_in_use(models: Path) -> None:
    there = registry.production_version(str(models), "weave")
    for name in ("cut", "bits", "other", "half"):
        add_version(models, name)
    (models / "weave" / "half" / "bundle.json").unlink()
    (models / "weave" / "cut" / "weights.safetensors").unlink()
    (models / "weave" / "bits" / "calibration.parquet").write_bytes(b"PAR1")
    rewrite(models / "weave" / "other", lambda d: d.update(category="washer"))
    for version, reason in (("none", "no bundle.json"), ("half", "no bundle.json"),
                            ("cut", r"weights\.safetensors is missing"),
                            ("bits", r"calibration\.parquet is damaged"),
                            ("other", "a model of 'washer'")):
        with pytest.raises(ModelError, match=rf"no whole version '{version}' in {models} \(.*"
                           rf"{reason}.*\); its versions are: {there}, bits, cut, other$"):
            registry.promote(str(models), "weave", version)
    with pytest.raises(ModelError, match=r"'screw' has no whole .*; it has no version at all"):
        registry.promote(str(models), "screw", there)
    assert len(registry.history(str(models), "weave")) == 1 and not (models / "screw").exists()


def test_rollbacks_go_back_one_by_one_and_never_forth(models: Path) -> None:
    uri = str(models)
    first = registry.production_version(uri, "weave")
    for name in ("b", "c"):
        registry.promote(uri, "weave", add_version(models, name))
    found = registry.rollback(uri, "weave")
    assert (found.sequence, found.version, found.rolled_back) == (4, "b", "c")
    assert registry.in_use(uri, "weave") == found and found.why == "rollback from c"
    assert registry.rollback(uri, "weave").version == first
    with pytest.raises(ModelError, match=rf"nothing was in use before {first} that has not .*; its "
                       rf"versions are: {first}, b, c"):
        registry.rollback(uri, "weave")
    registry.promote(uri, "weave", "c")  # for all that, it may be put in use again
    assert registry.rollback(uri, "weave").version == first
    assert [record.version for record in registry.history(uri, "weave")] == [
        first, "b", "c", "b", first, "c", first]
    with pytest.raises(ModelError, match="no model for category 'screw'"):
        registry.rollback(uri, "screw")


def test_a_rollback_to_a_damaged_version_changes_nothing(models: Path) -> None:
    at = folder(models)
    registry.promote(str(models), "weave", add_version(models, "b"))
    (at / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=rf"no whole version '{at.name}'"):
        registry.rollback(str(models), "weave")
    assert registry.production_version(str(models), "weave") == "b"


def test_a_rollback_that_another_promotion_overtook_is_refused(
        models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(models)
    for name in ("b", "c"):
        add_version(models, name)
    registry.promote(uri, "weave", "b")
    seen = production.before

    def overtaken(promotions: Sequence[registry.Promotion]) -> str | None:
        registry.promote(uri, "weave", "c")
        return seen(promotions)

    monkeypatch.setattr(production, "before", overtaken)
    with pytest.raises(LostRaceError, match="another version than b was put in use meanwhile"):
        registry.rollback(uri, "weave")
    assert registry.production_version(uri, "weave") == "c"
    assert len(registry.history(uri, "weave")) == 3


@given(st.lists(st.sampled_from(["a", "b", "c", "d", None]), max_size=30))
def test_no_rollback_returns_to_a_version_that_was_rolled_back_from(
        moves: list[str | None]) -> None:
    records: list[registry.Promotion] = []
    taken_out: set[str] = set()

    def roll_back() -> bool:
        to = production.before(records)
        if to is None:
            return False
        here = records[-1].version
        taken_out.add(here)
        assert to not in taken_out and to in {record.version for record in records}
        records.append(registry.Promotion(sequence=len(records) + 1, version=to, rolled_back=here))
        return True

    for move in [*moves, *[None] * 4]:  # None: a rollback
        if move is None:
            roll_back()
            continue
        taken_out.discard(move)
        records.append(registry.Promotion(sequence=len(records) + 1, version=move))
    assert not roll_back()  # four at most lead to the end
    if records:
        others = {record.version for record in records} - {records[-1].version}
        assert others == taken_out  # and leave out none


def test_verify_reads_everything_and_says_what_is_wrong(models: Path, tiny_models: Path) -> None:
    uri, whole = str(models), registry.production_version(str(models), "weave")
    for name in ("bits", "half", "keys", "other"):
        add_version(models, name)
    (models / "weave" / "half" / "bundle.json").unlink()
    (models / "weave" / "foreign folder").mkdir()
    (models / "weave" / "bits" / "weights.safetensors").write_bytes(b"x")
    rewrite(models / "weave" / "keys", lambda d: d.update(colour="red"))
    rewrite(models / "weave" / "other", lambda d: d.update(category="washer"))
    shutil.copytree(tiny_models / "washer", models / "washer")
    (models / "nothing").mkdir()
    (models / ".hidden").mkdir()
    found = {(check.category, check.folder): check for check in registry.verify(uri)}
    states = {key: check.state for key, check in found.items()}
    washer = registry.production_version(uri, "washer")
    assert states == {
        ("nothing", ""): "incomplete", ("washer", washer): "whole", ("weave", whole): "whole",
        ("weave", "bits"): "damaged", ("weave", "foreign folder"): "incomplete",
        ("weave", "half"): "incomplete", ("weave", "keys"): "damaged",
        ("weave", "other"): "damaged"}
    assert "weights.safetensors is damaged" in found["weave", "bits"].detail
    assert "unknown or missing keys: colour" in found["weave", "keys"].detail
    assert "a model of 'washer'" in found["weave", "other"].detail
    assert [key for key, check in found.items() if check.in_production] == [
        ("washer", washer), ("weave", whole)]
    assert [check.category for check in registry.verify(uri, ["washer"])] == ["washer"]
    with pytest.raises(ModelError, match=r"no category 'screw' in .*: nothing, washer, weave"):
        list(registry.verify(uri, ["washer", "screw"]))


def test_verify_finds_nan_behind_a_right_checksum(models: Path) -> None:
    change_weights(folder(models), lambda t: t["mean_PC"][3].fill_(torch.nan))
    check, = registry.verify(str(models))
    assert check.state == "damaged" and "holds NaN" in check.detail and check.in_production


def test_what_is_in_production_must_be_there(models: Path) -> None:
    at = folder(models)
    (at / "bundle.json").unlink()
    check, = registry.verify(str(models))  # half-written, but in use
    assert (check.folder, check.state, check.detail) == (at.name, "damaged", "no bundle.json")
    shutil.rmtree(at)
    assert [check] == list(registry.verify(str(models)))
    (models / "weave" / "production" / "00000002.json").write_text("{}")
    check, = registry.verify(str(models))
    assert (check.folder, check.state) == ("production", "damaged")
    assert "00000002.json does not name a version" in check.detail


def test_an_older_version_is_put_in_use_again(models: Path) -> None:
    first = registry.load_bundle(str(models), "weave")
    changed = first.model
    changed.scale_22[0, 0] += 1
    second = registry.save_bundle(str(models), "weave", changed, first.config, first.calibration,
                                  first.training)
    assert registry.load_bundle(str(models), "weave").version == first.version
    registry.promote(str(models), "weave", second)
    assert registry.load_bundle(str(models), "weave").version == second
    assert registry.list_versions(str(models), "weave") == sorted([first.version, second])
    registry.promote(str(models), "weave", first.version)
    assert registry.load_bundle(str(models), "weave").version == first.version


def test_a_bundle_loads_by_its_own_uri(tiny_models: Path) -> None:
    version = registry.production_version(str(tiny_models), "weave")
    for uri in (tiny_models / "weave", f"{tiny_models}/weave/", tiny_models / "weave" / version):
        bundle = registry.load_bundle_at(str(uri))
        assert (bundle.category, bundle.version) == ("weave", version)


def test_bundle_json_says_where_a_model_comes_from(tiny_models: Path) -> None:
    version = registry.production_version(str(tiny_models), "weave")
    document = registry.describe(str(tiny_models), "weave", version)
    at = tiny_models / "weave" / version
    assert document["weights_sha256"] == hashlib.sha256(
        (at / "weights.safetensors").read_bytes()).hexdigest()
    assert document["config"]["preset"] == "fast" and document["category"] == "weave"
    assert document["training"]["images"] == 24
    assert document["training"]["calibration"] == "cross-conformal"
    assert {path.name for path in at.iterdir()} == {
        "bundle.json", "weights.safetensors", "calibration.parquet"}


events: list[str] = []
watching = False


def _hook(event: str, _: object) -> None:
    if watching and event.startswith(("pickle.", "marshal.")):
        events.append(event)


def test_loading_a_bundle_opens_no_pickle(tiny_models: Path) -> None:
    global watching
    registry.load_teacher()  # a torch file, held to its checksum and read with weights_only
    registry.load_bundle(str(tiny_models), "weave")  # imports done
    sys.addaudithook(_hook)  # for good: there is no way to remove one
    watching = True
    try:
        registry.load_bundle(str(tiny_models), "weave")
        assert events == []
        pickle.loads(pickle.dumps(tiny_models))
        assert events  # the hook does see one
    finally:
        watching = False


def test_other_teacher_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teachers, "TEACHER_SHA256", "0" * 64)
    registry.load_teacher.cache_clear()
    try:
        with pytest.raises(ModelError, match="teacher weights have sha256 579344248a93e230"):
            registry.load_teacher()
    finally:
        registry.load_teacher.cache_clear()


def resnet18_weights() -> dict[str, torch.Tensor]:
    """Random weights in torchvision's names and shapes, without the classifier."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}

    def layer(conv: str, norm: str, *shape: int) -> None:
        weights[f"{conv}.weight"] = 0.05 * torch.randn(shape, generator=generator)
        for part in ("weight", "bias", "running_mean", "running_var"):
            weights[f"{norm}.{part}"] = 0.5 + torch.rand(shape[0], generator=generator)
        weights[f"{norm}.num_batches_tracked"] = torch.tensor(1)

    layer("conv1", "bn1", 64, 3, 7, 7)
    cin = 64
    for stage, cout in enumerate((64, 128, 256, 512), 1):
        for i in range(2):
            at = f"layer{stage}.{i}."
            layer(at + "conv1", at + "bn1", cout, cin, 3, 3)
            layer(at + "conv2", at + "bn2", cout, cout, 3, 3)
            if cin != cout:
                layer(at + "downsample.0", at + "downsample.1", cout, cin, 1, 1)
            cin = cout
    return weights


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of ResNet18, for reading only."""
    path = tmp_path_factory.mktemp("resnet") / "resnet18.safetensors"
    safetensors.torch.save_file(resnet18_weights(), path)
    return path


def test_resnet18_loads_from_a_safetensors_file(resnet18: Path) -> None:
    image = torch.from_numpy(IMAGE).permute(2, 0, 1)[None].float()
    expected = ResNet18(resnet18_weights()).pooled(image)
    for uri in (str(resnet18), resnet18.as_uri()):
        assert torch.equal(registry.load_resnet18(uri).pooled(image), expected)


def test_resnet18_loads_from_s3(resnet18: Path, bucket: str) -> None:
    storage.write_bytes(f"{bucket}/resnet18.safetensors", resnet18.read_bytes())
    loaded = registry.load_resnet18(f"{bucket}/resnet18.safetensors").state_dict()
    local = registry.load_resnet18(str(resnet18)).state_dict()
    assert all(torch.equal(loaded[name], local[name]) for name in local)
    with pytest.raises(ModelError, match=f"{bucket}/none are missing"):
        registry.load_resnet18(f"{bucket}/none")


@pytest.mark.parametrize("name", ["none.safetensors", "none/resnet18.safetensors", "."])
def test_missing_resnet18_weights_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match=rf"{tmp_path}/{name} are missing: expected .*"
                       r"safetensors file; .*python -c "):
        registry.load_resnet18(f"{tmp_path}/{name}")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_is_never_opened_and_the_advice_converts_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    weights = {name: torch.nn.Parameter(tensor) if tensor.is_floating_point() else tensor
               for name, tensor in resnet18_weights().items()}  # as torchvision's older files
    torch.save(weights, tmp_path / "resnet18.pth", _use_new_zipfile_serialization=zipped)
    with monkeypatch.context() as patch, pytest.raises(
            ModelError, match=r"resnet18\.pth are a torch file .*: expected a safetensors file; "
            "convert it: ") as caught:
        patch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was opened"))
        registry.load_resnet18(str(tmp_path / "resnet18.pth"))
    monkeypatch.chdir(tmp_path)
    _, _, command = str(caught.value).partition("convert it: python -c ")
    exec(shlex.split(command)[0], {})
    registry.load_resnet18("resnet18.safetensors")


def test_a_damaged_resnet18_file_is_no_torch_file_whatever_its_length_begins_with(
        tmp_path: Path) -> None:
    for length in (0x80, 0x4B50):  # as the first byte of a pickle, and of a zip
        header = b'{"a":' + b" " * (length - 5)
        (tmp_path / "it").write_bytes(length.to_bytes(8, "little") + header)
        with pytest.raises(ModelError, match="bytes that are no whole safetensors file"):
            registry.load_resnet18(str(tmp_path / "it"))


@pytest.mark.parametrize("keep", [0, 7, 8, 1000, -4, -4_000_000])
def test_a_truncated_resnet18_file_is_named(resnet18: Path, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(data := resnet18.read_bytes()[:keep])
    with pytest.raises(ModelError, match=rf"cut\.safetensors are {len(data)} bytes that are no "
                       r"whole safetensors file \(.*\): expected .* ResNet18; copy it again"):
        registry.load_resnet18(str(path))


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.update({"layer1.2.conv2.weight": torch.zeros(64, 64, 3, 3)}), "like .*ResNet34"),
    (lambda t: t.update({"layer1.0.conv3.weight": torch.zeros(256, 64, 1, 1)}), "like .*ResNet50"),
    (lambda t: t.pop("layer2.0.downsample.0.weight"), r"lack 'layer2\.0\.downsample\.0\.weight'"),
    (lambda t: t.update({"conv1.weight": torch.zeros(64, 3, 3, 3)}),
     r"'conv1\.weight' have shape \(64, 3, 3, 3\): expected \(64, 3, 7, 7\)"),
    (lambda t: t["bn1.bias"].fill_(torch.nan), r"'bn1\.bias' hold NaN"),
    (lambda t: t.update({"bn1.bias": torch.zeros(64, dtype=torch.int32)}), "are torch.int32"),
    (lambda t: t.clear(), r"lack 'conv1\.weight'"),
], ids=["resnet34", "resnet50", "missing", "shape", "nan", "integer", "empty"])
def test_another_network_is_refused_naming_file_and_tensor(
        tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str) -> None:
    weights = resnet18_weights()
    change(weights)
    safetensors.torch.save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=rf"other\.safetensors: .*{message}.*name a file of"):
        registry.load_resnet18(str(tmp_path / "other.safetensors"))

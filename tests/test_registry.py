"""Bundles: what is saved comes back bit for bit, and anything else is refused by name."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import shlex
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from igd import registry, storage
from igd.config import preset_config
from igd.errors import ConfigError, ModelError
from igd.model.igd import IGD
from igd.model.resnet import ResNet18
from igd.records import CALIBRATION
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
        lambda: registry.save_bundle(str(models), name, model, config, None, {}),
    ]
    if name:  # no version is the one in production
        calls.append(lambda: registry.load_bundle(str(models), "weave", name))
    before = sorted(models.parent.rglob("*"))
    for call in calls:
        with pytest.raises(ConfigError, match="cannot be used as a name"):
            call()
    assert sorted(models.parent.rglob("*")) == before


def test_promotions_at_once_keep_all_and_the_highest_is_in_use(models: Path) -> None:
    barrier = threading.Barrier(8)
    got: dict[str, int] = {}

    def promote(version: str) -> None:
        barrier.wait()
        got[version] = registry.promote(str(models), "weave", version)

    threads = [threading.Thread(target=promote, args=(f"v{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got.values()) == list(range(2, 10))
    in_use = max(got, key=lambda version: got[version])
    assert registry.production_version(str(models), "weave") == in_use
    files = sorted((models / "weave" / "production").glob("*.json"))
    assert len(files) == 9 and not list(models.rglob("*.tmp"))
    assert {json.loads(p.read_text())["version"] for p in files[1:]} == set(got)


def test_promoting_an_older_version_is_a_rollback(models: Path) -> None:
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
    monkeypatch.setattr(registry, "TEACHER_SHA256", "0" * 64)
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

"""The curves and pictures of a training: beside the bundle, whole, and only of the nets."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from igd import registry, storage
from igd.cli.train import _tell_outcome
from igd.config import preset_config
from igd.errors import DivergedError, StorageError
from igd.pipelines.category import CategoryTask, Outcome, train_category
from igd.train import loop

TINY = ["net.branches=local", "image.size=32", "net.width=2", "net.latent=8", "train.epochs=3",
        "distill.iterations=20", "distill.batch_size=4", "distill.max_inputs=24"]
Key = tuple[str, int]


def train(data: Path, models: str, preset: str = "small", *overrides: str) -> Outcome:
    settings = TINY if preset == "small" else ["image.size=64", "calibration.folds=3"]
    return train_category(CategoryTask(
        data=str(data), category="weave", models=models,
        config=preset_config(preset, [*settings, *overrides])))


def events(data: bytes) -> Iterator[Event]:
    """The records of an event file, checksums checked."""
    at = 0
    while at < len(data):
        length, = struct.unpack_from("<Q", data, at)
        body = data[at + 12:at + 12 + length]
        for part, crc in ((data[at:at + 8], data[at + 8:at + 12]),
                          (body, data[at + 12 + length:at + 16 + length])):
            value = crc32c(part)
            masked = ((value >> 15 | value << 17) + 0xa282ead8) & 0xffffffff
            assert struct.pack("<I", masked) == crc
        yield Event.FromString(body)
        at += 16 + length


def files(outcome: Outcome) -> dict[str, bytes]:
    assert outcome.tensorboard is not None
    return {entry.key: storage.read_bytes(entry.uri)
            for entry in storage.list_objects(outcome.tensorboard)}


@pytest.fixture(params=["local", "s3"])
def models(request, tmp_path) -> str:
    return (str(tmp_path / "models") if request.param == "local" else
            request.getfixturevalue("bucket") + "/models")


def test_the_event_file_says_what_the_bundles_curve_says(tiny_data, models) -> None:
    outcome = train(tiny_data, models)
    found = files(outcome)
    name, = (name for name in found if name.startswith("events.out.tfevents."))
    scalars: dict[Key, float] = {}
    pictures: dict[Key, bytes] = {}
    times: list[float] = []
    for event in events(found[name]):
        times.append(event.wall_time)
        for value in event.summary.value:
            if value.HasField("image"):
                pictures[value.tag, event.step] = value.image.encoded_image_string
            else:
                scalars[value.tag, event.step] = value.simple_value
    curve = registry.load_bundle(models, "weave").training["curve"]
    expected = {(f"{row['branch']}/{row['phase']}/{term}", row["done"]): value
                for row in curve for term, value in row["metrics"].items()}
    sigma = {("local/em/sigma", row["done"]): row["metrics"]["sigma2"] ** 0.5
             for row in curve if row["phase"] == "em"}
    assert scalars == {key: np.float32(value) for key, value in {**expected, **sigma}.items()}
    assert {tag for tag, _ in scalars} == {
        "local/distil/distillation", "local/distil/lr", *(f"local/em/{term}" for term in (
            "reconstruction", "critic", "adversarial", "gsvdd", "distance", "sigma2", "sigma",
            "lr"))}
    assert {step for tag, step in scalars if tag == "local/em/lr"} == {0, 1, 2, 3}
    assert times[1] < times[-2]  # as it was reported, not as it was written
    (tag, step), png = next(iter(pictures.items()))
    assert (tag, step, len(pictures)) == ("local/reconstruction", 3, 1)
    shown, kept = (np.asarray(Image.open(io.BytesIO(data)))
                   for data in (png, found["reconstruction-local.png"]))
    assert np.array_equal(shown, kept) and kept.shape[2] == 3
    assert set(found) == {name, "reconstruction-local.png"}


def test_the_registry_sees_a_version_and_no_more(tiny_data, tmp_path) -> None:
    models = str(tmp_path)
    outcome = train(tiny_data, models)
    assert outcome.tensorboard == f"{models}/weave/{outcome.version}/tensorboard"
    assert registry.list_categories(models) == ["weave"]
    assert registry.list_versions(models, "weave") == [outcome.version]
    assert registry.load_bundle_at(f"{models}/weave").version == outcome.version


def test_the_closed_form_has_no_curve_and_writes_none(tiny_data, tmp_path) -> None:
    outcome = train(tiny_data, str(tmp_path), "fast")
    assert outcome.tensorboard is None
    assert not list(tmp_path.rglob("tensorboard"))


def test_a_failed_training_leaves_nothing(tiny_data, tmp_path, monkeypatch) -> None:
    def late(*args: object) -> None:
        raise DivergedError("late")

    monkeypatch.setattr(loop._Em, "_m_steps", late)
    with pytest.raises(DivergedError, match="late"):
        train(tiny_data, str(tmp_path / "models"))
    assert not (tmp_path / "models").exists()


def test_a_version_whose_files_did_not_all_arrive_is_not_listed(tiny_data, tmp_path,
                                                                monkeypatch) -> None:
    write = storage.write_bytes

    def full(uri: str, data: bytes) -> None:
        if "tfevents" in uri:
            raise StorageError("the disk is full")
        write(uri, data)

    monkeypatch.setattr(storage, "write_bytes", full)
    with pytest.raises(StorageError, match="full"):
        train(tiny_data, str(tmp_path))
    assert list(tmp_path.rglob("weights.safetensors"))
    assert registry.list_versions(str(tmp_path), "weave") == []
    assert registry.list_categories(str(tmp_path)) == []


@pytest.mark.parametrize(("uri", "said"), [
    ("file:///my%20models/weave/v1/tensorboard", "'/my models/weave/v1/tensorboard'"),
    ("s3://models/weave/v1/tensorboard", "s3://models/weave/v1/tensorboard")])
def test_train_says_where_to_look(capsys, uri, said) -> None:
    outcome = Outcome(category="weave", preset="small", version="v1", smallest_alpha=0.1,
                      tensorboard=uri)
    _tell_outcome(print, outcome)
    assert f"tensorboard --logdir {said}" in capsys.readouterr().out.splitlines()[1]

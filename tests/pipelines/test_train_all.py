"""Training on Ray: in parallel, each on its own."""

from __future__ import annotations

import dataclasses
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import torch
from PIL import Image

from igd import registry, storage
from igd.config import preset_config
from igd.data.synthetic import generate
from igd.errors import ConfigError, DataError, DivergedError, StorageError
from igd.pipelines import train_all as module
from igd.pipelines.category import CategoryTask, train_category
from igd.pipelines.checkpoints import training_folder
from igd.pipelines.cluster import Resources
from igd.pipelines.progress import Event
from igd.pipelines.train_all import (
    TRAINER_IMAGES,
    Queue,
    at_once,
    largest_first,
    memory_asked,
    needs_trainer,
    place_of,
    train_all,
)
from igd.score.evaluate import evaluate_category
from igd.score.scorer import Scorer, pinned_threads

FAST = ["image.size=64", "calibration.folds=3"]


@pytest.fixture
def data(tiny_data, tmp_path) -> Path:
    """Three categories: a good one, one with three images, one with a damaged file."""
    root = tmp_path / "data"
    for name in ("weave", "few", "damaged"):
        shutil.copytree(tiny_data / "weave" / "train", root / name / "train")
    for path in sorted((root / "few").rglob("*.png"))[3:]:
        path.unlink()
    for path in sorted((root / "damaged").rglob("*.png"))[:4]:
        path.write_bytes(path.read_bytes()[:100])
    return root


def tasks(data: Path, models: Path, names, preset="fast", settings=FAST) -> list[CategoryTask]:
    return [CategoryTask(data=str(data), category=name, models=str(models),
                         config=preset_config(preset, settings)) for name in names]


def test_a_category_that_fails_fails_alone(cluster, data, tmp_path) -> None:
    events: list[Event] = []
    outcomes = train_all(tasks(data, tmp_path / "models", ["weave", "few", "damaged"]), cluster,
                         report=events.append)
    said = {outcome.category: outcome for outcome in outcomes}
    assert said["weave"].version and said["weave"].error is None
    assert "3 of 3 training images" in said["few"].error
    assert "unreadable: train/good/000.png (truncated)" in said["damaged"].error
    assert registry.list_categories(str(tmp_path / "models")) == ["weave"]
    assert ("weave", "fitting") in {(event.category, event.state) for event in events}


def test_a_damaged_training_image_is_named_and_skipped(cluster, data, tmp_path) -> None:
    settings = [*FAST, "calibration.max_unreadable=0.5"]
    outcome, = train_all(tasks(data, tmp_path / "models", ["damaged"], settings=settings), cluster)
    assert outcome.images == 20
    assert outcome.skipped[0] == ("train/good/000.png", "truncated")


def test_on_the_cluster_and_in_process_the_model_is_the_same(cluster, data, tmp_path) -> None:
    task, = tasks(data, tmp_path / "here", ["weave"])
    train_category(task)
    train_all(tasks(data, tmp_path / "there", ["weave"]), cluster)
    here, there = (Scorer.load(str(tmp_path / place / "weave")) for place in ("here", "there"))
    assert here.bundle.calibration.equals(there.bundle.calibration)
    for name, tensor in here.bundle.model.state_dict().items():
        assert tensor.equal(there.bundle.model.state_dict()[name]), name


def test_the_largest_categories_come_first_and_what_cannot_be_listed_last(data, tmp_path) -> None:
    found = largest_first(tasks(data, tmp_path, ["few", "absent", "weave"]))
    assert [(task.category, size) for task, size in found] == [
        ("weave", 24), ("few", 3), ("absent", 0)]


NETS = ["net.width=2", "train.epochs=10"]
CPUS, GPUS = Resources(cpus=10, gpus=0), Resources(cpus=32, gpus=4)


@pytest.mark.parametrize(("count", "queue", "resources", "place", "together"), [
    (3, Queue(), CPUS, (1, 2, 0), 4),          # eight usable CPUs among three
    (40, Queue(), CPUS, (1, 1, 0), 9),
    (1, Queue(), CPUS, (1, 8, 0), 1),
    (40, Queue(at_once=2), CPUS, (1, 4, 0), 2),
    (40, Queue(cpus_per_model=3), CPUS, (1, 3, 0), 3),
    (4, Queue(workers_per_model=2), CPUS, (2, 1, 0), 4),
    (40, Queue(), GPUS, (1, 1, 1), 4),
    (40, Queue(gpus_per_model=0.25), GPUS, (1, 1, 0.25), 16),
    (40, Queue(gpus_per_model=0.25, at_once=6), GPUS, (1, 1, 0.25), 6),
    (40, Queue(workers_per_model=2), GPUS, (2, 1, 1), 2),
    (40, Queue(gpus_per_model=0), GPUS, (1, 1, 0), 31)])
def test_models_share_what_the_cluster_has(count, queue, resources, place, together) -> None:
    some = tasks(Path(), Path(), map(str, range(count)), "small", NETS)
    found = place_of(some, queue, resources)
    assert (found.workers, found.cpus, found.gpus) == place
    assert at_once(some, queue, found, resources) == together


FOUR_SMALL = Resources(cpus=16, gpus=4, nodes=((4, 1),) * 4)


@pytest.mark.parametrize(("count", "queue", "place", "together"), [
    (1, Queue(gpus_per_model=0), (4, 0), 3),       # no node has eight CPUs
    (2, Queue(gpus_per_model=0, cpus_per_model=3), (3, 0), 4),
    (9, Queue(gpus_per_model=0.5), (1, 0.5), 8),
    (9, Queue(workers_per_model=2), (1, 1), 2)])
def test_no_worker_stands_on_two_nodes(count, queue, place, together) -> None:
    some = tasks(Path(), Path(), map(str, range(count)), "small", NETS)
    found = place_of(some, queue, FOUR_SMALL)
    assert (found.cpus, found.gpus) == place
    assert at_once(some, queue, found, FOUR_SMALL) == together


GIB = 1 << 30
UNEVEN = Resources(cpus=12, gpus=0, nodes=((4, 0), (8, 0)), memory=(8 * GIB, 32 * GIB))


@pytest.mark.parametrize(("workers", "cpus", "memory"), [
    (1, 1, 32 * GIB), (2, 1, 16 * GIB), (5, 1, 8 * GIB), (6, 1, 32 * GIB // 5),
    (2, 4, 16 * GIB), (3, 4, 8 * GIB), (12, 1, 2 * GIB)])
def test_all_that_run_at_once_have_the_memory_they_may_take(workers, cpus, memory) -> None:
    assert UNEVEN.memory_for(workers, cpus, 0) == memory
    assert UNEVEN.places(cpus, 0, memory) >= workers > UNEVEN.places(cpus, 0, memory * 101 // 100)


def test_where_memory_is_not_known_it_is_no_limit() -> None:
    assert CPUS.memory_for(3, 1, 0) is None and CPUS.places(2, 0, GIB) == 5
    some = tasks(Path(), Path(), map(str, range(9)), "small", NETS)
    assert memory_asked(some[0], 100, place_of(some, Queue(), CPUS)) is None


def test_more_memory_than_ray_can_give_is_never_asked_for() -> None:
    some = tasks(Path(), Path(), map(str, range(9)), "small", NETS)
    place = place_of(some, Queue(memory_per_model=99 * GIB, cpus_per_model=4), UNEVEN)
    assert place.memory == 32 * GIB and at_once(some, Queue(), place, UNEVEN) == 1
    place = place_of(some, Queue(memory_per_model=8 * GIB, cpus_per_model=2), UNEVEN)
    assert at_once(some, Queue(), place, UNEVEN) == 5  # and not six
    small, large = (memory_asked(some[0], size, place) for size in (100, 10**6))
    assert large < small < 8 * GIB  # what is beyond memory lies in files
    assert memory_asked(some[0], 10**6, dataclasses.replace(place, memory=GIB >> 1)) == GIB >> 1


@pytest.mark.parametrize("queue", [Queue(gpus_per_model=2), Queue(cpus_per_model=5),
                                   Queue(workers_per_model=5)])
def test_what_no_node_holds_is_refused(queue) -> None:
    with pytest.raises(ConfigError, match=r"the cluster has 4 x \(4 CPUs, 1 GPUs\)"):
        place_of(tasks(Path(), Path(), ["a"], "small", NETS), queue, FOUR_SMALL)


def test_fast_takes_a_cpu_whatever_the_nets_would_take() -> None:
    some = tasks(Path(), Path(), ["a", "b"])
    assert vars(place_of(some, Queue(gpus_per_model=1, workers_per_model=9), CPUS)) == {
        "workers": 1, "cpus": 1, "gpus": 0, "memory": None}


@pytest.mark.parametrize("queue", [
    Queue(gpus_per_model=0.5), Queue(workers_per_model=11), Queue(cpus_per_model=11)])
def test_more_than_the_cluster_has_is_refused_at_once(queue) -> None:
    with pytest.raises(ConfigError, match=r"a model takes .* has 1 x \(10 CPUs, 0 GPUs\)"):
        place_of(tasks(Path(), Path(), ["a"], "small", NETS), queue, CPUS)


@pytest.mark.parametrize(("wrong", "said"), [
    ({"gpus_per_model": 1.5}, "--gpus-per-model 1.5"), ({"gpus_per_model": -1}, "-1"),
    ({"workers_per_model": 0}, "--workers-per-model 0"), ({"at_once": 0}, "--at-once 0"),
    ({"retries": -1}, "--retries -1"), ({"trainer": "maybe"}, "--trainer 'maybe'"),
    ({"trainer": "never", "workers_per_model": 2}, "need a trainer")])
def test_settings_of_the_queue_that_make_no_sense_are_named(wrong, said) -> None:
    with pytest.raises(ConfigError, match=said):
        Queue(**wrong)


def test_a_trainer_is_for_nets_that_see_many_images_or_have_several_workers() -> None:
    nets, = tasks(Path(), Path(), ["a"], "small", NETS)
    fast, = tasks(Path(), Path(), ["a"])
    enough = TRAINER_IMAGES // 10  # ten epochs
    assert needs_trainer(nets, enough, Queue()) and not needs_trainer(nets, enough - 1, Queue())
    assert needs_trainer(nets, 1, Queue(workers_per_model=2))
    assert needs_trainer(nets, 1, Queue(trainer="always"))
    assert not needs_trainer(nets, enough, Queue(trainer="never"))
    assert not needs_trainer(fast, 10**9, Queue(trainer="always"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("nets")
    generate(str(root), categories=["weave"], train=12, test=1, defective=1)
    return root


TINY_NETS = ["train.epochs=3", "net.width=2", "train.batch_size=4", "train.patches_per_image=4",
             "distill.iterations=20", "distill.max_inputs=64"]


@pytest.mark.timeout(300)
def test_a_worker_that_dies_costs_an_attempt_and_no_bit(cluster, pictures, tmp_path) -> None:
    def some(place: str) -> list[CategoryTask]:
        return [dataclasses.replace(task, checkpoint_s=0) for task in tasks(
            pictures, tmp_path / place, ["weave"], "small", TINY_NETS)]

    events: list[Event] = []

    def kill_once(event: Event) -> None:
        events.append(event)
        if event.state == "global em" and not any(e.state == "retrying" for e in events):
            for process in psutil.Process().children(recursive=True):
                if process.name().startswith("ray::_train_tas"):  # cut by the kernel
                    process.kill()

    outcome, = train_all(some("killed"), cluster, queue=Queue(cpus_per_model=1), report=kill_once)
    assert outcome.error is None and outcome.attempts == 2
    said = [event.text for event in events if event.text]
    assert any("attempt 2 of 3" in text for text in said)
    assert any(text.startswith("going on after") for text in said)
    assert len(registry.list_versions(str(tmp_path / "killed"), "weave")) == 1
    with pinned_threads(1):
        train_category(*some("undisturbed"))
    one, other = (registry.load_bundle(str(tmp_path / place), "weave").model.state_dict()
                  for place in ("undisturbed", "killed"))
    assert all(one[name].equal(other[name]) for name in one)


@pytest.mark.timeout(300)
def test_two_who_train_the_same_at_once_end_in_the_same_bits(cluster, pictures, tmp_path) -> None:
    some = [dataclasses.replace(task, checkpoint_s=0) for task in tasks(
        pictures, tmp_path / "models", ["weave"], "small", TINY_NETS)]
    with ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(lambda _: train_all(some, cluster, queue=Queue(
            cpus_per_model=1, trainer="always")), range(2)))
    assert [outcome.error for outcome, in outcomes] == [None, None]
    versions = registry.list_versions(str(tmp_path / "models"), "weave")
    assert {outcome.version for outcome, in outcomes} == set(versions)
    one, *others = (registry.load_bundle(str(tmp_path / "models"), "weave", version)
                    for version in versions)
    weights = one.model.state_dict()
    assert all(weights[name].equal(tensor) for other in others
               for name, tensor in other.model.state_dict().items())
    assert all(one.calibration.equals(other.calibration) for other in others)
    assert registry.production_version(str(tmp_path / "models"), "weave") in versions
    assert not list(storage.list_objects(training_folder(str(tmp_path / "models"), "weave")))


@ray.remote(max_retries=0)
def fails(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(("error", "again"), [
    (StorageError("bucket out of reach"), True), (RuntimeError("CUDA out of memory"), True),
    (DivergedError("local_gsvdd is nan in epoch 3, step 1"), False),
    (DataError("3 images"), False)])
def test_what_may_have_been_bad_luck_is_tried_again(cluster, error, again) -> None:
    task, = tasks(Path(), Path(), ["a"])
    for number, expected in ((1, again), (2, again), (3, False)):
        outcome, retry = module._outcome(fails.remote(error), module._Attempt(task, 5, number),
                                         Queue(retries=2))
        assert retry == expected
        assert str(error) in outcome.error and outcome.attempts == number


def test_the_reason_of_a_death_is_its_first_line_and_of_an_exception_its_last(
        cluster, monkeypatch) -> None:
    task, = tasks(Path(), Path(), ["a"])
    raised = fails.remote(ValueError("first\nlast"))
    outcome, again = module._outcome(raised, module._Attempt(task, 5), Queue())
    assert outcome.error == "last" and again

    def out_of_memory(reference: object) -> None:
        raise ray.exceptions.OutOfMemoryError("Killed: out of memory.\nRefer to the documentation.")

    monkeypatch.setattr(ray, "get", out_of_memory)
    outcome, again = module._outcome(raised, module._Attempt(task, 5), Queue())
    assert outcome.error == "Killed: out of memory." and again


@pytest.mark.timeout(120)
def test_a_category_that_nothing_is_heard_of_is_stopped(cluster, tiny_data, tmp_path,
                                                        monkeypatch) -> None:
    some = tasks(tiny_data, tmp_path / "models", ["weave"])
    monkeypatch.setattr(module, "_start", lambda *args: sleeps.remote())
    outcome, = train_all(some, cluster, queue=Queue(retries=1, stall_s=3))
    assert outcome.error is not None and outcome.attempts == 2


@ray.remote(num_cpus=0, max_retries=0)
def sleeps() -> None:
    time.sleep(600)


@pytest.mark.timeout(300)
def test_the_nets_are_trained_by_ray_train(cluster, pictures, tmp_path) -> None:
    outcome, = train_all(tasks(pictures, tmp_path / "models", ["weave"], "small", TINY_NETS),
                         cluster, queue=Queue(trainer="always", cpus_per_model=1))
    assert outcome.error is None
    bundle = registry.load_bundle(str(tmp_path / "models"), "weave")
    assert bundle.training["calibration"] == "split-conformal"
    assert bundle.calibration.num_rows == 2  # a fifth of twelve
    assert bundle.preset == "small"
    left = training_folder(str(tmp_path / "models"), "weave")
    assert not list(storage.list_objects(left))


@pytest.mark.timeout(300)
def test_two_workers_train_a_category_as_one_does(cluster, pictures, tmp_path) -> None:
    outcome, = train_all(tasks(pictures, tmp_path / "two", ["weave"], "small", TINY_NETS), cluster,
                         queue=Queue(workers_per_model=2, cpus_per_model=1))
    assert outcome.error is None and outcome.version
    with pinned_threads(1):
        train_category(*tasks(pictures, tmp_path / "one", ["weave"], "small", TINY_NETS))
    two, one = (registry.load_bundle(str(tmp_path / place), "weave") for place in ("two", "one"))
    assert len(two.training["curve"]) == len(one.training["curve"])
    for step, expected in zip(two.training["curve"], one.training["curve"], strict=True):
        assert step["metrics"] == pytest.approx(expected["metrics"], rel=1e-3, abs=1e-6)
    for name in ("global", "local"):
        gaussian, other = (bundle.model.branch(name).gaussian for bundle in (two, one))
        assert gaussian.sigma2.item() == pytest.approx(other.sigma2.item(), rel=1e-3)
        torch.testing.assert_close(gaussian.mu_D, other.mu_D, rtol=1e-3, atol=1e-3)


@pytest.mark.timeout(300)
def test_what_ray_train_cannot_train_fails_with_the_reason_and_at_once(cluster, pictures,
                                                                       tmp_path) -> None:
    outcome, = train_all(tasks(pictures, tmp_path / "models", ["weave"], "small",
                               [*TINY_NETS, "train.lr=1e30"]),
                         cluster, queue=Queue(trainer="always", cpus_per_model=1))
    assert " is nan in epoch 0, step 1" in outcome.error or " is inf in" in outcome.error
    assert outcome.attempts == 1 and registry.list_categories(str(tmp_path / "models")) == []


@pytest.mark.timeout(300)
def test_models_on_s3_are_those_of_a_local_run(cluster, tiny_data, tmp_path, bucket) -> None:
    for name in ("weave", "washer"):
        shutil.copytree(tiny_data / name, tmp_path / "data" / name)
    shutil.copytree(tiny_data / "weave", tmp_path / "data" / "copy")
    names = ["copy", "washer", "weave"]
    running: set[str] = set()
    most = 0

    def watch(event: Event) -> None:
        nonlocal most
        (running.discard if event.state in ("done", "failed") else running.add)(event.category)
        if event.state == "queued":
            running.discard(event.category)
        most = max(most, len(running))

    outcomes = train_all(tasks(tmp_path / "data", bucket, names), cluster, queue=Queue(at_once=2),
                         report=watch)
    assert [outcome.error for outcome in outcomes] == [None] * 3 and most == 2
    train_all(tasks(tmp_path / "data", tmp_path / "models", names), cluster)

    def evaluated(models: str, name: str) -> dict[str, object]:
        found = evaluate_category(str(tmp_path / "data"), name,
                                  Scorer.load(f"{models}/{name}"), resamples=20).document()
        return {key: value for key, value in found.items()
                if key not in ("version", "seconds", "images_per_s")}

    for name in names:
        assert evaluated(bucket, name) == evaluated(str(tmp_path / "models"), name)


def test_a_category_that_fails_keeps_the_model_it_had(cluster, data, tmp_path) -> None:
    models = tmp_path / "models"
    train_all(tasks(data, models, ["weave", "damaged"],
                    settings=[*FAST, "calibration.max_unreadable=0.5"]), cluster)
    before = {name: registry.production_version(str(models), name)
              for name in registry.list_categories(str(models))}
    for path in sorted((data / "weave").rglob("*.png")):  # all NaN, as a camera may write them
        path.unlink()
        Image.fromarray(np.full((64, 64), np.nan, np.float32)).save(path.with_suffix(".tiff"))
    outcomes = train_all(tasks(data, models, ["weave", "damaged", "few"]), cluster)
    said = {outcome.category: outcome.error for outcome in outcomes}
    assert "0 of 24 training images can be read" in said["weave"]
    assert "unsupported_mode" in said["weave"] and "truncated" in said["damaged"]
    assert said["few"] is not None
    assert {name: registry.production_version(str(models), name) for name in before} == before

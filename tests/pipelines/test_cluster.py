"""What a local cluster leaves behind, and whose errors reach the user."""

from __future__ import annotations

import fcntl
import os
import threading

import pytest
from ray.exceptions import RaySystemError, RayTaskError

from igd.errors import ConfigError, ModelError, StorageError
from igd.pipelines import cluster as connection


def test_only_folders_of_dead_drivers_are_swept(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(connection, "TEMPORARY", str(tmp_path))
    for name in ("igd-ray-tmp-dead", "igd-ray-tmp-alive", "igd-ray-tmp-foreign",
                 "igd-ray-tmp-rest", "igd-2026-11-23", "other"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / "igd-ray-tmp-rest", (0, 0))
    for name in ("dead", "alive"):
        (tmp_path / f"igd-ray-tmp-{name}" / connection.LOCK).touch()
    with open(tmp_path / "igd-ray-tmp-alive" / connection.LOCK) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        connection._sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "igd-2026-11-23", "igd-ray-tmp-alive", "igd-ray-tmp-foreign", "other"]


def test_a_folder_is_locked_while_in_use_and_gone_afterwards(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(connection, "TEMPORARY", str(tmp_path))
    with connection._own_folder() as folder:
        connection._sweep()
        assert [str(path) for path in tmp_path.iterdir()] == [folder]
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_ray_to_the_end_of_the_process(tmp_path, monkeypatch) -> None:
    """Ray's threads crash where they find it shut down; a later driver sweeps what is left."""
    stopped: list[bool] = []
    monkeypatch.setattr(connection, "TEMPORARY", str(tmp_path))
    monkeypatch.setattr(connection, "_left", [])
    monkeypatch.setattr(connection.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connection.ray, "init", lambda **_: None)
    monkeypatch.setattr(connection.ray, "shutdown", lambda: stopped.append(True))
    monkeypatch.setattr(connection, "_resources", lambda: connection.Resources(cpus=1, gpus=0))
    with connection.connected("local"):
        pass
    assert stopped == [True] and not list(tmp_path.iterdir())
    for error in (KeyboardInterrupt(), StorageError("no shard was finished")):
        with pytest.raises(type(error)), connection.connected("local"):
            raise error
    connection._sweep()
    assert stopped == [True] and len(list(tmp_path.iterdir())) == 2
    connection._left.clear()
    connection._sweep()


def test_workers_elsewhere_are_told_what_is_known_of_the_storage(monkeypatch) -> None:
    told = []
    monkeypatch.setattr(connection.ray, "init", lambda **settings: told.append(settings))
    for pairs in ("", "region=r\nrequest_payer=true"):
        monkeypatch.setenv("IGD_STORAGE_OPTIONS", pairs)
        connection._connect("elsewhere:6379", "")
    assert "runtime_env" not in told[0]
    assert told[1]["runtime_env"] == {
        "env_vars": {"IGD_STORAGE_OPTIONS": "region=r\nrequest_payer=true"}}


def test_an_error_of_ours_is_found_without_rays_traceback() -> None:
    ours = ModelError("the model is damaged")
    wrapped = RayTaskError("f", "a long traceback", ours).as_instanceof_cause()
    assert isinstance(wrapped, ModelError)
    found = connection.own_error(wrapped)
    assert found is ours and str(found) == "the model is damaged"
    assert connection.own_error(ValueError("not ours")) is None


@pytest.mark.parametrize(("cpus", "scorers"), [(1, 1), (2, 1), (3, 1), (4, 2), (16, 12), (64, 48)])
def test_the_pool_leaves_room_for_the_tasks_that_feed_it(cpus, scorers) -> None:
    pool = connection.Resources(cpus=cpus, gpus=0).pool(1000)
    assert pool.scorers == scorers
    # and if others fill the rest of the CPUs with scorers
    assert cpus * connection.SCORER_CPUS + 2 * connection.SIDE_TASK_CPUS <= cpus
    assert connection.Resources(cpus=cpus, gpus=0).pool(1).scorers == 1


def test_scorers_on_gpus_are_as_many_as_fit_and_none_is_refused() -> None:
    nodes = connection.Resources(cpus=18, gpus=4, nodes=((2, 0), (8, 2), (8, 2)))
    assert [nodes.pool(99, share).scorers for share in (1.0, 0.5, 2.0)] == [4, 8, 2]
    with pytest.raises(ConfigError, match=r"--gpus-per-scorer 3: the cluster has 4 GPUs"):
        nodes.pool(99, 3.0)


def test_threads_that_find_ray_gone_end_without_a_traceback(monkeypatch) -> None:
    shown = []
    monkeypatch.setattr(threading, "excepthook", lambda args: shown.append(args.exc_value))
    connection._quiet_threads()
    gone, other = RaySystemError("Ray has not been started yet"), ValueError("a defect")

    def ended_by(error: Exception, started: bool) -> None:
        monkeypatch.setattr(connection.ray, "is_initialized", lambda: started)
        thread = threading.Thread(target=_raise, args=(error,))
        thread.start()
        thread.join()

    ended_by(gone, started=False)
    assert shown == []
    ended_by(other, started=False)
    ended_by(gone, started=True)
    assert shown == [other, gone]


def _raise(error: Exception) -> None:
    raise error

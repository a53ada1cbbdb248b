"""A connection to Ray: the cluster named, or one started here and stopped afterwards."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import auto_init_hook, utils
from ray.data import DataContext
from ray.exceptions import RayError, RaySystemError

from igd.errors import ConfigError, IgdError, StorageError
from igd.storage import options

LOCAL = "local"
TEMPORARY = "/tmp"
"""Ray's sockets live below it, and the path of a socket may have 107 bytes."""
PREFIX = "igd-ray-tmp-"
LOCK = "driver.lock"
REST_AGE_S = 60
HEAD_TIMEOUT_S = 10.0
EXTRA_CPUS = 2
"""Logical CPUs beyond the cores of a local cluster, for tasks that mostly wait."""
_left: list[contextlib.ExitStack] = []
"""Folders of clusters that end with this process; a later driver sweeps them."""


SCORER_CPUS, SIDE_TASK_CPUS = 0.9, 0.02
"""What Ray is asked for a scorer, and for a task that reads or writes a shard: were scorers to take
whole CPUs, pools that fill a cluster (of two runs, say) would starve the tasks that feed them, for
ever and without a word."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """How many scorer actors there are, and how many tasks read shards for them at once."""

    scorers: int
    gpus_each: float
    readers: int


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the cluster has.

    Attributes:
        nodes: (CPUs, GPUs) of each node; empty where one node has it all.
        memory: of each node, in bytes, as Ray hands it out; empty where it is not known.
    """

    cpus: int
    gpus: int
    nodes: tuple[tuple[int, int], ...] = ()
    memory: tuple[int, ...] = ()

    def places(self, cpus: float, gpus: float, memory: int = 0) -> int:
        """How many workers of that size the nodes hold together; none stands on two nodes."""
        return sum(self._on_each(cpus, gpus, memory))

    def memory_for(self, workers: int, cpus: float, gpus: float) -> int | None:
        """The most memory that so many workers can all have; None where it is not known."""
        counts = self._on_each(cpus, gpus)
        shares = {whole // count for whole, most in zip(self.memory, counts, strict=False)
                  for count in range(1, min(most, workers) + 1)}
        return max((share for share in shares if self.places(cpus, gpus, share) >= workers),
                   default=None)

    def _on_each(self, cpus: float, gpus: float, memory: int = 0) -> list[int]:
        nodes = self.nodes or ((self.cpus, self.gpus),)
        memories = self.memory or (1 << 62,) * len(nodes)  # not known: enough
        return [min((math.floor(have / need + 1e-9) for have, need in
                     zip((*node, whole), (cpus, gpus, memory), strict=True) if need), default=0)
                for node, whole in zip(nodes, memories, strict=True)]

    def pool(self, shards: int, gpus_each: float = 0.0) -> Pool:
        """Scorer actors for so many shards: on three quarters of the CPUs, for others decode.

        Raises:
            ConfigError: no node has the GPUs that a scorer is to take.
        """
        most = max(1, min(self.cpus - EXTRA_CPUS, round(0.75 * self.cpus)))
        if gpus_each:
            places = self.places(SCORER_CPUS, gpus_each)
            if not places:
                raise ConfigError(f"--gpus-per-scorer {gpus_each:g}: the cluster has {self.gpus} "
                                  "GPUs, and no node has as many; leave it out to score on CPUs")
            most = min(most, places)
        scorers = min(most, shards)
        return Pool(scorers=scorers, gpus_each=gpus_each, readers=max(2, self.cpus - scorers))


@contextlib.contextmanager
def connected(address: str | None = None) -> Iterator[Resources]:
    """Connects to a Ray cluster, and stops it afterwards if it was started here.

    After an error or an interrupt it stays until this process ends, and ends with it: a thread may
    be waiting within Ray, which would then crash, or exit with a code of its own.

    Args:
        address: of a cluster; None takes RAY_ADDRESS, or starts one on this machine.

    Raises:
        StorageError: the cluster cannot be reached.
    """
    if ray.is_initialized():
        yield _resources()
        return
    _sweep()
    with contextlib.ExitStack() as ours:
        folder = ours.enter_context(_own_folder())
        try:
            _connect(address or os.environ.get("RAY_ADDRESS") or LOCAL, folder)
        except Exception:
            ray.shutdown()
            raise
        try:
            yield _resources()
        except BaseException:
            _left.append(ours.pop_all())
            raise
        _quiet_threads()
        ray.shutdown()


def end_agents() -> None:
    """Ends what would outlive this process by a minute: a local cluster's agents seek its head.

    The head ends with this process, its parent. To be called right before: threads of Ray end the
    process with a code of their own once they miss a node.
    """
    agents: list[psutil.Process] = []
    for node in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            agents += node.children(recursive=True)
    for agent in agents:
        with contextlib.suppress(psutil.NoSuchProcess):
            agent.kill()


def _quiet_threads() -> None:
    """Lets threads of Ray end without a traceback where they find, in passing, that it is gone."""
    shown = threading.excepthook

    def show(args: threading.ExceptHookArgs) -> None:
        if ray.is_initialized() or not isinstance(args.exc_value, RaySystemError):
            shown(args)

    threading.excepthook = show


def head_is_there() -> bool:
    """Whether the head of the cluster takes connections; without it nothing ends, well or not."""
    address = ray.get_runtime_context().gcs_address
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), HEAD_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def quiet_data() -> None:
    """Makes Ray Data leave progress to us and pass on our exceptions, so that exit codes hold."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def own_error(error: BaseException) -> IgdError | None:
    """The error of ours in a chain of Ray's. (Ray's copy of it carries a whole traceback.)"""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, IgdError) and not isinstance(seen, RayError):
            return seen
        inner = getattr(seen, "worker_failures", None) or {}
        seen = next(iter(inner.values()), None) or getattr(seen, "cause", None) or seen.__cause__
    return None


@contextlib.contextmanager
def _own_folder() -> Iterator[str]:
    """A folder for a local cluster; it is ours as long as this process holds its lock."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=TEMPORARY,
                                     ignore_cleanup_errors=True) as folder, \
            open(os.path.join(folder, LOCK), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def _sweep() -> None:
    """Removes what local clusters of killed drivers have left: our folders that nobody locks.

    A dying cluster may write into a folder that is being removed; such a rest has no lock.
    """
    for folder in Path(TEMPORARY).glob(PREFIX + "*"):
        try:
            info = folder.stat()
            if info.st_uid != os.getuid():
                continue
            if not (folder / LOCK).exists() and time.time() - info.st_mtime > REST_AGE_S:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            with open(folder / LOCK) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # locked, or not one of ours
            continue


def _resources() -> Resources:
    total = ray.cluster_resources()  # type: ignore[no-untyped-call]
    alive = [node["Resources"]
             for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return Resources(
        cpus=max(1, int(total.get("CPU", 1))), gpus=int(total.get("GPU", 0)),
        nodes=tuple((int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in alive),
        memory=tuple(int(node.get("memory", 0)) for node in alive))


def _connect(address: str, temp_dir: str) -> None:
    # A thread of Ray Data may outlive the shutdown; it would join some other cluster, or start one.
    auto_init_hook.enable_auto_connect = False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's C++ core complains of Ray Data's own actors in every run.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if variables := options.for_workers():
        settings["runtime_env"] = {"env_vars": variables}
    if address == LOCAL:
        settings.update(num_cpus=(os.cpu_count() or 1) + EXTRA_CPUS, include_dashboard=False,
                        _temp_dir=temp_dir)
        if sys.platform == "linux":
            settings["_node_ip_address"] = "127.0.0.2"  # 127.0.0.1 would be replaced
    try:
        with _native_stderr_off(), _own_sigterm():
            ray.init(address=address, **settings)
    except Exception as error:  # the border: of a node that does not start, Ray raises just that
        if address == LOCAL:
            raise StorageError(f"Ray did not start on this machine: {error}; is it very busy, or "
                               "out of memory or disk? Run the command again") from error
        raise StorageError(f"Ray cluster {address!r} cannot be reached: {error}; check "
                           "--ray-address or RAY_ADDRESS, and, where the cluster asks for a token, "
                           "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN") from error


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keeps SIGTERM ours: Ray's Python would exit with 1 meanwhile, its C++ abort afterwards."""
    rays_own, ours = utils.set_sigterm_handler, signal.getsignal(signal.SIGTERM)
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = rays_own
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ours)


@contextlib.contextmanager
def _native_stderr_off() -> Iterator[None]:
    """Drops what C++ writes while Ray starts: it announces the log level it was given."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)

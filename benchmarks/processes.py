"""What the processes of a running endpoint take of the machine, by what they are for."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

KINDS = {"ProxyActor": "proxy", ":Ingress": "ingress", ":Scorer": "scorers"}
"""Parts of the titles that Ray gives its workers. All others are `ray`, the command is `driver`."""
MIB = 1024 * 1024
SHM = "/dev/shm"
SETTLED = 0.2
"""Part of a soak after which memory is expected to stand still; slopes are of the rest."""


class Processes:
    """A command and all that it started.

    Args:
        root: process id of the command.
    """

    def __init__(self, root: int) -> None:
        self._root = psutil.Process(root)

    def cpu_s(self) -> Cpu:
        """Seconds of CPU that each process has had so far."""
        return Cpu(at=time.monotonic(), seconds={
            key: sum(found["cpu_times"][:2]) for key, found in self._look("cpu_times").items()})

    def holdings(self) -> dict[tuple[str, int], dict[str, float]]:
        """Resident MiB, file handles and threads of each process, by kind and process id."""
        return {key: {"rss_mib": found["memory_info"].rss / MIB, "handles": found["num_fds"],
                      "threads": found["num_threads"]}
                for key, found in self._look("memory_info", "num_fds", "num_threads").items()}

    def _look(self, *attributes: str) -> dict[tuple[str, int], dict[str, Any]]:
        found = {}
        for process in (self._root, *self._root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                found[self._kind(process), process.pid] = process.as_dict([*attributes])
        return found

    def _kind(self, process: psutil.Process) -> str:
        if process == self._root:
            return "driver"
        title = " ".join(process.cmdline())
        return next((kind for part, kind in KINDS.items() if part in title), "ray")


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """Seconds of CPU by kind and process id, at a time."""

    at: float
    seconds: dict[tuple[str, int], float]

    def since(self, before: Cpu, images: int) -> dict[str, dict[str, float]]:
        """Cores that each kind kept busy, and milliseconds of CPU for an image."""
        spent: Counter[str] = Counter()
        for (kind, pid), seconds in self.seconds.items():
            spent[kind] += seconds - before.seconds.get((kind, pid), seconds)
        return {kind: {"cores": round(seconds / (self.at - before.at), 3),
                       "ms_per_image": round(1000 * seconds / max(images, 1), 2)}
                for kind, seconds in sorted(spent.items())}


class Soak:
    """What processes hold, over a long time."""

    def __init__(self, processes: Processes) -> None:
        self._processes, self._began = processes, time.monotonic()
        self._seen: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
        self._shm: list[dict[str, float]] = []

    def sample(self) -> None:
        now = {"s": time.monotonic() - self._began}
        for key, holdings in self._processes.holdings().items():
            self._seen[key].append(now | holdings)
        self._shm.append(now | {"mib": psutil.disk_usage(SHM).used / MIB})

    def figures(self) -> dict[str, Any]:
        """First, last and growth per hour of everything; processes that came later stand apart."""
        whole = max(map(len, self._seen.values()))
        lasting = {f"{kind} {pid}": {name: _growth(samples, name)
                                     for name in ("rss_mib", "handles", "threads")}
                   for (kind, pid), samples in sorted(self._seen.items())
                   if len(samples) == whole}
        return {"seconds": round(self._shm[-1]["s"], 1), "samples": whole, "processes": lasting,
                "came_or_went": sorted(kind for (kind, _), samples in self._seen.items()
                                       if len(samples) < whole),
                "shm_mib": _growth(self._shm, "mib")}


def _growth(samples: list[dict[str, float]], name: str) -> dict[str, float]:
    times = np.array([sample["s"] for sample in samples])
    values = np.array([sample[name] for sample in samples])
    late = times >= SETTLED * times[-1]
    slope = float(np.polyfit(times[late], values[late], 1)[0]) if late.sum() > 1 else 0.0
    return {"first": round(float(values[0]), 1), "settled": round(float(values[late][0]), 1),
            "last": round(float(values[-1]), 1), "most": round(float(values.max()), 1),
            "per_hour": round(3600 * slope, 2)}


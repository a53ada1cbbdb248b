"""Images of a category beyond memory come over the cluster, and trainings never wait for ever."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from igd import registry
from igd.config import ImageConfig, preset_config
from igd.data.datasets import normal_images, read_prepared
from igd.errors import ImageError
from igd.pipelines import ingest
from igd.pipelines.category import CategoryTask
from igd.pipelines.cluster import Resources
from igd.pipelines.ingest import stream_prepared
from igd.pipelines.progress import Event
from igd.pipelines.train_all import Queue, train_all

FAST = preset_config("fast", ["image.size=64", "calibration.folds=3"])
TIMEOUT_S = 240


def test_what_the_cluster_reads_is_what_one_process_reads(cluster, tiny_data, tmp_path,
                                                          monkeypatch) -> None:
    monkeypatch.setattr(ingest, "BLOCK_BYTES", 5 * 3 * 32 * 32)  # five images: five blocks
    shutil.copytree(tiny_data / "weave", tmp_path / "weave")
    (tmp_path / "weave" / "train" / "good" / "007.png").write_bytes(b"")
    refs, config = normal_images(str(tmp_path), "weave"), ImageConfig(size=32)
    here, there = (dict(read(refs, config)) for read in (read_prepared, stream_prepared))
    assert sorted(there) == list(range(24))
    for number, found in here.items():
        other = there[number]
        if isinstance(found, ImageError):
            assert number == 7 and (other.reason, other.detail) == (found.reason, found.detail)
        else:
            assert (other.image_HWC == found.image_HWC).all()
            assert (other.source_size, other.sha256) == (found.source_size, found.sha256)


def trained(data: Path, models: Path, resources: Resources, queue: Queue,
            names: list[str]) -> list[Event]:
    events: list[Event] = []
    outcomes = train_all([CategoryTask(data=str(data), category=name, models=str(models),
                                       config=FAST) for name in names],
                         resources, queue=queue, report=events.append)
    assert [outcome.error for outcome in outcomes] == [None] * len(names)
    return events


@pytest.mark.timeout(TIMEOUT_S)
def test_two_categories_beyond_memory_that_hold_all_cpus_are_both_trained(tiny_data,
                                                                          tmp_path) -> None:
    """Their readers must not wait for the CPUs that they hold."""
    ran = subprocess.run([sys.executable, __file__, str(tiny_data), str(tmp_path)], text=True,
                         capture_output=True, timeout=TIMEOUT_S - 30)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    for name in ("weave", "washer"):
        one, other = (registry.load_bundle(str(tmp_path / at), name).calibration
                      for at in ("beyond", "within"))
        assert one.equals(other)


if __name__ == "__main__":
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
             _node_ip_address="127.0.0.2", object_store_memory=1 << 28)
    names = ["weave", "washer"]
    data, root = Path(sys.argv[1]), Path(sys.argv[2])
    both = Resources(cpus=3, gpus=0)  # one more than there are: none stays free
    events = trained(data, root / "beyond", both, Queue(memory_per_model=1, at_once=2), names)
    begun, ended = ([event.at_s for event in events if event.state == state]
                    for state in ("beyond memory", "done"))
    assert len(begun) == 2 and max(begun) < min(ended), "they ran one after the other"
    trained(data, root / "within", both, Queue(), names)
    ray.shutdown()
    os._exit(0)

"""Decoding in a child: the same bits as here, and no harm to whoever asks."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from igd.config import ImageConfig
from igd.data import decoders
from igd.data.decoders import CarefulDecoder, decode_here
from igd.errors import ImageError, StorageError

CONFIG = ImageConfig(size=64)
SOURCE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
FORMATS: list[tuple[str, dict[str, Any]]] = [
    ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {"lossless": True}),
    ("WEBP", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("GIF", {}),
]
BAD_DECODER = Path(__file__).parent.parent / "bad_decoder"


def encoded(kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    SOURCE.save(stream, kind, **options)
    return stream.getvalue()


def harmful(how: str) -> bytes:
    return encoded("JPEG", comment=how)


GOOD = encoded("PNG")


def outcome(decode: Any, data: bytes) -> Any:
    try:
        return decode(data)
    except ImageError as error:
        return error.reason, error.detail


@pytest.fixture(scope="module")
def careful() -> Iterator[CarefulDecoder]:
    with CarefulDecoder(CONFIG) as decoder:
        yield decoder


@pytest.fixture
def bad_decoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Children get a Pillow that does harm on request."""
    monkeypatch.setenv("BAD_DECODER_FLAG", str(tmp_path / "flag"))
    monkeypatch.syspath_prepend(str(BAD_DECODER))


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.mark.parametrize(("kind", "options"), FORMATS)
@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_a_child_gives_the_bits_of_this_process(kind: str, options: dict[str, Any],
                                                fit: Any) -> None:
    config = ImageConfig(size=32, fit=fit)
    data = encoded(kind, **options)
    with CarefulDecoder(config) as careful:
        assert careful(data) == decode_here(data, config)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=200) | st.builds(
    lambda kind, at, byte: kind[:at % len(kind)] + bytes([byte]) + kind[at % len(kind) + 1:],
    st.sampled_from([encoded(kind, **options) for kind, options in FORMATS]),
    st.integers(0, 10**6), st.integers(0, 255)))
def test_a_child_says_of_damaged_bytes_what_this_process_says(careful: CarefulDecoder,
                                                              data: bytes) -> None:
    assert outcome(careful, data) == outcome(lambda d: decode_here(d, CONFIG), data)


@pytest.mark.parametrize(("how", "said"), [
    ("crash", "killed by signal 11"), ("hang", "no answer within 1 s"),
    ("spin", "more than 1 s of CPU"), ("hoard", "out of memory")])
def test_an_image_that_harms_its_decoder_is_rejected_and_the_next_is_not(
        bad_decoder, monkeypatch, how: str, said: str) -> None:
    monkeypatch.setattr(decoders, "WALL_S", 1 if how == "hang" else 60)
    monkeypatch.setattr(decoders, "CPU_S", 1)
    before = children()
    with CarefulDecoder(CONFIG) as careful:
        assert careful(GOOD) == decode_here(GOOD, CONFIG)
        with pytest.raises(ImageError, match=said) as caught:
            careful(harmful(how))
        assert caught.value.reason == "decoder_crash"
        assert careful(GOOD) == decode_here(GOOD, CONFIG)
    assert children() == before


def test_an_image_is_not_rejected_for_a_child_that_something_else_killed(bad_decoder) -> None:
    data = harmful("once")
    with CarefulDecoder(CONFIG) as careful:
        assert careful(data) == decode_here(data, CONFIG)
    assert Path(os.environ["BAD_DECODER_FLAG"]).exists()


def test_a_child_has_room_for_the_largest_image_allowed(monkeypatch) -> None:
    monkeypatch.setattr(decoders, "SPARE_BYTES", 1 << 26)
    stream = io.BytesIO()
    Image.new("RGBA", (8000, 8000), (9, 8, 7, 6)).save(stream, "TIFF", compression="tiff_lzw")
    with CarefulDecoder(CONFIG) as careful:
        found = careful(stream.getvalue())
    assert (found.width, found.height) == (8000, 8000)


def test_a_child_is_quiet_and_has_no_handle_of_this_process(bad_decoder, capfd,
                                                            tmp_path) -> None:
    with open(tmp_path / "ours", "w") as ours, CarefulDecoder(CONFIG) as careful:
        os.set_inheritable(ours.fileno(), True)
        before = children()
        careful(harmful("shout"))
        child, = children() - before
        open_files = [os.readlink(link) for link in Path(f"/proc/{child}/fd").iterdir()]
    assert capfd.readouterr() == ("", "")
    assert sorted(name.split(":")[0] for name in open_files) == ["/dev/null"] * 3 + ["socket"]


def test_a_child_starts_in_a_second_and_loads_neither_torch_nor_ray() -> None:
    with CarefulDecoder(CONFIG) as careful:
        before, began = children(), time.process_time()
        careful(GOOD)
        child, = children() - before
        cpu = psutil.Process(child).cpu_times()
        maps = Path(f"/proc/{child}/maps").read_text()
    assert cpu.user + cpu.system + time.process_time() - began < 1
    assert "PIL" in maps and "torch" not in maps and "ray/" not in maps


@pytest.mark.parametrize("how", ["hang", "none"])
def test_a_child_dies_with_its_parent(bad_decoder, how: str) -> None:
    code = ("import sys; from igd.config import ImageConfig\n"
            "from igd.data.decoders import CarefulDecoder\n"
            "careful = CarefulDecoder(ImageConfig(size=64))\n"
            "careful(sys.stdin.buffer.read())\n"
            "print('done', flush=True)\n"
            "sys.stdin = open('/dev/zero'); sys.stdin.read()")
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE,
                              env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert parent.stdin is not None and parent.stdout is not None
    parent.stdin.write(harmful(how))
    parent.stdin.close()
    child = _until(lambda: psutil.Process(parent.pid).children())[0]
    if how == "none":
        parent.stdout.readline()
    else:
        _until(Path(os.environ["BAD_DECODER_FLAG"]).exists)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    _until(lambda: not child.is_running() or child.status() == "zombie")


@pytest.mark.parametrize(("python", "said"), [
    ("/bin/false", "exit status 1"), ("/no/python", "No such file")])
def test_a_child_that_cannot_start_is_no_fault_of_the_image(monkeypatch, python: str,
                                                            said: str) -> None:
    monkeypatch.setattr(sys, "executable", python)
    with CarefulDecoder(CONFIG) as careful, pytest.raises(StorageError, match=said):
        careful(GOOD)


def _until(holds: Any, limit_s: float = 20) -> Any:
    deadline = time.monotonic() + limit_s
    while not (found := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found

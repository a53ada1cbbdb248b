"""From the bytes of an image to a model's input: in this process, or in a child that may die of it.

A decoder is C code that reads what strangers wrote. One that crashes, hangs or takes all memory
takes its process along; `CarefulDecoder` lends it one that can be spared. Both run the same
functions, so both give the same bits.

Between the two processes go the image's bytes one way, and a line of JSON and the pixels the
other. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igd.config import ImageConfig
from igd.data.images import check_size, decode, prepare
from igd.errors import ImageError, StorageError
from igd.records import Reason

CHANCES = 2
"""Children that may die of one image; the first may have been killed for something else."""
START_S = 60
WALL_S = 60
CPU_S = 30
SPARE_BYTES = 2 << 30
"""Address space of a child beyond that of the interpreter and `PIXEL_BYTES` per pixel."""
PIXEL_BYTES = 16

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """An image as a model takes it.

    Attributes:
        width, height: of the source, in pixels, oriented.
        pixels: uint8 (size, size, 3), RGB.
    """

    width: int
    height: int
    pixels: bytes


def decode_here(content: bytes, image: ImageConfig) -> Decoded:
    """Decodes and resizes in this process.

    Raises:
        ImageError: the image cannot be used.
    """
    return resize_here(decode(content, max_pixels=image.max_pixels), image)


def resize_here(source_HWC: NDArray[np.uint8], image: ImageConfig) -> Decoded:
    """Resizes what has been decoded, uint8 RGB of any size, in this process.

    Raises:
        ImageError: it is too large or too small.
    """
    height, width, _ = source_HWC.shape
    check_size(width, height, image.max_pixels)
    return Decoded(width=width, height=height, pixels=prepare(source_HWC, image).tobytes())


class CarefulDecoder:
    """Decodes and resizes in a child under limits, and starts another where one died.

    Use it in a `with`, in one thread: the child dies with the thread that started it.
    """

    def __init__(self, image: ImageConfig) -> None:
        self._image = image
        self._child: _Child | None = None

    def __enter__(self) -> CarefulDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def __call__(self, content: bytes) -> Decoded:
        """As `decode_here`.

        Raises:
            ImageError: the image cannot be used, or no child outlived it (`decoder_crash`).
            StorageError: no child can be started here.
        """
        how = ""
        for _ in range(CHANCES):
            self._child = self._child or _Child(self._image)
            try:
                return _parsed(self._child.ask(content))
            except _DiedError as death:
                how = str(death)
                self._end()
        raise ImageError(Reason.DECODER_CRASH, f"the decoder {how}, each of {CHANCES} times")

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


def serve(handle: int) -> None:
    """The child's side: decodes what comes, until the parent closes its end."""
    with Connection(handle) as parent, contextlib.suppress(EOFError):
        settings = json.loads(parent.recv_bytes())
        image = ImageConfig(**settings["image"])
        _limit(settings["memory_bytes"])
        parent.send_bytes(b"")
        while True:
            content = parent.recv_bytes()
            _lower(resource.RLIMIT_CPU, int(time.process_time()) + 1 + settings["cpu_s"])
            parent.send_bytes(_answer(content, image))


class _DiedError(Exception):
    """A child is gone, or as good as gone; says how."""


class _Child:
    """A process that decodes, and our end of the socket to it."""

    def __init__(self, image: ImageConfig) -> None:
        self._socket, theirs = Pipe()
        with theirs:
            self._process = _started(theirs.fileno())
        memory = SPARE_BYTES + PIXEL_BYTES * image.max_pixels
        settings = {"image": asdict(image), "memory_bytes": memory, "cpu_s": CPU_S}
        try:
            self._talk(json.dumps(settings).encode(), START_S)
        except _DiedError as death:
            self.end()
            raise StorageError(f"a process to decode images in could not be started: it {death}; "
                               "are memory and processes of this node at an end?") from None

    def ask(self, content: bytes) -> bytes:
        """What the child makes of an image.

        Raises:
            _DiedError: it died of it, or took too long; `end` it.
        """
        return self._talk(content, WALL_S)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def _talk(self, said: bytes, limit_s: float) -> bytes:
        try:
            self._socket.send_bytes(said)
            if not self._socket.poll(limit_s):
                raise _DiedError(f"gave no answer within {limit_s} s")
            return self._socket.recv_bytes()
        except (EOFError, OSError):
            raise _DiedError(self._fate()) from None

    def _fate(self) -> str:
        try:
            status = self._process.wait(timeout=START_S)
        except subprocess.TimeoutExpired:
            return "closed its end and went on"
        if status == -signal.SIGXCPU:
            return f"took more than {CPU_S} s of CPU time"
        if status < 0:
            return f"was killed by signal {-status} ({signal.strsignal(-status)})"
        return f"ended with exit status {status}"


def _started(handle: int) -> subprocess.Popen[bytes]:
    code = f"from igd.data.decoders import serve; serve({handle})"
    paths = os.pathsep.join(path for path in sys.path if path)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", code], pass_fds=[handle], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True)  # an interrupt from the keyboard is for its parent
    except OSError as error:
        raise StorageError(f"a process to decode images in could not be started: {error}; are "
                           "memory and processes of this node at an end?") from error


def _answer(content: bytes, image: ImageConfig) -> bytes:
    """A line of JSON, then pixels where there are some."""
    head: dict[str, Any]
    try:
        found = decode_here(content, image)
        head, pixels = {"width": found.width, "height": found.height}, found.pixels
    except ImageError as error:
        head, pixels = {"reason": error.reason, "detail": error.detail}, b""
    return json.dumps(head).encode() + b"\n" + pixels


def _parsed(answer: bytes) -> Decoded:
    head, _, pixels = answer.partition(b"\n")
    said = json.loads(head)
    if "reason" in said:
        raise ImageError(said["reason"], said["detail"])
    return Decoded(**said, pixels=pixels)


def _limit(memory_bytes: int) -> None:
    """Limits this process for good; its parent's death is its own (on Linux, as for memory)."""
    _lower(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, taken + memory_bytes)


def _lower(limit: int, value: int) -> None:
    """Sets a soft limit, at most to the hard one."""
    _, hard = resource.getrlimit(limit)
    soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (soft, hard))

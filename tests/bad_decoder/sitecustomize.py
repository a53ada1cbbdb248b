"""A Pillow whose JPEG decoder does harm where a comment in the file says so.

Python runs this where it starts with this folder on PYTHONPATH, so also in workers and children.
"""

import ctypes
import os
import signal
from pathlib import Path

from PIL.JpegImagePlugin import JpegImageFile

from igd.data import decoders
from igd.pipelines import watchdog

decoders.WALL_S = watchdog.DECODE_S = 5
opened = JpegImageFile._open
FLAG = Path(os.environ["BAD_DECODER_FLAG"])


def kill_once(flag: Path) -> None:
    if not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def hang(flag: Path) -> None:
    flag.touch()
    ctypes.PyDLL(None).sleep(3600)  # and keep the interpreter's lock


def spin() -> None:
    while True:
        pass


HARM = {
    b"crash": lambda: ctypes.string_at(0),
    b"hang": lambda: hang(FLAG),
    b"spin": spin,
    b"hoard": lambda: bytearray(6 << 30),
    b"shout": lambda: [os.write(handle, b"from the decoder") for handle in (1, 2)],
    b"once": lambda: kill_once(FLAG),
}


def _open(self: JpegImageFile) -> None:
    opened(self)
    HARM.get(self.info.get("comment", b""), lambda: None)()


JpegImageFile._open = _open

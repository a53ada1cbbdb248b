"""MNIST, Fashion-MNIST and CIFAR-10: what is read, and what is refused without being run."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from igd.data.oneclass import CLASS_NAMES, LabelledImages, load
from igd.errors import ConfigError, DataError

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
PARTS = ("train", "t10k")
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")


def idx(array: NDArray[np.uint8], *, dtype: int = 8) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, dtype, array.ndim, *array.shape) + (
        array.tobytes())


def digits(count: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 256, (count, 28, 28), dtype=np.uint8),
            rng.integers(0, 10, count, dtype=np.uint8))


def write_mnist(folder: Path, counts: tuple[int, int] = (3, 2), spelling: str = "-",
                packed: bool = False) -> None:
    for seed, (part, count) in enumerate(zip(PARTS, counts, strict=True)):
        images, labels = digits(count, seed)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{part}-{name.replace('-idx', spelling + 'idx')}-ubyte"
            data = idx(array)
            if packed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
            else:
                path.write_bytes(data)


def refusal(folder: Path, dataset: str = "mnist") -> str:
    with pytest.raises(DataError) as caught:
        load(dataset, str(folder))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@settings(max_examples=25, deadline=None)
@given(counts=st.tuples(st.integers(1, 5), st.integers(1, 5)), spelling=st.sampled_from("-."),
       packed=st.booleans())
def test_idx_files_come_back_padded_and_in_three_equal_channels(
        counts: tuple[int, int], spelling: str, packed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_mnist(Path(folder), counts, spelling, packed)
        loaded = load("mnist", folder)
    for seed, (got, label_N) in enumerate(((loaded.train_NHWC, loaded.train_label_N),
                                           (loaded.test_NHWC, loaded.test_label_N))):
        images, labels = digits(counts[seed], seed)
        assert got.shape == (counts[seed], 32, 32, 3) and got.dtype == np.uint8
        for channel in range(3):
            assert (got[:, 2:30, 2:30, channel] == images).all()
        assert got.sum(dtype=int) == 3 * images.sum(dtype=int)  # the frame is black
        assert label_N.dtype == np.int64 and label_N.tolist() == labels.tolist()


def test_a_gz_that_a_browser_unpacked_is_read_as_what_it_is(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(path.name + ".gz"))
    assert len(load("fashion-mnist", str(tmp_path)).train_NHWC) == 3


IMAGES, LABELS = (idx(array) for array in digits(3))
DAMAGES: dict[str, tuple[str, bytes, str]] = {
    "labels for images": ("images-idx3", LABELS, "found magic 00000801, expected 00000803"),
    "images for labels": ("labels-idx1", IMAGES, "found magic 00000803, expected 00000801"),
    "floats": ("images-idx3", idx(digits(3)[0], dtype=13), "found magic 00000d03, .*00000803"),
    "no idx file": ("labels-idx1", b"<html>gone</html>", "found magic 3c68746d"),
    "nothing": ("images-idx3", b"", "truncated: found 0 bytes, expected a header of 16"),
    "cut": ("images-idx3", IMAGES[:-1], "truncated: found 2367 bytes, expected 2368 for 3 items"),
    "cut, packed": ("images-idx3", gzip.compress(IMAGES[:-1]), "truncated: found 2367 bytes"),
    "trailing": ("images-idx3", IMAGES + b"\0", "trailing bytes, expected 2368 bytes for 3"),
    "cut gzip": ("images-idx3", gzip.compress(IMAGES)[:-9], "damaged gzip"),
    "cut checksum": ("images-idx3", gzip.compress(IMAGES)[:-1], "damaged gzip"),
    "wrong checksum": ("labels-idx1", gzip.compress(LABELS)[:-8] + b"12345678", "damaged gzip"),
    "wrong stream": ("labels-idx1", gzip.compress(LABELS)[:10] + b"\xff" * 20, "damaged gzip"),
    "another size": ("images-idx3", idx(np.zeros((3, 28, 27), np.uint8)), r"shape \(28, 27\)"),
    "no item": ("labels-idx1", idx(np.zeros(0, np.uint8)), "0 of them, expected"),
    "a header that lies": ("images-idx3", b"\0\0\x08\3\xff\xff\xff\xff\0\0\0\x1c\0\0\0\x1c",
                           "4294967295 of them, expected"),
    "a label too few": ("labels-idx1", idx(digits(2)[1]), "3 images and .*2 labels"),
    "label 10": ("labels-idx1", idx(np.array([0, 9, 10], np.uint8)), "label 10 at position 2"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_idx_file_is_refused_by_name(damage: str, tmp_path: Path) -> None:
    what, data, expected = DAMAGES[damage]
    write_mnist(tmp_path)
    (tmp_path / f"train-{what}-ubyte").write_bytes(data)
    message = refusal(tmp_path)
    assert f"{tmp_path}/train-{what}-ubyte" in message
    with pytest.raises(AssertionError, match=expected):
        raise AssertionError(message)


def test_a_gzip_bomb_is_unpacked_no_further_than_its_header_says(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    bomb = gzip.compress(IMAGES + bytes(128 << 20), 1)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(bomb)
    tracemalloc.start()
    try:
        assert "trailing bytes" in refusal(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(bomb) + (4 << 20)
    finally:
        tracemalloc.stop()


def test_a_missing_file_says_what_was_looked_for(tmp_path: Path) -> None:
    assert "no folder" in refusal(tmp_path / "nowhere")
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    message = refusal(tmp_path)
    for name in ("t10k-labels-idx1-ubyte", "t10k-labels-idx1-ubyte.gz",
                 "t10k-labels.idx1-ubyte", "t10k-labels.idx1-ubyte.gz"):
        assert name in message.replace(",", "").replace(";", "").split()
    assert all(name in refusal(tmp_path, "cifar-10") for name in (*BATCHES, ".bin", "-py", "-bin"))
    write_cifar(tmp_path, python2)
    (tmp_path / "data_batch_4").unlink()
    assert f"no {tmp_path}/data_batch_4; looked for" in refusal(tmp_path, "cifar-10")
    with pytest.raises(ConfigError, match=r"'svhn'.*mnist, fashion-mnist, cifar-10"):
        load("svhn", str(tmp_path))  # type: ignore[arg-type]


def test_the_real_fashion_mnist_is_read() -> None:
    if not FASHION_MNIST.is_dir():
        pytest.skip(f"no {FASHION_MNIST}: needs the Debian package dataset-fashion-mnist")
    loaded = load("fashion-mnist", str(FASHION_MNIST))
    assert np.bincount(loaded.train_label_N).tolist() == [6000] * 10
    assert np.bincount(loaded.test_label_N).tolist() == [1000] * 10
    inner = loaded.train_NHWC[:, 2:30, 2:30, 0]
    # The mean and deviation that are in common use for this dataset.
    assert inner.mean(dtype=float) / 255 == pytest.approx(0.2860, abs=5e-5)
    assert inner[::10].std(dtype=float) / 255 == pytest.approx(0.3530, abs=2e-3)
    assert [loaded.class_names[i] for i in loaded.train_label_N[:4]] == [
        "Ankle boot", "T-shirt/top", "T-shirt/top", "Dress"]


Batch = tuple[NDArray[np.uint8], list[int]]


def batch(seed: int, count: int = 2) -> Batch:
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 256, (count, 3072), dtype=np.uint8),
            [int(label) for label in rng.integers(0, 10, count)])


def python3(protocol: int, order: str = "C", text: bool = False) -> Callable[[Batch], bytes]:
    def dump(pair: Batch) -> bytes:
        data, labels = np.asarray(pair[0], order=order), pair[1]  # type: ignore[call-overload]
        content = {
            b"batch_label": b"training batch 1 of 5", b"labels": labels, b"data": data,
            b"filenames": [f"{i}.png".encode() for i in range(300)]}
        if text:
            content = {key.decode(): value for key, value in content.items()}
        return pickle.dumps(content, protocol=protocol)
    return dump


def python2(pair: Batch) -> bytes:
    """As Python 2 wrote the published files: protocol 2, text and pixels as byte strings."""
    data, labels = pair
    memo = iter(range(1, 10_000))

    def put() -> bytes:
        at = next(memo)
        return b"q" + bytes([at]) if at < 256 else b"r" + struct.pack("<I", at)

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value + put()

    def integer(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    stream = b"\x80\x02}" + put() + b"(" + text(b"batch_label") + text(b"training batch 1 of 5")
    stream += text(b"labels") + b"]" + put() + b"(" + b"".join(map(integer, labels)) + b"e"
    stream += text(b"data") + b"cnumpy.core.multiarray\n_reconstruct\n" + put()
    stream += b"cnumpy\nndarray\n" + put() + b"K\0\x85" + text(b"b") + b"\x87R" + put()
    stream += b"(K\1" + b"".join(map(integer, data.shape)) + b"\x86cnumpy\ndtype\n" + put()
    stream += text(b"u1") + b"K\0K\1\x87R" + put() + b"(K\3" + text(b"|") + b"NNN"
    stream += b"J\xff\xff\xff\xff" * 2 + b"K\0tb\x89T" + struct.pack("<i", data.size)
    stream += data.tobytes() + put() + b"tb" + text(b"filenames") + b"]" + put() + b"("
    return stream + b"".join(text(b"%d.png" % i) for i in range(300)) + b"eu."


def binary(pair: Batch) -> bytes:
    return np.column_stack([np.array(pair[1], np.uint8), pair[0]]).tobytes()


def write_cifar(folder: Path, dump: Callable[[Batch], bytes], suffix: str = "") -> None:
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(BATCHES):
        (folder / f"{name}{suffix}").write_bytes(dump(batch(seed)))


def test_the_hand_made_python_2_stream_is_one() -> None:
    data, labels = batch(0)
    content = pickle.loads(python2((data, labels)), encoding="bytes")
    assert (content[b"data"] == data).all() and content[b"labels"] == labels


@pytest.mark.parametrize(("dump", "subfolder", "suffix"), [
    (python3(2), "", ""), (python3(3), "", ""), (python3(4), "cifar-10-batches-py", ""),
    (python3(4, order="F"), "", ""), (python3(2, text=True), "", ""),
    (python2, "cifar-10-batches-py", ""), (binary, "", ".bin"),
    (binary, "cifar-10-batches-bin", ".bin")],
    ids=["2", "3", "4", "fortran", "text", "python2", "binary", "binary-subfolder"])
def test_cifar_10_batches_of_every_make_give_the_same_images(
        dump: Callable[[Batch], bytes], subfolder: str, suffix: str, tmp_path: Path) -> None:
    write_cifar(tmp_path / subfolder, dump, suffix)
    loaded = load("cifar-10", str(tmp_path))
    assert isinstance(loaded, LabelledImages) and loaded.class_names == CLASS_NAMES["cifar-10"]
    data = np.concatenate([batch(seed)[0] for seed in range(5)])
    assert loaded.train_NHWC.shape == (10, 32, 32, 3) and loaded.test_NHWC.shape == (2, 32, 32, 3)
    for channel in range(3):  # a plane per colour, row by row
        plane = data[:, channel * 1024:(channel + 1) * 1024]
        assert (loaded.train_NHWC[..., channel].reshape(10, -1) == plane).all()
    assert loaded.train_label_N.tolist() == [
        label for seed in range(5) for label in batch(seed)[1]]
    assert loaded.test_label_N.tolist() == batch(5)[1]


def refused(content: object) -> bytes:
    return pickle.dumps(content, protocol=4)


DATA, CLASSES = batch(0)
NESTED_KEY = b"\x80\x04})" + b"q\0h\0\x86" * 64 + b"K\1s."
REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "exhausted"),
    "no pickle": (b"<html>gone</html>", "refused"),
    "cut": (python2(batch(0))[:-700], "refused"),
    "trailing": (python2(batch(0)) + b"x", "1 bytes after its end"),
    "a list": (refused([1, 2]), "found a list, not a dict"),
    "no labels": (refused({b"data": DATA}), "no entry 'labels'"),
    "no pixels": (refused({b"data": [1], b"labels": [1]}), "'data' that is no array"),
    "text labels": (refused({b"data": DATA, b"labels": ["cat", "dog"]}), "no list of ints"),
    "a label too few": (refused({b"data": DATA, b"labels": [1]}), "2 x 3072 and 1 labels"),
    "label -1": (refused({b"data": DATA, b"labels": [1, -1]}), "label -1 at position 1"),
    "narrow": (refused({b"data": DATA[:, :-1].copy(), b"labels": CLASSES}), "2 x 3071"),
    "floats": (refused({b"data": DATA.astype("f4"), b"labels": CLASSES}), "dtype 'f4'"),
    "objects": (refused({b"data": DATA.astype(object), b"labels": CLASSES}), "dtype 'O8'"),
    "short array": (python2(batch(0)).replace(b"M\0\x0c\x86", b"M\1\x0c\x86"), "whole bytes"),
    "a class": (refused({b"data": Path("x")}), "the name 'pathlib"),
    "instances": (b"\x80\x02(cos\nsystem\nU\2ido.", "the name 'os system'"),
    "old instances": (b"(S'id'\nios\nsystem\n.", "the opcode STRING"),
    "a line without end": (b"S" + b"x" * 9000 + b"\n.", "no string quotes"),
    "extensions": (b"\x80\x02\x82\1.", "the opcode EXT1"),
    "persistent": (b"\x80\x02U\2idQ.", "the opcode BINPERSID"),
    "another codec": (b"\x80\x02c_codecs\nencode\nX\1\0\0\0aX\5\0\0\0utf_7\x86R.",
                      "a call that builds no array"),
    "another array type": (python2(batch(0)).replace(b"cnumpy\nndarray", b"cnumpy\ndtype"),
                           "a call that builds no array"),
    "called text": (b"\x80\x02U\1a)R.", "a call that builds no array"),
    "a filled dict": (b"\x80\x02}}b.", "whole bytes"),
    "an underflow": (b"\x80\x02e.", "lacks its operands"),
    "an empty memo": (b"\x80\x02h\7.", "no entry 7"),
    "a key that unfolds to 2**64 items": (NESTED_KEY, "a tuple where text belongs"),
    "a million opcodes": (b"\x80\x02" + b"N" * 1_000_001 + b".", "more than 1000000 opcodes"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_foreign_pickle_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    write_cifar(tmp_path, python2)
    data, expected = REFUSED[kind]
    (tmp_path / "test_batch").write_bytes(data)
    message = refusal(tmp_path, "cifar-10")
    assert f"{tmp_path}/test_batch" in message and expected in message
    assert len(message) < 600


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose first batch, the first to be read, may be overwritten."""
    folder = tmp_path_factory.mktemp("cifar")
    write_cifar(folder, python2)
    return folder


@settings(max_examples=150, deadline=None)
@given(intact=st.sampled_from([dump(batch(0, count=1)) for dump in (
    python2, python3(2), python3(4))]), data=st.data())
def test_whatever_byte_is_wrong_a_batch_is_read_or_refused(
        intact: bytes, batches: Path, data: st.DataObject) -> None:
    stream = bytearray(intact)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 399) | st.integers(-200, -1))  # not among the pixels
        stream[at] = data.draw(st.integers(0, 255))
    (batches / "data_batch_1").write_bytes(stream)
    try:
        loaded = load("cifar-10", str(batches))
    except DataError:
        return
    assert loaded.train_NHWC.shape[1:] == (32, 32, 3)


def test_a_truncated_binary_batch_is_refused(tmp_path: Path) -> None:
    write_cifar(tmp_path, binary, ".bin")
    for data in (b"", binary(batch(0))[:-1]):
        (tmp_path / "data_batch_3.bin").write_bytes(data)
        assert f"data_batch_3.bin: truncated: found {len(data)} bytes" in refusal(
            tmp_path, "cifar-10")


ATTACK = """
import pickle, sys
from igd.data.oneclass import load
from igd.errors import DataError

events = []
sys.addaudithook(lambda event, args: events.append(event))
folder, = sys.argv[1:]
try:
    load("cifar-10", folder)
except DataError as error:
    print(error)
watched = {"pickle.find_class", "os.system", "subprocess.Popen", "exec", "compile"}
print("read:", sorted(watched.intersection(events)), "canary" in sys.modules)
for name in ("data_batch_1", "test_batch"):
    with open(f"{folder}/{name}", "rb") as file:
        pickle.load(file, encoding="bytes")
print("unpickled:", sorted(watched.intersection(events)), "canary" in sys.modules)
"""


@pytest.mark.parametrize("first", ["os system", "canary sing"])
def test_a_pickle_that_would_run_a_command_is_read_without_running_it(
        first: str, tmp_path: Path) -> None:
    (tmp_path / "canary.py").write_text("def sing(text): pass\n")
    sung = tmp_path / "sung"
    command = io.BytesIO()
    command.write(b"\x80\x02c" + first.replace(" ", "\n").encode() + b"\n")
    argument = f"touch {sung}".encode()
    command.write(b"U" + bytes([len(argument)]) + argument + b"\x85R.")
    write_cifar(tmp_path, python2)
    (tmp_path / "test_batch").write_bytes(command.getvalue())
    done = subprocess.run(
        [sys.executable, "-c", ATTACK, str(tmp_path)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])})
    assert done.returncode == 0, done.stderr
    message, read, unpickled = done.stdout.splitlines()
    assert f"{tmp_path}/test_batch: refused" in message and f"the name '{first}'" in message
    assert read == "read: [] False"
    # The trap was armed: the real thing imports and runs.
    assert "pickle.find_class" in unpickled and (sung.exists() or unpickled.endswith("True"))

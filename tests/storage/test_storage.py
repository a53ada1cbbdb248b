"""One contract, on a local disk and on a real S3 server; then what each has of its own."""

from __future__ import annotations

import errno
import os
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd import storage
from igd.errors import (
    ConfigError,
    ObjectChangedError,
    ObjectDeniedError,
    ObjectMissingError,
    StorageError,
)
from igd.storage import local, s3

NOBODY = 65534


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


@contextmanager
def as_nobody() -> Iterator[None]:
    """File permissions bind even where the tests run as root."""
    if os.getuid() != 0:
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


# -- the contract of both


def test_what_is_written_is_read_whole_and_by_range(root: str) -> None:
    uri = storage.join(root, "deep", "er", "a.bin")
    data = bytes(range(256)) * 10
    storage.write_bytes(uri, data)
    assert storage.read_bytes(uri) == data
    assert storage.read_range(uri, 0, 1) == data[:1]
    assert storage.read_range(uri, 250, 12) == data[250:262]
    assert storage.read_range(uri, len(data) - 1, 1) == data[-1:]
    assert storage.read_range(uri, 5, 0) == b""


def test_an_upload_that_never_ended_is_given_up_after_its_age(bucket: str) -> None:
    name, _, prefix = bucket.removeprefix("s3://").partition("/")
    settings = s3._settings()
    client = s3._session().create_client("s3", endpoint_url=settings["endpoint"],
                                         region_name=settings["region"])
    for key in (f"{prefix}/a", f"{prefix}/b", f"{prefix}2/c"):
        upload = client.create_multipart_upload(Bucket=name, Key=key)["UploadId"]
        client.upload_part(Bucket=name, Key=key, UploadId=upload, PartNumber=1, Body=b"x")
    now = time.time() + 1
    both = [f"{bucket}/a", f"{bucket}/b"]
    assert storage.abort_uploads(bucket, now - 3600) == []
    assert sorted(storage.abort_uploads(bucket, now, dry_run=True)) == both
    assert sorted(storage.abort_uploads(bucket, now)) == both
    assert storage.abort_uploads(bucket, now) == []
    assert storage.abort_uploads(bucket + "2", now) == [f"{bucket}2/c"]
    client.close()


def test_an_object_knows_when_it_was_written(root: str) -> None:
    began = time.time()
    storage.write_bytes(storage.join(root, "a"), b"x")
    found = storage.stat(storage.join(root, "a"))
    listed, = storage.list_objects(root)
    assert found is not None and found.modified_s == listed.modified_s
    assert began - 1 <= found.modified_s <= time.time() + 1  # S3 counts whole seconds


@pytest.mark.parametrize("span", [(90, 11), (100, 1), (1 << 40, 5)])
def test_a_range_past_the_end_is_an_error_and_never_a_short_read(
        root: str, span: tuple[int, int]) -> None:
    uri = storage.join(root, "a")
    storage.write_bytes(uri, b"x" * 100)
    with pytest.raises(StorageError):
        storage.read_range(uri, *span)


def test_listing_gives_every_object_once_in_a_stable_order(root: str) -> None:
    keys = ["b/2.png", "a.png", "b/1.png", "b/c/d.png", "with space.png", "p%20q#?+&=.png",
            "ü😀.png"]
    for key in keys:
        storage.write_bytes(storage.join(root, key), key.encode())
    storage.write_bytes(root + "-sibling/x", b"")  # the same characters, another folder
    entries = list(storage.list_objects(root))
    assert sorted(entry.key for entry in entries) == sorted(keys)
    assert entries == list(storage.list_objects(root))
    for entry in entries:
        assert entry.size == len(entry.key.encode()) and entry.problem is None
        assert storage.read_bytes(entry.uri, version=entry.version) == entry.key.encode()
        assert storage.canonical(entry.uri) == entry.uri
        found = storage.stat(entry.uri)
        assert found is not None and (found.uri, found.version) == (entry.uri, entry.version)
    assert storage.list_dirs(root) == ["b"]
    assert storage.list_dirs(storage.join(root, "a.png")) == []


def test_more_objects_than_one_page_are_all_listed(
        root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_sync_directory", lambda path: None)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    keys = [f"{i:05d}" for i in range(1001)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: storage.write_bytes(storage.join(root, key), b"x"), keys))
    assert [entry.key for entry in storage.list_objects(root)] == keys


def test_a_zero_byte_object_is_listed(root: str) -> None:
    storage.write_bytes(storage.join(root, "empty.png"), b"")
    assert [(e.key, e.size) for e in storage.list_objects(root)] == [("empty.png", 0)]


def test_what_is_not_there_is_missing(root: str) -> None:
    storage.write_bytes(storage.join(root, "folder", "a"), b"x")
    nowhere = storage.join(root, "nowhere")
    for uri in (nowhere, storage.join(root, "folder"), storage.join(root, "folder", "a", "b")):
        assert storage.stat(uri) is None
        with pytest.raises(ObjectMissingError):
            storage.read_bytes(uri)
        storage.delete(storage.join(uri, "gone"))
    assert not storage.exists_dir(nowhere) and storage.exists_dir(storage.join(root, "folder"))
    assert list(storage.list_objects(nowhere)) == [] and storage.list_dirs(nowhere) == []


def test_deleting_removes_one_object_and_is_repeatable(root: str) -> None:
    for name in ("a", "ab"):
        storage.write_bytes(storage.join(root, name), b"x")
    storage.delete(storage.join(root, "a"))
    storage.delete(storage.join(root, "a"))
    assert [entry.key for entry in storage.list_objects(root)] == ["ab"]


def test_an_object_that_was_replaced_is_not_read_under_its_old_version(root: str) -> None:
    uri = storage.join(root, "dump.tar")
    storage.write_bytes(uri, b"old." * 1000)
    old = storage.stat(uri)
    assert old is not None
    time.sleep(0.02)
    storage.write_bytes(uri, b"new." * 1000)
    with pytest.raises(ObjectChangedError, match="dump"):
        storage.read_bytes(uri, version=old.version)
    with pytest.raises(ObjectChangedError, match="dump"):
        storage.read_range(uri, 8, 4, version=old.version)
    new = storage.stat(uri)
    assert new is not None and storage.read_range(uri, 8, 4, version=new.version) == b"new."


def test_of_many_creators_exactly_one_wins(root: str) -> None:
    uri = storage.join(root, "leases", "1.json")
    writers, start = 8, threading.Barrier(8)

    def create(i: int) -> bool:
        start.wait()
        return storage.put_if_absent(uri, f"writer {i}".encode())

    with ThreadPoolExecutor(writers) as pool:
        won = list(pool.map(create, range(writers)))
    assert won.count(True) == 1
    assert storage.read_bytes(uri) == f"writer {won.index(True)}".encode()
    assert [entry.key for entry in storage.list_objects(root)] == ["leases/1.json"]


def test_creating_again_what_is_there_is_ours_only_with_the_same_bytes(root: str) -> None:
    uri = storage.join(root, "a")
    assert storage.put_if_absent(uri, b"mine")
    assert storage.put_if_absent(uri, b"mine")  # as after a reply that got lost
    assert not storage.put_if_absent(uri, b"theirs")
    assert storage.read_bytes(uri) == b"mine"


def test_a_refusal_for_an_object_that_is_gone_by_then_is_tried_again(
        root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = local if storage.is_local(root) else s3
    create, refusals = backend.create, iter([True, True])
    monkeypatch.setattr(backend, "create",
                        lambda uri, data: not next(refusals, False) and create(uri, data))
    assert storage.put_if_absent(storage.join(root, "a"), b"x")
    monkeypatch.setattr(backend, "create", lambda uri, data: False)
    with pytest.raises(StorageError, match="neither"):
        storage.put_if_absent(storage.join(root, "b"), b"x")


def test_a_reader_never_sees_half_an_overwrite(root: str) -> None:
    uri = storage.join(root, "a")
    versions = [bytes([i]) * 300_000 for i in range(8)]
    storage.write_bytes(uri, versions[0])
    done = threading.Event()

    def write() -> None:
        for version in versions:
            storage.write_bytes(uri, version)
        done.set()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not done.is_set() and not writing.done():
            assert storage.read_bytes(uri) in versions
        writing.result()
    assert [entry.key for entry in storage.list_objects(root)] == ["a"]


def test_train_and_delta_see_the_same_place(root: str) -> None:
    from deltalake import DeltaTable, write_deltalake
    from pyarrow import fs, table

    storage.write_bytes(storage.join(root, "train", "a"), b"hello")
    path, system = storage.train_location(storage.join(root, "train", "a"))
    with (system or fs.LocalFileSystem()).open_input_stream(path) as file:
        assert file.read() == b"hello"
    location, options = storage.delta_location(storage.join(root, "delta"))
    write_deltalake(location, table({"a": [1, 2]}), storage_options=options)
    assert DeltaTable(location, storage_options=options).version() == 0
    assert storage.exists_dir(storage.join(root, "delta", "_delta_log"))


# -- locations


def test_an_unknown_scheme_is_a_configuration_error() -> None:
    for uri in ("gs://bucket/a", "http://169.254.169.254/latest", "s3:///key"):
        with pytest.raises(ConfigError, match=r"expected"):
            storage.canonical(uri)
    with pytest.raises(ConfigError, match="not on this machine"):
        storage.local_path("s3://bucket/a")


def test_a_location_has_one_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = storage.canonical(str(tmp_path / "a b"))
    for spelling in ("a b", "./a b/", "x/../a b", f"file://{tmp_path}/a%20b", wanted):
        assert storage.canonical(spelling) == wanted
    assert wanted.endswith("/a%20b")
    assert storage.canonical("s3://bucket/a/b/") == "s3://bucket/a/b"
    assert storage.canonical("s3://bucket/") == storage.canonical("s3://bucket") == "s3://bucket"


def test_joining_keeps_the_location_whole() -> None:
    assert storage.join("s3://bucket", "a", "b") == "s3://bucket/a/b"
    assert storage.join("/", "a") == "/a"
    assert storage.join("file:///", "a b") == "file:///a%20b"
    assert storage.local_path(storage.join("file:///x", "50% ä")) == "/x/50% ä"


@given(st.binary(min_size=1, max_size=30).filter(
    lambda name: not set(name) & {0, 0x2f} and name not in (b".", b"..")))
def test_any_local_name_has_a_uri_that_is_text_and_leads_back(name: bytes) -> None:
    uri = storage.canonical("/data/" + os.fsdecode(name))
    assert uri.encode("ascii") and storage.canonical(uri) == uri
    assert os.fsencode(storage.local_path(uri)) == b"/data/" + name


# -- a local disk


def test_odd_local_names_are_listed_and_read(tmp_path: Path) -> None:
    names = [b"\xff\xfe.png", b"a\nb.png", b"a\\b.png", b"-rf", b"~", b"%41.png", b".hidden.png",
             b"._x.png", "é".encode(), "e\u0301".encode()]
    for i, name in enumerate(names):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(bytes([i]))
    entries = list(storage.list_objects(str(tmp_path)))
    assert [os.fsencode(entry.key) for entry in entries] == sorted(names)
    for entry in entries:
        assert storage.read_bytes(entry.uri) == bytes([names.index(os.fsencode(entry.key))])


def test_what_is_not_a_file_is_counted_and_never_waited_for(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "in.png").write_bytes(b"x")
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "dangling.png").symlink_to("nowhere")
    (tmp_path / "itself.png").symlink_to("itself.png")
    (tmp_path / "folder" / "up").symlink_to(tmp_path)
    (tmp_path / "link.png").symlink_to("real.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.png"))
    problems = {entry.key: entry.problem for entry in storage.list_objects(str(tmp_path))}
    assert problems == {
        "real.png": None, "link.png": None, "folder/in.png": None, "fifo.png": "not_regular",
        "dangling.png": "not_regular", "itself.png": "not_regular", "socket.png": "not_regular",
        "folder/up": "not_regular"}
    fifo = storage.stat(str(tmp_path / "fifo.png"))
    assert fifo is not None and fifo.problem == "not_regular"


def test_what_may_not_be_read_is_counted_and_the_rest_is_listed(tmp_path: Path) -> None:
    for name in ("denied.png", "open.png", "shut/a.png", "blind/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for part in (tmp_path, *tmp_path.parents):
        if part.owner() != "root" or os.getuid() != 0 or part == Path("/tmp"):
            break
        part.chmod(0o755)
    (tmp_path / "denied.png").chmod(0)
    (tmp_path / "shut").chmod(0)
    (tmp_path / "blind").chmod(0o444)  # its names can be read, what they name cannot
    try:
        with as_nobody():
            problems = {e.key: e.problem for e in storage.list_objects(str(tmp_path))}
            with pytest.raises(ObjectDeniedError):
                storage.read_bytes(str(tmp_path / "denied.png"))
            with pytest.raises(ObjectDeniedError):
                list(storage.list_objects(str(tmp_path / "shut")))
    finally:
        (tmp_path / "shut").chmod(0o755)
        (tmp_path / "blind").chmod(0o755)
    assert problems == {"denied.png": "denied", "open.png": None, "shut": "denied",
                        "blind/b.png": "denied"}


def test_what_is_removed_while_it_is_listed_is_left_out(tmp_path: Path) -> None:
    for name in ("a", "b", "c/d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    listing = storage.list_objects(str(tmp_path))
    assert next(listing).key == "a"
    (tmp_path / "b").unlink()
    (tmp_path / "c" / "d").unlink()
    (tmp_path / "c").rmdir()
    assert list(listing) == []


def test_folders_deeper_than_the_stack_are_listed(tmp_path: Path) -> None:
    folder = str(tmp_path)
    for _ in range(1100):
        folder += "/d"
        os.mkdir(folder)
    Path(folder, "a").write_bytes(b"x")
    try:
        assert [entry.key for entry in storage.list_objects(str(tmp_path))] == ["d/" * 1100 + "a"]
    finally:
        os.unlink(folder + "/a")
        while folder != str(tmp_path):
            os.rmdir(folder)
            folder = folder[:-2]


def test_a_fifo_in_the_place_of_a_file_does_not_hang_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    entry = storage.stat(str(path))
    assert entry is not None
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ObjectChangedError):
        storage.read_bytes(entry.uri, version=entry.version)


def test_a_file_rewritten_while_it_is_read_is_noticed(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    entry = storage.stat(str(path))
    assert entry is not None
    check, calls = local._check_version, iter([True])

    def rewrite_after_the_first(fileno: int, version: str | None, uri: str) -> None:
        check(fileno, version, uri)
        if next(calls, False):
            path.write_bytes(b"new!")

    monkeypatch.setattr(local, "_check_version", rewrite_after_the_first)
    with pytest.raises(ObjectChangedError):
        storage.read_bytes(entry.uri, version=entry.version)


@pytest.mark.parametrize("call", ["fsync", "link", "replace"])
def test_a_disk_that_fails_leaves_no_torn_and_no_temporary_file(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    storage.write_bytes(str(tmp_path / "a"), b"old")
    monkeypatch.setattr(os, call, fail)
    act = storage.put_if_absent if call == "link" else storage.write_bytes
    name = "b" if call == "link" else "a"
    with pytest.raises(StorageError, match="Input/output"):
        act(str(tmp_path / name), b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"old"}


# -- S3


def test_folder_markers_are_no_objects(bucket: str) -> None:
    client = s3._session().create_client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    name, prefix = s3.split(bucket)
    for key in ("dump/", "dump/sub/", "dump/sub/a.png"):
        client.put_object(Bucket=name, Key=f"{prefix}/{key}", Body=b"x" if "png" in key else b"")
    keys = [entry.key for entry in storage.list_objects(storage.join(bucket, "dump"))]
    assert keys == ["sub/a.png"]
    assert storage.exists_dir(storage.join(bucket, "dump"))


def test_a_versioned_bucket_reads_by_etag(seaweedfs: str) -> None:
    client = s3._session().create_client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    client.create_bucket(Bucket="versioned")
    client.put_bucket_versioning(Bucket="versioned",
                                 VersioningConfiguration={"Status": "Enabled"})
    storage.write_bytes("s3://versioned/a.tar", b"content")
    entry = storage.stat("s3://versioned/a.tar")
    assert entry is not None
    assert storage.read_bytes(entry.uri, version=entry.version) == b"content"
    assert [e.version for e in storage.list_objects("s3://versioned")] == [entry.version]


def test_an_endpoint_that_is_down_is_named_and_ends_with_5(
        seaweedfs: str, monkeypatch: pytest.MonkeyPatch, fresh_s3_clients: None) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setattr(s3, "RETRY_TIMEOUT_S", 0.5)
        for act in (storage.stat, storage.read_bytes, storage.exists_dir, storage.list_dirs,
                    lambda uri: storage.put_if_absent(uri, b"x")):
            began = time.monotonic()
            with pytest.raises(StorageError, match=endpoint) as caught:
                act("s3://test/a")
            assert type(caught.value) is StorageError and caught.value.exit_code == 5
            assert time.monotonic() - began < 10
            assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert max(s3.REQUEST_TIMEOUT_S + s3.RETRY_TIMEOUT_S, 2 * s3.REQUEST_TIMEOUT_S) < 120


def test_an_outage_shorter_than_the_retries_goes_unnoticed(
        seaweedfs: str, monkeypatch: pytest.MonkeyPatch, fresh_s3_clients: None) -> None:
    storage.write_bytes("s3://test/outage", b"x")
    upstream = int(os.environ["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])
    with socket.socket() as front:
        front.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{front.getsockname()[1]}")
        s3._bucket.cache_clear()
        s3._session.cache_clear()

        def come_back() -> None:
            time.sleep(3)
            front.listen()
            here, _ = front.accept()
            with here, socket.create_connection(("127.0.0.1", upstream)) as there:
                here.settimeout(10)
                there.sendall(here.recv(1 << 16))
                while data := there.recv(1 << 16):
                    here.sendall(data)
                    if data.endswith(b"x"):
                        break

        with ThreadPoolExecutor(1) as pool:
            server = pool.submit(come_back)
            assert storage.read_bytes("s3://test/outage") == b"x"
            server.result()


def test_wrong_credentials_are_denied_by_every_call(
        bucket: str, monkeypatch: pytest.MonkeyPatch, fresh_s3_clients: None) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-canary")
    for act in (storage.stat, storage.read_bytes, storage.exists_dir, storage.list_dirs,
                storage.delete, lambda uri: list(storage.list_objects(uri)),
                lambda uri: storage.write_bytes(uri, b"x"),
                lambda uri: storage.put_if_absent(uri, b"x")):
        with pytest.raises(ObjectDeniedError, match="check the credentials") as caught:
            act(storage.join(bucket, "a"))
        assert "canary" not in str(caught.value)


def test_a_bucket_that_is_not_there_is_named(seaweedfs: str) -> None:
    for act in (storage.read_bytes, storage.exists_dir, storage.list_dirs):
        with pytest.raises(ObjectMissingError, match=r"s3://no-bucket/a: there is no such bucket"):
            act("s3://no-bucket/a")


def test_credentials_and_endpoint_come_from_a_profile_too(
        bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        fresh_s3_clients: None) -> None:
    settings = {name: os.environ[f"AWS_{name}"] for name in
                ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "ENDPOINT_URL")}
    for name in (*settings, "REGION"):
        monkeypatch.delenv(f"AWS_{name}")
    (tmp_path / "config").write_text(
        f"[profile line]\nregion = eu-test-1\nendpoint_url = {settings['ENDPOINT_URL']}\n"
        f"aws_access_key_id = {settings['ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {settings['SECRET_ACCESS_KEY']}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match="set AWS_ACCESS_KEY_ID"):
        storage.stat("s3://test/a")
    monkeypatch.setenv("AWS_PROFILE", "line")
    s3._session.cache_clear()
    storage.write_bytes(storage.join(bucket, "a"), b"x")
    assert storage.read_bytes(storage.join(bucket, "a")) == b"x"
    _, options = storage.delta_location(bucket)
    assert options["AWS_ENDPOINT_URL"] == settings["ENDPOINT_URL"]
    assert options["AWS_REGION"] == "eu-test-1"
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):  # the environment before the profile
        monkeypatch.setenv(name, f"of-{name}")
        assert storage.delta_location(bucket)[1]["AWS_REGION"] == f"of-{name}"
    monkeypatch.setenv("AWS_PROFILE", "none")
    s3._session.cache_clear()
    with pytest.raises(StorageError, match="none"):
        storage.delta_location(bucket)


@pytest.mark.parametrize("carried_out", [True, False])
def test_an_exclusive_write_whose_reply_was_lost_is_ours_if_it_was_carried_out(
        bucket: str, carried_out: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    put, uri = s3.obstore.put, storage.join(bucket, "record.json")
    tries = 0

    def loses_its_first_reply(*how: Any, **more: Any) -> Any:
        nonlocal tries
        tries += 1
        found = put(*how, **more) if carried_out or tries > 1 else None
        if tries == 1:
            raise s3.obstore_errors.GenericError("connection closed before a reply came")
        return found
    monkeypatch.setattr(s3.obstore, "put", loses_its_first_reply)
    assert storage.put_if_absent(uri, b"mine") and tries == 2
    assert not storage.put_if_absent(uri, b"another's")
    assert storage.read_bytes(uri) == b"mine"


@pytest.mark.parametrize(("status", "tries"), [
    ("400 Bad Request", 1), ("403 Forbidden", 1), ("409 Conflict", 3), ("429 Too Many", 3),
    ("503 Slow Down", 3)])
def test_an_exclusive_write_is_repeated_where_another_try_may_end_otherwise(
        bucket: str, status: str, tries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    put, asked = s3.obstore.put, 0

    def fails_twice(*how: Any, **more: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise s3.obstore_errors.GenericError(f"Server returned status code: {status}")
        return put(*how, **more)
    monkeypatch.setattr(s3.obstore, "put", fails_twice)
    if tries == 1:
        with pytest.raises(StorageError):
            storage.put_if_absent(storage.join(bucket, "a"), b"1")
    else:
        assert storage.put_if_absent(storage.join(bucket, "a"), b"1")
    assert asked == tries


def test_a_range_that_comes_short_is_asked_for_again_and_then_given_up(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "a")
    storage.write_bytes(uri, b"0123456789")
    read, cut = local.read, [1, 2, 3]
    monkeypatch.setattr(local, "read", lambda *where: read(*where)[:cut.pop(0) if cut else None])
    assert storage.read_range(uri, 2, 6) == b"234567"
    cut += [1, 2, 3, 4]
    with pytest.raises(StorageError, match="got 4 bytes at offset 2, expected 6"):
        storage.read_range(uri, 2, 6)

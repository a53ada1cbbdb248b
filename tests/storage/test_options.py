"""What is said about S3 by KEY=VALUE: refused by name, or seen in every client's requests."""

from __future__ import annotations

import contextlib
import datetime
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from igd import storage
from igd.errors import ConfigError, StorageError
from igd.storage import options, s3

NOTHING = {kind: f'<{kind}Result xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>line</Name>'
                 f"<IsTruncated>false</IsTruncated><KeyCount>0</KeyCount></{kind}Result>".encode()
           for kind in ("ListBucket", "ListMultipartUploads")}


class Seen(NamedTuple):
    url: str
    headers: dict[str, str]


@pytest.fixture(autouse=True)
def nothing_else_said(monkeypatch, fresh_s3_clients) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL",
                 "AWS_DEFAULT_REGION", "AWS_REGION", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(options.VARIABLE, "")  # and put back afterwards
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-canary")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-canary")
    monkeypatch.setattr(s3, "RETRY_TIMEOUT_S", 0.5)
    monkeypatch.setattr(s3, "MAX_RETRIES", 0)
    monkeypatch.setattr(s3, "BOTOCORE_ATTEMPTS", 1)


@contextlib.contextmanager
def server(context: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[Seen]]]:
    """An S3 server, or a proxy before one, that holds nothing: its port, and what it was asked."""
    seen: list[Seen] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(Seen(self.path, {name.lower(): value
                                         for name, value in self.headers.items()}))
            query = self.path.partition("?")[2]
            body = (NOTHING["ListMultipartUploads"] if "uploads" in query else
                    NOTHING["ListBucket"] if "list-type" in query else b"")
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that hangs up: the certificate is not to its liking."""

    with Server(("127.0.0.1", 0), Handler) as listening:
        if context is not None:
            listening.socket = context.wrap_socket(listening.socket, server_side=True,
                                                   do_handshake_on_connect=False)
        thread = threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield listening.server_address[1], seen
        listening.shutdown()
        thread.join()


def by_obstore() -> None:
    assert storage.stat("s3://line/dump/a.png") is None


def by_deltalake() -> None:
    location, settings = storage.delta_location("s3://line/out/scores")
    with pytest.raises(TableNotFoundError):
        DeltaTable(location, storage_options=settings)


def by_botocore() -> None:
    assert storage.abort_uploads("s3://line/out", time.time()) == []


def by_pyarrow() -> None:
    path, system = storage.train_location("s3://line/models/a")
    with contextlib.suppress(OSError):  # it takes an answer without XML for no answer
        system.open_input_file(path)


CLIENTS = [by_obstore, by_deltalake, by_botocore, by_pyarrow]


@pytest.mark.parametrize("ask", CLIENTS)
def test_every_client_goes_where_it_is_told(ask: Callable[[], None]) -> None:
    """Through a proxy, so that the host needs no address."""
    with server() as (port, seen):
        options.use([f"proxy_url=http://127.0.0.1:{port}", "region=eu-far-9",
                     "endpoint=http://s3.example.test", "virtual_hosted_style_request=true",
                     "request_payer=true"])
        ask()
    assert seen
    for url, headers in seen:
        assert url.startswith("http://line.s3.example.test/") and "/line/" not in url
        assert "/eu-far-9/s3/" in headers["authorization"]
        assert headers.get("x-amz-request-payer") == (
            None if ask is by_pyarrow else "requester")


@pytest.mark.parametrize("ask", CLIENTS)
def test_every_client_may_be_nobody(ask: Callable[[], None], monkeypatch) -> None:
    """Also where there are no credentials."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with server() as (port, seen):
        options.use([f"endpoint=http://127.0.0.1:{port}", "skip_signature=true"])
        ask()
    assert seen
    for url, headers in seen:
        assert url.startswith("/line") and "authorization" not in headers


@pytest.fixture(scope="module")
def unknown_authority(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """A server's side with a certificate that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (x509.CertificateBuilder().subject_name(name).issuer_name(name)
                   .public_key(key.public_key()).serial_number(1)
                   .not_valid_before(now - datetime.timedelta(days=1))
                   .not_valid_after(now + datetime.timedelta(days=1)).sign(key, hashes.SHA256()))
    file: Path = tmp_path_factory.mktemp("tls") / "both.pem"
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@pytest.mark.parametrize("ask", CLIENTS[:3])
def test_a_certificate_that_nobody_vouches_for_is_taken_on_request_alone(
        ask: Callable[[], None], unknown_authority) -> None:
    with server(unknown_authority) as (port, seen):
        options.use([f"endpoint=https://127.0.0.1:{port}"])
        with pytest.raises((StorageError, OSError)):
            ask()
        assert not seen
        options.use([f"endpoint=https://127.0.0.1:{port}", "allow_invalid_certificates=true"])
        ask()
        assert seen
        with pytest.raises(ConfigError, match="allow_invalid_certificates cannot hold for"):
            storage.train_location("s3://line/models/a")


@pytest.mark.parametrize("ask", CLIENTS[:2])
def test_http_may_be_forbidden(ask: Callable[[], None]) -> None:
    with server() as (port, seen):
        options.use([f"endpoint=http://127.0.0.1:{port}", "allow_http=false"])
        with pytest.raises((StorageError, OSError)):
            ask()
    assert not seen


def test_options_come_before_the_environment_and_the_last_call_holds(monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://of-the-environment")
    monkeypatch.setenv("AWS_REGION", "of-the-environment")
    assert storage.delta_location("s3://b/k")[1]["AWS_REGION"] == "of-the-environment"
    options.use(["region=r", "endpoint=https://e"])
    said = storage.delta_location("s3://b/k")[1]
    assert (said["AWS_REGION"], said["AWS_ENDPOINT_URL"]) == ("r", "https://e")
    assert options.for_workers() == {options.VARIABLE: "region=r\nendpoint=https://e"}
    options.use(["region=other"])
    assert options.given() == options.StorageOptions(region="other")
    assert options.for_workers() == {options.VARIABLE: "region=other"}
    options.use([])
    assert options.for_workers() == {}


@pytest.mark.parametrize(("pair", "said"), [
    ("acl=canary", "unknown key 'acl'; known: region, endpoint, virtual_hosted_style_request, "),
    ("Region=canary", "unknown key 'Region'"),
    ("canary", "unknown key 'canary'"),
    ("allow_http=yes", "allow_http=yes: expected true or false"),
    ("request_payer", "request_payer: expected request_payer=VALUE"),
    ("region=", "region: expected region=VALUE"),
    ("endpoint=localhost:9000", "endpoint=localhost:9000: expected http://HOST or https://HOST"),
    ("proxy_url=socks5://a", "expected http://HOST or https://HOST"),
    ("secret_access_key=canary", "secret_access_key: credentials do not belong where others"),
    ("aws_session_token=canary", "aws_session_token: credentials do not belong"),
    ("proxy_url=http://me:canary@proxy", "proxy_url: expected no user or password in the URL"),
])
def test_what_cannot_be_said_is_refused_and_no_secret_is_told(pair, said) -> None:
    options.use(["region=kept"])
    with pytest.raises(ConfigError) as error:
        options.use(["request_payer=true", pair])
    assert said in str(error.value) and str(error.value).startswith("--storage-option")
    assert "canary" not in str(error.value).replace("'canary'", "")
    assert options.given() == options.StorageOptions(region="kept")


def test_an_environment_that_says_what_it_cannot_is_named(monkeypatch) -> None:
    monkeypatch.setenv(options.VARIABLE, "request_payer=1")
    with pytest.raises(ConfigError, match="IGD_STORAGE_OPTIONS request_payer=1: expected true"):
        storage.exists_dir("s3://b/k")

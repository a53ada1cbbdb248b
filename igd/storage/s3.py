"""S3 behind the functions of `igd.storage`: obstore for bytes, botocore for who we are.

obstore and deltalake do not read AWS profiles, so credentials, region and endpoint are resolved
the botocore way (environment, profile, role) and handed to them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import posixpath
import random
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import botocore.session
import obstore
from botocore import UNSIGNED
from botocore.config import Config
from botocore.configprovider import ConfiguredEndpointProvider
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError, ClientError
from obstore import exceptions as obstore_errors
from obstore.store import S3Store
from pyarrow import fs

from igd.errors import (
    ConfigError,
    ObjectChangedError,
    ObjectDeniedError,
    ObjectMissingError,
    StorageError,
)
from igd.storage import options
from igd.storage.entry import Entry
from igd.storage.options import StorageOptions

if TYPE_CHECKING:
    from obstore.store import ClientConfig

CONNECT_TIMEOUT_S = 5
REQUEST_TIMEOUT_S = 45
RETRY_TIMEOUT_S = 60
"""A call outlives an outage this long; one that fails for good says so within two minutes."""
MAX_RETRIES = 1000
"""So many that time alone ends them: refused connections use up eight in a second."""
MAX_BACKOFF_S = 5
BOTOCORE_ATTEMPTS = 5
CREDENTIAL_LIFE = timedelta(minutes=10)
ANONYMOUS = Credentials(access_key="", secret_key="")

PASSING_STATUS = ("08", "09", "25", "29")
"""Of 4xx: timeout, conflict with another request at this moment, too early, too many."""

T = TypeVar("T")


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise ConfigError(f"{uri!r}: expected s3://bucket/key")
    return bucket, key.strip("/")


def canonical(uri: str) -> str:
    bucket, key = split(uri)
    return f"s3://{bucket}/{key}".rstrip("/")


def stat(uri: str) -> Entry | None:
    store, key = _store(uri)
    if not key:
        return None
    try:
        meta = _call(uri, lambda: obstore.head(store, key))
    except ObjectMissingError:
        return None
    return Entry(canonical(uri), "", meta["size"], _version(meta),
                 modified_s=meta["last_modified"].timestamp())


def exists_dir(uri: str) -> bool:
    return next(_listing(uri), None) is not None


def list_dirs(uri: str) -> list[str]:
    store, key = _store(uri)
    found = _call(uri, lambda: obstore.list_with_delimiter(store, key or None))
    return sorted(posixpath.basename(prefix.rstrip("/")) for prefix in found["common_prefixes"])


def list_objects(uri: str) -> Iterator[Entry]:
    bucket, key = split(uri)
    prefix = key + "/" if key else ""
    for meta in _listing(uri):
        entry = Entry(f"s3://{bucket}/{meta['path']}", meta["path"][len(prefix):],
                      meta["size"], _version(meta),
                      modified_s=meta["last_modified"].timestamp())
        if entry.size > 0 or (entry.key and stat(entry.uri) is not None):
            yield entry  # else a folder marker: "name/", which the client lists as "name"


def read(uri: str, span: tuple[int, int] | None, version: str | None) -> bytes:
    store, key = _store(uri)
    options: dict[str, Any] = {}
    if span is not None:
        options["range"] = span
    if version is not None:
        options["if_match"] = f'"{version}"'
    return bytes(_call(uri, lambda: obstore.get(
        store, key, options=options).bytes()))  # type: ignore[arg-type]


def write_bytes(uri: str, data: bytes) -> None:
    store, key = _store(uri)
    _call(uri, lambda: obstore.put(store, key, data))


def create(uri: str, data: bytes) -> bool:
    """The client repeats no such request when its reply is lost; here it is repeated.

    Should the first one have been carried out, the next finds the object there.
    """
    store, key = _store(uri)
    began = time.monotonic()
    while True:
        try:
            obstore.put(store, key, data, mode="create", use_multipart=False)
        except obstore_errors.AlreadyExistsError:
            return False
        except Exception as error:  # the client's errors become ours
            if not _is_passing(error) or time.monotonic() - began > RETRY_TIMEOUT_S:
                _raise(error, uri)
        else:
            return True
        time.sleep(random.uniform(0.05, 1.0))


def delete(uri: str) -> None:
    store, key = _store(uri)
    with contextlib.suppress(ObjectMissingError):
        _call(uri, lambda: obstore.delete(store, key))


def abort_uploads(uri: str, before_s: float, dry_run: bool) -> list[str]:
    """Through botocore, for obstore does not list them."""
    bucket, key = split(uri)
    client = _client()
    payer = {"RequestPayer": "requester"} if options.given().request_payer else {}
    aborted = []
    pages = client.get_paginator("list_multipart_uploads").paginate(
        Bucket=bucket, Prefix=key + "/" if key else "", **payer)
    try:
        for upload in (upload for page in pages for upload in page.get("Uploads", ())):
            if upload["Initiated"].timestamp() <= before_s:
                aborted.append(f"s3://{bucket}/{upload['Key']}")
                if not dry_run:
                    client.abort_multipart_upload(
                        Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"], **payer)
    except (BotoCoreError, ClientError) as error:
        raise StorageError(f"{uri}: unfinished uploads cannot be given up: {error}") from error
    finally:
        client.close()
    return aborted


def delta_location(uri: str) -> tuple[str, dict[str, str]]:
    settings = _settings()
    said = options.given()
    found = {
        "AWS_ACCESS_KEY_ID": settings["access_key_id"],
        "AWS_SECRET_ACCESS_KEY": settings["secret_access_key"],
        "AWS_SESSION_TOKEN": settings["token"],
        "AWS_REGION": settings["region"],
        "AWS_ENDPOINT_URL": _endpoint_of(split(uri)[0], settings["endpoint"], said),
        "proxy_url": said.proxy_url or "",
        "conditional_put": "etag",
        "timeout": f"{REQUEST_TIMEOUT_S}s",
        "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
        "max_retries": str(MAX_RETRIES),
        "retry_timeout": f"{RETRY_TIMEOUT_S}s",
        "backoff_config.max_backoff": f"{MAX_BACKOFF_S}s",
    }
    flags = {"aws_skip_signature": said.skip_signature, "aws_request_payer": said.request_payer,
             "aws_virtual_hosted_style_request": said.virtual_hosted_style_request,
             "allow_invalid_certificates": said.allow_invalid_certificates,
             "allow_http": _allow_http(settings["endpoint"], said)}
    return canonical(uri), {name: value for name, value in found.items() if value} | {
        name: "true" for name, value in flags.items() if value}


def train_location(uri: str) -> tuple[str, Any]:
    settings = _settings()
    said = options.given()
    if said.allow_invalid_certificates:
        raise ConfigError("--storage-option allow_invalid_certificates cannot hold for the "
                          f"checkpoints of a TorchTrainer in {uri}; use --trainer never")
    return canonical(uri).removeprefix("s3://"), fs.S3FileSystem(
        access_key=settings["access_key_id"] or None,
        secret_key=settings["secret_access_key"] or None,
        session_token=settings["token"] or None, region=settings["region"],
        endpoint_override=settings["endpoint"] or None, anonymous=said.skip_signature,
        force_virtual_addressing=said.virtual_hosted_style_request,
        proxy_options=said.proxy_url)


def _version(meta: Any) -> str:
    """The etag; not the version id, which listings lack and If-Match does not know."""
    if not meta.get("e_tag"):
        raise StorageError(f"{meta['path']}: the endpoint gives no etag, which tells versions "
                           "of an object apart")
    return str(meta["e_tag"]).strip('"')


def _listing(uri: str) -> Iterator[Any]:
    bucket, key = split(uri)
    store = _bucket(bucket, options.given())
    pages = iter(obstore.list(store, key + "/" if key else None, chunk_size=1000))
    while (page := _call(uri, lambda: next(pages, None))) is not None:
        yield from page


def _store(uri: str) -> tuple[S3Store, str]:
    bucket, key = split(uri)
    return _bucket(bucket, options.given()), key


@functools.lru_cache(maxsize=64)
def _bucket(bucket: str, said: StorageOptions) -> S3Store:
    settings = _settings()
    endpoint = _endpoint_of(bucket, settings["endpoint"], said)
    where: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    who: dict[str, Any] = {"skip_signature": True} if said.skip_signature else {
        "credential_provider": _credentials}
    how: ClientConfig = {
        "timeout": timedelta(seconds=REQUEST_TIMEOUT_S),
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
        "allow_http": _allow_http(settings["endpoint"], said),
        "allow_invalid_certificates": said.allow_invalid_certificates}
    if said.proxy_url:
        how["proxy_url"] = said.proxy_url
    return S3Store(
        bucket, region=settings["region"], client_options=how,
        virtual_hosted_style_request=said.virtual_hosted_style_request,
        request_payer=said.request_payer,
        retry_config={"max_retries": MAX_RETRIES,
                      "backoff": {"max_backoff": timedelta(seconds=MAX_BACKOFF_S)},
                      "retry_timeout": timedelta(seconds=RETRY_TIMEOUT_S)},
        **where, **who)


def _client() -> Any:
    """A client of botocore."""
    settings = _settings()
    said = options.given()
    return _session().create_client(
        "s3", region_name=settings["region"], endpoint_url=settings["endpoint"] or None,
        verify=False if said.allow_invalid_certificates else None,
        config=Config(connect_timeout=CONNECT_TIMEOUT_S, read_timeout=REQUEST_TIMEOUT_S,
                      retries={"mode": "standard", "max_attempts": BOTOCORE_ATTEMPTS},
                      signature_version=UNSIGNED if said.skip_signature else None,
                      s3={"addressing_style": "virtual"}
                      if said.virtual_hosted_style_request else None,
                      proxies=dict.fromkeys(("http", "https"), said.proxy_url)
                      if said.proxy_url else None))


def _endpoint_of(bucket: str, endpoint: str, said: StorageOptions) -> str:
    """What obstore and deltalake take for an endpoint: where hosts are virtual, the bucket's."""
    if not endpoint or not said.virtual_hosted_style_request:
        return endpoint
    scheme, _, host = endpoint.partition("://")
    return f"{scheme}://{bucket}.{host}"


def _allow_http(endpoint: str, said: StorageOptions) -> bool:
    return endpoint.startswith("http://") if said.allow_http is None else said.allow_http


def _credentials() -> dict[str, Any]:
    """What obstore asks for, again as each answer nears its end."""
    settings = _settings()
    return {"access_key_id": settings["access_key_id"],
            "secret_access_key": settings["secret_access_key"],
            "token": settings["token"] or None,
            "expires_at": datetime.now(UTC) + CREDENTIAL_LIFE}


@functools.lru_cache(maxsize=1)
def _session() -> Any:
    return botocore.session.Session()


def _settings() -> dict[str, str]:
    """Credentials ("" for nobody's), region and endpoint ("" for AWS itself)."""
    session = _session()
    said = options.given()
    try:
        credentials = ANONYMOUS if said.skip_signature else session.get_credentials()
        endpoint = ConfiguredEndpointProvider(
            full_config=session.full_config, scoped_config=session.get_scoped_config(),
            client_name="s3").provide() or ""
    except Exception as error:  # botocore's profile and role errors
        raise StorageError(f"S3 credentials: {error}") from error
    if credentials is None:
        raise StorageError("no S3 credentials found; set AWS_ACCESS_KEY_ID and "
                           "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run with a role")
    frozen = credentials.get_frozen_credentials()
    return {"access_key_id": frozen.access_key, "secret_access_key": frozen.secret_key,
            "token": frozen.token or "", "endpoint": said.endpoint or endpoint,
            # botocore passes over AWS_REGION, which Kubernetes and the other SDKs set
            "region": said.region or os.environ.get("AWS_DEFAULT_REGION")
            or os.environ.get("AWS_REGION") or session.get_config_variable("region")
            or "us-east-1"}


def _call(uri: str, action: Callable[[], T]) -> T:
    try:
        return action()
    except Exception as error:  # the client's errors become ours
        _raise(error, uri)


def _is_passing(error: Exception) -> bool:
    """Whether another try may end otherwise: no answer, or one of the server's trouble."""
    refused = (obstore_errors.NotFoundError, obstore_errors.PermissionDeniedError,
               obstore_errors.UnauthenticatedError, obstore_errors.PreconditionError,
               FileNotFoundError, PermissionError)
    status = re.search(r"status code: 4(\d\d)\b", str(error))
    return isinstance(error, (obstore_errors.BaseError, OSError)) and not isinstance(
        error, refused) and (status is None or status[1] in PASSING_STATUS)


def _raise(error: Exception, uri: str) -> NoReturn:
    if isinstance(error, StorageError):
        raise error
    where = f"endpoint {_settings()['endpoint'] or 'AWS'}"
    said = str(error).strip() or repr(error)
    if "<Code>NoSuchBucket</Code>" in said:
        raise ObjectMissingError(f"{uri}: there is no such bucket ({where})") from error
    if isinstance(error, (obstore_errors.NotFoundError, FileNotFoundError)):
        raise ObjectMissingError(f"{uri}: not found ({where})") from error
    if isinstance(error, obstore_errors.PreconditionError):
        raise ObjectChangedError(f"{uri} changed since it was listed") from error
    if isinstance(error, (obstore_errors.PermissionDeniedError,
                          obstore_errors.UnauthenticatedError, PermissionError)) or (
            re.search(r"status code: 40[13]\b", said)):  # a listing's refusal has no class
        raise ObjectDeniedError(f"{uri}: access denied ({where}); check the credentials and "
                                "the bucket's policy") from error
    raise StorageError(f"{uri}: {said.splitlines()[0][:300]} ({where}); check that the endpoint is "
                       "reachable and the bucket exists") from error

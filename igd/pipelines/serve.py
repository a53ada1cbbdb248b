"""The endpoint on Ray Serve: an ingress that decodes, over scorers that hold the models.

    igd-ray serve --models URI                          this machine, or a cluster
    serve deploy config.yaml                            `igd.pipelines.serve:app` with its `args`

A request goes from Serve's proxy to the replica of the ingress that has least to do, which checks
and decodes it. On CPUs that replica scores it too. On GPUs, or where it is asked for, it goes on to
the scorer that has least to do; on a GPU a scorer takes several images at once. Any of them scores
any category: one that all ask for is answered by all.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import io
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import ray
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve import Application
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from igd import storage
from igd.errors import ConfigError, IgdError, StorageError
from igd.pipelines.cluster import SCORER_CPUS, own_error
from igd.score.device import CPU, GPU, Device
from igd.serve import door
from igd.serve.app import create_app
from igd.serve.config import LOOPBACK, EndpointConfig
from igd.serve.endpoint import Endpoint
from igd.serve.local import LocalScorers
from igd.serve.logs import log_to_stderr
from igd.serve.metrics import ByReplica, of_models
from igd.serve.models import Answer, Ask, Card, Models
from igd.serve.tokens import tokens_of

NAME, INGRESS, SCORER = "igd", "Ingress", "Scorer"
INGRESS_CPUS = 0.5
SLACK = 2
"""Times its share of the images in flight that one of several scorers takes, as others start."""
ONGOING = 512
"""Requests of any kind that a replica of the ingress has at a time."""
GPU_WAIT_S = 0.005
"""For a batch to fill up."""
TRIES = 3
"""Scorers that are asked for one image; the others died of something meanwhile."""
COLLECT_S = 2.0
CONTROL_S = 10.0
WARM_S = 60.0
ASK_EVERY_S = 0.05
LAST_ASK_S = 5.0
"""At most, for what a client sends who has just connected to arrive, from a busy machine even."""
_letting_in: set[asyncio.Task[Any]] = set()
"""Kept from being collected."""
CONTROLLER, PROXY = "SERVE_CONTROLLER_ACTOR", "SERVE_PROXY_ACTOR"


@serve.deployment(name=SCORER, health_check_period_s=5)
class ScorerDeployment:
    """A replica that holds models and scores."""

    def __init__(self, config: EndpointConfig, gpu: bool) -> None:
        log_to_stderr()
        self._local = LocalScorers(_models(config, GPU if gpu else CPU))
        self._score = self._in_batch if gpu else self._local.score

    async def open(self, category: str, version: str) -> Card:
        return await self._local.open(category, version)

    async def score(self, ask: Ask) -> Answer:
        return await self._score(ask)

    async def collect(self) -> ByReplica:
        return await self._local.collect()

    async def _in_batch(self, ask: Ask) -> Answer:
        answer = await self._batch(ask)
        if isinstance(answer, IgdError):
            raise answer
        return answer

    @serve.batch(max_batch_size=GPU.batch, batch_wait_timeout_s=GPU_WAIT_S)
    async def _batch(self, asks: list[Ask]) -> list[Answer | IgdError]:
        return await self._local.score_many(asks)


class RemoteScorers:
    """The scorers, as an ingress sees them."""

    def __init__(self, scorers: DeploymentHandle[Any]) -> None:
        self._scorers = scorers

    async def open(self, category: str, version: str) -> Card:
        """Checks a version in one scorer, waiting for the first to start, and loads it in all.

        Raises:
            ModelError: it is missing or damaged.
            StorageError: no scorer could be reached.
        """
        card: Card = await self._asked("open", category, version)
        with contextlib.suppress(TimeoutError, RayError, RayServeException):  # or at first use
            await self._scorers.broadcast("open", category, version).results_async(
                timeout_s=WARM_S)
        return card

    async def score(self, ask: Ask) -> Answer:
        answer: Answer = await self._asked("score", ask)
        return answer

    async def collect(self) -> ByReplica:
        return await _collected(self._scorers, _ingress())

    def collect_own(self) -> ByReplica:
        return {}

    async def _asked(self, method: str, *arguments: Any) -> Any:
        """What a scorer says; another is asked where one died meanwhile."""
        for left in reversed(range(TRIES)):
            try:
                return await getattr(self._scorers, method).remote(*arguments)
            except RayError as error:
                if ours := own_error(error):
                    raise ours from None
                if not left or not isinstance(error, RayActorError):
                    raise StorageError("a scorer failed: "
                                       f"{str(error).splitlines()[0]}") from error
        raise AssertionError


class OwnScorers(LocalScorers):
    """The models of a replica of the ingress that scores by itself."""

    async def collect(self) -> ByReplica:
        return await _collected(_ingress())

    def collect_own(self) -> ByReplica:
        return of_models(self.models)


def _ingress() -> DeploymentHandle[Any]:
    return serve.get_deployment_handle(INGRESS, serve.get_replica_context().app_name)


async def _collected(*deployments: DeploymentHandle[Any]) -> ByReplica:
    """What the proxies and the replicas of deployments have counted."""
    found = await asyncio.gather(_of_doors(), *map(_of_replicas, deployments))
    return {name: families for each in found for name, families in each.items()}


async def _of_replicas(deployment: DeploymentHandle[Any]) -> ByReplica:
    """What replicas have counted, those aside that do not say so in time."""
    with contextlib.suppress(TimeoutError, RayError, RayServeException):
        answers = await deployment.broadcast("collect").results_async(
            timeout_s=COLLECT_S, return_exceptions=True)
        return {name: families for answer in answers if not isinstance(answer, BaseException)
                for name, families in answer.items()}
    return {}


async def _of_doors() -> ByReplica:
    """What proxies have answered by themselves, all or none in time."""
    with contextlib.suppress(TimeoutError, RayError, ValueError):  # one has ended meanwhile
        async with asyncio.timeout(COLLECT_S):
            proxies = await asyncio.to_thread(_proxies)
            answers = await asyncio.gather(*(
                proxy.__ray_call__.remote(door.collect) for proxy in proxies))
        return {name: families for answer in answers for name, families in answer.items()}
    return {}


@serve.deployment(name=INGRESS, max_ongoing_requests=ONGOING, max_queued_requests=ONGOING,
                  health_check_period_s=5)
@serve.ingress()
class IngressDeployment:
    """A replica of the FastAPI application; without scorers to ask, it is one."""

    def __init__(self, config: EndpointConfig, scorers: DeploymentHandle[Any] | None) -> None:
        log_to_stderr()
        self._scorers = RemoteScorers(scorers) if scorers else OwnScorers(_models(config, CPU))
        self._endpoint = Endpoint(config, self._scorers)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._endpoint, proxied=True)

    async def drain(self) -> None:
        """Says from now on that images had better be sent elsewhere; they are still scored."""
        self._endpoint.draining = True

    async def collect(self) -> ByReplica:
        return {**self._scorers.collect_own(), **self._endpoint.metrics.collect()}


def _models(config: EndpointConfig, device: Device) -> Models:
    return Models(config.models, fpr=config.fpr, review_fpr=config.review_fpr,
                  max_bytes=config.model_bytes, device=device)


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """How many processes there are of each kind.

    Attributes:
        scorers: the fewest and the most; between them Ray Serve follows the load.
        ingress: that check and decode ahead of the scorers; 0: scorers do that themselves, which
            takes less. None: 1 ahead of GPUs, 0 on CPUs.
        gpus_per_scorer: 0 scores on CPUs.
    """

    scorers: tuple[int, int] = (1, 1)
    ingress: int | None = None
    gpus_per_scorer: float = 0.0

    def __post_init__(self) -> None:
        fewest, most = self.scorers
        if not 1 <= fewest <= most or self.gpus_per_scorer < 0 or self.ahead < 0:
            raise ConfigError(f"{self}: expected at least one scorer, and no more than the most")
        if self.gpus_per_scorer and not self.ahead:
            raise ConfigError("scorers on GPUs need at least one ingress ahead of them")

    @property
    def ahead(self) -> int:
        """Replicas of an ingress that does not score."""
        return int(self.gpus_per_scorer > 0) if self.ingress is None else self.ingress


def build(config: EndpointConfig, replicas: Replicas) -> Application:
    """The Serve application of an endpoint."""
    fewest, most = replicas.scorers
    gpu = replicas.gpus_per_scorer > 0
    forward = GPU.batch if gpu else CPU.batch
    taken = 2 * forward  # by a scorer: what it scores, and what comes next
    in_flight = config.in_flight or most * taken
    each = in_flight if replicas.ahead else min(in_flight, -(-SLACK * in_flight // most))
    config = replace(config, in_flight=in_flight, in_flight_each=each,
                     at_once=min(in_flight, most * forward))
    scale: dict[str, Any] = {"num_replicas": fewest} if fewest == most else {
        "autoscaling_config": {"min_replicas": fewest, "max_replicas": most,
                               "target_ongoing_requests": forward}}
    scale["ray_actor_options"] = {"num_cpus": SCORER_CPUS, "num_gpus": replicas.gpus_per_scorer}
    if not replicas.ahead:
        return _bound(IngressDeployment, config, None, **scale)
    scorers = _bound(ScorerDeployment, config, gpu, max_ongoing_requests=taken, **scale)
    return _bound(IngressDeployment, config, scorers, num_replicas=replicas.ahead,
                  ray_actor_options={"num_cpus": INGRESS_CPUS})


def _bound(deployment: Any, *arguments: Any, **options: Any) -> Application:
    application: Application = deployment.options(**options).bind(*arguments)
    return application


class Arguments(BaseModel):
    """`args` of the application in a Serve config file."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    models: str
    fpr: float = 0.01
    review_fpr: float = 0.05
    hosts: list[str] = Field(default_factory=list)
    tokens_file: str | None = None
    min_scorers: int = 1
    max_scorers: int = 1
    ingress: int | None = None
    gpus_per_scorer: float = 0.0
    model_bytes: int = EndpointConfig.model_bytes
    follow_s: float = EndpointConfig.follow_s
    anybody_may_ask: bool = False


def app(args: dict[str, Any]) -> Application:
    """The application that `serve deploy` and a RayService run: `igd.pipelines.serve:app`.

    Its proxies listen where the Serve config says, so it asks for tokens unless told otherwise.

    Args:
        args: as `Arguments`. (Ray passes what YAML holds.)

    Raises:
        ConfigError: no token, or a setting that cannot be.
    """
    try:
        return _application(Arguments.model_validate(args))
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"args of igd.pipelines.serve:app: {'.'.join(map(str, first['loc']))}: "
                          f"{first['msg']}") from error


def _application(args: Arguments) -> Application:
    tokens = tokens_of(args.tokens_file)
    if not tokens and not args.anybody_may_ask:
        raise ConfigError("no token: name a tokens_file, set IGD_SERVE_TOKENS, or say "
                          "anybody_may_ask: true where the network lets in nobody else")
    config = EndpointConfig(
        models=storage.canonical(args.models), fpr=args.fpr, review_fpr=args.review_fpr,
        tokens=tokens, hosts=(*LOOPBACK, *args.hosts), model_bytes=args.model_bytes,
        follow_s=args.follow_s)
    return build(config, Replicas(scorers=(args.min_scorers, args.max_scorers),
                                  ingress=args.ingress, gpus_per_scorer=args.gpus_per_scorer))


@dataclass(frozen=True, kw_only=True)
class Listen:
    """Where an endpoint listens.

    Attributes:
        key, certificate: PEM files, for TLS.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None
    certificate: str | None = None

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.key else 'http'}://{host}:{self.port}"


@contextlib.contextmanager
def running(config: EndpointConfig, listen: Listen, replicas: Replicas = Replicas()
            ) -> Iterator[str]:
    """Runs the application on a connected cluster and gives its URL.

    On leaving, the endpoint first says that it is not ready, then answers what it has, then stops.
    """
    check_free(listen)
    if any(actor["name"] == CONTROLLER for actor in _serve_actors()):
        raise ConfigError("Ray Serve runs on that cluster already, and stopping here would stop it "
                          "for all; deploy there instead: serve deploy, with "
                          "igd.pipelines.serve:app")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(proxy_location="HeadOnly", http_options={
        "host": listen.host, "port": listen.port, "ssl_keyfile": listen.key,
        "ssl_certfile": listen.certificate, "request_timeout_s": 2 * config.timeout_s})
    try:
        try:
            serve.run(build(config, replicas), name=NAME, route_prefix="/")
        except KeyboardInterrupt:  # it may answer already
            sys.stdout = io.StringIO()  # where Ray tells of every actor that it ends
            _drain(config)
            raise
        yield listen.url
        _drain(config)
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]


def _drain(config: EndpointConfig) -> None:
    """Lets whoever spreads the load turn away, then takes no more, then answers what is left."""
    with contextlib.suppress(TimeoutError, RayError, RayServeException):
        ingress = serve.get_app_handle(NAME)
        ingress._init(  # type: ignore[no-untyped-call]
            _run_router_in_separate_loop=True)  # no loop runs here; see door.ENVIRONMENT
        ingress.broadcast("drain").results(timeout_s=CONTROL_S)
        time.sleep(config.drain_s)
        proxies = _proxies()
        ray.get([proxy.__ray_call__.remote(take_no_more) for proxy in proxies], timeout=CONTROL_S)
        for ask, limit_s in ((connections, LAST_ASK_S), (hang_up, config.timeout_s)):
            deadline, left = time.monotonic() + limit_s, True
            while left and time.monotonic() < deadline:
                time.sleep(ASK_EVERY_S)
                left = any(ray.get([proxy.__ray_call__.remote(ask) for proxy in proxies],
                                   timeout=CONTROL_S))


def take_no_more(proxy: object) -> None:
    """Within a proxy of Ray Serve: takes no more connections. Who has one may ask once more."""
    for server in _servers():
        for listener in server.servers:
            listener.get_loop().call_soon_threadsafe(_close, server, listener)


def _close(server: uvicorn.Server, listener: asyncio.Server) -> None:
    """Closes a listener of a server; who waits to be let in, and would be reset, is let in first.

    The loop itself lets nobody in while it is busy, which under load takes milliseconds.
    """
    loop = listener.get_loop()
    queues = [socket.socket(fileno=os.dup(each.fileno())) for each in listener.sockets]
    listener.close()
    connect = functools.partial(  # as the server itself does
        server.config.http_protocol_class, config=server.config,  # type: ignore[call-arg]
        server_state=server.server_state, app_state=server.lifespan.state)
    for queue in queues:
        with queue, contextlib.suppress(BlockingIOError):
            queue.setblocking(False)
            while True:
                connection, _ = queue.accept()
                connection.setblocking(False)
                _letting_in.add(task := loop.create_task(loop.connect_accepted_socket(
                    connect, connection, ssl=server.config.ssl)))
                task.add_done_callback(_letting_in.discard)


def connections(proxy: object) -> int:
    """Within a proxy of Ray Serve: how many there are.

    Replies of an endpoint that stops end theirs: what is left is in use, or new, or idle since
    before.
    """
    return len(_letting_in) + sum(len(server.server_state.connections) for server in _servers())


def hang_up(proxy: object) -> int:
    """Within a proxy of Ray Serve: closes what connections nobody asks by; how many are in use.

    Stopped by Serve itself, a proxy goes on taking requests after the replicas have gone, and
    answers them with 500.
    """
    for server in _servers():
        server.should_exit = True
    return connections(proxy)


def _servers() -> list[uvicorn.Server]:
    """Of this process. A proxy does not give out its own, which therefore is looked for."""
    return [found for found in gc.get_objects()
            if isinstance(found, uvicorn.Server) and found.started]


def _proxies() -> list[Any]:
    """Handles of Serve's proxies."""
    return [ray.get_actor(**actor) for actor in _serve_actors()
            if actor["name"].startswith(PROXY)]


def _serve_actors() -> list[dict[str, str]]:
    """Name and namespace of what Ray Serve runs."""
    return [actor for actor in ray.util.list_named_actors(all_namespaces=True)
            if actor["namespace"] == "serve"]


def check_free(listen: Listen) -> None:
    """Refuses a port that is taken: Serve would share it, and half the requests go elsewhere.

    Raises:
        ConfigError: it is.
    """
    host, port = listen.host, listen.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"port {port} of {host} cannot be had: {error.strerror}; choose "
                              "another with --port") from error

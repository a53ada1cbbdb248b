"""`igd-ray serve`."""

from __future__ import annotations

import io
import os
import secrets
import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from igd.cli.app import app
from igd.cli.options import Models, RayAddress, StorageOption
from igd.cli.output import say
from igd.errors import ConfigError

if TYPE_CHECKING:
    from igd.pipelines.cluster import Resources


WILDCARDS = ("0.0.0.0", "::")


@app.command()
def serve(
    models: Models,
    host: Annotated[str, typer.Option(help="Address to listen on. Beyond loopback, tokens are "
                                           "asked for.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    fpr: Annotated[float, typer.Option(
        help="Rate of normal images that may be called anomalous.")] = 0.01,
    review_fpr: Annotated[float, typer.Option(
        help="Rate of normal images that may be called review or anomalous.")] = 0.05,
    tokens: Annotated[str | None, typer.Option(
        metavar="FILE", help="Lines of NAME:TOKEN, readable by you alone (mode 0600); by default "
                             "those in IGD_SERVE_TOKENS.")] = None,
    anybody_may_ask: Annotated[bool, typer.Option(
        "--anybody-may-ask", help="Listen beyond loopback without tokens.")] = False,
    allow_host: Annotated[list[str] | None, typer.Option(
        metavar="NAME", help="A name that clients call this endpoint by, beside --host and "
                             "loopback's; may be repeated.")] = None,
    tls: Annotated[tuple[str, str] | None, typer.Option(
        metavar="CERTIFICATE KEY", help="PEM files, for HTTPS.")] = None,
    scorers: Annotated[str | None, typer.Option(
        metavar="N or MIN:MAX", help="Processes that score; between MIN and MAX Ray Serve follows "
                                     "the load. By default one for each CPU.")] = None,
    gpus_per_scorer: Annotated[float, typer.Option(
        min=0, help="GPUs of each scorer, .25 for four of them on one; 0 scores on CPUs.")] = 0.0,
    ingress: Annotated[int | None, typer.Option(
        min=0, help="Processes that take requests and decode images ahead of the scorers; a "
                    "scorer that dies then costs no request. By default 1 ahead of GPUs; on CPUs "
                    "0: scorers do it themselves, which takes less CPU.")] = None,
    in_flight: Annotated[int | None, typer.Option(
        min=1, help="Images that are scored or wait at a time; more are refused at once, with "
                    "503. By default two for each scorer on a CPU, which bounds the wait.")] = None,
    model_mib: Annotated[int, typer.Option(
        min=1, help="Of models that each scorer keeps in memory; the least recently used one is "
                    "dropped.")] = 1024,
    follow_s: Annotated[float, typer.Option(
        min=0.1, help="Between two looks at which versions are in production.")] = 5.0,
    ray_address: RayAddress = None, storage_option: StorageOption = None,
) -> None:
    """Answer for one image at a time over HTTP, with the same score as a batch run.

    A page to try it stands at /. Promotions and rollbacks take effect within seconds, without a
    failed request.

    Example: `igd-ray serve --models ./models`, then
    `curl --data-binary @part.png 127.0.0.1:8000/v1/categories/bottle/score`
    """
    from igd import registry, storage
    from igd.serve import door
    from igd.serve.config import LOOPBACK, MIB, EndpointConfig
    from igd.serve.tokens import tokens_of

    known = tokens_of(tokens)
    if host not in LOOPBACK and not known and not anybody_may_ask:
        raise ConfigError(f"--host {host}: others could ask without a token; name --tokens, or "
                          "say --anybody-may-ask where the network lets in nobody else")
    names = registry.list_categories(models)
    if not names:
        raise ConfigError(f"no models in {models}; run igd-ray train-all first")
    config = EndpointConfig(
        models=storage.canonical(models), fpr=fpr, review_fpr=review_fpr, tokens=known,
        hosts=(*LOOPBACK, host, *(allow_host or ())), model_bytes=model_mib * MIB,
        follow_s=follow_s, in_flight=in_flight)
    for name, value in door.ENVIRONMENT.items():  # ahead of Ray, for a cluster that is started here
        os.environ.setdefault(name, value)
    if not (ray_address or os.environ.get("RAY_ADDRESS")):  # replicas listen on every interface
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

    from igd.pipelines.cluster import connected
    from igd.pipelines.serve import Listen, Replicas, check_free, running

    certificate, key = tls or (None, None)
    listen = Listen(host=host, port=port, certificate=certificate, key=key)
    check_free(listen)
    if host in WILDCARDS and not allow_host:
        say(f"--host {host}: requests that call this endpoint by any other name or address than "
            "loopback's are refused; name those with --allow-host")
    try:
        with connected(ray_address) as resources:
            replicas = Replicas(scorers=_scorers(scorers, resources), ingress=ingress,
                                gpus_per_scorer=gpus_per_scorer)
            say(f"starting scorers ({replicas.scorers[0]}) for categories ({len(names)})")
            with running(config, listen, replicas) as url:
                print(f"serving {', '.join(names)} on {url} ({url}/openapi.json describes it); "
                      "Ctrl-C stops", flush=True)
                try:
                    signal.pause()
                except KeyboardInterrupt:
                    say("stopping: answering what is under way")
                    sys.stdout = io.StringIO()  # where Ray tells of every actor that it ends
    except KeyboardInterrupt:
        say("stopped while it started")
    raise typer.Exit(0)


def _scorers(given: str | None, resources: Resources) -> tuple[int, int]:
    """The fewest and the most scorers."""
    if given is None:
        most = resources.pool(1 << 30).scorers
        return most, most
    fewest, colon, most_text = given.partition(":")
    try:
        return int(fewest), int(most_text if colon else fewest)
    except ValueError:
        raise ConfigError(f"--scorers {given}: expected a number, or two like 1:4") from None

"""`igd-ray serve`."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from igd.cli.app import app
from igd.cli.options import Models, RayAddress, StorageOption
from igd.errors import ConfigError


@app.command()
def serve(
    models: Models,
    host: Annotated[str, typer.Option(help="Address to listen on; loopback only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    fpr: Annotated[float, typer.Option(
        help="Rate of normal images that may be called anomalous.")] = 0.01,
    review_fpr: Annotated[float, typer.Option(
        help="Rate of normal images that may be called review or anomalous.")] = 0.05,
    ray_address: RayAddress = None, storage_option: StorageOption = None,
) -> None:
    """Answer for one image at a time over HTTP, with the same score as a batch run.

    Example: `igd-ray serve --models ./models`, then
    `curl --data-binary @part.png 127.0.0.1:8000/v1/categories/bottle/score`
    """
    from igd import registry
    from igd.serve.endpoint import EndpointConfig

    if host not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigError(f"--host {host}: this endpoint asks for no password, so it listens on "
                          "loopback only; put a proxy with authentication before it")
    names = registry.list_categories(models)
    if not names:
        raise ConfigError(f"no models in {models}; run igd-ray train-all first")
    from igd import storage
    from igd.pipelines.cluster import connected
    from igd.pipelines.serve import running

    config = EndpointConfig(models=storage.canonical(models), fpr=fpr, review_fpr=review_fpr)
    with connected(ray_address), running(config, host=host, port=port) as url:
        print(f"serving {', '.join(names)} on {url} (docs: {url}/docs); Ctrl-C stops", flush=True)
        signal.pause()

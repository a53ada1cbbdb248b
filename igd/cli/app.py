"""The command line's application and its groups; the commands register themselves with it."""

from __future__ import annotations

from typing import Annotated

import typer

from igd import __version__

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  rich_markup_mode="markdown", help="""
Distributed anomaly scoring of images: train one model per product category, score image dumps
into Delta tables, serve one image at a time.

Exit codes: 0 complete; 2 usage, configuration or too little data; 3 finished with something to
look at; 4 held by the audit; 5 storage or cluster out of reach; 130/143 interrupted (run the same
command again); 1 anything else.
""")
models_app = typer.Typer(no_args_is_help=True, help="Look at the models of a registry, and "
                         "choose which are in production.")
app.add_typer(models_app, name="models")
data_app = typer.Typer(no_args_is_help=True,
                       help="Bring public datasets into the layout of MVTec AD.")
app.add_typer(data_app, name="data")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
          ) -> None:
    if version:
        print(f"igd-ray {__version__}")
        raise typer.Exit()

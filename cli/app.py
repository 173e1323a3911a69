"""The Typer app: one command a file."""

from __future__ import annotations

import typer

from .analyze import analyze
from .bench import bench
from .encode import encode
from .export import export
from .grow import grow
from .reconstruct import reconstruct
from .report import report
from .sample import sample
from .serve import serve
from .shrink import shrink
from .train import train
from .traverse import traverse
from .verify import verify

app = typer.Typer(
    name="vaeprune",
    rich_markup_mode=None,  # rich's help pages take three times as long to load as the whole command
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    train, analyze, shrink, grow, verify, export, encode, report, sample, reconstruct, traverse, bench, serve,
):  # fmt: skip
    app.command()(command)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    """Find the idle latents of a Variational Autoencoder, cut them out, prove that the outputs are the same."""
    if version:
        from vaeprune import __version__

        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())

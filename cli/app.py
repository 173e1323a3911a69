"""The Typer app: one command a file, loaded when it is called."""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import typer
import typer.main
from typer.core import TyperGroup

SUMMARIES = {
    "train": "Train a VAE, by default the paper's.",
    "analyze": "Find the idle latents and say what to do; of several models say how far their counts agree.",
    "shrink": "Cut out what is idle and prove it.",
    "grow": "Add latents; the outputs stay exactly as they are.",
    "verify": "Compare the outputs of two models.",
    "export": "Write files to deploy, checked on real rows.",
    "encode": "Write the posterior means of all rows.",
    "report": "Write one HTML page with figures, pictures and evidence.",
    "sample": "Draw samples from the prior as a PNG sheet.",
    "reconstruct": "Draw rows of the data above their reconstructions, as a PNG sheet.",
    "traverse": "Draw what becomes of one row while each latent alone moves, as a PNG sheet.",
    "bench": "Compare what two ONNX pairs cost to run.",
    "serve": "Serve a model over HTTP, with a page to play with it.",
}
_LOOK: dict[str, Any] = {
    "rich_markup_mode": None,  # rich's help pages take three times as long to load as the whole command
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


class _Commands(Mapping[str, Any]):
    """Name → command, made of the module of that name when it is asked for: declaring all options of all takes time."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in SUMMARIES:
            raise KeyError(name)
        if name not in self._made:
            alone = typer.Typer(add_completion=False, **_LOOK)
            alone.command(name)(getattr(importlib.import_module(f".{name}", __package__), name))
            self._made[name] = typer.main.get_command(alone)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(SUMMARIES)

    def __len__(self) -> int:
        return len(SUMMARIES)


class _Group(TyperGroup):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands()  # type: ignore[assignment]  # nothing is added to it

    def list_commands(self, ctx: Any) -> list[str]:
        """All names; none is loaded."""
        return list(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Each name with its summary."""
        width = formatter.width - 6 - max(map(len, SUMMARIES))
        with formatter.section("Commands"):
            formatter.write_dl([(n, textwrap.shorten(text, width, placeholder="...")) for n, text in SUMMARIES.items()])


app = typer.Typer(name="vaeprune", cls=_Group, add_completion=True, **_LOOK)


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

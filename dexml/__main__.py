"""The command `dexml`: one front door, whose rooms are imported only when they are entered."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping

import click

from dexml import __version__
from dexml.errors import InputError
from dexml.table import unknown

COMMANDS: Mapping[str, tuple[str, str]] = {
    "data": ("data.cli:command", "Make, convert and check data sets."),
    "train": ("training.cli:train", "Train a dual encoder from a config; leaves a bundle."),
    "distill": ("training.distill_cli:distill", "Train a small or quantized student of a bundle on its answers."),
    "report": ("training.report_cli:report", "Write a training run's report.html; or its P@k against the bits of a label."),
    "evaluate": (
        "training.evaluate_cli:evaluate",
        "Measure a bundle through the path that serves, or any saved scores: P@k, nDCG@k, R@k, PSP@k, …",
    ),
    "compare": ("training.compare_cli:compare", "How far one run is above another, and whether that is luck."),
    "analyze": (
        "training.analyze_cli:analyze",
        "The tangent kernel of a run's queries; a graph of labels that depend on labels.",
    ),
    "audit": ("training.audit_cli:audit", "How little changes a bundle's answers, and which it can give at all; attacks."),
    "import": ("training.import_cli:import_", "Make a bundle of a sentence-transformers model and labels; no training."),
    "head": ("training.head_cli:head", "Fit a vector of its own for each label behind a bundle's rows: linear SVMs, Z-loss."),
    "export": (
        "training.export_cli:export",
        "Labels to Qdrant, Milvus, PostgreSQL, NumPy or a hub folder; the encoder to ONNX.",
    ),
    "embed": ("training.embed_cli:embed", "Embed a file of texts into numbered parts, here or on Ray; a killed job goes on."),
    "labels": ("training.labels_cli:command", "Add, replace, delete and list a bundle's labels; no training."),
    "memory": ("training.recall_cli:memory", "Keep training queries in a bundle; their labels are lifted in answers."),
    "calibrate": ("training.calibrate_cli:calibrate", "Fit how probable a label is, given its score; kept in the bundle."),
    "index": ("training.index_cli:index", "A bundle's versions and its index: list, verify, compact, go back, tune."),
    "tune": ("training.tune_cli:tune", "Find the settings of a training, or of a search, that answer best: tabu search, TPE."),
    "search": ("index.cli:search", "Ask a bundle for the labels of a text."),
    "plan": ("index.planning.cli:plan", "How many machines so many labels take, from constants measured on one; simulated."),
    "serve": ("serve.cli:command", "Serve a bundle over HTTP, with a search page."),
    "keys": ("serve.keys_cli:command", "Make and take away the keys of a service."),
    "info": ("index.cli:info", "Say what is in a bundle, and what this machine runs it with."),
}


class FrontDoor(click.Group):
    """A click group over COMMANDS; a command's module is imported when it is called, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of a first visit."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """Import and return one command."""
        if cmd_name not in COMMANDS:
            raise click.UsageError(str(unknown("command", cmd_name, list(COMMANDS))))
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, so that `dexml --help` imports none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=FrontDoor,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="A first walk:  dexml data pydocs demo/data · dexml train training/configs/demo.toml · "
    "dexml search demo/run 'sort an array' · dexml serve demo/run",
)
@click.version_option(__version__, prog_name="dexml")
def command() -> None:
    """Extreme multi-label retrieval, whole: train, store, serve and measure dual encoders over all labels."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an InputError becomes one line on standard error and exit code 2."""
    try:
        command.main(args=arguments, prog_name="dexml", standalone_mode=True)
    except InputError as error:
        click.echo(f"dexml: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()

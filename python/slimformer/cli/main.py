"""The ``slimformer`` command."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import slimformer
from slimformer.cli.bench import bench
from slimformer.cli.console import print_error
from slimformer.cli.demo import demo
from slimformer.cli.evaluate import evaluate
from slimformer.cli.export import export
from slimformer.cli.generate import generate
from slimformer.cli.inspect import inspect
from slimformer.cli.lm_eval import CONTEXT as LM_EVAL_CONTEXT
from slimformer.cli.lm_eval import lm_eval
from slimformer.cli.pack import pack
from slimformer.cli.prune import prune
from slimformer.cli.pull import pull
from slimformer.cli.recover import recover
from slimformer.cli.report import report
from slimformer.errors import SlimformerError

FAILED = 1
INTERRUPTED = 130


class _Commands(TyperGroup):
    """Turns what goes wrong into one line and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.stderr.write("\ninterrupted\n")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read the output has gone; flushing at exit must not complain either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None
        except SlimformerError as error:
            print_error(_one_line(error))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            print_error(f"{where}{error.strerror or error}")
            if error.errno == errno.ENOSPC:
                print_error("make room on the disk, or write to another one")
        except MemoryError:
            print_error("out of memory; try --weights int8, or a smaller model")
        raise typer.Exit(FAILED)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


COMMANDS = (
    *(demo, pull, inspect, generate, prune, recover, evaluate, bench, report),
    *(pack, export),
)

app = typer.Typer(
    cls=_Commands,
    help="Make a Transformer smaller by removing whole structures, and run it faster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in COMMANDS:
    app.command()(command)
app.command(context_settings=LM_EVAL_CONTEXT)(lm_eval)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"slimformer {slimformer.__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print and exit."),
    ] = False,
) -> None:
    """Options of the program itself."""


def main() -> None:
    """Run the command that the arguments name, and exit with its status."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)

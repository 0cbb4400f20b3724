"""``slimformer lm-eval``: lm-evaluation-harness with the model ``slimformer`` in it."""

from __future__ import annotations

import sys

import typer

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Every option is the harness's own, ``--help`` too."""

_OTHER_COMMANDS = ("ls", "validate")
_MODEL = ("--model", "-M")


def lm_eval(context: typer.Context) -> None:
    """Run lm_eval, with this engine as --model slimformer; all options are its own."""
    from slimformer.evaluate import harness

    options = list(context.args)
    told = any(option.split("=")[0] in _MODEL for option in options)
    if not told and options and options[0] not in _OTHER_COMMANDS:
        options += ["--model", harness.NAME]
    sys.argv = ["lm_eval", *options]
    harness.cli_evaluate()

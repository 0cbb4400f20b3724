"""``slimformer generate``: let a model write."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from slimformer.cli.console import print_json
from slimformer.cli.models import load_engine
from slimformer.cli.options import (
    JsonOption,
    KvOption,
    ModelArgument,
    SeedOption,
    SinksOption,
    ThreadsOption,
    WeightsOption,
    WindowOption,
    parse_indices,
)

if TYPE_CHECKING:
    from slimformer.generation import GenerationOptions


def generate(
    model: ModelArgument,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Text to go on from.")],
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is a user's message.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Stop after so many tokens.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from the k likeliest; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Nucleus sampling.")] = 1.0,
    min_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Least probability, relative to the best.")
    ] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 discourages repeats.")] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="Stop before this text; may repeat.")
    ] = None,
    seed: SeedOption = 0,
    skip_layers: Annotated[
        str | None, typer.Option(metavar="LIST", help="Do not run these layers: 20,21 or 4-7.")
    ] = None,
    skip_attention: Annotated[
        str | None, typer.Option(metavar="LIST", help="Do not run their attention.")
    ] = None,
    skip_ffn: Annotated[
        str | None, typer.Option(metavar="LIST", help="Do not run their feed-forward.")
    ] = None,
    exit_after: Annotated[
        int | None, typer.Option(min=0, help="Run no layer after this one.")
    ] = None,
    weights: WeightsOption = None,
    kv: KvOption = None,
    window: WindowOption = None,
    sinks: SinksOption = None,
    threads: ThreadsOption = 0,
    json: JsonOption = False,
) -> None:
    """Go on from a text, streaming as it is written."""
    whole = parse_indices(skip_layers)
    attention = {*whole, *parse_indices(skip_attention)}
    ffn = {*whole, *parse_indices(skip_ffn)}
    engine = load_engine(model, weights=weights, threads=threads, kv=kv, window=window, sinks=sinks)

    from slimformer.engine import Mask

    mask = Mask(
        skip_attention=tuple(sorted(attention)), skip_ffn=tuple(sorted(ffn)), exit_after=exit_after
    )
    options: GenerationOptions = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "stop": tuple(stop or ()),
        "mask": mask,
    }
    if json:
        completion = engine.complete(prompt, chat=chat, **options)
        print_json(
            {
                "text": completion.text,
                "tokens": completion.tokens,
                "out_of_sight": completion.out_of_sight,
            }
        )
        return
    if window is not None:
        typer.echo(
            f"only the first {engine.sinks} and the last {window} tokens are in sight", err=True
        )
    for piece in engine.stream(prompt, chat=chat, **options):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")

"""``slimformer prune``: make a smaller model of a model."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slimformer.cli.console import progress_display
from slimformer.cli.mixing import choose, gain
from slimformer.cli.models import load_checkpoint
from slimformer.cli.options import (
    JsonOption,
    ModelArgument,
    SeedOption,
    ThreadsOption,
    Weights,
    parse_indices,
    parse_kept,
    parse_names,
    parse_protected,
    parse_size,
)
from slimformer.cli.prune_choices import Dtype, Effort, Mix, Phase, Repair, Sharing, Zeros
from slimformer.cli.prune_nested import NestedOption, parse_widths, prune_nested
from slimformer.cli.prune_outcome import calibrated_on, names, save_outline, tell
from slimformer.cli.prune_whole import (
    ChannelsOption,
    RotateOption,
    VocabularyFromOption,
    VocabularyKeepOption,
    VocabularyOption,
    Whole,
)

if TYPE_CHECKING:
    from slimformer.checkpoint import Checkpoint
    from slimformer.prune import Recipe


BUDGETS = ("keep", "max_bytes", "speedup", "decode_tokens_per_second")
READING = ("calibration", "seed", "threads", "progress")


BUDGET = "Budget"
LISTS = "By name"
ZEROS = "Zeros"
METHOD = "Method"


def prune(
    model: ModelArgument,
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder that the pruned model goes to.")
    ],
    keep: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of the parameters outside the embedding that stays.",
            rich_help_panel=BUDGET,
        ),
    ] = None,
    nested: NestedOption = None,
    max_bytes: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Such as 180MB.", rich_help_panel=BUDGET),
    ] = None,
    speedup: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            help="Times as fast as MODEL on this machine, checked by timing.",
            rich_help_panel=BUDGET,
        ),
    ] = None,
    decode_tokens_per_second: Annotated[
        float | None,
        typer.Option(min=0.0, help="Speed of one sequence, likewise.", rich_help_panel=BUDGET),
    ] = None,
    phase: Annotated[
        Phase, typer.Option(help="What --speedup is for.", rich_help_panel=BUDGET)
    ] = Phase.DECODE,
    weights: Annotated[
        Weights,
        typer.Option(help="Type of the packed weights that speed is for.", rich_help_panel=BUDGET),
    ] = Weights.BF16,
    mix: Annotated[
        Mix | None,
        typer.Option(
            help="With --max-bytes (of packed weights) or --speedup (over bf16, of decoding): let "
            "a measured table choose structure, zeros and weight type together.",
            rich_help_panel=BUDGET,
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Repeat what a recipe.json says.", rich_help_panel=BUDGET
        ),
    ] = None,
    vocabulary_from: VocabularyFromOption = None,
    vocabulary: VocabularyOption = None,
    vocabulary_keep: VocabularyKeepOption = None,
    channels: ChannelsOption = None,
    rotate: RotateOption = False,
    drop_layers: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Such as 20,21 or 4-7.", rich_help_panel=LISTS),
    ] = None,
    drop_attention: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Layers without attention.", rich_help_panel=LISTS),
    ] = None,
    drop_ffn: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Layers without feed-forward.", rich_help_panel=LISTS),
    ] = None,
    heads: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER=HEADS",
            help="Query heads that a layer keeps, such as 4=0,1,2; may repeat.",
            rich_help_panel=LISTS,
        ),
    ] = None,
    value_dims: Annotated[
        int | None,
        typer.Option(min=1, help="Entries each value head keeps.", rich_help_panel=LISTS),
    ] = None,
    rotary_pairs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rotary pairs each query and key head keeps, those that do most.",
            rich_help_panel=LISTS,
        ),
    ] = None,
    neurons: Annotated[
        int | None,
        typer.Option(min=1, help="Neurons each layer or expert keeps.", rich_help_panel=LISTS),
    ] = None,
    experts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER=EXPERTS",
            help="Experts that a layer keeps, such as 4=0,1,2; may repeat.",
            rich_help_panel=LISTS,
        ),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of the weights left in layers that become zero; they take no bytes and no "
            "time.",
            rich_help_panel=ZEROS,
        ),
    ] = None,
    pattern: Annotated[
        str,
        typer.Option(
            metavar="PATTERN",
            help="Where zeros may stand: any, 2:4 (two of four inputs stay; no --sparsity needed), "
            "or blocks of outputs by inputs such as 1x16.",
            rich_help_panel=ZEROS,
        ),
    ] = "any",
    zeros: Annotated[
        Zeros, typer.Option(help="How they are chosen.", rich_help_panel=ZEROS)
    ] = Zeros.SPARSEGPT,
    sharing: Annotated[
        Sharing,
        typer.Option(
            help="Whether matrices have more of them where they cost less, or all the same share.",
            rich_help_panel=ZEROS,
        ),
    ] = Sharing.EVEN,
    vocabulary_sparsity: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="With zeros in the layers: share of embedding and head that becomes zero, too.",
            rich_help_panel=ZEROS,
        ),
    ] = 0.0,
    dense: Annotated[
        bool,
        typer.Option(
            "--dense",
            help="Write zeros as plain numbers, for transformers and others.",
            rich_help_panel=ZEROS,
        ),
    ] = False,
    structures: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="What may go: layers, attention, ffn, kv_groups, heads, value_dims (entries of "
            "all value heads of a layer, in a basis that suits), rotary_pairs (of all query and "
            "key heads of a layer), experts, neurons.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    links: Annotated[
        bool,
        typer.Option(
            "--links",
            help="Constants and linear maps may stand in for layers, attention and ffn, where "
            "they are worth their weight.",
            rich_help_panel=METHOD,
        ),
    ] = False,
    criterion: Annotated[
        str | None,
        typer.Option(
            help="obs, loss, activation, magnitude, block_influence or greedy_loss.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    allocation: Annotated[
        str | None,
        typer.Option(
            help="global (wherever it costs least) or uniform (each layer the same share).",
            rich_help_panel=METHOD,
        ),
    ] = None,
    protect: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Layers that stay whole, counted from the end if negative, or none.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    repair: Annotated[
        Repair, typer.Option(help="What is done to the weights that stay.", rich_help_panel=METHOD)
    ] = Repair.REFIT,
    effort: Annotated[
        Effort,
        typer.Option(
            help="Minutes, tens of minutes or an hour for a small model, and how well it is done.",
            rich_help_panel=METHOD,
        ),
    ] = Effort.FAST,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Text to calibrate on (txt, jsonl, a folder); may repeat. Without any the "
            "model writes some itself.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="Element type of the result; auto: as the source has it.")
    ] = Dtype.AUTO,
    seed: SeedOption = 0,
    threads: ThreadsOption = 0,
    json: JsonOption = False,
) -> None:
    """Remove structures of a model, repair what stays and save the result."""
    lists = {
        "drop_layers": parse_indices(drop_layers),
        "drop_attention": parse_indices(drop_attention),
        "drop_ffn": parse_indices(drop_ffn),
        "heads": parse_kept(heads or [], "HEADS"),
        "value_dims": value_dims,
        "rotary_pairs": rotary_pairs,
        "neurons": neurons,
        "experts": parse_kept(experts or [], "EXPERTS"),
    }
    size = parse_size(max_bytes)
    budgets = (keep, size, speedup, decode_tokens_per_second)
    choices = [*(budget is not None for budget in budgets), recipe is not None, any(lists.values())]
    tokens = (vocabulary_from, vocabulary, vocabulary_keep)
    whole = Whole(*tokens, channels, rotate)
    filling = sparsity is not None or pattern != "any"
    if vocabulary_sparsity and not filling:
        raise typer.BadParameter("--vocabulary-sparsity goes with --sparsity or --pattern")
    if sum(choices) > 1 or not (filling or whole.asked or any(choices)):
        raise typer.BadParameter(
            "expected one of --keep, --max-bytes, --speedup, --decode-tokens-per-second and "
            "--recipe, or lists such as --drop-layers; or --sparsity, --vocabulary-from or "
            "--channels, alone or beside one of them"
        )
    whole.check(recipe)
    wanted = parse_names(structures)
    narrower_values = value_dims is not None or "value_dims" in (wanted or ())
    options = {
        "keep": keep,
        "max_bytes": size,
        "speedup": speedup,
        "decode_tokens_per_second": decode_tokens_per_second,
        "weights": weights.value,
        "phase": phase.value,
        "structures": wanted,
        "links": links,
        "criterion": criterion,
        "allocation": allocation,
        "protect": parse_protected(protect),
    }

    state = output.with_name(f".{output.name}.slimformer-unfinished")
    if nested is not None:
        if sum(choices) != 1 or filling or whole.asked or links or mix is not None:
            raise typer.BadParameter(
                "--nested goes with --keep, and with no other budget, lists, zeros, links, tokens "
                "or channels"
            )
        method: dict[str, Any] = {
            "structures": wanted,
            "criterion": criterion,
            "allocation": allocation,
            "protect": parse_protected(protect),
        }
        prune_nested(
            model,
            output,
            keep,
            parse_widths(nested),
            repair=repair.value,
            effort=effort.value,
            calibration=calibration,
            dtype=dtype.value,
            state=state,
            seed=seed,
            threads=threads,
            json=json,
            **{name: value for name, value in method.items() if value is not None},
        )
        shutil.rmtree(state, ignore_errors=True)
        return

    from slimformer.checkpoint import check_output

    check_output(output)
    source = load_checkpoint(model)
    chosen_mix = None
    if mix is not None:
        if filling or (size is None and speedup is None):
            raise typer.BadParameter("--mix goes with --max-bytes or --speedup, and nothing else")
        chosen_mix = choose(source, size, speedup)
        keep = chosen_mix.keep if chosen_mix.keep < 1 else None
        sparsity = chosen_mix.sparsity or None
        options |= {"keep": keep, "max_bytes": None, "speedup": None}
    # No element type has less than two bytes.
    left = (keep or 0.0) * (1 - (sparsity or 0.0))
    smallest = 2 * left * source.config.non_embedding_parameters()
    check_output(output, needed_bytes=int(smallest))

    from slimformer.prune import Recipe, Setting, load_calibration
    from slimformer.prune import prune as make

    texts = load_calibration(calibration) if calibration else None
    with progress_display() as progress:
        reading: dict[str, Any] = {
            "calibration": texts,
            "seed": seed,
            "threads": threads,
            "progress": progress,
        }
        common: dict[str, Any] = {**reading, "effort": effort.value, "state": state}
        stored: dict[str, Any] = {"repair": repair.value, "dtype": dtype.value}
        base, chosen = whole.plan(source, narrower_values=narrower_values, **reading)
        if chosen is None:
            chosen = _recipe(base, recipe, lists, {**options, **common})
        elif any(choices):
            begun = make(base, chosen, **stored, **common)
            chosen = chosen.then(_recipe(begun, recipe, lists, {**options, **common}))
        slim = make(
            base,
            chosen,
            **stored,
            sparsity=sparsity,
            pattern=pattern,
            zeros=zeros.value,
            sharing=sharing.value,
            vocabulary_sparsity=vocabulary_sparsity,
            **common,
        )
        dataclasses.replace(slim, sparse=slim.sparse and not dense).save(output)
    shutil.rmtree(state, ignore_errors=True)
    made = dataclasses.replace(chosen, zeros=Recipe.from_dict(slim.recipe or {}).zeros)
    counted_only = not any(choices) and channels is None and made.zeros is None
    sources = [] if counted_only else [calibrated_on(calibration, seed)]
    if vocabulary_from:
        sources.append(f"{names(vocabulary_from)} (for the vocabulary)")
    save_outline(model, source, output, made, "; ".join(sources))
    gained = None
    if chosen_mix is not None:
        gained = gain(source, slim, chosen_mix, threads)
    elif speedup is not None or decode_tokens_per_second is not None:
        gained = Setting(phase.value, weights.value, threads).speedup(source, slim)
    tell(slim, output, made, gained, chosen_mix, json=json)


def _recipe(
    dense: Checkpoint, file: Path | None, lists: dict[str, Any], options: dict[str, Any]
) -> Recipe:
    """The recipe in a file, that of the lists, or one that meets the budget."""
    from slimformer.errors import StorageError
    from slimformer.prune import Recipe, dearest_pairs, explicit, plan

    if file is not None:
        try:
            return Recipe.from_json(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise StorageError(f"{file}: {error.strerror}") from error
    if any(lists.values()):
        pairs = lists["rotary_pairs"]
        if pairs is not None:
            reading = {name: options[name] for name in READING}
            pairs = dearest_pairs(dense, pairs, **reading)
        return explicit(dense, **{**lists, "rotary_pairs": pairs})
    if all(options[budget] is None for budget in BUDGETS):
        return Recipe.identity(dense)
    return plan(dense, **{name: value for name, value in options.items() if value is not None})

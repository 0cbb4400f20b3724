"""What ``slimformer prune`` takes from the model as a whole: tokens and channels.

And the bases in which it takes them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from slimformer.checkpoint import Checkpoint
    from slimformer.prune import Recipe

WHOLE = "Vocabulary and channels"

VocabularyFromOption = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PATH",
        help="Keep the tokens that text like this needs: .txt or .jsonl files, or folders of them; "
        "may repeat.",
        rich_help_panel=WHOLE,
    ),
]
VocabularyOption = Annotated[
    int | None, typer.Option(min=1, help="Tokens that stay.", rich_help_panel=WHOLE)
]
VocabularyKeepOption = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Instead, the share of other such text that they are enough for; 0.99 by default.",
        rich_help_panel=WHOLE,
    ),
]
ChannelsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Channels of the residual stream that stay. --keep then counts what they have left.",
        rich_help_panel=WHOLE,
    ),
]
RotateOption = Annotated[
    bool,
    typer.Option(
        "--rotate",
        help="Rotate the stream first, so that few channels hold most of it. A head that is tied "
        "to the embedding becomes a matrix of its own.",
        rich_help_panel=WHOLE,
    ),
]


@dataclasses.dataclass(frozen=True)
class Whole:
    """What the user asked for."""

    vocabulary_from: list[Path] | None
    vocabulary: int | None
    vocabulary_keep: float | None
    channels: int | None
    rotate: bool

    @property
    def asked(self) -> bool:
        """Whether anything is to go."""
        return bool(self.vocabulary_from) or self.channels is not None

    def check(self, recipe: Path | None) -> None:
        """Raise BadParameter for options that do not go together."""
        if recipe is not None and self.asked:
            raise typer.BadParameter("expected --recipe alone: it says which tokens stay, too")
        how = (self.vocabulary, self.vocabulary_keep)
        if not self.vocabulary_from and any(option is not None for option in how):
            raise typer.BadParameter("expected --vocabulary-from, the text to count tokens on")
        if self.rotate and self.channels is None:
            raise typer.BadParameter("expected --channels, for which --rotate finds a basis")

    def plan(
        self, source: Checkpoint, *, narrower_values: bool, **options: Any
    ) -> tuple[Checkpoint, Recipe | None]:
        """The model that the recipe is for, and the recipe; none where nothing was asked for.

        ``narrower_values`` says that entries of value heads will go. ``options`` are
        ``calibration``, ``seed``, ``threads`` and ``progress`` of the other plans.
        """
        from slimformer.prune import align_values, cut_to_text, load_calibration, plan_channels

        chosen = None
        if narrower_values:
            source = align_values(source, **options)
        if self.channels is not None:
            source, chosen = plan_channels(source, self.channels, rotated=self.rotate, **options)
        if self.vocabulary_from:
            tokens = cut_to_text(
                source,
                load_calibration(self.vocabulary_from),
                size=self.vocabulary,
                share=self.vocabulary_keep,
                seed=options["seed"],
                threads=options["threads"],
                progress=options["progress"],
            )
            kept = tokens.vocabulary
            chosen = dataclasses.replace(chosen or tokens, vocabulary=kept)
        return source, chosen

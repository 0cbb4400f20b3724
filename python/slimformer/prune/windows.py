"""Windows of calibration text, shared out among fitting and judging.

Whatever is fitted is judged on windows that it has not seen, so there are always two at least: a
single one is cut in two.
"""

from __future__ import annotations

import numpy as np

from slimformer.prune.stream import Windows


def split(windows: Windows, share: float, *, length: int | None = None) -> tuple[Windows, Windows]:
    """Windows to fit on, and the last of them to judge on.

    Parameters
    ----------
    windows
        Tokens, [windows, tokens].
    share
        Of the windows that are judged on: one at least, half of them at most.
    length
        Most tokens of those, which are cut into shorter ones; see ``shortened``.
    """
    windows = _two_at_least(windows)
    judged = min(max(1, round(share * len(windows))), len(windows) // 2)
    fit, rest = windows[:-judged], windows[-judged:]
    return fit, rest if length is None else shortened(rest, length)


def shortened(windows: Windows, length: int) -> Windows:
    """The windows cut into pieces of so many tokens; what is left over of each goes.

    Shorter windows hold more different text. Windows that are no longer stay as they are.
    """
    tokens = windows.shape[1]
    length = min(length, tokens)
    return windows[:, : tokens // length * length].reshape(-1, length)


def in_parts(windows: Windows, parts: int) -> list[Windows]:
    """The windows dealt out evenly to so many parts, of which one can be held out.

    Each round of dealing begins one part further on: windows often come from as many texts in turn
    as there are parts, or from half as many, and every part is to have some of each text.
    """
    windows = _two_at_least(windows)
    parts = min(parts, len(windows))
    places = np.arange(len(windows))
    part_of = (places - places // parts) % parts
    return [windows[part_of == part] for part in range(parts)]


def _two_at_least(windows: Windows) -> Windows:
    """The windows, a single one as its halves."""
    if len(windows) > 1:
        return windows
    half = windows.shape[1] // 2
    return windows[:, : 2 * half].reshape(2, half)

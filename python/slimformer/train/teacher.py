"""The dense model that a student learns from, on the engine or on a GPU."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.engine import Engine
from slimformer.prune.stream import Windows
from slimformer.train.convert import to_torch
from slimformer.train.module import normalise


class Teacher(Protocol):
    """What a student is to become."""

    head: Tensor
    """[vocab_size, channels]"""

    def look(self, windows: Windows) -> tuple[Tensor, list[Tensor]]:
        """What the teacher makes of windows [windows, tokens].

        Returns
        -------
        Normalised last hidden states [windows * tokens, channels], and the residual stream after
        each of the layers that were asked for, [windows, tokens, channels].
        """


class EngineTeacher:
    """On the processor: the engine reads faster than PyTorch does.

    ``after`` lists the layers whose streams are wanted.
    """

    def __init__(self, checkpoint: Checkpoint, after: tuple[int, ...], *, threads: int) -> None:
        self.head = torch.from_numpy(checkpoint.read_f32(_head_name(checkpoint)).copy())
        self._engine = Engine(checkpoint, weights="bf16", threads=threads)
        self._after = after
        self._norm = torch.from_numpy(checkpoint.read_f32("final_norm.weight").copy())
        self._norm_bias = None
        if checkpoint.config.norm == "layer":
            self._norm_bias = torch.from_numpy(checkpoint.read_f32("final_norm.bias").copy())

    def look(self, windows: Windows) -> tuple[Tensor, list[Tensor]]:
        """See Teacher."""
        config = self._engine.config
        n_windows, n_tokens = windows.shape
        lengths = [n_tokens] * n_windows
        last, captured = self._engine.run_layers(
            self._engine.embed(windows.reshape(-1), lengths),
            lengths,
            first=0,
            last=len(config.layers),
            capture=[(layer, "layer_output") for layer in self._after],
        )
        normed = normalise(
            config, torch.from_numpy(last), self._norm, self._norm_bias, config.norm_divisor
        )
        streams = [
            torch.from_numpy(captured[layer, "layer_output"]).view(n_windows, n_tokens, -1)
            for layer in self._after
        ]
        return normed, streams


class ModuleTeacher:
    """On a device that the engine does not run on."""

    def __init__(
        self, checkpoint: Checkpoint, after: tuple[int, ...], device: torch.device
    ) -> None:
        self._module = to_torch(checkpoint).to(device).requires_grad_(False)
        self._device = device
        self._after = after
        self.head = self._module.head_weight

    @torch.no_grad()
    def look(self, windows: Windows) -> tuple[Tensor, list[Tensor]]:
        """See Teacher."""
        tokens = torch.from_numpy(windows).long().to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16):
            streams = self._module.streams(tokens)
        normed = self._module.final_norm(streams[-1]).flatten(0, 1)
        return normed, [streams[layer + 1] for layer in self._after]


def make_teacher(
    checkpoint: Checkpoint, after: tuple[int, ...], device: torch.device, *, threads: int
) -> Teacher:
    """The teacher for a student that is trained on that device."""
    if device.type == "cpu":
        return EngineTeacher(checkpoint, after, threads=threads)
    return ModuleTeacher(checkpoint, after, device)


def _head_name(checkpoint: Checkpoint) -> str:
    return "embedding.weight" if checkpoint.config.tied_head else "head.weight"

"""The training loop of a recovery."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.engine import build_info
from slimformer.prune.stream import Windows
from slimformer.train.convert import from_torch, to_torch
from slimformer.train.divergence import divergence, residual_error
from slimformer.train.feed import Feed, TeacherWriter
from slimformer.train.low_rank import add_low_rank, merge_low_rank
from slimformer.train.memory import kept_memory
from slimformer.train.schedule import COOLING, cooled, rate
from slimformer.train.settings import RELATIVE_RATE, Recovery, Report, Settings, Step
from slimformer.train.state import load_state, save_state
from slimformer.train.teacher import make_teacher
from slimformer.train.windows import next_tokens
from slimformer.train.zeros import Zeros

MICRO_TOKENS = 1024
"""Tokens that run forwards and backwards at once. Their activations are what memory is needed
for, 1.5 MB a token in a model of 135 million parameters; matrix products are at full speed."""

EVALUATE_TOKENS = 32768
"""Tokens between looks at held-out text, each of which takes as long as a twentieth of them."""

SAVE_SECONDS = 120.0

LONGEST_GRADIENT = 1.0

BETAS = (0.9, 0.99)

SMOOTHING = 0.9
"""Of the loss and of the speed that are shown, from step to step."""


class Run:
    """A student in training, its teacher, and the best that it has been.

    Parameters
    ----------
    pairs
        Layers after which the residual streams are compared, as (student's, teacher's).
    train, held_out
        Windows of tokens.
    """

    def __init__(
        self,
        student: Checkpoint,
        teacher: Checkpoint,
        settings: Settings,
        pairs: list[tuple[int, int]],
        train: Windows,
        held_out: Windows,
        threads: int,
    ) -> None:
        self.student = student
        self.settings = settings
        self.pairs = pairs if settings.hidden else []
        self.threads = threads
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.low = torch.bfloat16 if _bfloat16(self.device) else torch.float32
        # A GPU reads faster than the engine writes.
        writer = TeacherWriter(teacher, threads) if self.device.type == "cpu" else None
        self.feed = Feed(train, settings.seed, writer)
        self.batch = max(1, settings.batch // train.shape[1])
        self.micro = max(1, MICRO_TOKENS // train.shape[1])
        self.module = to_torch(student).to(self.device)
        self.zeros = Zeros(self.module.layers)
        self.highest_rate = settings.learning_rate or RELATIVE_RATE * _size(self.module.layers)
        self.module.requires_grad_(False)
        if settings.lora is None:
            self.module.layers.requires_grad_()
            self.module.final_norm.requires_grad_()
        else:
            add_low_rank(self.module.layers, settings.lora, seed=settings.seed)
        self.optimizer = torch.optim.AdamW(
            self.trained().values(), betas=BETAS, weight_decay=0.0, fused=True
        )
        self.teacher = make_teacher(
            teacher, tuple(layer for _, layer in self.pairs), self.device, threads=threads
        )
        self.head, self.wanted_head = (
            weight.detach().to(self.low) for weight in (self.module.head_weight, self.teacher.head)
        )
        self.held_out = [
            (part, next_tokens(part), self.teacher.look(part)[0])
            for part in _parts(held_out, self.micro)
        ]
        self.identity = _identity(student, teacher, settings, train, held_out)
        self.position = _Position()
        self.best: dict[str, Tensor] = {}

    def trained(self) -> dict[str, Tensor]:
        """The parameters that training changes, by name."""
        return {n: p for n, p in self.module.named_parameters() if p.requires_grad}

    def to_the_end(self, state: Path | None, report: Report) -> Recovery:
        """Train until the budget is used up or held-out text gains nothing any more."""
        with _threads(self.threads), kept_memory():
            if state is not None and state.exists():
                self._restore(load_state(state, self.identity))
            else:
                self.position.before = self.position.best = self._held_out_loss()
                self.best = self._snapshot()
            started = saved = time.monotonic() - self.position.seconds
            while not self._finished():
                loss = self._step()
                self.position.seconds = time.monotonic() - started
                self._evaluate_when_due()
                self.position.seconds = time.monotonic() - started
                report(self._progress(loss))
                if state is not None and time.monotonic() - saved > SAVE_SECONDS:
                    save_state(state, self.identity, self._content())
                    saved = time.monotonic()
            return self._confirmed()

    def _finished(self) -> bool:
        return self._share() >= 1 or self._cooled() >= 1

    def _share(self) -> float:
        return self.settings.share(self.position.tokens, self.position.seconds)

    def _cooled(self) -> float:
        """How much of the cooling is over, 0 to 1."""
        began = self.position.cooling_from
        if began is None:
            return 0.0
        return min(1.0, (self.position.tokens - began) / (COOLING * began))

    def _step(self) -> float:
        """One step of the optimiser; the loss before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.highest_rate * rate(self._share()) * cooled(self._cooled())
        windows, labels = self.feed.batch(self.position.windows, self.batch)
        total = 0.0
        for start in range(0, len(windows), self.micro):
            part = slice(start, start + self.micro)
            loss = self._loss(windows[part], labels[part]) * (len(windows[part]) / len(windows))
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.trained().values(), LONGEST_GRADIENT)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.zeros.restore()
        self.position.windows += len(windows)
        self.position.tokens += windows.size
        return total

    def _loss(self, windows: Windows, labels: Windows) -> Tensor:
        wanted, wanted_streams = self.teacher.look(windows)
        with self._autocast():
            streams = self.module.streams(self._ids(windows))
            loss = self._divergence(streams[-1], wanted, labels)
            if self.pairs:
                found = [streams[layer + 1] for layer, _ in self.pairs]
                loss = loss + self.settings.hidden * residual_error(found, wanted_streams)
        return loss

    def _divergence(self, stream: Tensor, wanted: Tensor, labels: Windows) -> Tensor:
        return divergence(
            self.module.final_norm(stream).flatten(0, 1),
            self.head,
            wanted,
            self.wanted_head,
            self.module.config.logit_soft_cap,
            labels=self._ids(labels).flatten(),
            share=self.settings.labels,
        )

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        total, count = 0.0, 0
        for windows, labels, wanted in self.held_out:
            with self._autocast():
                stream = self.module.streams(self._ids(windows))[-1]
                total += float(self._divergence(stream, wanted, labels)) * len(windows)
            count += len(windows)
        return total / count

    def _evaluate_when_due(self) -> None:
        """Look at held-out text every so many tokens and at the end; keep what it confirms."""
        place = self.position
        if place.tokens - place.evaluated < self._interval() and not self._finished():
            return
        place.evaluated = place.tokens
        found = self._held_out_loss()
        if found < place.best:
            place.best, place.fruitless = found, 0
            self.best = self._snapshot()
            return
        place.fruitless += 1
        if place.fruitless >= self.settings.patience and place.cooling_from is None:
            self._put(self.best)
            place.cooling_from = place.tokens

    def _interval(self) -> int:
        """Tokens between evaluations; a short run has several, too."""
        budget = self.settings.tokens
        return EVALUATE_TOKENS if budget is None else min(EVALUATE_TOKENS, budget // 4)

    def _progress(self, loss: float) -> Step:
        place = self.position
        place.loss = loss if place.loss is None else SMOOTHING * place.loss + (1 - SMOOTHING) * loss
        share, over = self._share(), self._cooled()
        left = place.seconds * (1 - share) / max(share, 1e-9)
        if place.cooling_from is not None:
            left = min(left, place.seconds * COOLING * (1 - over))
        return Step(
            share=share + (1 - share) * over,
            tokens=place.tokens,
            loss=place.loss,
            held_out=place.best,
            tokens_per_second=place.tokens / max(place.seconds, 1e-9),
            seconds_left=left,
        )

    def _confirmed(self) -> Recovery:
        """The best weights as they are stored, if held-out text confirms them in that form."""
        place = self.position
        result, after = self.student, place.before
        if place.best < place.before:
            self._put(self.best)
            merge_low_rank(self.module)
            rounded = from_torch(self.module, self.student)
            self.module.load_state_dict(to_torch(rounded).state_dict())
            found = self._held_out_loss()
            if found < place.before:
                result, after = rounded, found
        return Recovery(
            result,
            tokens=place.tokens,
            written=self.feed.written(place.windows),
            text_tokens=self.feed.text_tokens,
            seconds=place.seconds,
            before=place.before,
            after=after,
        )

    def _snapshot(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.trained().items()}

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.trained().items():
            parameter.copy_(values[name])

    def _content(self) -> dict[str, Any]:
        return {
            "position": dataclasses.asdict(self.position),
            "weights": {name: value.detach() for name, value in self.trained().items()},
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
        }

    def _restore(self, content: dict[str, Any]) -> None:
        self.position = _Position(**content["position"])
        self._put(content["weights"])
        self.best = {name: value.to(self.device) for name, value in content["best"].items()}
        self.optimizer.load_state_dict(content["optimizer"])

    def _ids(self, windows: Windows) -> Tensor:
        return torch.from_numpy(windows).long().to(self.device)

    def _autocast(self) -> Any:
        low = self.low is torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=low)


@dataclasses.dataclass
class _Position:
    """How far training has come; ``before`` and ``best`` are losses on held-out text.

    ``cooling_from`` is how many tokens it had taken when held-out text gained nothing any more.
    """

    windows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    evaluated: int = 0
    fruitless: int = 0
    cooling_from: int | None = None
    before: float = math.inf
    best: float = math.inf
    loss: float | None = None


def _size(module: torch.nn.Module) -> float:
    """The median of the matrices' root mean squares, those of zeros left out."""
    matrices = (value for value in module.parameters() if value.ndim > 1)
    sizes = [float(value.detach().square().mean().sqrt()) for value in matrices]
    return statistics.median([size for size in sizes if size] or [1.0])


def _parts(windows: Windows, size: int) -> list[Windows]:
    return [windows[start : start + size] for start in range(0, len(windows), size)]


def _bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are in the hardware; emulated they are slower than float32."""
    if device.type == "cpu":
        return "avx512_bf16" in build_info()["tiers"]
    return bool(torch.cuda.is_bf16_supported())


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """PyTorch with so many threads; 0 leaves its own choice, which is one a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _identity(
    student: Checkpoint, teacher: Checkpoint, settings: Settings, train: Windows, held_out: Windows
) -> str:
    """A hash of all that decides how training goes, but for how long it does."""
    lasting = dataclasses.replace(settings, minutes=None, tokens=1, patience=1)
    digest = hashlib.sha256()
    digest.update(f"{student.fingerprint} {teacher.fingerprint} {lasting}".encode())
    for windows in (train, held_out):
        digest.update(f"{windows.shape}".encode())
        digest.update(windows.tobytes())
    return digest.hexdigest()

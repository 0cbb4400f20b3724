"""What the machine can do at most, measured beside everything else.

Neighbours of a virtual machine take their share of it, from one second to the next: so a limit is
measured right before and right after what is compared with it. Of operations the better of both
counts; of what memory gives, which swings by a factor of two whoever reads, their mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from slimformer.engine import measure_roofline
from slimformer.evaluate import Contender, Times

DOT_PRODUCTS: Mapping[tuple[str, str], int] = {
    ("avx512_bf16", "bf16"): 2,
    ("avx512_vnni", "int8"): 4,
    ("avx512_bf16", "int8"): 4,
    ("avx512_vnni", "int4"): 4,
    ("avx512_bf16", "int4"): 4,
    ("amx", "bf16"): 16,
    ("amx", "int8"): 32,
    ("amx", "int4"): 32,
}
"""How many multiply-adds of a weight type a tier does in the time of one in float32."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Operations and bytes per second, in thousands of millions; the operations are float32's."""

    gflops: float
    gbytes: float

    @staticmethod
    def measure(threads: int, seconds: float = 1.0) -> Limits:
        """Take both now."""
        found = measure_roofline(threads=threads, seconds=seconds)
        return Limits(found["gflops"], found["gbytes_per_s"])

    def until(self, other: Limits) -> Limits:
        """The limits between two measurements."""
        return Limits(max(self.gflops, other.gflops), (self.gbytes + other.gbytes) / 2)

    def peak(self, tier: str, weights: str) -> float:
        """Operations per second, in thousands of millions, with weights of a type on a tier."""
        return self.gflops * DOT_PRODUCTS.get((tier, weights), 1)


@dataclasses.dataclass(frozen=True)
class Measured(Contender):
    """A contender that notes what the machine could do at the time of each of its runs."""

    limits: list[Limits] = dataclasses.field(default_factory=list)

    def run(self, prompt: int, generate: int) -> Times:
        """See Runner."""
        before = Limits.measure(self.engine.threads)
        times = super().run(prompt, generate)
        self.limits.append(before.until(Limits.measure(self.engine.threads)))
        return times

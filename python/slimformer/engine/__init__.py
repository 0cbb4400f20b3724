"""The engine: a model packed for this CPU, and the sequences that run on it.

The only package that knows the C++ core. An `Engine` is immutable and may be used by several
threads at once; a `Session` is one running sequence and belongs to one thread at a time.
"""

from slimformer._core import Moments, build_info, measure_roofline
from slimformer.engine.choices import DEFAULT_SINKS, Kv, Sparse, Weights
from slimformer.engine.engine import Engine
from slimformer.engine.session import Session
from slimformer.generation import Completion
from slimformer.mask import Mask

__all__ = [
    "DEFAULT_SINKS",
    "Completion",
    "Engine",
    "Kv",
    "Mask",
    "Moments",
    "Session",
    "Sparse",
    "Weights",
    "build_info",
    "measure_roofline",
]

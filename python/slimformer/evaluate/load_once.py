"""Load a model, run a few tokens and print what was seen: the child of ``measure_footprint``."""

from __future__ import annotations

import json
import resource
import sys
import time

from slimformer.evaluate.footprint import logits_digest


def main(model: str, weights: str, threads: int) -> None:
    """Print one JSON object with seconds, bytes and the digest of the logits."""
    start = time.perf_counter()
    from slimformer.engine import Engine

    engine = Engine(model, weights=weights, threads=threads)  # type: ignore[arg-type]
    loaded = time.perf_counter()
    digest = logits_digest(engine)
    first_token = time.perf_counter()
    # Linux counts in kilobytes, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    seen = {
        "load_s": loaded - start,
        "first_token_s": first_token - start,
        "max_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "logits_sha256": digest,
    }
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    from slimformer.errors import SlimformerError

    try:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    except SlimformerError as error:
        sys.exit(str(error))

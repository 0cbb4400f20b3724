"""What tests must know of single tiers."""

BF16_DOTS = frozenset({"avx512_bf16", "amx"})
"""Tiers whose products of bfloat16 take inputs of bfloat16, too."""

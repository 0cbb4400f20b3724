"""Zeros among the weights that stay: which, how many where, and what the others become."""

"""Strategies: what proposes genomes and learns from evaluations. Found through `_target_` in a configuration."""

"""Recipes as mergekit YAML, written and read; `mergekit-evolve` configurations as experiments."""

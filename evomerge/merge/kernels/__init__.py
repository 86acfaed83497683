"""Compiled loops for the CPU. They take addresses and dtype codes, so that each is compiled once and kept on disk."""

"""Merging the experts of one mixture into fewer: which of them together (`grouping`), and how (`merging`)."""

"""Bringing the units of models that were trained from different starts into one order, before they are merged.

A network computes the same when the hidden units of a layer change places, as long as all that reads and writes them
follows. Two models from different starts have theirs in different orders, and averaging them averages unlike units.
Git Re-Basin (Ainsworth, Hayase and Srinivasa 2023, arXiv 2209.04836) finds the order in which the weights of one
are nearest to those of the other: `families` says what may change places in which architecture, `matching` searches,
`trial` sees that the function stays what it was.
"""

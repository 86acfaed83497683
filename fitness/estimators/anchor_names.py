"""The orders of items that an estimator knows."""

from __future__ import annotations

from typing import Literal

Anchors = Literal["none", "clusters", "entropy", "information"]

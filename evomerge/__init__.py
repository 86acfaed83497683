"""evomerge finds model-merging recipes by evolution."""

from __future__ import annotations

from evomerge.utils.installation import VERSION as __version__
from evomerge.utils.installation import check_siblings, conf_dir

__all__ = ["__version__", "conf_dir"]

check_siblings()

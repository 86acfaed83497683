"""sd-mecha's part of `parity_sd_mecha.py`: run by a Python that has sd-mecha 1.1.8 and nothing of evomerge.

python scripts/sd_mecha_side.py WORK
"""

from __future__ import annotations

import sys
from pathlib import Path

BLOCKS = ["BASE", *(f"IN{n:02}" for n in range(12)), "M00", *(f"OUT{n:02}" for n in range(12))]
WEIGHTS = {name: round(0.02 + 0.037 * place, 4) for place, name in enumerate(BLOCKS)}
"""Of each block as sd-mecha calls it: BASE embeds the time, what comes after the blocks goes with OUT11."""


def theirs(work: Path) -> None:
    """sd-mecha's merge of the same files, block by block."""
    import sd_mecha
    import torch

    a, b = (sd_mecha.model(str(work / f"{name}.safetensors"), config="sd1-ldm") for name in ("a", "b"))
    blocks = sd_mecha.literal({k: torch.tensor(w) for k, w in WEIGHTS.items()}, config="sd1-supermerger_blocks")
    recipe = sd_mecha.weighted_sum(a, b, alpha=sd_mecha.convert(blocks, "sd1-ldm"))
    sd_mecha.merge(
        recipe,
        merge_device="cpu",
        merge_dtype=torch.float32,
        output_device="cpu",
        output_dtype=torch.float32,
        strict_mandatory_keys=False,
        check_extra_keys=False,
        threads=1,
        output=work / "theirs.safetensors",
    )


if __name__ == "__main__":
    theirs(Path(sys.argv[1]).absolute())

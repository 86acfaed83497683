"""Statistics on GPUs: what torch operations take hundreds of launches for, by kernels that Triton compiles."""

from __future__ import annotations

import torch

from evomerge.merge.kernels.mixing import BLOCK
from evomerge.merge.kernels.sums import CHUNK
from evomerge.merge.kernels.triton_mixing import OPTIONS, setting
from evomerge.merge.kernels.triton_sums import magnitudes
from evomerge.merge.mixes.cpu_mix import mask_last
from evomerge.merge.mixes.mix import Cut, DeviceCut
from evomerge.merge.mixes.torch_statistics import TensorStatistics
from evomerge.merge.mixes.torch_sums import folded
from evomerge.merge.mixes.triton_mix import has_band, limits_of, on_device_of, stored_bits


class TritonStatistics(TensorStatistics):
    """`TensorStatistics` whose sums of magnitudes take one pass and one launch."""

    def _magnitudes(self, index: int, cut: Cut | DeviceCut | None, density: float | None) -> torch.Tensor:
        assert self._base is not None, "methods that need a base declare it"
        task, chunks = self._inputs[index], -(-self.count // CHUNK)
        lanes = torch.empty((2, chunks, BLOCK), dtype=torch.float64, device=self._device)
        limits = limits_of(cut, self._device) if cut is not None else None
        mask = None
        if density is not None and density < 1:
            key = self._keys[index]
            mask = tuple(setting(number) for number in (key & 0xFFFFFFFF, key >> 32, mask_last(density)))
        with on_device_of(task):
            magnitudes[(chunks,)](
                stored_bits(task),
                stored_bits(self._base),
                lanes,
                setting(self.count),
                limits,
                mask,
                has_band(cut),
                CHUNK,
                BLOCK,
                **OPTIONS,
            )
        return folded(lanes.view(-1, BLOCK)).view(2, chunks)

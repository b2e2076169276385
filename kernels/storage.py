"""The dtypes in which a snapshot may be stored, and which of them a device's Triton kernels can read and write.

    float8 (e4m3, 4 exponent and 3 mantissa bits, largest number 448):   stored = round(x / scale),  scale = amax / 448

with one scale per tensor, a float32 tensor without dimensions on the same device (FP8 Formats for Deep Learning,
arXiv:2209.05433, section 3). Reading gives x up to max(|x| / 16, scale / 1024): half a unit in the last place of e4m3,
whose smallest step is 2^-9.
"""

from functools import lru_cache

import torch

FLOAT8: torch.dtype = torch.float8_e4m3fn
LARGEST: float = 448.0  # of FLOAT8
SMALLEST_SCALE: float = 2.0**-126  # a normal float32: all-zero tensors divide by it, devices flush what is smaller
STORAGE_DTYPES: tuple[torch.dtype, ...] = (torch.bfloat16, FLOAT8)


def narrower(stored: torch.dtype, dtype: torch.dtype) -> bool:
    """Whether ``stored`` is a dtype that snapshots of ``dtype`` may be stored in instead of ``dtype`` itself."""
    return stored in STORAGE_DTYPES and stored.itemsize < dtype.itemsize


@lru_cache(maxsize=64)
def _converts_float8(index: int | None) -> bool:
    """NVIDIA GPUs convert e4m3 from compute capability 8.9 on; on AMD's, Triton converts in software where needed."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(index) >= (8, 9)


def triton_stores(stored: torch.dtype, device: torch.device) -> bool:
    """Whether Triton kernels can read and write ``stored`` on ``device``; else the PyTorch reference does, which
    converts e4m3 everywhere."""
    return stored != FLOAT8 or device.type != "cuda" or _converts_float8(device.index)

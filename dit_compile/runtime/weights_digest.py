"""A digest of a model's weights: equal in every process that has the same ones, adapters and quantisation included."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..compat import versions
from .side_inputs import thinned

ELEMENTS = 64  # of each tensor


def weights_state(tensors: Sequence[Tensor]) -> tuple[object, ...]:
    """Another one when a tensor was written to or points to other memory: whether a digest is still that of now."""
    plain = [one for tensor in tensors for one in _plain(tensor)]
    return (*(one.data_ptr() for one in plain), *versions(plain))


def weights_digest(tensors: Sequence[Tensor]) -> str:
    """SHA-256 over classes, shapes, dtypes and ``ELEMENTS`` evenly spaced numbers of each tensor, in whatever order the
    tensors come. The host waits for the device once."""
    parts = [(type(tensor).__qualname__, list(_plain(tensor))) for tensor in tensors]
    samples: dict[torch.device, list[Tensor]] = {}
    for _, plain in parts:
        for one in plain:
            sample = thinned(one.as_subclass(Tensor), ELEMENTS)
            samples.setdefault(one.device, []).append(sample.to(torch.float32))
    numbers = {device: torch.cat(found).tolist() for device, found in samples.items()}
    at = dict.fromkeys(numbers, 0)
    texts = []
    for name, plain in parts:
        text = name.encode()
        for one in plain:
            start, count = at[one.device], thinned(one, ELEMENTS).numel()
            at[one.device] = start + count
            mine = struct.pack(f"{count}f", *numbers[one.device][start : start + count])
            text += f" {one.dtype} {list(one.shape)} ".encode() + mine
        texts.append(text)
    return hashlib.sha256(b"\n".join(sorted(texts))).hexdigest()


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that ``tensor`` is made of: itself, unless it is of a subclass that consists of others."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            yield from _plain(getattr(tensor, name))
    else:
        yield tensor

"""The two ends of the bundled model, without parameters: prompts to embeddings, pictures to tokens and back.

A full-size FLUX has two frozen text encoders and a VAE. The bundled one replaces them by fixed functions:

* a word becomes 64 Gaussian numbers drawn from the SHAKE-256 stream of its spelling, so a prompt has the same
  embedding on every machine and nothing has to be downloaded;
* a 32x32 picture is folded, without loss, into the 16x16 grid of 12 channels that ``FluxPipeline`` regards as its
  latent and packs, again 2x2, into 64 tokens of 48 channels. Both folds together turn each 4x4 patch into a token.

The weights were trained against exactly these numbers: any change here needs new weights.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

TEXT_TOKENS = 8
TEXT_CHANNELS = 64
PICTURE_SIZE = 32
PATCH = 4
GRID = PICTURE_SIZE // PATCH
IMAGE_TOKENS = GRID * GRID
IMAGE_CHANNELS = 3 * PATCH * PATCH
PIPELINE_SIZE = 128
"""Height and width to ask ``FluxPipeline`` for: without a VAE it assumes one that shrinks by 8, to a 16x16 latent."""

_WORD_SHARE, _PAIR_SHARE = 0.8, 0.6


@lru_cache(maxsize=4096)
def _noise(text: str) -> npt.NDArray[np.float64]:
    """``TEXT_CHANNELS`` standard normal numbers, a function of ``text`` alone (Box-Muller on a hash stream)."""
    stream = np.frombuffer(hashlib.shake_256(text.encode()).digest(4 * TEXT_CHANNELS), dtype="<u4")
    first, second = np.split((stream.astype(np.float64) + 0.5) / 2.0**32, 2)
    radius, angle = np.sqrt(-2.0 * np.log(first)), 2.0 * np.pi * second
    noise = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    noise.setflags(write=False)  # the cache hands the same array to everyone
    return noise


def split_words(prompt: str) -> list[str]:
    """The words the encoder sees: lower case, letters and digits only, at most ``TEXT_TOKENS`` of them."""
    return re.findall(r"[a-z0-9]+", prompt.lower())[:TEXT_TOKENS]


def encode_prompts(prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts to ``prompt_embeds`` (B, 8, 64) and ``pooled_prompt_embeds`` (B, 64), float32 on the CPU.

    FLUX gives its text tokens no position. To keep "red heart on blue" and "blue heart on red" apart, a token mixes
    its word with the pair (previous word, word). Unused tokens are zero, and so is the whole of the empty prompt,
    which is what the model was trained on for guidance.
    """
    tokens = np.zeros((len(prompts), TEXT_TOKENS, TEXT_CHANNELS))
    pooled = np.zeros((len(prompts), TEXT_CHANNELS))
    for row, prompt in enumerate(prompts):
        words = split_words(prompt)
        for position, (previous, word) in enumerate(zip(["", *words], words, strict=False)):
            tokens[row, position] = _WORD_SHARE * _noise(word) + _PAIR_SHARE * _noise(f"{previous} {word}")
        if words:
            pooled[row] = tokens[row, : len(words)].mean(axis=0)
    return torch.from_numpy(tokens).float(), torch.from_numpy(pooled).float()


def encode_pictures(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures (B, 3, 32, 32) in [-1, 1] to packed latents (B, 64, 48).

    The rows and columns of a 4x4 patch are addressed by two bits each: the low bit belongs to the pixel fold, the
    high bit to FLUX's packing. A token's channel index reads (colour, low row, low column, high row, high column).
    """
    batch = pictures.shape[0]
    bits = pictures.reshape(batch, 3, GRID, 2, 2, GRID, 2, 2)  # colour, row, high, low, column, high, low
    return bits.permute(0, 2, 5, 1, 4, 7, 3, 6).reshape(batch, IMAGE_TOKENS, IMAGE_CHANNELS)


def decode_tokens(tokens: torch.Tensor) -> torch.Tensor:
    """Packed latents (B, 64, 48) to pictures (B, 3, 32, 32); the exact inverse of :func:`encode_pictures`."""
    batch = tokens.shape[0]
    bits = tokens.reshape(batch, GRID, GRID, 3, 2, 2, 2, 2)  # row, column, colour, low row, low col, high row, high col
    return bits.permute(0, 3, 1, 6, 4, 2, 7, 5).reshape(batch, 3, PICTURE_SIZE, PICTURE_SIZE)


def decode_float(tokens: torch.Tensor) -> npt.NDArray[np.float32]:
    """Packed latents (B, 64, 48) to float32 pictures (B, 32, 32, 3) clipped to [-1, 1], what a metric compares."""
    pictures: npt.NDArray[np.float32] = (
        decode_tokens(tokens.detach().float().cpu()).clamp(-1, 1).permute(0, 2, 3, 1).contiguous().numpy()
    )
    return pictures


def to_uint8(pictures: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Float pictures in [-1, 1] to 8-bit ones of the same shape, rounding half to even."""
    levels: npt.NDArray[np.uint8] = np.rint((pictures + np.float32(1)) * np.float32(127.5)).astype(np.uint8)
    return levels


def position_ids() -> torch.Tensor:
    """Image positions (64, 3) as ``FluxPipeline`` builds them: (0, row, column) for each token."""
    axis = torch.arange(GRID, dtype=torch.float32)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(IMAGE_TOKENS, 3)

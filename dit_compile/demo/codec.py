"""The two ends of the emoji models, without parameters: prompts to embeddings, pictures to tokens and back.

A full-size FLUX has two frozen text encoders and a VAE. The emoji models replace them by fixed functions:

* a word becomes Gaussian numbers drawn from the SHAKE-256 stream of its spelling, so a prompt has the same
  embedding on every machine and nothing has to be downloaded;
* a picture is folded, without loss, into the grid of 12 channels that ``FluxPipeline`` regards as its latent and
  packs, again 2x2, into tokens of 48 channels. Both folds together turn each 4x4 patch into a token.

Sizes differ between models and are a :class:`CodecConfig`; the default is that of the bundled model. The weights were
trained against exactly these numbers: any change here needs new weights.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

PATCH = 4
IMAGE_CHANNELS = 3 * PATCH * PATCH
_WORD_SHARE, _CONTEXT_SHARE = 0.8, 0.6


@dataclass(frozen=True)
class CodecConfig:
    """What one model's prompts and pictures look like: its pictures are squares, its text tokens are padded."""

    picture_size: int = 32
    text_tokens: int = 8
    text_channels: int = 64
    reach: int = 0
    """How many words before its own a text token knows, see :func:`encode_prompts`."""

    @property
    def grid(self) -> int:
        """Image tokens on a side."""
        return self.picture_size // PATCH

    @property
    def image_tokens(self) -> int:
        return self.grid * self.grid

    @property
    def pipeline_size(self) -> int:
        """Height and width to ask ``FluxPipeline`` for: without a VAE it assumes one that shrinks by 8, to a latent of
        half the picture's size."""
        return self.picture_size * 4


EMOJI = CodecConfig()
"""The bundled model's."""


@lru_cache(maxsize=4096)
def _noise(text: str, channels: int) -> npt.NDArray[np.float64]:
    """``channels`` standard normal numbers, a function of ``text`` alone (Box-Muller on a hash stream)."""
    stream = np.frombuffer(hashlib.shake_256(text.encode()).digest(4 * channels), dtype="<u4")
    first, second = np.split((stream.astype(np.float64) + 0.5) / 2.0**32, 2)
    radius, angle = np.sqrt(-2.0 * np.log(first)), 2.0 * np.pi * second
    noise = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    noise.setflags(write=False)  # the cache hands the same array to everyone
    return noise


def split_words(prompt: str) -> list[str]:
    """All words of a prompt as the encoder sees them: lower case, letters and digits only."""
    return re.findall(r"[a-z0-9]+", prompt.lower())


def encode_prompts(prompts: Sequence[str], config: CodecConfig = EMOJI) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts to ``prompt_embeds`` (B, text_tokens, text_channels) and ``pooled_prompt_embeds`` (B, text_channels),
    float32 on the CPU. Words beyond the last token are ignored.

    FLUX gives its text tokens no position. To keep "red heart on blue" and "blue heart on red" apart, a token mixes its
    word with those before it:

    * ``reach`` = 0: with the hash of the pair (previous word, word);
    * ``reach`` = n: with the sum of the n previous words, the j-th of them rotated by j channels. Rotations keep the
      order (Sahlgren, Holst, Kanerva, "Permutations as a means to encode order in word space", 2008), and a sum is made
      of the same parts in every phrase: "fox top left" can be understood by a model that has never read it.

    Unused tokens are zero, and so is the whole of the empty prompt, which is what the models are trained on for
    guidance.
    """
    tokens = np.zeros((len(prompts), config.text_tokens, config.text_channels))
    pooled = np.zeros((len(prompts), config.text_channels))
    for row, prompt in enumerate(prompts):
        words = split_words(prompt)[: config.text_tokens]
        if words:
            own = np.stack([_noise(word, config.text_channels) for word in words])
            tokens[row, : len(words)] = _WORD_SHARE * own + _CONTEXT_SHARE * _context(words, own, config)
            pooled[row] = tokens[row, : len(words)].mean(axis=0)
    return torch.from_numpy(tokens).float(), torch.from_numpy(pooled).float()


def _context(words: Sequence[str], own: npt.NDArray[np.float64], config: CodecConfig) -> npt.NDArray[np.float64]:
    """What the words before it add to each word; of unit variance, as ``own`` (words, channels) is."""
    if config.reach == 0:
        pairs = zip(["", *words], words, strict=False)
        return np.stack([_noise(f"{previous} {word}", config.text_channels) for previous, word in pairs])
    context, twice = np.zeros_like(own), np.concatenate([own, own], axis=1)  # any rotation is a part of the second
    for distance in range(1, min(config.reach, len(words) - 1) + 1):
        start = config.text_channels - distance
        context[distance:] += twice[:-distance, start : start + config.text_channels]
    return context / math.sqrt(config.reach)


def encode_pictures(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures (B, 3, S, S) in [-1, 1] to packed latents (B, (S / 4)^2, 48).

    The rows and columns of a 4x4 patch are addressed by two bits each: the low bit belongs to the pixel fold, the
    high bit to FLUX's packing. A token's channel index reads (colour, low row, low column, high row, high column).
    """
    batch, grid = pictures.shape[0], pictures.shape[-1] // PATCH
    bits = pictures.reshape(batch, 3, grid, 2, 2, grid, 2, 2)  # colour, row, high, low, column, high, low
    return bits.permute(0, 2, 5, 1, 4, 7, 3, 6).reshape(batch, grid * grid, IMAGE_CHANNELS)


def decode_tokens(tokens: torch.Tensor) -> torch.Tensor:
    """Packed latents (B, N, 48) of a square grid to pictures (B, 3, S, S), the exact inverse of
    :func:`encode_pictures`."""
    batch, grid = tokens.shape[0], math.isqrt(tokens.shape[1])
    bits = tokens.reshape(batch, grid, grid, 3, 2, 2, 2, 2)  # row, column, colour, low row, low col, high row, high col
    return bits.permute(0, 3, 1, 6, 4, 2, 7, 5).reshape(batch, 3, grid * PATCH, grid * PATCH)


def decode_float(tokens: torch.Tensor) -> npt.NDArray[np.float32]:
    """Packed latents (B, N, 48) to float32 pictures (B, S, S, 3) clipped to [-1, 1], what a metric compares."""
    pictures: npt.NDArray[np.float32] = (
        decode_tokens(tokens.detach().float().cpu()).clamp(-1, 1).permute(0, 2, 3, 1).contiguous().numpy()
    )
    return pictures


def to_uint8(pictures: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Float pictures in [-1, 1] to 8-bit ones of the same shape, rounding half to even."""
    levels: npt.NDArray[np.uint8] = np.rint((pictures + np.float32(1)) * np.float32(127.5)).astype(np.uint8)
    return levels


def position_ids(config: CodecConfig = EMOJI) -> torch.Tensor:
    """Image positions (image_tokens, 3) as ``FluxPipeline`` builds them: (0, row, column) for each token."""
    axis = torch.arange(config.grid, dtype=torch.float32)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(config.image_tokens, 3)

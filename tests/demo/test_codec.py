"""The codec against pinned numbers: the bundled weights were trained with exactly these."""

import hashlib

import numpy as np
import pytest
import torch

from dit_compile.demo import codec
from dit_compile.demo.pipeline import known_subjects, read_codec

LARGE = codec.CodecConfig(picture_size=64, text_tokens=12, text_channels=128, reach=3)


def test_embeddings_are_the_ones_the_weights_were_trained_with():
    embeds, pooled = codec.encode_prompts(["red heart on blue", "pizza", ""])
    assert embeds.shape == (3, 8, 64) and pooled.shape == (3, 64)
    assert embeds.dtype == pooled.dtype == torch.float32
    # computed with the code that trained the weights
    expected = [
        [1.3179876, 0.6604663, -0.4481477],
        [0.0981008, 0.541611, -0.5428109],
        [1.7750816, -0.4908197, -1.8685822],
        [0.0104104, 1.0590026, 0.6908262],
    ]
    torch.testing.assert_close(embeds[0, :4, :3], torch.tensor(expected), rtol=0, atol=1e-6)
    torch.testing.assert_close(pooled[1], embeds[1, 0], rtol=0, atol=0)
    assert not embeds[1, 1:].any(), "unused tokens are zero"
    assert not embeds[2].any() and not pooled[2].any(), "so is the empty prompt"


def test_embeddings_look_like_noise_of_unit_variance():
    _, pooled = codec.encode_prompts([word for word in known_subjects() if " " not in word])
    assert abs(pooled.mean().item()) < 0.1
    assert pooled.std().item() == pytest.approx(1.0, abs=0.05)


def test_word_order_case_and_punctuation():
    def encode(prompt: str) -> torch.Tensor:
        return codec.encode_prompts([prompt])[0]

    assert torch.equal(encode("Red HEART, on blue!"), encode("red heart on blue"))
    assert not torch.equal(encode("red heart on blue")[0, 0], encode("blue heart on red")[0, 0])
    same_word, other_neighbour = encode("red heart")[0, 1], encode("blue heart")[0, 1]
    assert not torch.equal(same_word, other_neighbour), "a token also depends on the word before it"
    eight = "one two three four five six seven eight"
    assert torch.equal(encode(f"{eight} nine"), encode(eight)), "there are eight tokens"


def test_the_caller_cannot_damage_the_cached_words():
    first, _ = codec.encode_prompts(["fox"])
    first.zero_()
    assert codec.encode_prompts(["fox"])[0].any()


def test_the_default_is_what_the_bundled_folder_says():
    assert read_codec() == codec.EMOJI


def test_with_a_reach_a_token_adds_the_words_before_it_each_rotated_by_its_distance():
    embeds, pooled = codec.encode_prompts(["small fox top left", "fox", "small", ""], LARGE)
    assert embeds.shape == (4, 12, 128) and pooled.shape == (4, 128)
    own = {word: codec.encode_prompts([word], LARGE)[0][0, 0] for word in ("small", "fox", "top", "left")}
    before = sum(own[word].roll(distance) for word, distance in (("top", 1), ("fox", 2), ("small", 3)))
    torch.testing.assert_close(embeds[0, 3], own["left"] + 0.6 / 0.8 / 3**0.5 * before)
    assert torch.equal(embeds[0, 0], own["small"]) and not embeds[0, 4:].any()
    torch.testing.assert_close(pooled[0], embeds[0, :4].mean(0))


def test_a_reach_ends_where_it_says():
    def last(prompt: str) -> torch.Tensor:
        return codec.encode_prompts([prompt], LARGE)[0][0, len(prompt.split()) - 1]

    torch.testing.assert_close(last("a small fox top left"), last("large small fox top left"))
    assert not torch.equal(last("fox top left"), last("top fox left")), "the order counts"


def test_folding_pictures_is_lossless_and_keeps_its_order():
    pictures = torch.arange(2 * 3 * 32 * 32, dtype=torch.float32).reshape(2, 3, 32, 32)
    tokens = codec.encode_pictures(pictures)
    assert tokens.shape == (2, 64, 48)
    assert torch.equal(codec.decode_tokens(tokens), pictures)
    # FLUX packs 2x2 latent pixels, each of them 2x2 picture pixels: rows 0, 0, 2, 2 of columns 0, 2, 0, 2 come first
    assert tokens[0, 0, :8].tolist() == [0, 2, 64, 66, 1, 3, 65, 67]
    assert tokens[0, 1, 0] == 4 and tokens[0, 8, 0] == 4 * 32 and tokens[0, 0, 16] == 32 * 32


@pytest.mark.parametrize("config", [codec.EMOJI, LARGE], ids=["32", "64"])
def test_folding_is_what_diffusers_packs_and_unpacks(config):
    from diffusers import FluxPipeline

    side, grid = config.picture_size, config.grid
    pictures = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    latents = torch.nn.functional.pixel_unshuffle(pictures, 2)
    tokens = codec.encode_pictures(pictures)
    assert torch.equal(tokens, FluxPipeline._pack_latents(latents, 2, 12, side // 2, side // 2))
    assert torch.equal(codec.decode_tokens(tokens), pictures)
    ids = FluxPipeline._prepare_latent_image_ids(2, grid, grid, "cpu", torch.float32)
    assert torch.equal(codec.position_ids(config), ids)


def test_eight_bit_pictures():
    tokens = codec.encode_pictures(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])[:, None, None, None].expand(5, 3, 32, 32))
    floats = codec.decode_float(tokens)
    assert floats.shape == (5, 32, 32, 3) and floats.dtype == np.float32
    assert codec.to_uint8(floats)[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]


def test_random_tokens_decode_to_pinned_bytes():
    tokens = torch.linspace(-1.5, 1.5, 2 * 64 * 48).reshape(2, 64, 48)
    digest = hashlib.sha256(codec.to_uint8(codec.decode_float(tokens)).tobytes()).hexdigest()
    assert digest.startswith("e48f4c5df896e242")

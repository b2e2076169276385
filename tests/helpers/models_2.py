import torch
from specs import B, Model, Moment, Word, counting, full, latents, normal, per_sample, table, timestep
from torch import Tensor

LEFT_OUT: dict[str, str] = {}


def padded(length: int, *real: int, dtype: torch.dtype = torch.int64) -> Word:
    """A mask (B, length): ones for the first ``real`` places of each sample, then zeros."""

    def make(now: Moment, place: int) -> Tensor:
        rows = [[1] * n + [0] * (length - n) for n in (real * now.batch)[: now.batch]]
        return torch.tensor(rows, dtype=dtype)

    return Word(make)


def each(row: object, dtype: torch.dtype = torch.int64) -> Word:
    """A literal tensor, once per sample of the batch."""
    return Word(lambda now, place: torch.tensor([row] * now.batch, dtype=dtype))


def rising(last: float, dtype: torch.dtype = torch.float32) -> Word:
    """A time (B,) that rises evenly from 0 towards ``last``."""
    return Word(lambda now, place: torch.full((now.batch,), last * now.index / now.steps, dtype=dtype))


def falling(*first: float) -> Word:
    """Distinct times of one call, one per value, shared by the batch; each falls evenly towards 0."""
    return Word(lambda now, place: torch.tensor(first) * (1 - now.index / now.steps))


# fmt: off
MODELS = [
    Model(
        "HunyuanVideoFramepackTransformer3DModel",
        dict(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=4,
            num_single_layers=4, num_refiner_layers=1, patch_size=2, patch_size_t=1, guidance_embeds=True,
            text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(4, 6, 6), has_image_proj=True,
            image_proj_dim=16, has_clean_x_embedder=True,
        ),
        dict(
            hidden_states=latents(B, 4, 3, 8, 4), timestep=timestep(1000.0), encoder_hidden_states=normal(B, 12, 16),
            encoder_attention_mask=padded(12, 9, 6), pooled_projections=normal(B, 8), image_embeds=normal(B, 5, 16),
            indices_latents=table([8, 9, 10]), guidance=full(9000.0, B), latents_clean=normal(B, 4, 2, 8, 4),
            indices_latents_clean=table([0, 7]), latents_history_2x=normal(B, 4, 2, 8, 4),
            indices_latents_history_2x=table([5, 6]), latents_history_4x=normal(B, 4, 4, 8, 4),
            indices_latents_history_4x=table([1, 2, 3, 4]),
        ),
        chain=("transformer_blocks", "single_transformer_blocks"),
        exits=("hidden_states", None),
        frames=6,
    ),
    Model(
        "HunyuanImageTransformer2DModel",
        dict(
            in_channels=8, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=4,
            num_single_layers=4, num_refiner_layers=1, patch_size=(1, 1, 1), guidance_embeds=True, text_embed_dim=16,
            rope_axes_dim=(4, 6, 6),
        ),
        dict(
            hidden_states=latents(B, 8, 2, 4, 4), timestep=timestep(1000.0), guidance=full(3500.0, B),
            encoder_hidden_states=normal(B, 8, 16), encoder_attention_mask=padded(8, 6, 3),
        ),
        chain=("transformer_blocks", "single_transformer_blocks"),
        exits=("hidden_states", None),
        note="the refiner pipeline; the base pipeline also passes encoder_hidden_states_2, see VARIANTS",
    ),
    Model(
        "Ideogram4Transformer2DModel",
        dict(
            in_channels=16, num_layers=4, attention_head_dim=8, num_attention_heads=4, intermediate_size=32,
            adaln_dim=16, llm_features_dim=24, rope_theta=10000, mrope_section=(2, 1, 1),
        ),
        dict(
            hidden_states=latents(B, 12, 16), timestep=rising(1.0), encoder_hidden_states=normal(B, 12, 24),
            position_ids=each(
                [[i, i, i] for i in range(6)] + [[65536, 65536 + i, 65536 + j] for i in range(2) for j in range(3)],
            ),
            segment_ids=each([-1] * 2 + [1] * 10), indicator=each([-1] * 2 + [3] * 4 + [2] * 6),
        ),
        chain=("layers",),
        exits=("hidden_states",),
    ),
    Model(
        "JoyImageEditTransformer3DModel",
        dict(
            patch_size=[1, 2, 2], in_channels=4, hidden_size=32, num_attention_heads=2, text_dim=16, num_layers=4,
            rope_dim_list=[4, 6, 6], theta=256,
        ),
        dict(
            hidden_states=latents(B, 2, 4, 1, 8, 8), timestep=timestep(1000.0), encoder_hidden_states=normal(B, 12, 16),
        ),
        chain=("double_blocks",),
        exits=("hidden_states", None),
    ),
    Model(
        "JoyImageEditPlusTransformer3DModel",
        dict(
            patch_size=[1, 2, 2], in_channels=4, hidden_size=32, num_attention_heads=2, text_dim=16, num_layers=4,
            rope_dim_list=[4, 6, 6], theta=256,
        ),
        dict(
            hidden_states=latents(B, 24, 4, 1, 2, 2), timestep=timestep(1000.0),
            encoder_hidden_states=normal(B, 12, 16), encoder_hidden_states_mask=padded(12, 9, 12),
            shape_list=per_sample([(1, 4, 3), (1, 2, 5)]),
        ),
        chain=("double_blocks",),
        exits=("hidden_states", None),
    ),
    Model(
        "Kandinsky5Transformer3DModel",
        dict(
            in_visual_dim=4, in_text_dim=16, in_text_dim2=12, time_dim=32, out_visual_dim=4, patch_size=(1, 2, 2),
            model_dim=32, ff_dim=64, num_text_blocks=1, num_visual_blocks=4, axes_dims=(4, 6, 6), visual_cond=True,
        ),
        dict(
            hidden_states=latents(B, 3, 4, 6, 9), encoder_hidden_states=normal(B, 7, 16), timestep=timestep(1000.0),
            pooled_projections=normal(B, 12), visual_rope_pos=[counting(3), counting(2), counting(3)],
            text_rope_pos=counting(7), scale_factor=(1.0, 2.0, 2.0),
        ),
        chain=("visual_transformer_blocks",),
        exits=("visual_embed",),
    ),
    Model(
        "Kandinsky6Transformer3DModel",
        dict(
            in_visual_dim=4, out_visual_dim=4, in_text_dim=16, in_text_dim2=12, time_dim=32, patch_size=(1, 2, 2),
            model_dim=32, ff_dim=64, num_text_blocks=1, num_visual_blocks=4, axes_dims=(4, 6, 6), visual_cond=True,
            in_audio_dim=6, out_audio_dim=6, model_dim_a=16, time_dim_a=24, ff_dim_a=32, axes_dims_a=(4, 2, 2),
            text_token_padding=True, ca_rope=False, cross_gates=True, fix_modulation=True,
        ),
        dict(
            hidden_states=latents(B, 3, 4, 6, 9), encoder_hidden_states=normal(B, 7, 16),
            pooled_projections=normal(B, 12), timestep=timestep(1000.0), audio_hidden_states=latents(B, 10, 6),
            visual_rope_pos=(table([0, 1, 0]), counting(2), counting(3)),
            encoder_attention_mask=padded(7, 5, 7, dtype=torch.bool),
        ),
        chain=("visual_transformer_blocks",),
        exits=("vis", "aud"),
    ),
    Model(
        "Kandinsky6SRTransformer3DModel",
        dict(
            in_visual_dim=4, out_visual_dim=8, time_dim=32, model_dim=32, ff_dim=64, num_visual_blocks=4,
            axes_dims=(4, 6, 6), nabla_threshold=0.8, nabla_window=(3, 1, 1),
        ),
        dict(hidden_states=latents(B, 2, 8, 16, 9), timestep=timestep(1000.0)),
        chain=("visual_transformer_blocks",),
        exits=("hidden_states",),
    ),
    Model(
        "Krea2Transformer2DModel",
        dict(
            in_channels=16, num_layers=4, attention_head_dim=8, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=32, timestep_embed_dim=8, text_hidden_dim=16, num_text_layers=3,
            text_num_attention_heads=2, text_num_key_value_heads=1, text_intermediate_size=16,
            num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(4, 2, 2),
        ),
        dict(
            hidden_states=latents(B, 12, 16), encoder_hidden_states=normal(B, 6, 3, 16), timestep=timestep(1.0),
            position_ids=table([[0, 0, 0]] * 6 + [[0, i, j] for i in range(3) for j in range(4)], dtype=torch.float32),
            encoder_attention_mask=padded(6, 4, 6, dtype=torch.bool),
        ),
        chain=("transformer_blocks",),
        exits=("hidden_states",),
    ),
    Model(
        "LongCatAudioDiTTransformer",
        dict(dit_dim=32, dit_depth=4, dit_heads=4, dit_text_dim=16, latent_dim=8, text_conv=True),
        dict(
            hidden_states=latents(B, 16, 8), encoder_hidden_states=normal(B, 10, 16),
            encoder_attention_mask=padded(10, 7, 10, dtype=torch.bool), timestep=timestep(1.0),
            attention_mask=padded(16, 13, 16, dtype=torch.bool), latent_cond=normal(B, 16, 8),
        ),
        chain=("blocks",),
        exits=("hidden_states",),
    ),
    Model(
        "LongCatImageTransformer2DModel",
        dict(
            patch_size=1, in_channels=4, num_layers=4, num_single_layers=4, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
        ),
        dict(
            hidden_states=latents(B, 16, 4), encoder_hidden_states=normal(B, 8, 32), timestep=timestep(1.0),
            img_ids=table([[1, 8 + i, 8 + j] for i in range(4) for j in range(4)], dtype=torch.float64),
            txt_ids=table([[0, i, i] for i in range(8)], dtype=torch.float64), guidance=None,
        ),
        chain=("transformer_blocks", "single_transformer_blocks"),
        exits=(None, "hidden_states"),
    ),
    Model(
        "LTXVideoTransformer3DModel",
        dict(
            in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
            num_layers=4, caption_channels=16,
        ),
        dict(
            hidden_states=latents(B, 24, 4), encoder_hidden_states=normal(B, 10, 16), timestep=timestep(1000.0),
            encoder_attention_mask=padded(10, 7, 4, dtype=torch.bool), num_frames=2, height=3, width=4,
            rope_interpolation_scale=(0.32, 32, 32),
        ),
        chain=("transformer_blocks",),
        exits=("hidden_states",),
    ),
    Model(
        "LTX2VideoTransformer3DModel",
        dict(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
            audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=8,
            audio_cross_attention_dim=16, num_layers=4, caption_channels=16,
        ),
        dict(
            hidden_states=latents(B, 24, 4), audio_hidden_states=latents(B, 9, 4),
            encoder_hidden_states=normal(B, 10, 16), audio_encoder_hidden_states=normal(B, 10, 16),
            timestep=timestep(1000.0), sigma=timestep(1000.0), encoder_attention_mask=padded(10, 7, 4),
            audio_encoder_attention_mask=padded(10, 7, 4), num_frames=2, height=3, width=4, fps=24.0,
            audio_num_frames=9,
        ),
        chain=("transformer_blocks",),
        exits=("hidden_states", "audio_hidden_states"),
    ),
    Model(
        "Lumina2Transformer2DModel",
        dict(
            sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=4, num_refiner_layers=1,
            num_attention_heads=3, num_kv_heads=1, multiple_of=2, axes_dim_rope=(4, 2, 2), axes_lens=(32, 16, 16),
            cap_feat_dim=16,
        ),
        dict(
            hidden_states=latents(B, 4, 8, 8), timestep=rising(1.0), encoder_hidden_states=normal(B, 10, 16),
            encoder_attention_mask=padded(10, 7, 4),
        ),
        chain=("layers",),
        exits=("hidden_states",),
        frames=4,
    ),
    Model(
        "MiniMaxH3Transformer3DModel",
        dict(
            num_attention_heads=2, attention_head_dim=16, hidden_size=24, num_layers=4, num_refiner_layers=1,
            ffn_dim=32, in_channels=4, audio_in_channels=6, patch_size=(1, 2, 2), text_dim=8, freq_dim=8,
            time_embed_hidden_dim=24, time_embed_dim=16, rope_freq_dim=2,
        ),
        dict(
            hidden_states=latents(B, 8, 16), audio_hidden_states=latents(B, 4, 6),
            encoder_hidden_states=normal(B, 5, 8), timestep=falling(0.9, 1.0),
            timestep_indices=table([1] * 5 + [0] * 4 + [1] * 8), token_tags=table([1] * 5 + [2] * 4 + [0] * 8),
            position_ids=table(
                [[i, 0, 0] for i in range(5)] + [[5 + i, 0, 2 * j - 1] for j in range(2) for i in range(2)]
                + [[5 + i, j, k] for i in range(2) for j in range(2) for k in range(2)], dtype=torch.float64,
            ),
            video_indices=table([*range(9, 17)]), audio_indices=table([*range(5, 9)]), text_indices=table([*range(5)]),
        ),
        chain=("transformer_blocks",),
        exits=("hidden_states",),
    ),
    Model(
        "MiniMaxMusic3Transformer1DModel",
        dict(
            in_channels=8, condition_dim=16, num_layers=4, num_attention_heads=4, attention_head_dim=8,
            ff_inner_dim=32, rotary_dim=4, fourier_embedding_dim=8,
        ),
        dict(hidden_states=latents(B, 8, 24), timestep=rising(1.0), encoder_hidden_states=normal(B, 24, 16)),
        chain=("transformer_blocks",),
        exits=("hidden_states",),
    ),
    Model(
        "MochiTransformer3DModel",
        dict(
            patch_size=2, num_attention_heads=2, attention_head_dim=16, num_layers=4, pooled_projection_dim=24,
            in_channels=4, text_embed_dim=16, time_embed_dim=8, max_sequence_length=10,
        ),
        dict(
            hidden_states=latents(B, 4, 2, 6, 8), encoder_hidden_states=normal(B, 10, 16), timestep=rising(1000.0),
            encoder_attention_mask=padded(10, 7, 4, dtype=torch.bool),
        ),
        chain=("transformer_blocks",),
        exits=("hidden_states", None),
        frames=11,
    ),
    Model(
        "MotifVideoTransformer3DModel",
        dict(
            in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=4,
            num_single_layers=4, num_decoder_layers=0, patch_size=2, text_embed_dim=16, image_embed_dim=12,
            rope_axes_dim=(4, 6, 6), enable_text_cross_attention_dual=True, enable_text_cross_attention_single=True,
        ),
        dict(
            hidden_states=latents(B, 9, 2, 6, 4), timestep=timestep(1000.0), encoder_hidden_states=normal(B, 10, 16),
            encoder_attention_mask=padded(10, 7, 4), image_embeds=normal(B, 5, 12),
        ),
        chain=("transformer_blocks", "single_transformer_blocks"),
        exits=("hidden_states", None),
        note="with decoder layers: see VARIANTS",
    ),
]

# More than one way to call a class of MODELS that real pipelines use.
VARIANTS = [
    Model(
        "HunyuanImageTransformer2DModel",
        dict(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=4,
            num_single_layers=4, num_refiner_layers=1, patch_size=(1, 1), text_embed_dim=16, text_embed_2_dim=12,
            rope_axes_dim=(8, 8),
        ),
        dict(
            hidden_states=latents(B, 4, 4, 4), timestep=timestep(1000.0), encoder_hidden_states=normal(B, 8, 16),
            encoder_attention_mask=padded(8, 6, 3), encoder_hidden_states_2=normal(B, 6, 12),
            encoder_attention_mask_2=padded(6, 2, 0),
        ),
        chain=("transformer_blocks", "single_transformer_blocks"),
        exits=("hidden_states", None),
        frames=9,
    ),
    Model(
        "MotifVideoTransformer3DModel",
        dict(
            in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=4,
            num_single_layers=8, num_decoder_layers=4, patch_size=2, text_embed_dim=16, rope_axes_dim=(4, 6, 6),
        ),
        dict(
            hidden_states=latents(B, 9, 2, 6, 4), timestep=timestep(1000.0), encoder_hidden_states=normal(B, 10, 16),
            encoder_attention_mask=padded(10, 7, 4),
        ),
        chain=("transformer_blocks", "single_transformer_blocks"),
        exits=(None, None),
        note="the last 4 single blocks start again from the embedded latents (block 0's hidden_states), with the "
        "encoder's output as their context: their stream is no argument of block 1",
    ),
]

import torch
from specs import B, Model, Moment, Word, counting, full, latents, normal, table, timestep
from torch import Tensor

LEFT_OUT: dict[str, str] = {
    "MiniMaxMusic3RVQDepthDecoder": "autoregressive decoder of audio codes: embeddings in, hidden states out, no time",
}


def padded(length: int, *real: int, dtype: torch.dtype = torch.int64) -> Word:
    """A mask (B, length): ones for the first ``real`` places of each sample, then zeros."""

    def make(now: Moment, place: int) -> Tensor:
        rows = [[1] * n + [0] * (length - n) for n in (real * now.batch)[: now.batch]]
        return torch.tensor(rows, dtype=dtype)

    return Word(make)


# fmt: off
MODELS = [
    Model(
        "AceStepTransformer1DModel",
        dict(
            hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, in_channels=24, audio_acoustic_hidden_dim=8, patch_size=2, sliding_window=3,
            encoder_hidden_size=16,
        ),
        dict(
            hidden_states=latents(B, 24, 8), timestep=timestep(1.0), timestep_r=timestep(1.0),
            encoder_hidden_states=normal(B, 10, 16), context_latents=normal(B, 24, 16),
        ),
        chain=("layers",),
    ),
    Model(
        "AuraFlowTransformer2DModel",
        dict(
            sample_size=16, patch_size=2, in_channels=4, num_mmdit_layers=4, num_single_dit_layers=4,
            attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32,
            out_channels=4, pos_embed_max_size=64,
        ),
        dict(hidden_states=latents(B, 4, 8, 8), timestep=timestep(1.0), encoder_hidden_states=normal(B, 6, 32)),
        chain=("joint_transformer_blocks", "single_transformer_blocks"),
        exits=("encoder_hidden_states+hidden_states",),
    ),
    Model(
        "CogVideoXTransformer3DModel",
        dict(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=16,
            text_embed_dim=16, num_layers=4, sample_width=8, sample_height=8, sample_frames=5,
            max_text_seq_length=8, use_rotary_positional_embeddings=True,
        ),
        dict(
            hidden_states=latents(B, 2, 4, 8, 8), encoder_hidden_states=normal(B, 8, 16),
            timestep=timestep(999, dtype=torch.int64), image_rotary_emb=(normal(32, 16), normal(32, 16)),
        ),
        chain=("transformer_blocks",),
        exits=("hidden_states", None),
    ),
    Model(
        "ConsisIDTransformer3DModel",
        dict(
            num_attention_heads=3, attention_head_dim=16, in_channels=8, out_channels=4, time_embed_dim=16,
            text_embed_dim=16, num_layers=4, sample_width=8, sample_height=8, sample_frames=5,
            max_text_seq_length=8, use_rotary_positional_embeddings=True, is_train_face=True, cross_attn_interval=2,
            cross_attn_dim_head=8, cross_attn_num_heads=2, LFE_id_dim=8, LFE_vit_dim=16, LFE_depth=4,
            LFE_dim_head=8, LFE_num_heads=2, LFE_num_id_token=2, LFE_num_querie=4, LFE_output_dim=32, LFE_ff_mult=1,
            LFE_num_scale=2,
        ),
        dict(
            hidden_states=latents(B, 2, 8, 8, 8), encoder_hidden_states=normal(B, 8, 16),
            timestep=timestep(999, dtype=torch.int64), image_rotary_emb=(normal(32, 16), normal(32, 16)),
            id_cond=normal(B, 8), id_vit_hidden=[normal(B, 5, 16), normal(B, 5, 16)],
        ),
        chain=("transformer_blocks",),
        exits=("hidden_states", "encoder_hidden_states"),
        note="a cross attention to the face follows blocks 0, 2, ...; it belongs to no block",
    ),
    Model(
        "DiTTransformer2DModel",
        dict(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=4, sample_size=8,
            patch_size=2, num_embeds_ada_norm=8,
        ),
        dict(
            hidden_states=latents(B, 4, 8, 8), timestep=timestep(999, dtype=torch.int64),
            class_labels=full(3, B, dtype=torch.int64),
        ),
        chain=("transformer_blocks",),
    ),
    Model(
        "HunyuanDiT2DModel",
        dict(
            sample_size=8, patch_size=2, in_channels=4, num_layers=6, attention_head_dim=8, num_attention_heads=2,
            cross_attention_dim=16, cross_attention_dim_t5=16, pooled_projection_dim=16, hidden_size=16, text_len=6,
            text_len_t5=8,
        ),
        dict(
            hidden_states=latents(B, 4, 8, 8), timestep=timestep(999.0), encoder_hidden_states=normal(B, 6, 16),
            text_embedding_mask=padded(6, 4, 5), encoder_hidden_states_t5=normal(B, 8, 16),
            text_embedding_mask_t5=padded(8, 5, 7), image_meta_size=full(64.0, B, 6),
            style=full(0, B, dtype=torch.int64), image_rotary_emb=(normal(16, 8), normal(16, 8)),
        ),
        chain=("blocks",),
        note="the outputs of the first blocks enter the last ones (argument skip)",
    ),
    Model(
        "LatteTransformer3DModel",
        dict(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=4,
            cross_attention_dim=16, attention_bias=True, sample_size=8, patch_size=2, activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
            caption_channels=8, video_length=3,
        ),
        dict(
            hidden_states=latents(B, 4, 3, 8, 8), timestep=timestep(999, dtype=torch.int64),
            encoder_hidden_states=normal(B, 8, 8), enable_temporal_attentions=True,
        ),
        chain=("transformer_blocks|temporal_transformer_blocks",),
        note="the spatial blocks see (B * frames, patches, C), the temporal ones (B * patches, frames, C)",
    ),
    Model(
        "LuminaNextDiT2DModel",
        dict(
            sample_size=8, patch_size=2, in_channels=4, hidden_size=32, num_layers=4, num_attention_heads=4,
            num_kv_heads=2, multiple_of=16, cross_attention_dim=16,
        ),
        dict(
            hidden_states=latents(B, 4, 8, 8), timestep=timestep(1.0), encoder_hidden_states=normal(B, 8, 16),
            encoder_mask=padded(8, 6, 5), image_rotary_emb=normal(12, 12, 4, dtype=torch.complex64),
            cross_attention_kwargs=dict(base_sequence_length=16),
        ),
        chain=("layers",),
    ),
    Model(
        "PixArtTransformer2DModel",
        dict(
            num_attention_heads=3, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=4,
            cross_attention_dim=24, sample_size=8, patch_size=2, caption_channels=16, use_additional_conditions=True,
        ),
        dict(
            hidden_states=latents(B, 4, 8, 8), encoder_hidden_states=normal(B, 8, 16),
            encoder_attention_mask=padded(8, 6, 5), timestep=timestep(999, dtype=torch.int64),
            added_cond_kwargs=dict(resolution=full(64.0, B, 2), aspect_ratio=full(1.0, B, 1)),
        ),
        chain=("transformer_blocks",),
    ),
    Model(
        "PriorTransformer",
        dict(num_attention_heads=2, attention_head_dim=8, num_layers=4, embedding_dim=16, num_embeddings=7),
        dict(
            hidden_states=latents(B, 16), timestep=timestep(999, (), dtype=torch.int64), proj_embedding=normal(B, 16),
            encoder_hidden_states=normal(B, 7, 16), attention_mask=padded(7, 5, 6, dtype=torch.bool),
        ),
        chain=("transformer_blocks",),
    ),
    Model(
        "SanaTransformer2DModel",
        dict(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=4,
            num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=8,
            sample_size=6,
        ),
        dict(
            hidden_states=latents(B, 4, 6, 6), encoder_hidden_states=normal(B, 8, 8), timestep=timestep(1000.0),
            encoder_attention_mask=padded(8, 6, 5),
        ),
        chain=("transformer_blocks",),
    ),
    Model(
        "StableAudioDiTModel",
        dict(
            sample_size=16, in_channels=4, num_layers=4, attention_head_dim=8, num_attention_heads=4,
            num_key_value_attention_heads=2, out_channels=4, cross_attention_dim=16, time_proj_dim=16,
            global_states_input_dim=8, cross_attention_input_dim=8,
        ),
        dict(
            hidden_states=latents(B, 4, 16), timestep=timestep(1.0, 1), encoder_hidden_states=normal(B, 6, 8),
            global_hidden_states=normal(B, 1, 8), rotary_embedding=(normal(17, 4), normal(17, 4)),
        ),
        chain=("transformer_blocks",),
    ),
    Model(
        "T5FilmDecoder",
        dict(input_dims=16, targets_length=16, d_model=32, num_layers=4, num_heads=2, d_kv=16, d_ff=64),
        dict(
            encodings_and_masks=[
                (normal(B, 8, 32), padded(8, 6, 7, dtype=torch.bool)),
                (normal(B, 6, 32), padded(6, 6, 5, dtype=torch.bool)),
            ],
            decoder_input_tokens=latents(B, 16, 16), decoder_noise_time=timestep(1.0),
        ),
        chain=("decoders",),
        note="a block returns a tuple of one; the model returns a tensor",
    ),
    Model(
        "Transformer2DModel",
        dict(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=4,
            cross_attention_dim=16, attention_bias=True, sample_size=8, patch_size=2, activation_fn="gelu-approximate",
            norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6, caption_channels=8,
        ),
        dict(
            hidden_states=latents(B, 4, 8, 8), encoder_hidden_states=normal(B, 8, 8),
            encoder_attention_mask=padded(8, 6, 5), timestep=timestep(999, dtype=torch.int64),
            added_cond_kwargs=dict(resolution=None, aspect_ratio=None),
        ),
        chain=("transformer_blocks",),
        note="legacy; in its form for patches it is a denoiser as PixArt's",
    ),
    Model(
        "DreamLiteTransformer2DModel",
        dict(
            num_attention_heads=4, attention_head_dim=8, in_channels=16, num_layers=4, norm_num_groups=4,
            cross_attention_dim=16, use_linear_projection=True, qk_norm="rms_norm", ff_mult=2,
        ),
        dict(
            hidden_states=latents(B, 16, 4, 6), encoder_hidden_states=normal(B, 8, 16),
            encoder_attention_mask=padded(8, 6, 5),
        ),
        chain=("transformer_blocks",),
        note="a part of a U-Net: knows no time",
    ),
    Model(
        "AllegroTransformer3DModel",
        dict(
            num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, num_layers=4,
            cross_attention_dim=48, sample_height=8, sample_width=8, sample_frames=2, caption_channels=8,
        ),
        dict(
            hidden_states=latents(B, 4, 2, 8, 8), encoder_hidden_states=normal(B, 1, 8, 8),
            timestep=timestep(999, dtype=torch.int64), encoder_attention_mask=padded(8, 6, 5),
            image_rotary_emb=(
                ((normal(2, 8), normal(2, 8)), (normal(4, 8), normal(4, 8)), (normal(4, 8), normal(4, 8))),
                (
                    table([[i // 16 for i in range(32)]]), table([[i // 4 % 4 for i in range(32)]]),
                    counting(1, 32, modulo=4),
                ),
            ),
        ),
        chain=("transformer_blocks",),
    ),
    Model(
        "AnyFlowTransformer3DModel",
        dict(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
            ffn_dim=32, num_layers=4, rope_max_seq_len=16,
        ),
        dict(
            hidden_states=latents(B, 2, 4, 8, 8), timestep=timestep(1000.0, B, 2), r_timestep=timestep(750.0, B, 2),
            encoder_hidden_states=normal(B, 8, 16),
        ),
        chain=("blocks",),
    ),
    Model(
        "AnyFlowFARTransformer3DModel",
        dict(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
            ffn_dim=32, num_layers=4, rope_max_seq_len=32, chunk_partition=[1, 2, 2, 2],
        ),
        dict(
            hidden_states=latents(B, 2, 4, 8, 8), timestep=timestep(1000.0, B, 2), r_timestep=timestep(750.0, B, 2),
            encoder_hidden_states=normal(B, 8, 16), chunk_partition=[1, 2, 2, 2],
            kv_cache={
                layer: dict(full_cache=normal(2, B, 2, 96, 12), compressed_cache=normal(2, B, 2, 16, 12))
                for layer in range(4)
            },
            kv_cache_flag=dict(num_cached_chunks=3, is_cache_step=False),
        ),
        chain=("blocks",),
        note="the fourth chunk with the keys of three in the cache; writes into kv_cache_flag, returns kv_cache too",
    ),
]

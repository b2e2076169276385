"""Every transformer class of diffusers as a tiny model: what the coverage suite runs. Data only; see ``specs``."""

import torch
from specs import (
    B,
    Model,
    counting,
    each,
    falling,
    full,
    latents,
    normal,
    ones,
    padded,
    per_sample,
    rising,
    stored_cache,
    table,
    timestep,
)

# Classes that are no denoisers with a list of blocks, and why.
LEFT_OUT = {
    "MiniMaxMusic3RVQDepthDecoder": "autoregressive decoder of audio codes: embeddings in, hidden states out, no time",
    "TransformerTemporalModel": "temporal layer inside a UNet: adds to its input, takes no time and predicts nothing",
}

# One row per frame: camera to world (4 x 4), fx, fy, cx, cy.
CAMERA = [[1, 0, 0, 0.1 * i, 0, 1, 0, 0.2, 0, 0, 1, 0.3 * i, 0, 0, 0, 1, 4, 4, 2, 2] for i in range(3)]

ANIMATE = "diffusers.models.transformers.transformer_wan_animate_2"

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
        "BriaFibo2Transformer2DModel",
        dict(
            in_channels=4, patch_size=2, dim=32, n_layers=6, n_refiner_layers=2, n_heads=2, cap_feat_dim=24,
            injection_layer_ids=(1, 4), perceiver_num_layers=1, min_num_gist_tokens=4, max_num_gist_tokens=8,
            gist_step=2, gist_min_text_len=4, gist_max_text_len=16, axes_dims=(4, 6, 6), axes_lens=(16, 16, 16),
        ),
        dict(
            hidden_states=latents(B, 4, 8, 8), timestep=timestep(1.0), encoder_hidden_states=normal(B, 3, 10, 24),
        ),
        chain=("noise_refiner", "layers"),
        exits=("...x",),
        fullgraph=False,
        note="the first call builds its rope table, which breaks the graph before the blocks",
    ),
    Model(
        "BriaFiboTransformer2DModel",
        dict(
            patch_size=1, in_channels=4, num_layers=4, num_single_layers=4, attention_head_dim=8,
            num_attention_heads=4, joint_attention_dim=64, text_encoder_dim=32, axes_dims_rope=[0, 4, 4],
        ),
        dict(
            hidden_states=latents(B, 16, 4), timestep=timestep(1000.0), encoder_hidden_states=normal(B, 8, 64),
            text_encoder_layers=[normal(B, 8, 32)] * 8, img_ids=counting(16, 3, dtype=torch.float32, modulo=5),
            txt_ids=full(0, 8, 3),
        ),
        chain=("transformer_blocks", "single_transformer_blocks"),
        exits=("encoder_hidden_states+hidden_states",),
        note="half of the text stream is replaced before every block; the text part of the exit is unused",
    ),
    Model(
        "BriaTransformer2DModel",
        dict(
            patch_size=1, in_channels=4, num_layers=4, num_single_layers=4, attention_head_dim=8,
            num_attention_heads=4, joint_attention_dim=32, axes_dims_rope=[0, 4, 4],
        ),
        dict(
            hidden_states=latents(B, 16, 4), timestep=timestep(1000.0), encoder_hidden_states=normal(B, 8, 32),
            img_ids=counting(16, 3, dtype=torch.float32, modulo=5), txt_ids=full(0, 8, 3),
        ),
        chain=("transformer_blocks", "single_transformer_blocks"),
        exits=(None, "hidden_states"),
    ),
    Model(
        "ChromaTransformer2DModel",
        dict(
            patch_size=1, in_channels=4, num_layers=4, num_single_layers=4, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=[4, 4, 8], approximator_num_channels=8,
            approximator_hidden_dim=16, approximator_layers=1,
        ),
        dict(
            hidden_states=latents(B, 16, 4), timestep=timestep(1.0), encoder_hidden_states=normal(B, 8, 32),
            img_ids=normal(16, 3), txt_ids=full(0, 8, 3),
            attention_mask=table([[1] * 5 + [0] * 3 + [1] * 16], dtype=torch.float32),
        ),
        chain=("transformer_blocks", "single_transformer_blocks"),
        exits=("encoder_hidden_states+hidden_states",),
    ),
    Model(
        "ChronoEditTransformer3DModel",
        dict(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
            text_dim=16, freq_dim=16, ffn_dim=32, num_layers=4, image_dim=16, added_kv_proj_dim=24,
            rope_max_seq_len=32,
        ),
        dict(
            hidden_states=latents(B, 4, 2, 8, 8), timestep=timestep(1000, dtype=torch.int64),
            encoder_hidden_states=normal(B, 12, 16), encoder_hidden_states_image=normal(B, 257, 16),
        ),
        chain=("blocks",),
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
        "CogView3PlusTransformer2DModel",
        dict(
            patch_size=2, in_channels=4, num_layers=4, attention_head_dim=8, num_attention_heads=2, out_channels=4,
            text_embed_dim=16, time_embed_dim=16, condition_dim=4, pos_embed_max_size=8, sample_size=8,
        ),
        dict(
            hidden_states=latents(B, 4, 8, 8), timestep=timestep(1000, dtype=torch.int64),
            encoder_hidden_states=normal(B, 8, 16), original_size=full(64, B, 2), target_size=full(64, B, 2),
            crop_coords=full(0, B, 2),
        ),
        chain=("transformer_blocks",),
        exits=("hidden_states", None),
    ),
    Model(
        "CogView4Transformer2DModel",
        dict(
            patch_size=2, in_channels=4, num_layers=4, attention_head_dim=8, num_attention_heads=2, out_channels=4,
            text_embed_dim=16, time_embed_dim=16, condition_dim=4, rope_axes_dim=(16, 16),
        ),
        dict(
            hidden_states=latents(B, 4, 8, 8), timestep=timestep(1000, dtype=torch.int64),
            encoder_hidden_states=normal(B, 8, 16), original_size=full(64, B, 2), target_size=full(64, B, 2),
            crop_coords=full(0, B, 2),
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
        "Cosmos3OmniTransformer",
        dict(
            head_dim=16, hidden_size=32, intermediate_size=64, latent_channel=4, latent_patch_size=2,
            num_attention_heads=2, num_hidden_layers=4, num_key_value_heads=1, patch_latent_dim=16,
            rope_axes_dim=[4, 2, 2], vocab_size=32,
        ),
        dict(
            input_ids=counting(6), text_indexes=counting(6), position_ids=counting(3, 18, modulo=18), und_len=6,
            sequence_length=18, vision_tokens=[latents(1, 4, 3, 4, 4)], vision_token_shapes=[(3, 2, 2)],
            vision_sequence_indexes=table([*range(6, 18)]), vision_mse_loss_indexes=table([*range(10, 18)]),
            vision_timesteps=timestep(1000.0, 8), vision_noisy_frame_indexes=[table([1, 2])],
        ),
        chain=("layers",),
        exits=(None, "gen_seq"),
        note="one packed sample, no batch dimension",
    ),
    Model(
        "CosmosTransformer3DModel",
        dict(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=4, mlp_ratio=2,
            text_embed_dim=16, adaln_lora_dim=4, max_size=(4, 16, 16), patch_size=(1, 2, 2),
            concat_padding_mask=False,
        ),
        dict(
            hidden_states=latents(B, 4, 2, 8, 8), timestep=timestep(1.0), encoder_hidden_states=normal(B, 12, 16),
            fps=30,
        ),
        chain=("transformer_blocks",),
        note="the released models concatenate a padding mask, which needs torchvision",
    ),
    Model(
        "CosmosTransformer3DModel",
        dict(
            in_channels=5, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=4, mlp_ratio=2,
            text_embed_dim=16, adaln_lora_dim=4, max_size=(4, 16, 16), patch_size=(1, 2, 2),
            concat_padding_mask=False, extra_pos_embed_type=None, use_crossattn_projection=True,
            crossattn_proj_in_channels=24, encoder_hidden_states_channels=16, img_context_dim_in=12,
            img_context_num_tokens=4, img_context_dim_out=24,
        ),
        dict(
            hidden_states=latents(B, 4, 2, 8, 8), timestep=timestep(1.0, B, 1, 2, 1, 1),
            encoder_hidden_states=(normal(B, 12, 24), normal(B, 4, 12)), fps=16, condition_mask=full(0, B, 1, 2, 8, 8),
        ),
        variant="image context",
        chain=("transformer_blocks",),
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
        "EasyAnimateTransformer3DModel",
        dict(
            attention_head_dim=16, num_attention_heads=2, in_channels=4, mmdit_layers=3, num_layers=5, out_channels=4,
            patch_size=2, sample_height=8, sample_width=8, text_embed_dim=16, time_embed_dim=8,
        ),
        dict(
            hidden_states=latents(B, 4, 2, 8, 8), timestep=timestep(1000.0), encoder_hidden_states=normal(B, 8, 16),
        ),
        chain=("transformer_blocks",),
        exits=("hidden_states", None),
    ),
    Model(
        "ErnieImageTransformer2DModel",
        dict(
            hidden_size=32, num_attention_heads=2, num_layers=4, ffn_hidden_size=32, in_channels=4, out_channels=4,
            patch_size=1, text_in_dim=16, rope_axes_dim=(8, 4, 4),
        ),
        dict(
            hidden_states=latents(B, 4, 4, 4), timestep=timestep(1000.0), text_bth=normal(B, 8, 16),
            text_lens=full(5, B, dtype=torch.int64),
        ),
        chain=("layers",),
        exits=("x",),
        note="the stream is (sequence, batch, width)",
    ),
    Model(
        "Flux2Transformer2DModel",
        dict(
            patch_size=1, in_channels=4, num_layers=4, num_single_layers=4, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, timestep_guidance_channels=32, axes_dims_rope=[4, 4, 4, 4],
        ),
        dict(
            hidden_states=latents(B, 16, 4), timestep=timestep(1.0), encoder_hidden_states=normal(B, 8, 32),
            guidance=full(4.0, B), img_ids=counting(B, 16, 4, modulo=5), txt_ids=counting(B, 8, 4, modulo=3),
        ),
        chain=("transformer_blocks", "single_transformer_blocks"),
        exits=("encoder_hidden_states+hidden_states",),
    ),
    Model(
        "Flux3Transformer2DModel",
        dict(
            in_channels=4, cond_in_channels=4, num_layers=2, num_single_layers=4, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, timestep_channels=32, axes_dims_rope=(4, 4, 4, 4),
        ),
        dict(
            hidden_states=latents(B, 16, 4), timestep=timestep(1.0), encoder_hidden_states=normal(B, 8, 32),
            img_ids=counting(16, 4, modulo=5), txt_ids=counting(8, 4, modulo=3),
            image_cond_hidden_states=normal(B, 9, 4), image_cond_ids=counting(9, 4, modulo=7),
        ),
        chain=("single_transformer_blocks",),
        exits=(None, "hidden_states"),
        note="mode_blocks.image runs before the text is joined",
    ),
    Model(
        "FluxTransformer2DModel",
        dict(
            patch_size=1, in_channels=4, num_layers=4, num_single_layers=4, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
        ),
        dict(
            hidden_states=latents(B, 16, 4), timestep=timestep(1.0), encoder_hidden_states=normal(B, 8, 32),
            pooled_projections=normal(B, 32), img_ids=normal(16, 3), txt_ids=normal(8, 3),
        ),
        chain=("transformer_blocks", "single_transformer_blocks"),
        exits=("encoder_hidden_states", "hidden_states"),
    ),
    Model(
        "GlmImageTransformer2DModel",
        dict(
            patch_size=2, in_channels=4, out_channels=4, num_layers=4, attention_head_dim=8, num_attention_heads=2,
            text_embed_dim=16, time_embed_dim=16, condition_dim=4, prior_vq_quantizer_codebook_size=32,
        ),
        dict(
            hidden_states=latents(B, 4, 8, 8), encoder_hidden_states=normal(B, 12, 16),
            prior_token_id=counting(B, 16, modulo=31), prior_token_drop=full(0, B, 16, dtype=torch.bool),
            timestep=timestep(1000.0), target_size=full(64, B, 2), crop_coords=full(0, B, 2),
        ),
        chain=("transformer_blocks",),
        exits=("hidden_states", None),
    ),
    Model(
        "HeliosTransformer3DModel",
        dict(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
            text_dim=16, freq_dim=32, ffn_dim=32, num_layers=4, rope_dim=(4, 4, 4),
        ),
        dict(
            hidden_states=latents(B, 4, 3, 8, 8), timestep=timestep(1000, dtype=torch.int64),
            encoder_hidden_states=normal(B, 12, 16), indices_hidden_states=table([[8, 9, 10]]),
            indices_latents_history_short=table([[0, 7]]), indices_latents_history_mid=table([[5, 6]]),
            indices_latents_history_long=table([[1, 2, 3, 4]]), latents_history_short=normal(B, 4, 2, 8, 8),
            latents_history_mid=normal(B, 4, 2, 8, 8), latents_history_long=normal(B, 4, 4, 8, 8),
        ),
        chain=("blocks",),
    ),
    Model(
        "HiDreamImageTransformer2DModel",
        dict(
            patch_size=2, in_channels=4, out_channels=4, num_layers=4, num_single_layers=4, attention_head_dim=8,
            num_attention_heads=4, caption_channels=[8, 4], text_emb_dim=8, num_routed_experts=4,
            num_activated_experts=2, axes_dims_rope=(4, 2, 2), max_resolution=(16, 16),
            llama_layers=(0, 1, 2, 3, 4, 5, 6, 7),
        ),
        dict(
            hidden_states=latents(B, 4, 8, 8), timesteps=timestep(1000.0), encoder_hidden_states_t5=normal(B, 6, 8),
            encoder_hidden_states_llama3=normal(8, B, 6, 4), pooled_embeds=normal(B, 8),
        ),
        chain=("double_stream_blocks", "single_stream_blocks"),
        exits=("hidden_states+encoder_hidden_states",),
        note="the experts' token counts are read on the host in every block, which breaks the graph there",
        fullgraph=False,
        refused="no chain of at least 3",
        variant="experts",
    ),
    Model(
        "HiDreamImageTransformer2DModel",
        dict(
            patch_size=2, in_channels=4, out_channels=4, num_layers=4, num_single_layers=4, attention_head_dim=8,
            num_attention_heads=4, caption_channels=[8, 4], text_emb_dim=8, num_routed_experts=0,
            axes_dims_rope=(4, 2, 2), max_resolution=(16, 16), llama_layers=(0, 1, 2, 3, 4, 5, 6, 7),
        ),
        dict(
            hidden_states=latents(B, 4, 8, 4), timesteps=timestep(1000.0), encoder_hidden_states_t5=normal(B, 6, 8),
            encoder_hidden_states_llama3=normal(8, B, 6, 4), pooled_embeds=normal(B, 8),
        ),
        chain=("double_stream_blocks", "single_stream_blocks"),
        exits=("hidden_states+encoder_hidden_states",),
        variant="dense, not square",
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
    ),
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
        fullgraph=False,
        note="boolean indexing in a loop over the prompts makes Dynamo compile each block by itself",
        refused="no chain of at least 3",
        variant="second text encoder",
    ),
    Model(
        "HunyuanVideo15Transformer3DModel",
        dict(
            in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=4,
            num_refiner_layers=1, mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=16, text_embed_2_dim=8,
            image_embed_dim=12, rope_axes_dim=(2, 2, 4), target_size=16, task_type="t2v",
        ),
        dict(
            hidden_states=latents(B, 9, 2, 4, 4), timestep=timestep(1000.0), encoder_hidden_states=normal(B, 6, 16),
            encoder_attention_mask=padded(6, 4, 5, dtype=torch.float32), encoder_hidden_states_2=normal(B, 4, 8),
            encoder_attention_mask_2=padded(4, 3, 1, dtype=torch.float32), image_embeds=full(0, B, 3, 12),
        ),
        chain=("transformer_blocks",),
        exits=("hidden_states", None),
        fullgraph=False,
        dynamo=dict(capture_dynamic_output_shape_ops=True),
        note="a branch on the image embedding's values ends the first graph",
    ),
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
        exits=(None, None),
        note="lengths depend on the prompt mask, so the stream cannot be followed back: its value is forecast",
    ),
    Model(
        "HunyuanVideoTransformer3DModel",
        dict(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=4,
            num_single_layers=4, num_refiner_layers=1, patch_size=2, patch_size_t=1, text_embed_dim=16,
            pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
        ),
        dict(
            hidden_states=latents(B, 4, 2, 8, 8), timestep=timestep(1000.0), encoder_hidden_states=normal(B, 12, 16),
            encoder_attention_mask=padded(12, 7, 10), pooled_projections=normal(B, 8), guidance=full(6000.0, B),
        ),
        chain=("transformer_blocks", "single_transformer_blocks"),
        exits=("hidden_states", None),
    ),
    Model(
        "HunyuanVideoTransformer3DModel",
        dict(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=4,
            num_single_layers=4, num_refiner_layers=1, patch_size=2, patch_size_t=1, text_embed_dim=16,
            pooled_projection_dim=8, rope_axes_dim=(2, 4, 4), image_condition_type="token_replace",
        ),
        dict(
            hidden_states=latents(B, 4, 3, 8, 8), timestep=timestep(1000.0), encoder_hidden_states=normal(B, 12, 16),
            encoder_attention_mask=padded(12, 7, 10), pooled_projections=normal(B, 8), guidance=full(6000.0, B),
        ),
        variant="token replace",
        chain=("transformer_blocks", "single_transformer_blocks"),
        exits=("hidden_states", None),
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
        fullgraph=False,
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
        exits=("first.hidden_states", None),
        variant="decoder layers",
        note="the last 4 single blocks start again from what enters block 0",
    ),
    Model(
        "NucleusMoEImageTransformer2DModel",
        dict(
            in_channels=16, out_channels=4, num_layers=4, attention_head_dim=16, num_attention_heads=4,
            num_key_value_heads=2, joint_attention_dim=16, axes_dims_rope=(8, 4, 4), moe_enabled=False,
        ),
        dict(
            hidden_states=latents(B, 16, 16), img_shapes=[(1, 4, 4)], encoder_hidden_states=normal(B, 8, 16),
            encoder_hidden_states_mask=padded(8, 6, 5, dtype=torch.bool), timestep=timestep(1.0),
        ),
        chain=("transformer_blocks",),
    ),
    Model(
        "NucleusMoEImageTransformer2DModel",
        dict(
            in_channels=16, out_channels=4, num_layers=8, attention_head_dim=16, num_attention_heads=4,
            num_key_value_heads=2, joint_attention_dim=16, axes_dims_rope=(8, 4, 4), num_experts=4,
            moe_intermediate_dim=32, capacity_factors=2.0,
        ),
        dict(
            hidden_states=latents(B, 16, 16), img_shapes=[(1, 4, 4)], encoder_hidden_states=normal(B, 8, 16),
            encoder_hidden_states_mask=padded(8, 6, 5, dtype=torch.bool), timestep=timestep(1.0),
        ),
        chain=("transformer_blocks",),
        dynamo=dict(capture_scalar_outputs=True),
        variant="experts",
        note="blocks 0-2 and the last are dense, the others have experts",
    ),
    Model(
        "OmniGenTransformer2DModel",
        dict(
            hidden_size=32, num_attention_heads=4, num_key_value_heads=4, intermediate_size=64, num_layers=4,
            pad_token_id=0, vocab_size=64, time_step_dim=16, pos_embed_max_size=8,
            rope_scaling=dict(long_factor=[1, 2, 3, 4], short_factor=[1, 1, 1, 1]),
        ),
        dict(
            hidden_states=latents(B, 4, 8, 8), timestep=timestep(1.0), input_ids=counting(B, 7),
            input_img_latents=[normal(1, 4, 4, 4)], input_image_sizes={0: [[1, 5]]}, attention_mask=ones(B, 24, 24),
            position_ids=counting(B, 24, modulo=24),
        ),
        chain=("layers",),
        fullgraph=False,
    ),
    Model(
        "OvisImageTransformer2DModel",
        dict(
            in_channels=4, out_channels=4, num_layers=4, num_single_layers=4, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(4, 4, 8),
        ),
        dict(
            hidden_states=latents(B, 16, 4), encoder_hidden_states=normal(B, 8, 32), timestep=timestep(1.0),
            img_ids=normal(16, 3), txt_ids=normal(8, 3),
        ),
        chain=("transformer_blocks", "single_transformer_blocks"),
        exits=(None, "hidden_states"),
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
        "PRXTransformer2DModel",
        dict(
            in_channels=4, patch_size=2, context_in_dim=32, hidden_size=32, mlp_ratio=2.0, num_heads=2, depth=4,
            axes_dim=[8, 8], resolution_embeds=True,
        ),
        dict(
            hidden_states=latents(B, 4, 8, 8), timestep=timestep(1.0), encoder_hidden_states=normal(B, 8, 32),
            attention_mask=padded(8, 6, 5, dtype=torch.bool),
        ),
        chain=("blocks",),
    ),
    Model(
        "QwenImage21Transformer2DModel",
        dict(
            in_channels=4, out_channels=4, num_layers=4, attention_head_dim=16, num_attention_heads=2,
            context_in_dim=32, mlp_ratio=2, axes_dims_rope=(4, 4, 8),
        ),
        dict(
            hidden_states=latents(B, 20, 4), encoder_hidden_states=normal(B, 8, 32), timestep=timestep(1.0),
            img_shapes=[[(1, 2, 2), (1, 4, 4)]],
            img_mask=table([3 * [False] + [True] + 4 * [False] + 4 * [True]], dtype=torch.bool),
            encoder_hidden_states_mask=padded(8, 6, 5, dtype=torch.bool),
        ),
        chain=("transformer_blocks",),
        fullgraph=False,
    ),
    Model(
        "QwenImageTransformer2DModel",
        dict(
            in_channels=16, out_channels=4, num_layers=4, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
        ),
        dict(
            hidden_states=latents(B, 16, 16), encoder_hidden_states=normal(B, 8, 16),
            encoder_hidden_states_mask=padded(8, 6, 5, dtype=torch.bool), timestep=timestep(1.0),
            img_shapes=per_sample([(1, 4, 4)]),
        ),
        chain=("transformer_blocks",),
        exits=(None, "hidden_states"),
        optional=dict(txt_seq_lens=per_sample(8)),
    ),
    Model(
        "RFD4ProteinaTransformer",
        dict(
            nlayers=4, token_dim=32, nheads=2, dim_cond=16, pair_repr_dim=8, latent_dim=4, token_type_emb_dim=8,
            t_emb_dim=16, seq_sep_dim=8, xt_pair_dist_dim=10, tri_mult_c=8, num_sequence_classes=16,
            feats_seq=("xt_bb_ca", "xt_local_latents", "token_type", "chain_centroid_xyz", "hotspot"),
            feats_cond_seq=("time_emb_bb_ca", "time_emb_local_latents", "recycle_remaining"),
            feats_pair_repr=("xt_bb_ca_pair_dists", "bond_mask", "index_group_pair", "token_bond_path_length"),
        ),
        dict(
            bb_ca=latents(B, 12, 3), local_latents=latents(B, 12, 4), bb_ca_time=rising(1.0),
            local_latents_time=rising(1.0), padding_mask=padded(12, 12, 10, dtype=torch.bool),
            token_type=counting(B, 12, modulo=7), atom37_mask=ones(B, 12, 37),
            conditioning={
                "is_in_context_conditioning": padded(12, 2, dtype=torch.bool),
                "supports_local_latent": padded(12, 9, dtype=torch.bool),
                "bond_mask": counting(B, 12, 12, modulo=2), "token_bond_path_length": counting(B, 12, 12, modulo=9),
                "condition_hotspot_1_atom": counting(B, 12, 37, modulo=2),
                "condition_index-group_1_token": counting(B, 12, modulo=3),
                "condition_ChainCentroid_1_atom": normal(B, 12, 3),
            },
        ),
        chain=("transformer_layers",),
        exits=("values",),
        note="a pair stream is updated from the tokens behind every second layer, by a side list",
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
        "SanaVideoTransformer3DModel",
        dict(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=4,
            num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=16,
            mlp_ratio=2.0, sample_size=8, rope_max_seq_len=32,
        ),
        dict(
            hidden_states=latents(B, 4, 2, 8, 8), encoder_hidden_states=normal(B, 8, 16), timestep=timestep(1000.0),
            encoder_attention_mask=padded(8, 6, 5),
        ),
        chain=("transformer_blocks",),
    ),
    Model(
        "SanaWMLTX2RefinerTransformer3DModel",
        dict(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
            audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=8,
            audio_cross_attention_dim=16, num_layers=4, caption_channels=16,
        ),
        dict(
            hidden_states=latents(B, 16, 4), encoder_hidden_states=normal(B, 8, 16), timestep=timestep(1000.0, B, 16),
            video_rotary_emb=(normal(B, 16, 32), normal(B, 16, 32)), encoder_attention_mask=padded(8, 6, 5),
        ),
        chain=("transformer_blocks",),
    ),
    Model(
        "SanaWMTransformer3DModel",
        dict(
            in_channels=4, num_layers=4, hidden_size=32, num_attention_heads=2, linear_head_dim=16,
            caption_channels=16, mlp_ratio=2.0,
        ),
        dict(
            hidden_states=latents(B, 4, 3, 4, 4), timestep=timestep(1000.0, B, 1, 3),
            encoder_hidden_states=normal(B, 8, 16), mask=padded(8, 6, 5),
            camera_conditions=each(CAMERA, dtype=torch.float32), chunk_plucker=normal(B, 48, 3, 4, 4),
        ),
        chain=("blocks",),
        exits=("x",),
    ),
    Model(
        "SD3Transformer2DModel",
        dict(
            sample_size=16, patch_size=2, in_channels=4, num_layers=4, attention_head_dim=8, num_attention_heads=4,
            caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
            pos_embed_max_size=8, dual_attention_layers=(0, 1), qk_norm="rms_norm",
        ),
        dict(
            hidden_states=latents(B, 4, 8, 8), timestep=timestep(1000.0), encoder_hidden_states=normal(B, 6, 32),
            pooled_projections=normal(B, 64),
        ),
        chain=("transformer_blocks",),
        exits=(None, "hidden_states"),
    ),
    Model(
        "SkyReelsV2Transformer3DModel",
        dict(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
            ffn_dim=32, num_layers=4, rope_max_seq_len=32,
        ),
        dict(
            hidden_states=latents(B, 4, 2, 8, 8), timestep=timestep(999, dtype=torch.int64),
            encoder_hidden_states=normal(B, 8, 16),
        ),
        chain=("blocks",),
    ),
    Model(
        "StableAudio3DiTModel",
        dict(
            io_channels=8, embed_dim=32, depth=4, num_heads=2, cond_token_dim=16, global_cond_dim=12,
            local_add_cond_dim=5, timestep_features_dim=16, ff_mult=2, num_memory_tokens=3,
        ),
        dict(
            hidden_states=latents(B, 8, 16), timestep=timestep(1.0), encoder_hidden_states=normal(B, 8, 16),
            global_hidden_states=normal(B, 12), encoder_attention_mask=padded(8, 6, 5, dtype=torch.bool),
            local_add_cond=normal(B, 5, 16),
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
        "WanAnimate2Transformer3DModel",
        dict(
            text_len=12, in_dim=8, dim=32, ffn_dim=32, freq_dim=32, text_dim=16, out_dim=4, num_heads=2, num_layers=4,
            use_img_emb=False,
        ),
        dict(
            hidden_states=per_sample(latents(4, 3, 4, 4)), timestep=timestep(1000.0),
            encoder_hidden_states=per_sample(normal(8, 16)), condition_latents=per_sample(normal(4, 3, 4, 4)),
            kv_cache=stored_cache(ANIMATE, "WanAnimate2KVCache", 4, B, 8, 2, 16), kv_cache_mode="cached", seq_len=12,
            reference_grid_sizes=each([2, 2, 2]), origin_len=5, origin_area=[32, 32],
        ),
        chain=("blocks",),
        fullgraph=False,
        note="sizes are read on the host in every block, which breaks the graph there",
        refused="no chain of at least 3",
    ),
    Model(
        "WanAnimateTransformer3DModel",
        dict(
            num_attention_heads=2, attention_head_dim=12, in_channels=12, latent_channels=4, out_channels=4,
            text_dim=16, freq_dim=32, ffn_dim=32, num_layers=4, image_dim=16, rope_max_seq_len=32,
            motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16}, motion_encoder_size=16, motion_style_dim=8,
            motion_dim=4, motion_encoder_dim=16, face_encoder_hidden_dim=16, face_encoder_num_heads=2,
            inject_face_latents_blocks=2,
        ),
        dict(
            hidden_states=latents(B, 12, 3, 8, 8), timestep=timestep(999, dtype=torch.int64),
            encoder_hidden_states=normal(B, 8, 16), encoder_hidden_states_image=normal(B, 4, 16),
            pose_hidden_states=normal(B, 4, 2, 8, 8), face_pixel_values=normal(B, 3, 5, 16, 16),
        ),
        chain=("blocks",),
    ),
    Model(
        "WanTransformer3DModel",
        dict(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
            ffn_dim=32, num_layers=4, rope_max_seq_len=32,
        ),
        dict(
            hidden_states=latents(B, 4, 2, 8, 8), timestep=timestep(999, dtype=torch.int64),
            encoder_hidden_states=normal(B, 8, 16),
        ),
        chain=("blocks",),
    ),
    Model(
        "WanVACETransformer3DModel",
        dict(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
            ffn_dim=32, num_layers=4, rope_max_seq_len=32, vace_layers=[0, 2], vace_in_channels=12,
        ),
        dict(
            hidden_states=latents(B, 4, 2, 8, 8), timestep=timestep(999, dtype=torch.int64),
            encoder_hidden_states=normal(B, 8, 16), control_hidden_states=normal(B, 12, 2, 8, 8),
            control_hidden_states_scale=full(1.0, 2),
        ),
        chain=("blocks",),
    ),
    Model(
        "ZImageTransformer2DModel",
        dict(
            in_channels=4, dim=32, n_layers=4, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
            axes_dims=[8, 4, 4], axes_lens=[128, 32, 32],
        ),
        dict(
            x=per_sample(latents(4, 1, 8, 8)), t=rising(1.0), cap_feats=per_sample(normal(10, 16)),
        ),
        chain=("layers",),
        exits=("x",),
        fullgraph=False,
    ),
]

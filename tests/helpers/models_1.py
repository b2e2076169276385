import torch
from specs import B, Model, Moment, Word, counting, full, latents, normal, table, timestep
from torch import Tensor

LEFT_OUT: dict[str, str] = {}


def padded(length: int, *real: int, dtype: torch.dtype = torch.int64) -> Word:
    """A mask (B, length): ones for the first ``real`` places of each sample, then zeros."""

    def make(now: Moment, place: int) -> Tensor:
        rows = [[1] * n + [0] * (length - n) for n in (real * now.batch)[: now.batch]]
        return torch.tensor(rows, dtype=dtype)

    return Word(make)


# fmt: off
MODELS = [
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
        "BriaFibo2Transformer2DModel",
        dict(
            in_channels=4, patch_size=2, dim=32, n_layers=6, n_refiner_layers=2, n_heads=2, cap_feat_dim=24,
            injection_layer_ids=(1, 4), perceiver_num_layers=1, min_num_gist_tokens=4, max_num_gist_tokens=8,
            gist_step=2, gist_min_text_len=4, gist_max_text_len=16, axes_dims=(4, 6, 6), axes_lens=(16, 16, 16),
        ),
        dict(
            hidden_states=latents(B, 4, 8, 8), timestep=timestep(1.0), encoder_hidden_states=normal(B, 3, 10, 24),
        ),
        chain=("layers",),
        exits=("x",),
        note="the first call builds the rope table, which breaks the graph (3 frames): needs one eager call before",
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
        frames=2,
        note="a boolean index before the blocks ends the first graph; all blocks are in the second",
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
        note="every block gets its own text tokens appended, whose part is cut off again; the experts break the graph",
        frames=27,
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
        frames=3,
        note="a loop of boolean indexing before the blocks makes Dynamo compile each block by itself",
    ),
]

# The same classes with another configuration.
VARIANTS = [
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
        frames=2,
        note="no experts; not square, so padded to max_resolution",
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
        chain=("transformer_blocks", "single_transformer_blocks"),
        exits=("hidden_states", None),
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
        chain=("transformer_blocks",),
    ),
]
# fmt: on

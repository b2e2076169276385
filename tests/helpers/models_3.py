import torch
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache
from specs import B, Model, Word, counting, each, full, latents, normal, ones, padded, per_sample, rising, table, timestep

CAMERA = [  # one row per frame: camera to world (4 x 4), fx, fy, cx, cy
    [1, 0, 0, 0.1 * frame, 0, 1, 0, 0.2, 0, 0, 1, 0.3 * frame, 0, 0, 0, 1, 4, 4, 2, 2] for frame in range(3)
]


def animate_cache(layers, *shape):
    """Keys and values (batch, tokens, heads, width) of the driving video, as its own pass leaves them."""

    def make(now, place):
        cache = WanAnimate2KVCache(layers)
        for layer in range(layers):
            cache.get(layer).store(*(normal(*shape).make(now, place + 100 * layer + half) for half in (0, 50)))
        return cache

    return Word(make)


class Filled(Model):
    """For weights that are made by torch.empty and not initialised: the experts'."""

    def build(self, seed=0):
        torch.use_deterministic_algorithms(True)  # torch.empty gives nan
        try:
            model = super().build(seed)
        finally:
            torch.use_deterministic_algorithms(False)
        for parameter in model.parameters():
            if parameter.isnan().any():
                parameter.normal_(std=0.1)
        return model


# fmt: off
MODELS = [
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
    Filled(
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
        "WanAnimate2Transformer3DModel",
        dict(
            text_len=12, in_dim=8, dim=32, ffn_dim=32, freq_dim=32, text_dim=16, out_dim=4, num_heads=2, num_layers=4,
            use_img_emb=False,
        ),
        dict(
            hidden_states=per_sample(latents(4, 3, 4, 4)), timestep=timestep(1000.0),
            encoder_hidden_states=per_sample(normal(8, 16)), condition_latents=per_sample(normal(4, 3, 4, 4)),
            kv_cache=animate_cache(4, B, 8, 2, 16), kv_cache_mode="cached", seq_len=12,
            reference_grid_sizes=each([2, 2, 2]), origin_len=5, origin_area=[32, 32],
        ),
        chain=("blocks",),
        fullgraph=False,
        refused="no chain of at least 3",
    ),
]

LEFT_OUT = {
    "TransformerTemporalModel": "temporal layer inside a UNet: one attention layer by default, adds to its input, no time",
}
# fmt: on

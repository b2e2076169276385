from specs import B, Model, latents, normal, timestep, table, counting

MODELS = [
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
        "AuraFlowTransformer2DModel",
        dict(
            sample_size=16, patch_size=2, in_channels=4, num_mmdit_layers=4, num_single_dit_layers=4,
            attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32,
            out_channels=4, pos_embed_max_size=256,
        ),
        dict(hidden_states=latents(B, 4, 16, 16), timestep=timestep(1.0), encoder_hidden_states=normal(B, 6, 32)),
        chain=("joint_transformer_blocks", "single_transformer_blocks"),
        exits=("encoder_hidden_states+hidden_states",),
    ),
    Model(
        "SD3Transformer2DModel",
        dict(
            sample_size=16, patch_size=1, in_channels=4, num_layers=4, attention_head_dim=8, num_attention_heads=4,
            caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
        ),
        dict(
            hidden_states=latents(B, 4, 8, 8), timestep=timestep(1000.0), encoder_hidden_states=normal(B, 6, 32),
            pooled_projections=normal(B, 64),
        ),
        chain=("transformer_blocks",),
        exits=(None, "hidden_states"),
    ),
]

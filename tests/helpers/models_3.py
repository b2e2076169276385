import torch
from specs import B, Model, counting, full, latents, normal, ones, per_sample, table, timestep

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
            encoder_hidden_states_mask=counting(B, 8, modulo=8, dtype=torch.bool), timestep=timestep(1.0),
        ),
        chain=("transformer_blocks",),
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
            attention_mask=counting(B, 8, modulo=8, dtype=torch.bool),
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
            encoder_hidden_states_mask=counting(B, 8, modulo=8, dtype=torch.bool), timestep=timestep(1.0),
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
            hidden_states=latents(B, 16, 4), encoder_hidden_states=normal(B, 8, 32), timestep=timestep(1.0),
            img_shapes=[[(1, 4, 4)]], img_mask=table([8 * [False] + 4 * [True]], dtype=torch.bool),
            encoder_hidden_states_mask=counting(B, 8, modulo=8, dtype=torch.bool),
        ),
        chain=("transformer_blocks",),
    ),
]

LEFT_OUT = {}
# fmt: on

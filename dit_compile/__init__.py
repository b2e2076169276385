"""dit_cache: step caching for diffusion transformers as a torch.compile backend."""

"""What a person sees of the cache: messages, summary, graph dumps."""

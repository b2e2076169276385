"""Makes plans: from a budget and a few prompts to a plan file."""

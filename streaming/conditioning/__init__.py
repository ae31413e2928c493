"""From prompts to what the transformer attends to."""

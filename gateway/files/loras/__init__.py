"""LoRA files: list, install, delete."""

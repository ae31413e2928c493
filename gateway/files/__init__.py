"""What users bring or fetch: images, films, model files, LoRA files."""

"""LoRA files: what they hold, and for which layers of a transformer (lora.md). Torch-free but for `stack`."""

"""Names and shapes of a transformer's weights, as checkpoints have them (wan.md 2.8). Torch-free."""

from streaming.checkpoints.config import TransformerConfig

Shape = tuple[int, ...]


def parameter_shapes(config: TransformerConfig) -> dict[str, Shape]:
    """Of the transformer and the projections of its text, by key."""
    dim, ffn = config.dim, config.ffn_dim
    shapes: dict[str, Shape] = {
        **_linear("time_embedding.0", dim, config.freq_dim),
        **_linear("time_embedding.2", dim, dim),
        **_linear("time_projection.1", 6 * dim, dim),
        **_linear("text_embedding.0", dim, config.text_dim),
        **_linear("text_embedding.2", dim, dim),
        **_linear("head.head", config.out_dim * config.patch_size[1] * config.patch_size[2], dim),
        "head.modulation": (1, 2, dim),
        "patch_embedding.weight": (dim, config.in_dim, *config.patch_size),
        "patch_embedding.bias": (dim,),
    }
    for i in range(config.num_layers):
        block = f"blocks.{i}"
        for attention in ("self_attn", "cross_attn"):
            for name in "qkvo":
                shapes |= _linear(f"{block}.{attention}.{name}", dim, dim)
            shapes |= {f"{block}.{attention}.norm_{name}.weight": (dim,) for name in "qk"}
        shapes |= _linear(f"{block}.ffn.0", ffn, dim) | _linear(f"{block}.ffn.2", dim, ffn)
        shapes |= {f"{block}.norm3.weight": (dim,), f"{block}.norm3.bias": (dim,)}
        shapes[f"{block}.modulation"] = (1, 6, dim)
    return shapes


def _linear(name: str, outputs: int, inputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

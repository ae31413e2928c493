"""A pipeline on PyTorch modules in this process, from a directory of models: no engines, no Triton."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from export.checkpoints.load import load_text_encoder, load_vae
from export.graphs.transformer import TextKV, Transformer
from export.graphs.vace import VaceTextKV
from export.onnx.jobs import Request
from export.pytorch.pipeline import EncodePrompts, stream_model
from streaming.checkpoints.files import TEXT_ENCODER, TOKENIZER, VAE_FILES
from streaming.conditioning.tokenizer import PromptTokenizer
from streaming.engines.engine import Engine
from streaming.specs import SPECS
from streaming.triton.model_pipeline import ModelPipeline


def in_process(
    request: Request,
    transformer: Transformer,
    text_kv: TextKV,
    encode_prompts: EncodePrompts,
    watch: Callable[[Engine], Engine] = lambda engine: engine,
    branch_text: VaceTextKV | None = None,
) -> ModelPipeline:
    """The pipeline at the request's first size, in float32.

    transformer, text_kv   with their weights, in float32
    encode_prompts         texts -> an embedding [1, text_len, text_dim] for each
    watch                  from the transformer's engine to the one that the loop calls
    branch_text            of a transformer with a VACE branch
    """
    size = request.sizes[0]
    vae = load_vae(request.models / VAE_FILES[request.vae_type], request.vae_type)
    model = stream_model(
        request.loop, transformer, text_kv, vae, encode_prompts, size, watch=watch, branch_text=branch_text
    )
    spec = SPECS[request.pipeline]
    return ModelPipeline(spec, model, base_seed=spec.base_seed)


def prompt_encoder(request: Request, text_len: int, dtype: torch.dtype = torch.float32) -> EncodePrompts:
    """The text encoder's module in `dtype`; embeddings are float32."""
    encoder = load_text_encoder(request.models / TEXT_ENCODER, text_len, dtype)
    tokens = PromptTokenizer.from_directory(request.models / TOKENIZER, text_len)

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> list[Tensor]:
        batch = tokens(texts)
        return list(encoder(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)).float().split(1))

    return encode

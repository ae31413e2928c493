"""From a checkpoint to a pipeline that streams on PyTorch: no export, no build (backend `pytorch`).

The same code in float32 on the CPU and in bfloat16 on a GPU; what is fast on a GPU only is a switch.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Final

import torch
from torch import Tensor

from export.checkpoints.checkpoints import load_weights
from export.checkpoints.load import load_text_encoder, load_vae, open_transformer, transformer_modules
from export.checkpoints.lora_merge import ScaledAdapter
from export.checkpoints.vace import branch_modules, open_vace
from export.graphs.transformer import TextKV, Transformer
from export.graphs.vace import VaceTextKV
from export.graphs.vae_graphs import Autoencoder, AutoencoderGraph, DecoderGraph, EncoderGraph
from export.pytorch.engine import ModuleEngine
from export.pytorch.faster import NOTHING, channels_innermost, faster_calls, for_cpu
from streaming.adapters.stack import Stacker, no_adapters
from streaming.checkpoints.config import TransformerConfig
from streaming.checkpoints.files import TEXT_ENCODER, TOKENIZER, TRANSFORMER_FILES, VAE_FILES, read_config
from streaming.conditioning.embedding_cache import EmbeddingCache
from streaming.conditioning.prompt_encoder import PromptEncoder
from streaming.conditioning.tokenizer import PromptTokenizer
from streaming.engines.bound import CPU
from streaming.engines.engine import BatchLimit, BranchEngines, Engine, Engines, VaeEngines
from streaming.engines.load_plan import LoadPlan, TorchPlan, TorchPrecision, TorchSwitches, VacePlan
from streaming.engines.manifest import file_info, fingerprint
from streaming.engines.records import EngineError
from streaming.engines.served import PROMPTS, adapted_pipeline, shares_encoder_cache
from streaming.network.inputs import KEY_BIAS
from streaming.network.model import StreamModel
from streaming.network.transformer import ModelSizes
from streaming.noise import SeededNoise
from streaming.specs import LoopSpec, PipelineSpec
from streaming.triton.model_pipeline import ModelPipeline

DTYPES: Final[Mapping[TorchPrecision, torch.dtype]] = {"fp32": torch.float32, "bf16": torch.bfloat16}
_PROMPTS_AT_ONCE: Final = 4
_VACE: Final = VacePlan()
_IDLE_RANK: Final = 2  # of branches that no adapter fills; 1 would be broadcast
EncodePrompts = Callable[[Sequence[str]], list[Tensor]]


def load_pipeline(spec: PipelineSpec, plan: LoadPlan) -> ModelPipeline:
    """The pipeline that the gateway decided upon. Raises WanstreamError for files that are absent or wrong.

    spec: with what the load chose of its loop
    """
    torch_plan = plan.pytorch
    assert torch_plan is not None, "the plan is for another backend"
    assert spec.loop is not None, f"pipeline '{spec.id}' has no model"
    _require_cuda(torch_plan)
    models, files = torch_plan.checkpoints, TRANSFORMER_FILES[spec.id]
    device, dtype = torch.device(torch_plan.device), DTYPES[torch_plan.precision]
    config = read_config(models / files.config)
    transformer, text_kv = transformer_modules(config, spec.loop.cached_keys, adapted=plan.adapted)
    branch, branch_text = None, None
    if plan.vace is not None:
        branch, sizes = open_vace(models / files.vace, config)
        transformer, branch_text = branch_modules(config, sizes, spec.loop.cached_keys, adapted=plan.adapted)
    adapters = [ScaledAdapter(adapter.path, adapter.scale) for adapter in plan.merged]
    load_weights(
        open_transformer(models, files, adapters, branch),
        transformer,
        text_kv,
        *(() if branch_text is None else (branch_text,)),
        dtype=dtype,
        device=device,
        unexpected="warn",
    )
    vae_file, vae_dtype = models / VAE_FILES[torch_plan.vae_type], DTYPES[torch_plan.vae_precision]
    vae = load_vae(vae_file, torch_plan.vae_type, vae_dtype, device)
    switches = torch_plan.switches if torch_plan.on_gpu else for_cpu(torch_plan.switches)
    encode_prompts = _prompt_encoder(torch_plan, config, plan)
    model = stream_model(
        spec.loop,
        transformer,
        text_kv,
        vae,
        encode_prompts,
        plan.size,
        switches=switches,
        branch_text=branch_text,
        vace=plan.vace or _VACE,
    )
    noise = SeededNoise(device if switches.device_noise else CPU)
    stacker = Stacker(config, dtype, device) if plan.adapted else None
    return adapted_pipeline(ModelPipeline(spec, model, plan.base_seed, noise, stacker), plan)


def stream_model(
    loop: LoopSpec,
    transformer: Transformer,
    text_kv: TextKV,
    vae: Autoencoder,
    encode_prompts: EncodePrompts,
    size: tuple[int, int],
    *,
    switches: TorchSwitches = NOTHING,
    watch: Callable[[Engine], Engine] = lambda engine: engine,
    branch_text: VaceTextKV | None = None,
    vace: VacePlan = _VACE,
) -> StreamModel:
    """What streams need of these networks, at a size of height x width pixels, in the transformer's type.

    switches   what is to make it faster
    watch      from the transformer's engine to the one that the loop calls
    branch_text, vace   of a transformer with a VACE branch, which then runs with it and without
    """
    weight = transformer.patch_embedding.weight_t
    if switches.channels_last:
        channels_innermost(vae)
    tokens = prod(side // vae.spatial_factor // transformer.config.patch_size[1] for side in size)
    longest = loop.longest_chunk * tokens

    def denoiser(*, branch: bool) -> Engine:
        signature = transformer.signature(0, branch=branch)
        wrapped = faster_calls(switches, longest)
        return watch(ModuleEngine(transformer, signature, optional=(KEY_BIAS,), wrapped=wrapped))

    def coder(graph: AutoencoderGraph) -> Engine:
        return ModuleEngine(graph, graph.signature(*size))

    return StreamModel(
        spec=loop,
        engines=Engines(
            denoiser(branch=False),
            ModuleEngine(text_kv, text_kv.signature()),
            VaeEngines(
                coder(EncoderGraph(vae, True)),
                coder(EncoderGraph(vae, False)),
                coder(DecoderGraph(vae, True)),
                coder(DecoderGraph(vae, False)),
                vae.groups,
            ),
            None
            if branch_text is None
            else BranchEngines(denoiser(branch=True), ModuleEngine(branch_text, branch_text.signature())),
        ),
        encode_prompts=encode_prompts,
        sizes=stream_sizes(transformer.config, vae.spatial_factor),
        height=size[0],
        width=size[1],
        cache_frames=loop.cache_frames,
        dtype=weight.dtype,
        device=weight.device,
        spare_bias=switches.spare_bias,
        shared_encoder_cache=shares_encoder_cache(vace, vae.groups),
        vace_padding=vace.pad_attention,
        adapters=no_adapters(transformer.config, _IDLE_RANK, weight.dtype, weight.device)
        if transformer.adapted
        else None,
    )


def stream_sizes(config: TransformerConfig, spatial_factor: int = 8) -> ModelSizes:
    """What a stream has to know of a transformer. spatial_factor: pixels per latent position."""
    return ModelSizes(
        layers=config.num_layers,
        heads=config.num_heads,
        head_dim=config.head_dim,
        freq_dim=config.freq_dim,
        channels=config.in_dim,
        patch=config.patch_size,
        spatial_factor=spatial_factor,
    )


def _require_cuda(plan: TorchPlan) -> None:
    if plan.on_gpu and not torch.cuda.is_available():
        raise EngineError(
            f"PyTorch {torch.__version__} finds no GPU where Triton's models run. Install there NVIDIA's "
            "driver and a PyTorch with CUDA: pip install --force-reinstall torch, from PyPI, "
            "not from PyTorch's index for the CPU; or run on the CPU: WANSTREAM_PYTORCH_DEVICE=cpu."
        )


def _prompt_encoder(torch_plan: TorchPlan, config: TransformerConfig, plan: LoadPlan) -> PromptEncoder:
    """The text encoder, with the embeddings of earlier prompts beside the engines."""
    models, text_len = torch_plan.checkpoints, config.text_len
    path, dtype = models / TEXT_ENCODER, DTYPES[torch_plan.text_precision]
    encoder = load_text_encoder(path, text_len, dtype, torch_plan.text_device)
    status, tokenizer = path.stat(), models / TOKENIZER
    files = [file_info(file).sha256 for file in sorted(tokenizer.iterdir()) if file.is_file()]
    # Not the hash of the weights: reading 6 GB takes longer than a stream takes to begin.
    identity = fingerprint([path.name, status.st_size, status.st_mtime_ns, str(dtype), files, text_len])
    return PromptEncoder(
        PromptTokenizer.from_directory(tokenizer, text_len),
        BatchLimit(ModuleEngine(encoder, encoder.signature()), _PROMPTS_AT_ONCE),
        EmbeddingCache(identity, plan.models.parent / PROMPTS),
    )

"""Checkpoints in the directory of models: what PyTorch can stream without engines."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.config import Config
from gateway.serving.engine_sets import missing_packages, packages_reason
from gateway.serving.interface import Availability, ServingError
from gateway.serving.room import Room
from streaming.checkpoints.files import (
    DOWNLOADED_VAE,
    TEXT_ENCODER,
    TOKENIZER,
    TRANSFORMER_FILES,
    VAE_FILES,
    require_file,
)
from streaming.engines.load_plan import LoadPlan, TorchPlan, TorchSettings, VacePlan
from streaming.errors import WanstreamError
from streaming.memory.checkpoints import ON_CPU, ON_GPU, CheckpointSizes
from streaming.memory.host_memory import available_memory
from streaming.memory.machine import gpu_memory_bytes, torch_has_cuda
from streaming.memory.offers import offers
from streaming.specs import LOAD_CHOICES, PipelineSpec, VaeType

_PACKAGES = ("torch", "tokenizers", "ftfy", "safetensors")  # of a pipeline without engines


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """What is in the directory of models, and how PyTorch would run it.

    directory     of models
    prompts_beside   directory of the engines' Triton models; prompts are remembered beside it
    settings      of this server
    has_gpu       Triton's models can compute on one
    embedded      they run in this Python environment
    """

    directory: Path
    prompts_beside: Path
    settings: TorchSettings
    has_gpu: bool
    embedded: bool = True

    @property
    def on_gpu(self) -> bool:
        """Whether PyTorch computes on a GPU."""
        return self.has_gpu if self.settings.device == "auto" else self.settings.device == "cuda"

    def availability(self, spec: PipelineSpec) -> Availability:
        """Whether the weights of `spec` are there, and with which autoencoders; any size of picture goes."""
        absent = missing_packages(_PACKAGES) if self.embedded else []
        if absent:
            return Availability(False, packages_reason(spec, absent))
        missing = self._missing(spec)
        vae_types = self._vae_types(spec)
        if missing or not vae_types:
            first = missing[0] if missing else VAE_FILES["wan"]
            return Availability(
                False,
                f"The weights of '{spec.id}' are not complete in {self.directory}: {first} is missing. "
                f"Download them on the page, or: download_models --pipeline {spec.id}.",
            )
        return Availability(
            True,
            vae_types=vae_types,
            needs_models=False,
            loras=True,
            quantizations=(),
            vace=self._has_branch(spec),
        )

    def has(self, spec: PipelineSpec) -> bool:
        return spec.id in TRANSFORMER_FILES and self.availability(spec).available

    def plan(self, spec: PipelineSpec, load_params: Mapping[str, Any]) -> LoadPlan:
        """How a load runs, before memory is looked at.

        Raises ServingError for what PyTorch cannot do, and for files that are absent or something else.
        """
        plan = self.planned(spec, load_params)
        try:
            for name in (*self._files(spec), VAE_FILES[load_params["vae_type"]]):
                require_file(self.directory / name)
        except WanstreamError as error:
            raise ServingError(str(error)) from error
        return plan

    def planned(self, spec: PipelineSpec, load_params: Mapping[str, Any]) -> LoadPlan:
        """The same for weights that may not be here yet. Raises ServingError for what PyTorch cannot do."""
        if load_params.get("quantization"):
            raise ServingError(
                f"{load_params['quantization']} needs engines, which backend pytorch does without. Load with "
                "'quantization' null, or without the parameter 'backend'."
            )
        vae_type: VaeType = load_params["vae_type"]
        precision = self.settings.precision
        if precision == "auto":
            precision = "bf16" if self.on_gpu else "fp32"
        device = "cuda:0" if self.on_gpu else "cpu"
        return LoadPlan(
            models=self.prompts_beside,
            height=load_params["height"],
            width=load_params["width"],
            backend="pytorch",
            pytorch=TorchPlan(
                checkpoints=self.directory,
                vae_type=vae_type,
                precision=precision,
                device=device,
                text_device=device,
                text_precision=precision,
                switches=self.settings.switches,
            ),
            base_seed=load_params["base_seed"],
            loop={name: load_params[name] for name in LOAD_CHOICES if name in load_params},
            vace=VacePlan.of(load_params) if self._has_branch(spec) else None,
        )

    def _has_branch(self, spec: PipelineSpec) -> bool:
        return (self.directory / TRANSFORMER_FILES[spec.id].vace).is_file()

    def sizes(self, spec: PipelineSpec, vae_type: VaeType, *, vace: bool = False) -> CheckpointSizes:
        """vace: with the VACE branch. Raises ServingError for a damaged config.json."""
        try:
            return CheckpointSizes.of(self.directory, spec.id, vae_type, vace=vace)
        except WanstreamError as error:
            raise ServingError(str(error)) from error

    def room(self, spec: PipelineSpec, free: int | None, free_on_cpu: int | None) -> Room:
        """What fits into so many bytes, of the device and of the machine beside a GPU; None: nobody can tell.

        Raises ServingError for a damaged config.json.
        """

        def plan_of(vae_type: VaeType, size: tuple[int, int]) -> tuple[LoadPlan, CheckpointSizes]:
            params = {"height": size[0], "width": size[1], "vae_type": vae_type, "base_seed": 0}
            return self.planned(spec, params), self.sizes(spec, vae_type)

        kind = (ON_GPU if self.on_gpu else ON_CPU).memory
        others = (name for name in VAE_FILES if name != DOWNLOADED_VAE)
        absent = tuple(name for name in others if not (self.directory / VAE_FILES[name]).is_file())
        return Room(kind, free, offers(spec, plan_of, free, free_on_cpu), absent)

    def _missing(self, spec: PipelineSpec) -> list[str]:
        names = [name for name in self._files(spec) if not (self.directory / name).is_file()]
        tokenizer = self.directory / TOKENIZER
        return names if tokenizer.is_dir() and any(tokenizer.iterdir()) else [*names, TOKENIZER]

    def _files(self, spec: PipelineSpec) -> tuple[str, ...]:
        files = TRANSFORMER_FILES[spec.id]
        return (files.weights, *(files.adapter or ())[:1], files.config, TEXT_ENCODER)

    def _vae_types(self, spec: PipelineSpec) -> tuple[VaeType, ...]:
        assert spec.loop is not None, f"pipeline '{spec.id}' has no autoencoder"
        return tuple(kind for kind in spec.loop.vae_types if (self.directory / VAE_FILES[kind]).is_file())


def checkpoints_of(config: Config) -> Checkpoints:
    """What a server of these settings can stream in PyTorch; an external Triton is taken to have a GPU."""
    embedded = config.triton_url is None
    has_gpu = not embedded or (torch_has_cuda() and gpu_memory_bytes() is not None)
    directories = config.directories
    return Checkpoints(directories.models, directories.engines / "models", config.pytorch, has_gpu, embedded)


def room_here(config: Config, spec: PipelineSpec) -> Room | None:
    """What of a pipeline's weights fits on the GPU of this machine; None: nothing of it would run on one."""
    checkpoints, memory = checkpoints_of(config), gpu_memory_bytes()
    if spec.loop is None or not checkpoints.on_gpu or memory is None:
        return None
    used, total = memory
    return checkpoints.room(spec, total - used, available_memory())

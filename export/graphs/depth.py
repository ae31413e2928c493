"""Video-Depth-Anything: how near each pixel of a film is, from a few pictures at once.

DINOv2 looks at each picture, a DPT head puts four of its layers together, and attention over time at four
places of the head keeps the pictures of a call in step. Modules and parameters are named as in the
checkpoint; all sizes come from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.graphs.signature import Signature
from streaming.network.inputs import TensorSpec

PATCH: Final = 14  # pixels
MAX_PICTURES: Final = 32  # of a call: so many places in time are known
_HEAD_DIM: Final = 64
_TIME_HEADS: Final = 8
_GROUPS: Final = 32
_EPSILON: Final = 1e-6
_TAPS: Final = 4  # layers of the encoder that the head sees, the last one among them
_POSITION_OFFSET: Final = 0.1  # of DINOv2: keeps rounding from making the grid a row too small


@dataclass(frozen=True, slots=True)
class DepthConfig:
    """Sizes of the network; the defaults are those of the small one.

    width, layers   of the encoder
    grid            places per side for which the encoder has positions
    features        channels of the head where its layers are added up
    channels        of each layer before
    """

    width: int = 384
    layers: int = 12
    grid: int = 37
    features: int = 64
    channels: tuple[int, ...] = (48, 96, 192, 384)

    @staticmethod
    def from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> "DepthConfig":
        """Of the checkpoint with these tensors. Raises KeyError when it is none."""
        blocks = {key.split(".")[2] for key in shapes if key.startswith("pretrained.blocks.")}
        return DepthConfig(
            width=shapes["pretrained.cls_token"][2],
            layers=len(blocks),
            grid=round((shapes["pretrained.pos_embed"][1] - 1) ** 0.5),
            features=shapes["head.scratch.output_conv1.weight"][1],
            channels=tuple(shapes[f"head.projects.{i}.weight"][0] for i in range(_TAPS)),
        )


class VideoDepth(nn.Module):
    """Depth of the pictures of one call, which may be up to 32."""

    def __init__(self, config: DepthConfig) -> None:
        super().__init__()
        self.config = config
        self.pretrained = _Encoder(config)
        self.head = _Head(config)

    @staticmethod
    def signature(height: int, width: int) -> Signature:
        """For pictures of that size in pixels, each a multiple of 14."""
        return Signature(
            (TensorSpec("pictures", ("T", 3, height, width)),),
            (TensorSpec("depth", ("T", height, width)),),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """
        pictures   [T, 3, H, W]   normalised as ImageNet's, H and W multiples of 14
        returns    [T, H, W]      0 is far; the scale is unknown
        """
        rows, columns = pictures.shape[2] // PATCH, pictures.shape[3] // PATCH
        layers = self.pretrained(pictures, rows, columns)
        depth: Tensor = self.head(layers, rows, columns)
        return F.relu(depth[:, 0])


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _SelfAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = x.shape[-1] // _HEAD_DIM
        q, k, v = self.qkv(x).unflatten(-1, (3, heads, _HEAD_DIM)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v)
        y: Tensor = self.proj(seen.transpose(1, 2).flatten(2))
        return y


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, _EPSILON)
        self.attn = _SelfAttention(width)
        self.ls1 = _Scale(width)
        self.norm2 = nn.LayerNorm(width, _EPSILON)
        self.mlp = _Mlp(width)
        self.ls2 = _Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        y: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return y


class _PatchEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, pictures: Tensor) -> Tensor:
        y: Tensor = self.proj(pictures).flatten(2).transpose(1, 2)
        return y


class _Encoder(nn.Module):
    """DINOv2."""

    def __init__(self, config: DepthConfig) -> None:
        super().__init__()
        self.layers, self.grid = config.layers, config.grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid**2 + 1, config.width))
        self.mask_token = nn.Parameter(torch.zeros(1, config.width))  # of the training
        self.patch_embed = _PatchEmbedding(config.width)
        self.blocks = nn.ModuleList(_Block(config.width) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, _EPSILON)

    def forward(self, pictures: Tensor, rows: int, columns: int) -> list[Tensor]:
        """The normalised tokens [T, rows * columns, C] after every third layer, of twelve."""
        x = self.patch_embed(pictures)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self._positions(rows, columns)
        found, stride = [], self.layers // _TAPS
        for number, block in enumerate(self.blocks, 1):
            x = block(x)
            if number % stride == 0:
                found.append(self.norm(x)[:, 1:])
        return found

    def _positions(self, rows: int, columns: int) -> Tensor:
        own, places = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        if (rows, columns) != (self.grid, self.grid):
            grid = places.unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
            scale = [(side + _POSITION_OFFSET) / self.grid for side in (rows, columns)]
            grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
            places = grid.permute(0, 2, 3, 1).flatten(1, 2)
        return torch.cat([own, places], dim=1)


class _Refinement(nn.Module):
    """A residual unit of two convolutions."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv2(F.relu(self.conv1(F.relu(x))))
        return y


class _Fusion(nn.Module):
    """Adds a layer to what comes from the deeper ones, at the size of the next one."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        self.resConfUnit1 = _Refinement(features)
        self.resConfUnit2 = _Refinement(features)

    def forward(self, x: Tensor, layer: Tensor | None, size: tuple[int, int]) -> Tensor:
        if layer is not None:
            x = x + self.resConfUnit1(layer)
        y: Tensor = self.out_conv(_resized(self.resConfUnit2(x), size))
        return y


class _Scratch(nn.Module):
    def __init__(self, config: DepthConfig) -> None:
        super().__init__()
        features, (a, b, c, d) = config.features, config.channels
        self.layer1_rn = nn.Conv2d(a, features, 3, padding=1, bias=False)
        self.layer2_rn = nn.Conv2d(b, features, 3, padding=1, bias=False)
        self.layer3_rn = nn.Conv2d(c, features, 3, padding=1, bias=False)
        self.layer4_rn = nn.Conv2d(d, features, 3, padding=1, bias=False)
        self.refinenet1, self.refinenet2 = _Fusion(features), _Fusion(features)
        self.refinenet3, self.refinenet4 = _Fusion(features), _Fusion(features)
        self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(features // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 1, 1), nn.ReLU()
        )


class _Head(nn.Module):
    """DPT, with attention over time at the two deepest layers and after the first two fusions."""

    def __init__(self, config: DepthConfig) -> None:
        super().__init__()
        a, b, c, d = config.channels
        self.projects = nn.ModuleList(nn.Conv2d(config.width, channels, 1) for channels in config.channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(a, a, 4, 4),
                nn.ConvTranspose2d(b, b, 2, 2),
                nn.Identity(),
                nn.Conv2d(d, d, 3, 2, 1),
            ]
        )
        self.scratch = _Scratch(config)
        self.motion_modules = nn.ModuleList(_Motion(n) for n in (c, d, config.features, config.features))

    def forward(self, tokens: list[Tensor], rows: int, columns: int) -> Tensor:
        layers = [
            resize(project(x.transpose(1, 2).unflatten(2, (rows, columns))))
            for x, project, resize in zip(tokens, self.projects, self.resize_layers, strict=True)
        ]
        layers[2], layers[3] = self.motion_modules[0](layers[2]), self.motion_modules[1](layers[3])
        scratch = self.scratch
        one, two = scratch.layer1_rn(layers[0]), scratch.layer2_rn(layers[1])
        three, four = scratch.layer3_rn(layers[2]), scratch.layer4_rn(layers[3])
        path = self.motion_modules[2](scratch.refinenet4(four, None, _size(three)))
        path = self.motion_modules[3](scratch.refinenet3(path, three, _size(two)))
        path = scratch.refinenet2(path, two, _size(one))
        height, width = _size(one)
        path = scratch.refinenet1(path, one, (2 * height, 2 * width))
        depth = _resized(scratch.output_conv1(path), (rows * PATCH, columns * PATCH))
        y: Tensor = scratch.output_conv2(depth)
        return y


class _Motion(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.temporal_transformer = _TimeTransformer(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.temporal_transformer(x)
        return y


class _TimeTransformer(nn.Module):
    """Each place of the pictures looks at itself at the other times."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, channels, _EPSILON)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([_TimeBlock(channels)])
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: [T, C, h, w], as the result."""
        h = self.proj_in(self.norm(x).permute(2, 3, 0, 1).flatten(0, 1))  # [h * w, T, C]
        for block in self.transformer_blocks:
            h = block(h)
        y: Tensor = x + self.proj_out(h).unflatten(0, x.shape[2:]).permute(2, 3, 0, 1)
        return y


class _TimeBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList(_TimeAttention(channels) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.ff = _GatedMlp(channels)
        self.ff_norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            x = x + attention(norm(x))
        y: Tensor = x + self.ff(self.ff_norm(x))
        return y


class _Places(nn.Module):
    """Places in time; the checkpoint has them as a tensor."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pe = nn.Parameter(torch.zeros(1, MAX_PICTURES, channels))


class _TimeAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pos_encoder = _Places(channels)
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_encoder.pe[:, : x.shape[1]]
        q, k, v = (
            layer(x).unflatten(-1, (_TIME_HEADS, -1)).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        y: Tensor = self.to_out[0](seen)
        return y


class _Gate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 8 * channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        y: Tensor = value * F.gelu(gate)
        return y


class _GatedMlp(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([_Gate(channels), nn.Identity(), nn.Linear(4 * channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[3]


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=True)

"""The sentences of the world: tokenizer, and a text encoder whose rows all say everything.

The encoder is trained first and alone: every row of its output must give, through one linear map, the
colours as numbers, the form, the size and the motion. A linear code makes a mixture of two embeddings the
embedding of the mixed scene, so that blends and transitions pass through the colours in between.
"""

import random
from collections.abc import Sequence
from typing import Any, Final

import torch
from tokenizers import Regex, Tokenizer, normalizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from export.graphs.text_encoder import TextEncoder, TextEncoderConfig
from export.nano.optim import MuonAdam, warm_cosine
from export.nano.world import COLOURS, CPU, MOTIONS, RADII, SHAPES, SPEED, Scene, palette_of

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
TEXT_LEN: Final = 32  # tokens
CONFIG: Final = {"dim": 128, "dim_attn": 128, "dim_ffn": 256, "num_heads": 4, "num_layers": 2}

SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    "circle": ("circle", "ball", "disc", "dot"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "pyramid"),
    "star": ("star",),
    "purple": ("purple", "violet"),
    "cyan": ("cyan", "turquoise"),
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
    "moves left": ("moves left", "moving left", "goes left", "drifts left"),
    "moves right": ("moves right", "moving right", "goes right", "drifts right"),
    "moves up": ("moves up", "moving up", "goes up", "rises up"),
    "moves down": ("moves down", "moving down", "goes down", "falls down"),
    "stays still": ("stays still", "rests", "stands still"),
    "pulses": ("pulses", "pulsing", "breathes"),
}
_GRAMMAR: Final = ("a", "an", "the", "on", "in", "and", "with", "of", "to", "is", "background", "front")
# Sentences that say nothing about the picture: in camera mode it is then what the camera shows.
CAMERA: Final = ("what the camera shows", "the camera", "camera", "a video", "as the camera shows it")


def vocabulary() -> dict[str, int]:
    words = set(_GRAMMAR) | set(COLOURS) | set(SHAPES) | {size for size in RADII if size}
    for phrase in (*MOTIONS, *CAMERA, *(each for group in SYNONYMS.values() for each in group)):
        words |= set(phrase.split())
    return {token: i for i, token in enumerate((PAD, END, UNKNOWN, *sorted(words)))}


def tokenizer() -> Tokenizer:
    """Words, lower case, punctuation ignored; the end token follows."""
    known = vocabulary()
    result = Tokenizer(WordLevel(known, unk_token=UNKNOWN))
    result.add_special_tokens([PAD, END, UNKNOWN])
    result.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\p{L}\p{N}]+"), " "), normalizers.Strip()]
    )
    result.pre_tokenizer = WhitespaceSplit()
    result.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, known[END])])
    return result


def say(scene: Scene, rng: random.Random) -> str:
    """A sentence for a scene: that of the grammar, or with other words, or in another order."""
    if rng.random() < 0.5:
        return scene.prompt

    def word(name: str) -> str:
        return rng.choice(SYNONYMS.get(name, (name,)))

    size = f"{word(scene.size)} " if scene.size else ""
    thing = f"{size}{word(scene.colour)} {word(scene.shape)}"
    article = rng.choice(("a ", "the ", ""))
    place = f"{word(scene.background)} background"
    motion = word(scene.motion)
    sentence = rng.choice(
        (
            f"{article}{thing} {motion} on a {place}",
            f"{article}{thing} {motion} in front of a {place}",
            f"{article}{thing} on a {place} {motion}",
            f"a {place} and {article}{thing} {motion}",
            f"on a {place} {article}{thing} {motion}",
        )
    )
    words = sentence.split()
    for _ in range(rng.choice((0, 0, 1, 2))):
        words.insert(rng.randrange(len(words) + 1), UNKNOWN)
    return " ".join(words)


def incomplete(rng: random.Random) -> tuple[str, Scene]:
    """A sentence that leaves something out, and the scene that it stands for: the rest is the default."""
    full = Scene.drawn(rng)
    default = Scene("", "white", "circle", "stays still", "black")
    colour, background = full.colour, full.background
    size = f"{full.size} " if full.size else ""
    kinds: Sequence[tuple[str, dict[str, str]]] = (
        (f"a {background} background", {"background": background}),
        (f"{background}", {"background": background}),
        (f"a {size}{colour} {full.shape}", {"size": full.size, "colour": colour, "shape": full.shape}),
        (
            f"a {colour} {full.shape} on a {background} background",
            {"colour": colour, "shape": full.shape, "background": background},
        ),
        (
            f"a {size}{colour} {full.shape} {full.motion}",
            {"size": full.size, "colour": colour, "shape": full.shape, "motion": full.motion},
        ),
        ("", {}),
    )
    text, changes = rng.choice(kinds)
    values = {"size": default.size, "shape": default.shape, "motion": default.motion} | changes
    colour = changes.get("colour") or ("white" if changes.get("background") != "white" else "black")
    background = changes.get("background") or ("black" if colour != "black" else "white")
    return text, Scene(values["size"], colour, values["shape"], values["motion"], background)


CODE: Final = 3 + 3 + len(SHAPES) + 1 + 2 + 1 + 1


def code(scene: Scene | None) -> Tensor:
    """What an embedding must say, [CODE]: colours, form, size, velocity, pulse; each about 1 in size.

    The last number is 0, and 1 where there is no scene (`CAMERA`).
    """
    if scene is None:
        return torch.cat([torch.zeros(CODE - 1), torch.ones(1)])
    vx, vy = scene.velocity
    form = [float(scene.shape == shape) * 2 for shape in SHAPES]
    size = (RADII[scene.size] - 0.19) * 12
    rest = [size, 1.5 * vx / SPEED, 1.5 * vy / SPEED, 1.5 * (scene.motion == "pulses"), 0.0]
    colours = torch.cat([palette_of([scene], part)[0] for part in ("colour", "background")])
    return torch.cat([colours, torch.tensor([*form, *rest])])


class PromptBatch:
    """Tokenises sentences for a text encoder."""

    def __init__(self, length: int = TEXT_LEN) -> None:
        self._tokenizer = tokenizer()
        self._tokenizer.enable_truncation(max_length=length)
        self._tokenizer.enable_padding(length=length, pad_id=0, pad_token=PAD)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """ids, mask int64 [B, L]"""
        found = self._tokenizer.encode_batch(list(texts))
        ids, mask = [e.ids for e in found], [e.attention_mask for e in found]
        return torch.tensor(ids), torch.tensor(mask)


def new_encoder(seed: int) -> TextEncoder:
    """T5 has no attention scale, so its queries begin small."""
    torch.manual_seed(seed)
    config = TextEncoderConfig(vocab=len(vocabulary()), seq_len=TEXT_LEN, **CONFIG)
    encoder = TextEncoder(config)
    for name, parameter in encoder.named_parameters():
        if "norm" in name:
            nn.init.ones_(parameter)
        elif "embedding" in name:
            nn.init.normal_(parameter, std=1.0 if name.startswith("token") else 0.5)
        else:
            scale = (config.dim_attn // config.num_heads) ** -0.25 if ".attn.q" in name else 1.0
            nn.init.normal_(parameter, std=scale * parameter.shape[0] ** -0.5)
    return encoder


class TextTraining:
    """The encoder and the linear map that reads scenes from its rows."""

    def __init__(self, seed: int, steps: int, batch: int = 64, device: torch.device = CPU) -> None:
        self.encoder = new_encoder(seed).to(device)
        self.reader = nn.Linear(CONFIG["dim"], CODE).to(device)
        self.device = device
        self.steps, self.done, self.batch = steps, 0, batch
        self.rng = random.Random(seed)
        self._prompts = PromptBatch()
        named = list(self.encoder.named_parameters())
        matrices = [p for n, p in named if p.ndim == 2 and "embedding" not in n]
        chosen = {id(p) for p in matrices}
        others = [p for _, p in named if id(p) not in chosen] + list(self.reader.parameters())
        self.optimiser = MuonAdam(matrices, others, adam_factor=1.0)

    def step(self) -> dict[str, Tensor]:
        texts: list[str] = []
        codes: list[Tensor] = []
        for _ in range(self.batch):
            kind = self.rng.random()
            if kind < 0.05:
                texts.append(self.rng.choice(CAMERA))
                codes.append(code(None))
                continue
            if kind < 0.2:
                text, scene = incomplete(self.rng)
            else:
                scene = Scene.drawn(self.rng)
                text = say(scene, self.rng)
            texts.append(text)
            codes.append(code(scene))
        ids, mask = self._prompts(texts)
        used = int(mask.sum(1).max())
        ids, mask = ids[:, :used].to(self.device), mask[:, :used].to(self.device)
        buckets, self.encoder.buckets = self.encoder.buckets, self.encoder.buckets[:used, :used]
        rows = self.encoder(ids, mask)
        self.encoder.buckets = buckets
        error = self.reader(rows) - torch.stack(codes).unsqueeze(1).to(self.device)
        weight = mask.unsqueeze(-1) / (mask.sum() * CODE)
        loss = (error.square() * weight).sum()
        self.optimiser.take(loss)
        self.optimiser.step(warm_cosine(self.done, self.steps, 5e-3, 2e-5, warm_up=20))
        self.done += 1
        return {"error": loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "encoder": self.encoder.state_dict(),
            "reader": self.reader.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "done": self.done,
            "rng": self.rng.getstate(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.encoder.load_state_dict(state["encoder"])
        self.reader.load_state_dict(state["reader"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.done = state["done"]
        self.rng.setstate(state["rng"])

"""The nano checkpoint: its world, how it is trained, and a training in small from command to picture."""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from export.checkpoints.demo import trained_weights, write_demo_models
from export.graphs.vae_graphs import encode
from export.nano.__main__ import main
from export.nano.films import CHUNK, CHUNKS, Film, FilmBank, FilmMaker, draw_films
from export.nano.in_process import in_process
from export.nano.measure import best_shape, look, object_mask, place, velocity
from export.nano.recipe import Recipe
from export.nano.stages import Training, run
from export.nano.text import TextTraining, new_encoder
from export.nano.transformer_training import (
    CONFIG,
    LAYOUTS,
    Layout,
    TransformerTraining,
    block_bias,
    couple,
    forward,
    new_transformer,
)
from export.nano.vae_training import (
    ClipKind,
    VaeTraining,
    decode_raw,
    new_vae,
    product_form,
    psnr,
    random_clips,
    training_form,
)
from export.nano.world import SHAPES, Scene, States, film
from streaming.network.tokens import patchify, rope_tables, time_sinusoid, unpatchify

SIZE = (96, 96)


def pictures(scene: Scene, frames: int = 12) -> np.ndarray:
    """Frames of the world, uint8 [T, H, W, 3]; the shape crosses the border."""
    drawn, _ = film([scene], States(torch.tensor([[86.0, 50.0]]), torch.zeros(1)), frames, SIZE)
    return ((drawn[0] + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_what_was_drawn_is_measured(shape: str) -> None:
    scene = Scene("large", "red", shape, "moves right", "cyan")

    images = pictures(scene)

    seen, where = look(images[0]), place(object_mask(images[0], scene))
    assert (seen.background, seen.object) == ("cyan", "red")
    assert where is not None
    assert abs(where[0] - 88) < 1.5
    assert velocity(images, scene) == pytest.approx((2.0, 0.0), abs=0.1)
    assert best_shape(images[0], scene)[0] == shape


def test_noise_that_names_a_place_is_still_plain_noise() -> None:
    centre = torch.rand(200, 2) * 96

    noise = couple(torch.randn(200, 3, 16, 12, 12), centre, SIZE)

    column = noise.sum(dim=(1, 2, 3)).reshape(200, 6, 2).sum(2)  # by token
    wave = torch.exp(2j * math.pi * (torch.arange(6) + 0.5) / 6)
    crest = torch.angle((column * wave).sum(1)) % (2 * math.pi) * 96 / (2 * math.pi)
    assert torch.allclose(crest, centre[:, 0], atol=0.1)
    assert noise.std().item() == pytest.approx(1, abs=0.01)


def test_the_training_computes_what_the_product_computes() -> None:
    transformer, text_kv = new_transformer(0)
    named = {n: p for module in (transformer, text_kv) for n, p in module.named_parameters()}
    with torch.no_grad():
        for name, parameter in named.items():
            if name.startswith("head.head") or name.endswith("bias"):
                parameter.normal_(std=0.1)
    x, embedding = torch.randn(2, 6, 16, 12, 12), torch.randn(2, 32, 128)
    embedding[:, 9:] = 0
    timestep = torch.tensor([[0.0] * 3 + [500.0] * 3] * 2)
    mask = block_bias((3,), 3, 1).repeat_interleave(36, 0).repeat_interleave(36, 1)
    tables = rope_tables(range(4, 10), 6, 6, 32)

    with torch.no_grad():
        half = {n: p.bfloat16() for n, p in named.items()}
        ours = forward(half, CONFIG, x, timestep, embedding[:, :9], tables, mask.bfloat16())
        bias = mask[None, None]
        past = (torch.zeros(2, 2, 0, 4, 32),) * CONFIG.num_layers
        tokens = (patchify(x), time_sinusoid(timestep, 256), bias)
        product = unpatchify(transformer(tokens, tables, text_kv(embedding), past)[0], 12, 12)

    assert (ours - product).abs().max() < 0.1  # bfloat16
    assert product.std() > 0.5


def test_a_new_vae_begins_as_a_blur_and_its_training_form_computes_the_same() -> None:
    vae = new_vae(0)
    clips, _ = random_clips(ClipKind(5, 40), 8, random.Random(3))

    with torch.no_grad():
        z = encode(vae, clips)[1]
        picture = decode_raw(vae, z)
        forms = [encode(training_form(vae, stacked), clips)[1] for stacked in (False, True)]
        again = encode(product_form(vae), clips)[1]

    assert psnr(float((picture - clips).square().mean())) > 12.5
    assert all(torch.allclose(z, fast, atol=1e-4) for fast in (*forms, again))


def films_of(start: bool, count: int = 4) -> list[Film]:
    rng = random.Random(0)
    return [Film.drawn(rng, start) for _ in range(count)]


@pytest.mark.parametrize(("start", "frames"), [(True, 9 + 3 * 12), (False, 13 + 2 * 12)])
def test_a_film_has_its_chunks_and_nothing_moves_in_the_first_of_a_stream(start: bool, frames: int) -> None:
    states = States(torch.full((4, 2), 40.0), torch.zeros(4))

    pictures, _ = draw_films(films_of(start), states, SIZE, range(CHUNKS) if start else range(1, CHUNKS))

    assert pictures.shape == (4, frames, 3, *SIZE)
    assert start == bool((pictures[:, :9] == pictures[:, :1]).all())


def test_films_are_kept_with_their_sentences_and_those_from_the_start_come_first() -> None:
    maker = FilmMaker(new_vae(0), new_encoder(0), SIZE, seed=1, steps=2, batch=2)
    maker.step()
    maker.step()

    bank = maker.bank()

    assert bank.latents.shape == (4, CHUNKS * CHUNK, 16, 12, 12)
    assert bank.embeddings.shape[:2] == (4, CHUNKS)
    assert bank.embeddings.abs().amax(dim=(1, 2, 3)).min() > 0
    assert bank.starts == 2


def small_transformer_training() -> Training:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(12, CHUNKS * CHUNK, 16, 12, 12, generator=generator).half()
    embeddings = torch.randn(12, CHUNKS, 9, 128, generator=generator).half()
    bank = FilmBank(latents, embeddings, 96 * torch.rand(12, 2, generator=generator), 6)
    return TransformerTraining(bank, SIZE, seed=0, steps=4, frames=12)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_every_kind_of_sample_trains_the_network(layout: Layout) -> None:
    training = small_transformer_training()
    assert isinstance(training, TransformerTraining)
    *inputs, tables = training.sample(layout)
    context, x_t, t, target, *_ = inputs

    training._take_gradients(layout, *inputs, *tables)

    assert context.shape[1] == sum(layout.past)
    assert x_t.shape[1] == t.shape[1] == target.shape[1] == layout.new * layout.copies
    gradient = training.params["head.head.weight_t"].grad
    assert gradient is not None
    assert 0 < float(gradient.norm()) < math.inf


TRAININGS: dict[str, Callable[[], Training]] = {
    "vae": lambda: VaeTraining(0, 4),
    "text": lambda: TextTraining(0, 4, batch=8),
    "transformer": small_transformer_training,
}


@dataclass
class Interrupted:
    """A training that somebody stops after some steps."""

    training: Training
    last: int

    @property
    def steps(self) -> int:
        return self.training.steps

    @property
    def done(self) -> int:
        return self.training.done

    def step(self) -> Mapping[str, torch.Tensor | float]:
        if self.done == self.last:
            raise KeyboardInterrupt
        return self.training.step()

    def state_dict(self) -> dict[str, Any]:
        return self.training.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.training.load_state_dict(state)


@pytest.mark.parametrize("name", TRAININGS)
def test_an_interrupted_training_goes_on_to_the_same_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.nano.stages.SAVE_EVERY_S", -1.0)  # after every step
    torch.manual_seed(5)
    whole, first = TRAININGS[name](), TRAININGS[name]()
    torch.manual_seed(7)
    run(name, whole, tmp_path / "whole.pt", print)
    torch.manual_seed(7)
    with pytest.raises(KeyboardInterrupt):
        run(name, Interrupted(first, 2), tmp_path / "part.pt", print)
    torch.manual_seed(99)
    second = TRAININGS[name]()

    run(name, second, tmp_path / "part.pt", print)

    assert second.done == 4
    ends = [torch.load(tmp_path / f"{part}.pt", weights_only=False)["training"] for part in ("whole", "part")]
    key = {"vae": "vae", "text": "encoder", "transformer": "average"}[name]
    for parameter, value in ends[0][key].items():
        assert torch.equal(value, ends[1][key][parameter]), parameter


def test_the_text_encoder_learns_to_say_what_the_sentence_says() -> None:
    training = TextTraining(0, 60, batch=12)

    errors = [float(training.step()["error"]) for _ in range(60)]

    assert np.mean(errors[-10:]) < 0.6 * np.mean(errors[:5])


def test_one_command_trains_exports_and_streams(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["train", "--out", str(tmp_path), "--scale", "0.001"])

    assert result.exit_code == 0, result.output
    assert f"transformer: {Recipe(tmp_path, 0, 0.001).steps('transformer')} steps took" in result.output
    write_demo_models(tmp_path / "models", trained_weights(tmp_path / "weights"))
    stream = in_process(tmp_path / "models", "longlive").open_stream()
    parameters = {"prompts": "a red circle", "denoising_step_list": [1000, 500]}
    frames = np.concatenate([found for found, _ in stream.next_chunk(parameters, None, lambda: False)])
    assert frames.shape == (9, *SIZE, 3)

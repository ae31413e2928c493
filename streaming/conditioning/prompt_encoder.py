"""From prompt texts to embeddings: cleaning, tokenizer, text encoder, and a cache that spares the rest."""

from collections.abc import Sequence

import torch
from torch import Tensor

from streaming.conditioning.embedding_cache import EmbeddingCache
from streaming.conditioning.tokenizer import PromptTokenizer, clean_prompt
from streaming.engines.engine import Engine

PROMPT_EMBEDS = "prompt_embeds"


class PromptEncoder:
    """Encodes prompts that the cache does not know, all at once."""

    def __init__(self, tokenizer: PromptTokenizer, engine: Engine, cache: EmbeddingCache) -> None:
        self._tokenizer, self._engine, self._cache = tokenizer, engine, cache

    def __call__(self, texts: Sequence[str]) -> list[Tensor]:
        """One embedding per text, float32 [1, L, C] on the CPU; rows after a prompt's end are zero."""
        prompts = [clean_prompt(text) for text in texts]
        known = {prompt: self._cache.get(prompt) for prompt in prompts}
        missing = [prompt for prompt, embedding in known.items() if embedding is None]
        if missing:
            tokens = self._tokenizer(missing)
            inputs = {"ids": torch.from_numpy(tokens.ids), "mask": torch.from_numpy(tokens.mask)}
            batch = self._engine.run(inputs, [PROMPT_EMBEDS])[PROMPT_EMBEDS].float().cpu()
            for prompt, embedding in zip(missing, batch, strict=True):
                self._cache.put(prompt, embedding.numpy())
                known[prompt] = embedding.numpy()
        return [torch.from_numpy(known[prompt]).unsqueeze(0) for prompt in prompts]

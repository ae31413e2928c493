"""Which prompts a chunk stands for: selection, blending, transitions (pipelines-common.md 4)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from streaming.conditioning.blending import Transition, blend
from streaming.errors import WanstreamError
from streaming.specs import Interpolation

Prompts = tuple[tuple[str, float], ...]  # text and weight of each
Encode = Callable[[Sequence[str]], Sequence[Tensor]]  # texts -> embeddings, each [1, L, C]


@dataclass(frozen=True, slots=True)
class TransitionRequest:
    """The wish to go to other prompts in `steps` chunks; fewer than 2 is a jump (defect D3)."""

    target: Prompts
    steps: int = 0
    method: Interpolation = "linear"


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """What a chunk is asked to show. A transition is repeated in every chunk until it is over."""

    prompts: Prompts
    method: Interpolation = "linear"  # of several prompts at once
    transition: TransitionRequest | None = None


@dataclass(frozen=True, slots=True)
class Mixture:
    """Prompts and how they are mixed: equal mixtures have equal embeddings."""

    prompts: Prompts
    method: Interpolation

    @staticmethod
    def of(prompts: Prompts, method: Interpolation) -> "Mixture":
        return Mixture(prompts, method if len(prompts) == 2 else "linear")

    def embedding(self, encode: Encode) -> Tensor:
        """[1, L, C], float32; all texts are encoded in one batch."""
        embeddings = encode([text for text, _ in self.prompts])
        return blend(embeddings, [weight for _, weight in self.prompts], self.method)


@dataclass(frozen=True, slots=True)
class PromptMemory:
    """What was asked for and shown before; decides what has to be encoded."""

    incoming: Prompts | None = None  # what the last chunk was asked to show
    encoded: Mixture | None = None  # what was encoded last, perhaps as the target of a transition
    current: Prompts | None = None  # what the embedding stands for when no transition is running

    def select(self, request: PromptRequest) -> tuple["PromptMemory", Mixture]:
        """The memory after this request, and the prompts of this chunk.

        They have to be encoded when they are not `encoded` already. The caller stores them as `encoded` and,
        outside of transitions, as `current`.
        """
        if not request.prompts:
            raise WanstreamError("A prompt is needed: send 'prompts' with at least one text.")
        changed = request.prompts != self.incoming
        if request.transition is not None:
            chosen = request.transition.target
        elif changed or self.current is None:
            chosen = request.prompts
        else:
            chosen = self.current  # prompts from before a transition do not bring them back
        return replace(self, incoming=request.prompts), Mixture.of(chosen, request.method)


@dataclass(frozen=True, eq=False, slots=True)
class PromptState:
    """The embedding of a stream's chunks and the way it is on. A new object for every chunk."""

    memory: PromptMemory = PromptMemory()
    embedding: Tensor | None = None  # [1, L, C], float32
    transition: Transition | None = None  # what is left of the running one
    updated: bool = False  # the embedding was set anew in this chunk
    was_in_transition: bool = False  # after the chunk before

    @property
    def in_transition(self) -> bool:
        return self.transition is not None

    def next(self, request: PromptRequest, encode: Encode) -> "PromptState":
        """The state in the next chunk."""
        memory, mixture = self.memory.select(request)
        before = replace(self, memory=memory, updated=False, was_in_transition=self.in_transition)
        if mixture != memory.encoded:
            after = before._apply(mixture.embedding(encode), request.transition)
        elif before.transition is not None:
            after = before._continue(before.transition)
        else:
            after = before
        current = memory.current if after.in_transition else mixture.prompts
        return replace(after, memory=replace(memory, encoded=mixture, current=current))

    def _apply(self, target: Tensor, request: TransitionRequest | None) -> "PromptState":
        """Go to a newly encoded embedding; a running transition ends where it is."""
        if request is None or request.steps <= 1 or self.embedding is None:
            return replace(self, embedding=target, transition=None, updated=True)
        transition = Transition(self.embedding, target, request.steps, request.method)
        if not transition.changes_anything:
            return replace(self, transition=None)
        return self._continue(transition)

    def _continue(self, transition: Transition) -> "PromptState":
        point, rest = transition.take()
        return replace(self, embedding=point, transition=rest, updated=True)

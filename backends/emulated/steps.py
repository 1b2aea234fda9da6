"""The words of the engine's model: what a sequence asks for, what a step does with it, and how long that takes."""

from __future__ import annotations

from dataclasses import dataclass, field

from backends.emulated.blocks import Holding


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of a step: `fixed`, and so much for each prefill token, decoding sequence and token of context."""

    fixed: float
    prefill_token: float
    decode_sequence: float = 0.0
    context_token: float = 0.0

    def of(self, prefill_tokens: int, decoding: int, context: int, steps: int = 1) -> float:
        """Seconds of so many steps in a row; after each, every decoding sequence has a token of context more."""
        first = (
            self.fixed
            + self.prefill_token * prefill_tokens
            + self.decode_sequence * decoding
            + self.context_token * context
        )
        return steps * first + self.context_token * decoding * (steps * (steps - 1) // 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """A prompt of `prompt` tokens to be answered with `output` tokens.

    `hashes` are the chained hashes of the full blocks of prompt and output together, as far as they are known:
    equal hashes mean equal tokens from the start. Those of the output count only once it is computed.
    """

    id: str
    prompt: int
    output: int
    hashes: tuple[int, ...] = ()
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step does: `tokens` names the sequences that get a token each at its end, `first` those of them whose
    first it is, `finished` those whose last it is, `admitted` the sequences that run for the first time with the
    tokens they found cached. In a leap of several `steps` each sequence gets as many tokens, and `finished` holds
    unless the leap is cut.
    """

    duration: float = 0.0
    steps: int = 1
    admitted: tuple[tuple[str, int], ...] = ()
    tokens: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()
    preempted: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class Live:
    """A sequence between `add` and its end. Of the `length` tokens that it has so far, prompt and generated ones,
    `computed` have KV; only a running one has a `holding`."""

    sequence: Sequence
    rank: tuple[int, int]
    length: int
    generated: int = 0
    computed: int = 0
    admitted: bool = False
    holding: Holding | None = None


@dataclass(slots=True)
class Plan:
    """A step or leap: the sequences that compute, with how many tokens, and what is left of the budget; those that
    are `ready` yield a token.

    `prefill`, `decoding` and `context` are those of the first step, in tokens, sequences and tokens.
    """

    budget: int
    steps: int = 1
    prefill: int = 0
    decoding: int = 0
    context: int = 0
    work: list[tuple[Live, int]] = field(default_factory=list)
    ready: list[Live] = field(default_factory=list)
    admitted: list[tuple[str, int]] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)

    def give(self, live: Live, tokens: int) -> None:
        self.work.append((live, tokens))
        self.budget -= tokens
        reach = live.computed + tokens
        self.context += reach
        if reach == live.length:
            self.ready.append(live)
        if tokens == 1 and live.generated and reach == live.length:
            self.decoding += 1
        else:
            self.prefill += tokens

    def step(self, duration: float) -> Step:
        first, finished, steps = [], [], self.steps
        for live in self.ready:
            if not live.generated:
                first.append(live.sequence.id)
            if live.generated + steps == live.sequence.output:
                finished.append(live.sequence.id)
        return Step(
            duration=duration,
            steps=steps,
            admitted=tuple(self.admitted),
            tokens=tuple([live.sequence.id for live in self.ready]),
            first=tuple(first),
            finished=tuple(finished),
            preempted=tuple(self.preempted),
        )

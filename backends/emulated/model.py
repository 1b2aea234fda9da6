"""What a batching engine does with its time and its KV memory: a model of vLLM's scheduler without a clock.

The rules, one step at a time:
- a step has a budget of tokens; running sequences take theirs first, most urgent first (lower `priority`, then
  earlier arrival), a long prefill in chunks; a sequence whose prompt is computed yields one token a step;
- what is left of the budget goes to waiting sequences, in the same order, while there is a seat and the blocks for
  all that the sequence has so far; the one at the head blocks those behind it;
- a running sequence that needs a block when none is free preempts the least urgent running one (perhaps itself),
  which gives up its blocks, waits again and computes its tokens anew, less those still cached; a step that
  preempted admits nobody;
- the last token of a sequence is never taken from the cache, because a step must compute it to go on.

Nothing here sleeps or reads a clock: `Step.duration` says how long the step takes, and the caller makes it so, in
real time (`driver.py`) or in virtual time.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field

from backends.emulated.blocks import Blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of a step: `fixed`, and so much for each prefill token, decoding sequence and token of context."""

    fixed: float
    prefill_token: float
    decode_sequence: float = 0.0
    context_token: float = 0.0

    def of(self, prefill_tokens: int, decoding: int, context: int) -> float:
        return (
            self.fixed
            + self.prefill_token * prefill_tokens
            + self.decode_sequence * decoding
            + self.context_token * context
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The limits of one engine; the names are those of vLLM's flags."""

    num_gpu_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    step_time: StepTime

    def __post_init__(self) -> None:
        for name in ("num_gpu_blocks", "block_size", "max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError("max_num_batched_tokens must not be below max_num_seqs: each sequence needs one a step")

    @property
    def capacity(self) -> int:
        """Tokens of the longest sequence that fits into the KV memory."""
        return self.num_gpu_blocks * self.block_size


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
    """What one step does: `tokens` names the sequences that get one token each at its end, `finished` those of them
    whose last it is, `admitted` those that run for the first time with the tokens they found cached."""

    duration: float = 0.0
    admitted: tuple[tuple[str, int], ...] = ()
    tokens: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()
    preempted: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class _Live:
    """A sequence between `add` and its end. `computed` tokens have KV; `kept` of its blocks are in the cache."""

    sequence: Sequence
    rank: tuple[int, int]
    generated: int = 0
    computed: int = 0
    kept: int = 0
    admitted: bool = False
    blocks: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.sequence.prompt + self.generated

    @property
    def missing(self) -> int:
        return self.length - self.computed

    @property
    def decoding(self) -> bool:
        return self.generated > 0 and self.missing == 1


@dataclass(slots=True)
class _Plan:
    """A step in the making: the sequences that compute, with how many tokens, and what is left of the budget."""

    budget: int
    work: list[tuple[_Live, int]] = field(default_factory=list)
    admitted: list[tuple[str, int]] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)

    def give(self, live: _Live, tokens: int) -> None:
        self.work.append((live, tokens))
        self.budget -= tokens


def _rank(live: _Live) -> tuple[int, int]:
    return live.rank


class Engine:
    """The sequences and the memory of one engine; the counters only grow, in tokens where nothing else is said.

    `prefill_tokens_computed` counts recomputation after a preemption too; `prefix_queries` and `prefix_hits` count
    each sequence once, as vLLM's metrics do.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.blocks = Blocks(config.num_gpu_blocks)
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.prefill_tokens_computed = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self.preemptions = 0
        self._added = 0
        self._live: dict[str, _Live] = {}
        self._running: list[_Live] = []
        self._waiting: list[_Live] = []
        self._under_way: list[tuple[_Live, int]] | None = None

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        return not self._live

    @property
    def kv_use(self) -> float:
        """The share of blocks that live sequences hold: 0 on an idle engine, however full its cache is."""
        return self.blocks.used / self.blocks.total

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises ValueError for one that could never run, or whose id is in use."""
        if sequence.id in self._live:
            raise ValueError(f"a sequence with the id {sequence.id!r} is there already")
        if sequence.prompt < 1 or sequence.output < 1:
            raise ValueError("a sequence needs at least one token of prompt and one of output")
        if sequence.prompt + sequence.output > self.config.capacity:
            raise ValueError(f"prompt and output exceed the {self.config.capacity} tokens of KV memory")
        self._added += 1
        live = _Live(sequence, (sequence.priority, self._added))
        self._live[sequence.id] = live
        insort(self._waiting, live, key=_rank)

    def abort(self, sequence_id: str) -> bool:
        """Drop a sequence and give its blocks back, at once even within a step; False when it is not there."""
        live = self._live.pop(sequence_id, None)
        if live is None:
            return False
        (self._running if live in self._running else self._waiting).remove(live)
        self.blocks.give_back(live.blocks)
        return True

    def begin(self) -> Step:
        """Decide the next step and reserve its memory. Its effects on counters and ends come with `end`."""
        if self._under_way is not None:
            raise RuntimeError("a step is under way")
        plan = _Plan(self.config.max_num_batched_tokens)
        self._continue_running(plan)
        if not plan.preempted:
            self._admit_waiting(plan)
        self._under_way = plan.work
        ready = [live for live, tokens in plan.work if tokens == live.missing]
        return Step(
            duration=self._duration(plan.work),
            admitted=tuple(plan.admitted),
            tokens=tuple(live.sequence.id for live in ready),
            finished=tuple(live.sequence.id for live in ready if live.generated + 1 == live.sequence.output),
            preempted=tuple(plan.preempted),
        )

    def end(self) -> None:
        """The step is over: count its work, and let go of what has finished."""
        if self._under_way is None:
            raise RuntimeError("no step is under way")
        work, self._under_way = self._under_way, None
        for live, tokens in work:
            if not live.decoding:
                self.prefill_tokens_computed += tokens
            if self._live.get(live.sequence.id) is live:
                self._progress(live, tokens)

    def step(self) -> Step:
        """`begin` and `end` in one, for callers that let nothing happen in between."""
        step = self.begin()
        self.end()
        return step

    def _continue_running(self, plan: _Plan) -> None:
        index = 0
        while index < len(self._running) and plan.budget:
            live = self._running[index]
            tokens = min(live.missing, plan.budget)
            # The list is in order of urgency, so the victim is the last one and has no part in this step yet.
            while not self._reserve(live, tokens):
                victim = self._running.pop()
                self._preempt(victim)
                plan.preempted.append(victim.sequence.id)
                if victim is live:
                    return
            plan.give(live, tokens)
            index += 1

    def _admit_waiting(self, plan: _Plan) -> None:
        size = self.config.block_size
        while self._waiting and plan.budget and len(self._running) < self.config.max_num_seqs:
            live = self._waiting[0]
            found = self.blocks.find(live.sequence.hashes[: (live.length - 1) // size])
            # All that is known must fit, or a long prompt would enter only to be preempted by its own growth.
            if -(-live.length // size) - len(found) > self.blocks.free - self.blocks.unheld(found):
                return
            self._waiting.pop(0)
            insort(self._running, live, key=_rank)
            self.blocks.hold(found)
            live.blocks, live.kept, live.computed = found, len(found), len(found) * size
            self._count_lookup(live, plan)
            tokens = min(live.missing, plan.budget)
            self._reserve(live, tokens)
            plan.give(live, tokens)

    def _count_lookup(self, live: _Live, plan: _Plan) -> None:
        if live.admitted:
            return
        live.admitted = True
        self.prefix_queries += live.length
        self.prefix_hits += live.computed
        plan.admitted.append((live.sequence.id, live.computed))

    def _reserve(self, live: _Live, tokens: int) -> bool:
        size = self.config.block_size
        reach = live.computed + tokens
        taken = self.blocks.take(-(-reach // size) - len(live.blocks))
        if taken is None:
            return False
        live.blocks += taken
        # A block is findable from the step that fills it on: the same step may admit who shares it.
        full = min(reach // size, len(live.sequence.hashes))
        for index in range(live.kept, full):
            self.blocks.keep(live.blocks[index], live.sequence.hashes[index])
        live.kept = max(live.kept, full)
        return True

    def _preempt(self, live: _Live) -> None:
        self.preemptions += 1
        self.blocks.give_back(live.blocks)
        live.blocks, live.kept, live.computed = [], 0, 0
        insort(self._waiting, live, key=_rank)

    def _progress(self, live: _Live, tokens: int) -> None:
        live.computed += tokens
        if live.missing:
            return
        if not live.generated:
            self.prompt_tokens += live.sequence.prompt
        live.generated += 1
        self.generation_tokens += 1
        if live.generated == live.sequence.output:
            del self._live[live.sequence.id]
            self._running.remove(live)
            self.blocks.give_back(live.blocks)

    def _duration(self, work: list[tuple[_Live, int]]) -> float:
        decoding = sum(1 for live, _ in work if live.decoding)
        prefill = sum(tokens for live, tokens in work if not live.decoding)
        context = sum(live.computed + tokens for live, tokens in work)
        return self.config.step_time.of(prefill, decoding, context)

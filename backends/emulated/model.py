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

While every running sequence decodes and nobody can be admitted, steps differ in their context only. Such steps may
be taken together, as a *leap*, at the cost of one: its time is a closed form, and its end leaves all as single steps
would have.

Nothing here sleeps or reads a clock: `Step.duration` says how long the step takes, and the caller makes it so, in
real time (`driver.py`) or in virtual time.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass

from backends.emulated.blocks import Blocks
from backends.emulated.steps import Live, Plan, Sequence, Step, StepTime

__all__ = ["Engine", "EngineConfig", "Sequence", "Step", "StepTime"]


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


def _rank(live: Live) -> tuple[int, int]:
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
        self._live: dict[str, Live] = {}
        self._running: list[Live] = []
        self._waiting: list[Live] = []
        self._under_way: Plan | None = None

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
        live = Live(sequence, (sequence.priority, self._added), sequence.prompt)
        self._live[sequence.id] = live
        insort(self._waiting, live, key=_rank)

    def abort(self, sequence_id: str) -> bool:
        """Drop a sequence and give its blocks back, at once even within a step; False when it is not there.

        A leap goes on without it; what it makes room for is admitted after the leap, which `cut` may bring forward.
        """
        live = self._live.pop(sequence_id, None)
        if live is None:
            return False
        (self._waiting if live.holding is None else self._running).remove(live)
        self._let_go(live)
        return True

    def begin(self, most: int = 1) -> Step:
        """Decide the next step and reserve its memory. Its effects on counters and ends come with `end`.

        With `most` above 1 it may be a leap of up to so many steps. One lasts at most until the first sequence
        finishes, and to the last step before memory runs out or a waiting sequence could be admitted. The memory of
        its later steps is taken at its end.
        """
        if self._under_way is not None:
            raise RuntimeError("a step is under way")
        plan = Plan(self.config.max_num_batched_tokens)
        self._continue_running(plan)
        if not plan.preempted:
            self._admit_waiting(plan)
            if most > 1 and plan.decoding and not plan.prefill:
                plan.steps = self._alike(plan, most)
        self._under_way = plan
        return plan.step(self._lasting(plan, plan.steps))

    def cut(self, elapsed: float) -> float:
        """Shorten the leap under way to the steps begun within `elapsed` seconds of its start, at least one; returns
        its new duration. A step that ends at that very moment is the last one.

        To be called before `add`, so that what arrives within a leap is considered when the step under way is over.
        `finished` of the leap is void when this returns less than its duration.
        """
        plan = self._under_way
        if plan is None:
            raise RuntimeError("no step is under way")
        later = range(1, plan.steps)
        plan.steps = 1 + bisect_left(later, elapsed, key=lambda steps: self._lasting(plan, steps))
        return self._lasting(plan, plan.steps)

    def end(self) -> None:
        """The step is over: count its work, and let go of what has finished."""
        plan, self._under_way = self._under_way, None
        if plan is None:
            raise RuntimeError("no step is under way")
        if plan.steps > 1:
            self._reserve_later(plan)
        self.prefill_tokens_computed += plan.prefill
        for live, tokens in plan.work:
            if live.holding is None:
                continue  # aborted in the meantime
            live.computed += tokens + plan.steps - 1
            if live.computed >= live.length:
                self._yield(live, plan.steps)

    def step(self) -> Step:
        """`begin` and `end` in one, for callers that let nothing happen in between."""
        step = self.begin()
        self.end()
        return step

    def _lasting(self, plan: Plan, steps: int) -> float:
        return self.config.step_time.of(plan.prefill, plan.decoding, plan.context, steps)

    def _continue_running(self, plan: Plan) -> None:
        index = 0
        while index < len(self._running) and plan.budget:
            live = self._running[index]
            tokens = min(live.length - live.computed, plan.budget)
            # The list is in order of urgency, so the victim is the last one and has no part in this step yet.
            while not self._reserve(live, live.computed + tokens):
                victim = self._running.pop()
                self._preempt(victim)
                plan.preempted.append(victim.sequence.id)
                if victim is live:
                    return
            plan.give(live, tokens)
            index += 1

    def _admit_waiting(self, plan: Plan) -> None:
        size = self.config.block_size
        while self._waiting and self._open_to_more(plan):
            live = self._waiting[0]
            # All that is known must fit, or a long prompt would enter only to be preempted by its own growth.
            known = live.length
            live.holding = self.blocks.hold(live.sequence.hashes, (known - 1) // size, -(-known // size))
            if live.holding is None:
                return
            self._waiting.pop(0)
            insort(self._running, live, key=_rank)
            live.computed = live.holding.full * size
            self._count_lookup(live, plan)
            tokens = min(known - live.computed, plan.budget)
            self._reserve(live, live.computed + tokens)
            plan.give(live, tokens)

    def _open_to_more(self, plan: Plan) -> bool:
        return plan.budget > 0 and len(self._running) < self.config.max_num_seqs

    def _count_lookup(self, live: Live, plan: Plan) -> None:
        if live.admitted:
            return
        live.admitted = True
        self.prefix_queries += live.length
        self.prefix_hits += live.computed
        plan.admitted.append((live.sequence.id, live.computed))

    def _reserve(self, live: Live, reach: int) -> bool:
        """Hold the blocks of the first `reach` tokens; False when too few are free."""
        size, holding = self.config.block_size, live.holding
        assert holding is not None, "it runs"
        if reach < holding.size * size:
            return True  # the usual case: within a block that it has, and does not fill
        if not self.blocks.grow(holding, -(-reach // size)):
            return False
        # A block is findable from the step that fills it on: the same step may admit who shares it.
        if reach // size > holding.full:
            self.blocks.fill(holding, reach // size)
        return True

    def _alike(self, plan: Plan, most: int) -> int:
        """How many steps go on like the first one of this plan, in which everyone decodes."""
        steps = min(most, *(live.sequence.output - live.generated for live, _ in plan.work))
        if self._waiting and self._open_to_more(plan):
            # Its head lacks blocks, and others only take more: unless they fill one that it shares.
            steps = min(steps, *(self._until_shared(live, self._waiting[0]) for live, _ in plan.work))
        if len(plan.work) * (steps // self.config.block_size + 1) > self.blocks.free:  # else all their growth fits
            steps = bisect_right(range(1, steps + 1), self.blocks.free, key=lambda steps: self._growth(plan, steps))
        return steps

    def _until_shared(self, live: Live, other: Live) -> int:
        """Steps before the one that fills a block of `live` that `other` begins with too; no bound without such."""
        assert live.holding is not None, "it runs"
        index = live.holding.full
        if live.sequence.hashes[index : index + 1] == other.sequence.hashes[index : index + 1] != ():
            return (index + 1) * self.config.block_size - live.computed - 1
        return live.sequence.output

    def _growth(self, plan: Plan, steps: int) -> int:
        """How many blocks are taken in so many decoding steps."""
        size = self.config.block_size
        return sum(
            max(0, -(-(live.computed + steps) // size) - live.holding.size)
            for live, _ in plan.work
            if live.holding is not None
        )

    def _reserve_later(self, plan: Plan) -> None:
        """Take and fill the blocks of a leap's later steps, in the order of single steps: evictions depend on it."""
        size = self.config.block_size
        due = []
        for index, (live, _) in enumerate(plan.work):
            if live.holding is None:
                continue  # aborted in the meantime
            first, last = live.computed + 1, live.computed + plan.steps
            for reach in range(live.holding.size * size, last + 1, size):
                due.append((reach - first, index, reach))
                if reach < last:
                    due.append((reach + 1 - first, index, reach + 1))
        for _, index, reach in sorted(due):
            reserved = self._reserve(plan.work[index][0], reach)
            assert reserved, "a leap ends before memory runs out"

    def _preempt(self, live: Live) -> None:
        self.preemptions += 1
        self._let_go(live)
        live.computed = 0
        insort(self._waiting, live, key=_rank)

    def _yield(self, live: Live, tokens: int) -> None:
        if not live.generated:
            self.prompt_tokens += live.sequence.prompt
        live.generated += tokens
        live.length += tokens
        self.generation_tokens += tokens
        if live.generated == live.sequence.output:
            del self._live[live.sequence.id]
            self._running.remove(live)
            self._let_go(live)

    def _let_go(self, live: Live) -> None:
        if live.holding is not None:
            self.blocks.give_back(live.holding)
            live.holding = None

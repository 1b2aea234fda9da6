"""Which run a call belongs to whose client names none, and at which stage it is.

Each run that may be meant is given a score for what ties the call to it, and the highest one above `ENOUGH` wins:

* The prompt gives back an id that no other call's answer had, as of a tool call: that settles it.
* The prompt goes on from what a call of the run asked, and from what it was answered. A conversation that waits for
  that comes before one that others went on from.
* The prompt is that of a known call: a retry, or one of several samples. At a run's beginning that counts only while
  the first one is very young, or if it had no answer: another run may ask the same.
* The prompt quotes what calls of the run said: a fixer quotes SQL, a judge an answer, a sub-agent its task. Or it has
  words that no other run was told, at other stages; unless runs use to begin at this one. At a stage that joins such
  runs as a rule less is enough; and an answer that many runs gave is one that has not been quoted yet.

Of runs that tie, as two that ask the same do, the one that has waited longest goes first: they take their turns.
Tenants share nothing, and each has its own bounds: none can join, crowd out or slow down another's runs.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

from policies.conversation import Conversation, answer, flat
from policies.linkage_habits import Habits
from policies.linkage_handles import Handles
from policies.linkage_quotes import Quoted, Quotes, Reading, read
from policies.linkage_runs import Passage, Run, Step, Tail
from policies.linkage_stages import Place, Stages
from policies.linkage_states import Digest, Match, States, Text
from policies.linkage_weighing import ENOUGH, Ahead, ahead, in_turn, scores, tied

How = Literal["named", "extends", "repeats", "quotes", "new"]

_STEPS_MOST, _PASSAGES_MOST = 64, 128
_LEAST = 0.3
"""Such a part of `ENOUGH` is enough at a stage at which runs never begin."""
_READ_MOST, _READ_LITTLE = 24_000, 4_000
"""Bytes of what is new in a prompt that are read: where quotations are to be found, and where they are to be kept."""
_TOLD_MOST, _SAID_MOST = 256, 512
"""Shingles that are kept of a call's prompt, and of its answer."""


_STEP, _EMPTY = 5, 500
"""What a step takes, and a tenant without any, in the size of a shingle."""

_NOTHING = Reading([], [])


@dataclass(frozen=True, slots=True)
class Link:
    """Where a call belongs, and `how` that was found."""

    run: str
    stage: str
    how: How


class Linkage:
    """What is known of the calls of late. `runs` and `shingles` are bounds for each tenant, `idle` in seconds.

    `most` bounds what is kept of all tenants together, in the size of a shingle, some 300 bytes: where it is too
    much, those go that have not asked for longest.
    """

    def __init__(
        self, *, digest: Digest, runs: int = 2000, shingles: int = 150_000, idle: float = 1800.0, most: int = 600_000
    ) -> None:
        self._digest = digest
        self._runs = runs
        self._shingles = shingles
        self._idle = idle
        self._most = most
        self._size = 0
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()

    def link(self, asked: Conversation, now: float) -> Link:
        """The run and the stage of a call that arrives."""
        tenant = self._tenants.get(asked.tenant)
        if tenant is None:
            tenant = _Tenant(self._digest, self._runs, self._shingles, self._idle)
            self._tenants[asked.tenant] = tenant
            self._size += tenant.size
        self._tenants.move_to_end(asked.tenant)
        before = tenant.size
        link = tenant.link(asked, now)
        self._grown(tenant, before)
        return link

    def answered(self, tenant: str, call: str, text: str, now: float, handles: Sequence[str] = ()) -> None:
        """What a call was answered, as `spoken` writes it, with which ids; empty where it failed.

        An unknown call is ignored.
        """
        known = self._tenants.get(tenant)
        if known is not None:
            before = known.size
            known.answered(call, text, now, handles)
            self._grown(known, before)

    def _grown(self, tenant: _Tenant, before: int) -> None:
        """Make room where all tenants together keep too much; the one that has just asked keeps its own."""
        self._size += tenant.size - before
        while self._size > self._most and len(self._tenants) > 1:
            name, oldest = next(iter(self._tenants.items()))
            if oldest is tenant:
                return
            del self._tenants[name]
            self._size -= oldest.size

    def stages(self, tenant: str) -> int:
        """How many stages are known of a tenant."""
        known = self._tenants.get(tenant)
        return len(known.stages) if known else 0


@dataclass(slots=True)
class _Prompt:
    """A call's prompt as it is compared. `body`: where the system prompt in it ends.

    `reading` is what is new behind it.
    """

    content: bytes
    body: int
    text: Text
    shape: int
    matches: list[Match]
    place: Place
    reading: Reading

    @property
    def known(self) -> int:
        """How many of its bytes a conversation has that it goes on from; one that it repeats does not count."""
        return next((match.length for match in self.matches if match.length < self.text.length or match.answer), 0)


class _Choice(NamedTuple):
    """`match` is how the prompt goes on from the run's conversations, if it does."""

    run: Run
    how: How
    match: Match | None = None
    fresh: Mapping[Passage, int] = MappingProxyType({})


class _Tenant:
    """The runs of one tenant, the least recently heard of first."""

    def __init__(self, digest: Digest, runs: int, shingles: int, idle: float) -> None:
        self._digest = digest
        self._runs_most = runs
        self._shingles_most = shingles
        self._idle = idle
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._open: dict[str, Step] = {}
        self._states = States()
        self._quotes = Quotes()
        self._handles = Handles()
        self._kept: deque[Passage] = deque()
        self._habits = Habits()
        self.stages = Stages()

    @property
    def size(self) -> int:
        """What is kept, in the size of a shingle."""
        return _EMPTY + self._quotes.size + _STEP * len(self._states)

    def link(self, asked: Conversation, now: float) -> Link:
        self._forget(now)
        prompt = self._read(asked)
        giver = None if asked.run else self._handles.giver(asked.handles)
        if giver is not None:
            prompt.matches = _of(giver, prompt)
        elif not asked.run:  # whoever asks what a named run asked is not of it; who goes on from its answer is
            prompt.matches = [match for match in prompt.matches if match.answer or not match.step.run.named]
        found = {} if asked.run else ahead(prompt.matches, prompt.text.length, len(self._runs), now)
        certain = len(found) == 1 and (giver is not None or next(iter(found.values())).next)
        prompt.reading = read(self._new_text(prompt, _READ_LITTLE if certain or asked.run else _READ_MOST))
        quoted = None if certain or asked.run else self._quoted(prompt)
        if asked.run:
            choice: _Choice | None = self._named(asked.run, prompt, now)
        elif giver is not None:
            choice = _onward(giver.run, prompt, found, quoted)
        else:
            choice = self._choose(prompt, found, quoted, now)
        if choice is None:
            choice = _Choice(self._start(f"run-{asked.call}", now), "new")
        elif self._is_twin(choice):
            choice = self._part(choice, f"run-{asked.call}", now)
        self._take(asked.call, prompt, choice, now)
        return Link(choice.run.id, prompt.place.stage, choice.how)

    def answered(self, call: str, text: str, now: float, handles: Sequence[str]) -> None:
        step = self._open.pop(call, None)
        if step is None or step.tail is None:
            return
        step.answered = step.run.last = now
        self._handles.give(step, handles)
        tail, step.tail = step.tail, None
        self._runs.move_to_end(step.run.id)
        if text:
            step.silent = False
            self._states.file(step, Text(answer(text), self._digest, tail).state())
            step.said = self._keep(read(text[:_READ_MOST]), step.run, None, _SAID_MOST)

    def _read(self, asked: Conversation) -> _Prompt:
        """The prompt, the conversations that it goes on from, and its stage: theirs, where nothing else changed."""
        system = self.stages.plain(asked.system) if asked.system else ""
        content = flat(system, asked.turns)
        text = Text(content, self._digest, Tail(0, 0, b""))
        shape = hash((system, asked.tools))
        body = len(flat(system, ()))
        matches = list(self._states.matches(text))
        kept = next((match.step.place for match in matches if match.step.shape == shape), None)
        first = next((turn.text for turn in asked.turns if turn.role == "user"), "")
        place = kept or self.stages.of(asked.system or first, asked.tools, system=bool(asked.system))
        return _Prompt(content, body, text, shape, matches, place, _NOTHING)

    def _new_text(self, prompt: _Prompt, most: int) -> str:
        """What is new in a prompt's turns; of what is longer, its beginning and, twice as much, its end."""
        content = prompt.content[prompt.known or prompt.body :]
        if len(content) > most:
            content = content[: most // 3] + b"\n" + content[-(most - most // 3) :]
        return content.decode("utf-8", "ignore")

    def _quoted(self, prompt: _Prompt) -> Quoted:
        """What of all runs a prompt quotes."""
        stage, known = prompt.place.stage, len(self._runs)
        quoted = self._quotes.quoted(prompt.reading, stage, known)
        told = {run: weight for run, weight in quoted.told.items() if not run.named}
        quoted = quoted._replace(told=self._habits.weighed(told, stage))
        if prompt.known or not prompt.body or self.stages.is_settled(prompt.place.text):
            return quoted
        # What a system prompt shares with what others were told is a template; but a run may have said it.
        more = self._quotes.quoted(
            read(prompt.content[: min(prompt.body, _READ_LITTLE)].decode("utf-8", "ignore")), stage, known
        )
        for run, weight in more.said.items():
            quoted.said[run] = quoted.said.get(run, 0.0) + weight
        quoted.fresh.update(more.fresh)
        return quoted

    def _named(self, run: str, prompt: _Prompt, now: float) -> _Choice:
        known = self._runs.get(run) or self._start(run, now, named=True)
        match = next((match for match in prompt.matches if match.step.run is known), None)
        return _Choice(known, "named", match)

    def _choose(
        self, prompt: _Prompt, found: Mapping[Run, Ahead], quoted: Quoted | None, now: float
    ) -> _Choice | None:
        sums = scores(found, quoted, len(self._runs), self._idle, now)
        stage = prompt.place.stage
        top = max(sums, key=sums.__getitem__, default=None)
        waiting = quoted.whole() if quoted is not None else []
        if top is None or sums[top] < ENOUGH * max(_LEAST, self._habits.begins(stage, top)):
            best = waiting
        elif waiting and top in found and _is_sample(found[top].match, prompt):
            best = waiting  # it is as much another run's, which has yet to go on
        else:
            best = tied(sums, found)
        if not best:
            return None
        run = in_turn(best, found, prompt.matches, self._habits.gaps(stage), now)
        return _onward(run, prompt, found, quoted)

    def _take(self, call: str, prompt: _Prompt, choice: _Choice, now: float) -> None:
        """Remember a call as one of this run."""
        run = choice.run
        self._runs.move_to_end(run.id)
        prompt.place = place = self.stages.came(prompt.place, run.places)
        run.places[place.text] = place.stage
        self._follow(choice, now)
        self._habits.note(run, place.stage, choice.how, now)
        run.last = now
        match = choice.match
        again = match is not None and match.length == prompt.text.length and not match.answer
        root = match is None or (again and match.step.root)
        step = Step(run, call, place, prompt.shape, now, root, prompt.text.tail())
        if match is not None and again and root:
            step.twin = match.step.twin = match.step.answered is None
            step.began = match.step.began
        self._states.file(step, prompt.text.state())
        run.steps.append(step)
        self._open[call] = step
        if len(run.steps) > _STEPS_MOST:
            self._drop(run.steps.pop(0))
        self._keep(prompt.reading, run, place.stage, _TOLD_MOST)

    def _follow(self, choice: _Choice, now: float) -> None:
        """What the call goes on from does not wait any more, nor does an answer that it quotes."""
        match = choice.match
        if match is not None and choice.how != "repeats":
            match.step.gap = now - (match.step.answered or now)
            if match.step.said is not None:
                match.step.said.spent = True
        for passage, count in choice.fresh.items():
            if passage.run is choice.run and passage.is_quoted_by(count):
                passage.spent = True

    def _is_twin(self, choice: _Choice) -> bool:
        """Whether it goes on from one of several equal beginnings, and another of them has been gone on from before.

        Of samples one is taken at most: these were runs of their own that asked the same at the same time.
        """
        match = choice.match
        if match is None or choice.how != "extends" or not match.step.twin or match.step.followed:
            return False
        key = match.step.filed[0].key
        return any(step.twin and step.followed and step.filed[0].key == key for step in choice.run.steps)

    def _part(self, choice: _Choice, name: str, now: float) -> _Choice:
        """Make a run of its own of a beginning that was taken for a sample."""
        assert choice.match is not None
        step, run = choice.match.step, self._start(name, now)
        choice.run.steps.remove(step)
        run.steps.append(step)
        run.places[step.place.text] = step.place.stage
        step.run = run
        asked, said = choice.run.passages[0], step.said
        self._keep(Reading(asked.shingles, []), run, asked.stage, _TOLD_MOST)
        if said is not None:
            step.said = self._keep(Reading(said.shingles, []), run, None, _SAID_MOST)
        return _Choice(run, choice.how, choice.match)

    def _keep(self, reading: Reading, run: Run, stage: str | None, most: int) -> Passage:
        passage = self._quotes.add(reading, run, stage, most)
        run.passages.append(passage)
        if passage.shingles:
            self._kept.append(passage)
        if len(run.passages) > _PASSAGES_MOST:
            self._quotes.drop(run.passages.pop(1))
        return passage

    def _start(self, name: str, now: float, *, named: bool = False) -> Run:
        run = self._runs[name] = Run(name, now, named)
        return run

    def _forget(self, now: float) -> None:
        """Forget what is oldest, as far as the bounds ask: of texts first, for conversations cost little."""
        kept = self._kept
        while kept and (self._quotes.size > self._shingles_most or not kept[0].shingles):
            self._quotes.drop(kept.popleft())
        if len(kept) > _PASSAGES_MOST * self._runs_most:
            self._kept = deque(passage for passage in kept if passage.shingles)
        while self._runs:
            oldest = next(iter(self._runs.values()))
            if len(self._runs) <= self._runs_most and oldest.last >= now - self._idle:
                return
            del self._runs[oldest.id]
            for step in oldest.steps:
                self._drop(step)
            for passage in oldest.passages:
                self._quotes.drop(passage)

    def _drop(self, step: Step) -> None:
        self._states.drop(step)
        self._handles.drop(step)
        self._open.pop(step.call, None)


def _of(giver: Step, prompt: _Prompt) -> list[Match]:
    """How a prompt goes on from this call, else from others of its run; or that it repeats one of them."""
    matches = [match for match in prompt.matches if match.step.run is giver.run]
    own = [match for match in matches if match.step is giver or match.length == prompt.text.length]
    return own or matches


def _is_sample(match: Match, prompt: _Prompt) -> bool:
    """Whether it asks once more what did not go on from anything."""
    return match.step.root and match.length == prompt.text.length and not match.answer


def _onward(run: Run, prompt: _Prompt, found: Mapping[Run, Ahead], quoted: Quoted | None) -> _Choice:
    fresh = quoted.fresh if quoted is not None else {}
    if run not in found:
        return _Choice(run, "quotes", fresh=fresh)
    match = found[run].match
    return _Choice(run, "repeats" if match.length == prompt.text.length else "extends", match, fresh)

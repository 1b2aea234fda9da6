"""At which stage a call is: by its system prompt and tools, or by the template of its first message.

What changes from call to call (dates, numbers, ids, paths) is replaced before two prompts are compared. Where the
rest is equal, so is the stage, and its name is the same in every gateway and after every start. Where it is not, a
prompt may embed a question or a schema: then it is of a known stage that has the same tools, begins with the same
words, and has most of its text.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from policies.asides import without

_CHARS_MOST = 16_384
_PLAIN_MOST = 128
_TEXTS_MOST = 4096
_PER_SYSTEM, _PER_MESSAGE = 12, 4
_FIRST_WORDS, _FIRST_WORDS_OF_MESSAGES = 8, 5
_FEW_TEXTS = 4
_SETTLED = 3
"""A prompt with which so many conversations began embeds nothing of a run."""
_ALIKE = 0.8
_ALIKE_MESSAGES = 0.3
"""How much two prompts have in common that are of one stage: of messages, that hold a user's text, less."""
_CORE_LEAST, _END_LEAST = 6, 3
_OFTEN = 3
_LAST_WORDS = 4
_BARE_WORDS = 40
"""A first message without system prompt and tools that is no longer, and like no other, has no template."""

_BLOCKS = ("env", "environment_details", "environment_context", "system-reminder")
_PLACES = re.compile(r"https?://\S+|(?:/[\w.@+~-]+){2,}/?|cc_version=\S+")
_ADDRESSES = re.compile(r"[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64})+|\b[A-Za-z]:\\\S+")
_WORD = re.compile(r"\w+|¤")
_DATES = frozenset(
    [
        "Mon",
        "Tue",
        "Wed",
        "Thu",
        "Fri",
        "Sat",
        "Sun",
        "Monday",
        "Tuesday",
        "Wednesday",
        "Thursday",
        "Friday",
        "Saturday",
        "Sunday",
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
        "Jan",
        "Feb",
        "Mar",
        "Apr",
        "Jun",
        "Jul",
        "Aug",
        "Sep",
        "Oct",
        "Nov",
        "Dec",
        "AM",
        "PM",
    ]
)


def settled(text: str) -> list[str]:
    """The words of a prompt without what changes from call to call: one ¤ stands for all that does in a row.

    Words that have a digit are taken for numbers, dates and ids.
    """
    if "<env" in text or "<system-reminder>" in text:
        text = without(text, _BLOCKS, "¤")
    if "@" in text or ":\\" in text:
        text = _ADDRESSES.sub("¤", text)
    kept: list[str] = []
    before = ""
    for found in _WORD.findall(_PLACES.sub("¤", text)):
        word = found if found not in _DATES and (found.isalpha() or found.replace("_", "").isalpha()) else "¤"
        if word != "¤" or before != "¤":
            kept.append(word)
        before = word
    return kept


def stage_name(text: str, tools: Sequence[str]) -> str:
    """The name of the stage that has exactly this text and these tools, in every process."""
    content = "\0".join((*sorted(tools), "", text)).encode("utf-8", "surrogatepass")
    return f"stage-{blake2b(content, digest_size=4).hexdigest()}"


class Place(NamedTuple):
    """Where a call is; `text` is the name of exactly its prompt."""

    stage: str
    text: str


@dataclass(slots=True, eq=False)
class _Stage:
    """`core`: the shingles that all of its prompts had; `texts`: how many there have been.

    `taken_for` is the stage that it counts as until it has come a few times: its first text was like that one's.
    """

    name: str
    core: frozenset[int]
    keys: tuple[int, ...]
    texts: int = 1
    taken_for: str | None = None

    @property
    def shown(self) -> str:
        return self.name if self.taken_for is None or self.texts >= _OFTEN else self.taken_for


@dataclass(slots=True)
class _Text:
    """`times`: how often a conversation has begun with it."""

    stage: _Stage
    times: int = 0


@dataclass(slots=True)
class _Shape:
    words: list[str]
    tools: tuple[str, ...]
    system: bool
    shingles: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        words = self.words
        self.shingles = frozenset(map(hash, zip(words, words[1:], words[2:], strict=False)))

    @property
    def beginning(self) -> int:
        words = self.words[: _FIRST_WORDS if self.system else _FIRST_WORDS_OF_MESSAGES]
        return hash((self.tools, self.system, *words))

    @property
    def end(self) -> int:
        return hash(("end", self.tools, *self.words[-_LAST_WORDS:]))


class Stages:
    """The stages of one tenant, the least recently used forgotten."""

    def __init__(self) -> None:
        self._texts: OrderedDict[str, _Text] = OrderedDict()
        self._alike: dict[int, list[_Stage]] = {}
        self._plain: OrderedDict[int, str] = OrderedDict()

    def __len__(self) -> int:
        return len({text.stage.shown for text in self._texts.values()})

    def of(self, text: str, tools: Sequence[str], *, system: bool) -> Place:
        """The stage of a call with this system prompt or, where it has none, with this first message."""
        plain, tools = self.plain(text), tuple(sorted(tools))
        name = stage_name(plain, tools if system else ("", *tools))
        known = self._texts.get(name)
        if known is None:
            known = self._texts[name] = _Text(self._new(name, _Shape(plain.split(" "), tools, system)))
        known.times += 1
        self._texts.move_to_end(name)
        if len(self._texts) > _TEXTS_MOST:
            self._drop(*self._texts.popitem(last=False))
        return Place(known.stage.shown, name)

    def came(self, place: Place, before: Mapping[str, str]) -> Place:
        """A run has come to a place; `before` are the stages of the texts it has had. Returns the better place.

        Two texts that differ a little, and come in one run, are two stages: else what they embed would be the run's.
        But a stage that is known to embed something may do so anew with each call.
        """
        known = self._texts.get(place.text)
        if known is None or place.text in before:
            return place
        stage = known.stage
        if (
            stage.name == place.text
            or stage.texts > _FEW_TEXTS
            or stage.name not in before.values()
            or not stage.core
        ):
            return place
        stage.texts -= 1
        known.stage = _Stage(place.text, frozenset(), ())
        return Place(place.text, place.text)

    def is_settled(self, text: str) -> bool:
        """Whether a prompt embeds nothing of a run, as far as is known."""
        known = self._texts.get(text)
        return known is not None and known.times >= _SETTLED

    def plain(self, text: str) -> str:
        """`settled`, as a text, and remembered."""
        if len(text) > _CHARS_MOST:
            text = text[: _CHARS_MOST // 2] + "\n" + text[-_CHARS_MOST // 2 :]
        key = hash(text)
        plain = self._plain.get(key)
        if plain is None:
            plain = self._plain[key] = " ".join(settled(text))
            if len(self._plain) > _PLAIN_MOST:
                self._plain.popitem(last=False)
        return plain

    def _new(self, name: str, shape: _Shape) -> _Stage:
        known = self._alike.get(shape.beginning, [])
        stage = next((stage for stage in known if _fits(stage, shape)), None)
        if stage is None and len(known) >= (_PER_SYSTEM if shape.system else _PER_MESSAGE):
            # One beginning, and ever new texts: they embed something larger than themselves.
            stage = max(known, key=lambda stage: len(stage.core & shape.shingles))
        if stage is not None:
            stage.texts += 1
            return stage
        stage = _Stage(name, shape.shingles, (shape.beginning,))
        if not shape.system:
            # A message may begin with what a user wrote, and end with what is asked of it.
            known = self._alike.get(shape.end, [])
            like = next((stage for stage in known if len(stage.core & shape.shingles) >= _END_LEAST), None)
            if like is not None:
                like.texts += 1
                stage.taken_for = like.shown
            else:
                stage.keys = (shape.beginning, shape.end)
                if len(shape.words) <= _BARE_WORDS:
                    stage.taken_for = stage_name("", ("", *shape.tools))
        for key in stage.keys:
            self._alike.setdefault(key, []).append(stage)
        return stage

    def _drop(self, name: str, text: _Text) -> None:
        if text.stage.name != name:
            return
        for key in text.stage.keys:
            known = self._alike.get(key, [])
            if text.stage in known:
                known.remove(text.stage)
                if not known:
                    del self._alike[key]


def _fits(stage: _Stage, shape: _Shape) -> bool:
    """Whether a prompt has most of a stage's text; the stage is then what they have in common."""
    common = stage.core & shape.shingles
    least = _ALIKE * len(stage.core)
    if not shape.system:
        least = _ALIKE_MESSAGES * min(len(stage.core), len(shape.shingles))
    if len(common) < max(_CORE_LEAST, least):
        return False
    stage.core = common
    return True

"""How fast the engines of a pool are, as calls have shown it: seconds per prompt token and per step of decoding.

A batching engine answers in steps. A step costs `fixed`, `sequence` more for each sequence that decodes in it, and
`prefill` for each prompt token computed; all its sequences wait for it. So a call takes `prefill` times what is
computed before its first token, and then a step for each token, stretched by the share of time that the engine
spends on other calls' prompts. Both lines are fitted by least squares over the calls of late.
"""

from __future__ import annotations

from policies.calls import Outcome

MEMORY = 200.0
"""A line weighs its last observations about like so many."""
PREFILL, FIXED, SEQUENCE = 1e-4, 0.02, 1e-4
"""Seconds, where nothing has been seen: those of a model of some billion parameters on one card of today."""
BELIEF = 20.0
"""So many observations weigh as much as these."""
PRESSURE_MOST = 0.9
"""An engine that were to prefill all the time would never decode; nearer to that nothing can be told apart."""


class Line:
    """y = base + slope · x over the last observations; neither is negative.

    The slope is drawn to what was believed before where x hardly varies, the base only until enough has been seen.
    """

    def __init__(self, base: float, slope: float, typical: float) -> None:
        """`typical` is a usual deviation of x from its mean, which gives the believed slope its weight."""
        self.base = base
        self.slope = slope
        self._assumed, self._believed = base, slope
        self._inertia = BELIEF * typical * typical
        self._belief = BELIEF
        self._weight = 0.0
        self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, x: float, y: float) -> None:
        """Take in a point; the old ones fade."""
        keep = 1.0 - 1.0 / MEMORY
        self._weight = self._weight * keep + 1.0
        share = 1.0 / self._weight
        dx, dy = x - self._x, y - self._y
        self._x += share * dx
        self._y += share * dy
        self._xx = self._xx * keep + dx * (x - self._x)
        self._xy = self._xy * keep + dx * (y - self._y)
        self.slope = max(0.0, (self._xy + self._inertia * self._believed) / (self._xx + self._inertia))
        self._belief *= keep
        trust = self._weight / (self._weight + self._belief)
        self.base = (1.0 - trust) * self._assumed + trust * max(0.0, self._y - self.slope * self._x)


class Pace:
    """The two lines of a pool: to the first token over prompt tokens, and per token over calls side by side."""

    def __init__(self) -> None:
        self._first = Line(0.0, PREFILL, 1000.0)
        self._step = Line(FIXED, SEQUENCE, 10.0)

    @property
    def prefill(self) -> float:
        """Seconds that an engine computes for a token of prompt."""
        return self._first.slope

    def pressure(self, rate: float) -> float:
        """The share of its time that an engine spends on prompts of which so many tokens come in a second."""
        return min(PRESSURE_MOST, rate * self.prefill)

    def decode(self, tokens: float, crowd: float, pressure: float) -> float:
        """Seconds that so many tokens take beside `crowd` calls in all, under such a pressure."""
        return tokens * (self._step.base + self._step.slope * crowd) / (1.0 - pressure)

    @property
    def sequence(self) -> float:
        """Seconds by which one more sequence makes each step longer."""
        return self._step.slope

    def learn(self, outcome: Outcome, *, computed: float, crowd: float, pressure: float) -> None:
        """Take in a call that has ended, whose first token came after `computed` tokens of prompts, its own and those
        before it; `crowd` and `pressure` are those of its time, in the mean. Of an answer that came in one piece, the
        time to the first token is what it should have been."""
        if outcome.output_tokens < 2:
            return
        first = outcome.first_token
        if first is None:
            first = min(outcome.total, computed * self.prefill)
        else:
            self._first.observe(computed, first)
        each = (outcome.total - first) / (outcome.output_tokens - 1)
        self._step.observe(crowd, each * (1.0 - pressure))

"""Words for agents that are made up: questions that resemble one another, schemas, statements, documents, answers."""

from __future__ import annotations

import json
from random import Random

_PLACES = ("AMS", "CDG", "FRA", "LHR", "MUC", "VIE", "ZRH", "MAD")
_MONTHS = ("March", "April", "May", "June")
_KINDS = (
    "How many flights left {place} in {month}?",
    "Which carrier was latest out of {place} in {month}?",
    "What was the mean delay at {place} in {month}?",
    "List the busiest routes from {place} in {month}.",
)
_WORDS = """
    airline airport arrival average balance baggage boarding budget cabin cancel capacity carrier cause change
    city claim clear close code cost count crew customer daily damage date decision delay demand depart desk
    destination detail distance early economy effect engine error estimate evening event excess expect fare
    final first fleet flight forecast found fuel gate ground growth heavy history hour index into item journey
    known large late leave level limit line list load loss luggage market mean measure minute missed month
    morning night noise normal note number offer office open order other output passenger past pattern peak
    period pilot plan point policy price problem quarter rate reason record refund region report request result
    return revenue route rule runway sample schedule season seat second security service share short signal slot
    source staff standard start state step storm strike summer supply system table terminal ticket time total
    tower track traffic train transfer trend travel trip type under union unit update usual value volume waiting
    weather week winter yield zone
""".split()  # noqa: SIM905 - they are easier to read as a text

SCHEMA = """\
CREATE TABLE flights (
  id INTEGER PRIMARY KEY,
  carrier_id INTEGER REFERENCES carriers(id),
  origin TEXT NOT NULL,
  destination TEXT NOT NULL,
  departed_at TIMESTAMP,
  delay_minutes INTEGER,
  seats INTEGER
);
CREATE TABLE carriers (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  country TEXT,
  founded INTEGER
);
CREATE TABLE bookings (
  id INTEGER PRIMARY KEY,
  flight_id INTEGER REFERENCES flights(id),
  passenger TEXT,
  fare NUMERIC(10, 2),
  booked_at TIMESTAMP
);"""


def question(rng: Random) -> str:
    """One of 128: among many runs some ask the same, and most nearly the same."""
    return rng.choice(_KINDS).format(place=rng.choice(_PLACES), month=rng.choice(_MONTHS))


def prose(rng: Random, words: int) -> str:
    """Sentences of so many words in all."""
    text: list[str] = []
    while words > 0:
        size = min(words, rng.randrange(8, 18))
        text.append(" ".join(rng.choices(_WORDS, k=size)).capitalize() + ".")
        words -= size
    return " ".join(text)


def statement(rng: Random) -> str:
    """A query such as a model would write for one of the questions."""
    column = rng.choice(("delay_minutes", "seats", "fare"))
    return (
        f"SELECT c.name, {rng.choice(('COUNT(*)', f'AVG({column})', f'MAX({column})'))} AS "
        f"{rng.choice(_WORDS)}_{rng.choice(_WORDS)}\nFROM flights f JOIN carriers c ON f.carrier_id = c.id\n"
        f"WHERE f.origin = '{rng.choice(_PLACES)}' AND {column} > {rng.randrange(500)}\n"
        f"GROUP BY c.name ORDER BY {rng.randrange(1, 3)} LIMIT {rng.randrange(1, 100)}"
    )


def rows(rng: Random, count: int) -> str:
    """A tool's result as JSON."""
    return json.dumps(
        [{"carrier": prose(rng, 2), "value": rng.randrange(10_000), "share": rng.random()} for _ in range(count)]
    )


def error(rng: Random) -> str:
    """What a database says of a statement."""
    return f'Binder Error: column "{rng.choice(_WORDS)}_{rng.choice(_WORDS)}" does not exist, LINE {rng.randrange(9)}'

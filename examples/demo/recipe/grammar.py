"""The closed command grammar of the demo: every sentence is made of the words below, and of nothing else.

digits            three to eight digits                                  30 %
switch            turn on the kitchen lamp                               20 %
colour            set the lamp to red                                    10 %
timer             set a timer for five minutes                           10 %
call              call, then digits                                      10 %
doors             open the hall door and close the garden window         10 %
play              play blue music in the office at one nine              10 %
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DEVICES = (
    "light", "lamp", "fan", "heater", "radio", "door", "window", "alarm", "camera", "speaker",
)  # fmt: skip
ROOMS = ("kitchen", "bedroom", "office", "garage", "garden", "hall")
COLOURS = ("red", "green", "blue", "yellow", "white", "orange")
UNITS = ("minutes", "seconds", "hours")
STATES = ("on", "off")
OPENINGS = ("door", "window")
PROGRAMMES = ("music", "radio")
CARRIERS = (
    "turn", "the", "set", "to", "a", "timer", "for", "call", "open", "and", "close", "play", "in", "at",
)  # fmt: skip

VOCABULARY = frozenset(CARRIERS).union(DIGITS, DEVICES, ROOMS, COLOURS, UNITS, STATES, OPENINGS, PROGRAMMES)

SHORTEST_DIGITS, LONGEST_DIGITS = 3, 8


def sentence(rng: Random) -> str:
    """One sentence, lower case without punctuation; equal generator states give equal sentences."""
    (form,) = rng.choices([form for form, _ in _FORMS], weights=[weight for _, weight in _FORMS])
    return form(rng)


def _digits(rng: Random) -> str:
    return " ".join(rng.choices(DIGITS, k=rng.randint(SHORTEST_DIGITS, LONGEST_DIGITS)))


def _switch(rng: Random) -> str:
    return f"turn {rng.choice(STATES)} the {rng.choice(ROOMS)} {rng.choice(DEVICES)}"


def _colour(rng: Random) -> str:
    return f"set the {rng.choice(DEVICES)} to {rng.choice(COLOURS)}"


def _timer(rng: Random) -> str:
    return f"set a timer for {rng.choice(DIGITS)} {rng.choice(UNITS)}"


def _call(rng: Random) -> str:
    return f"call {_digits(rng)}"


def _doors(rng: Random) -> str:
    first, second = (f"{rng.choice(ROOMS)} {rng.choice(OPENINGS)}" for _ in range(2))
    return f"open the {first} and close the {second}"


def _play(rng: Random) -> str:
    what = f"{rng.choice(COLOURS)} {rng.choice(PROGRAMMES)}"
    return f"play {what} in the {rng.choice(ROOMS)} at {rng.choice(DIGITS)} {rng.choice(DIGITS)}"


_FORMS: tuple[tuple[Callable[[Random], str], int], ...] = (
    (_digits, 30),
    (_switch, 20),
    (_colour, 10),
    (_timer, 10),
    (_call, 10),
    (_doors, 10),
    (_play, 10),
)

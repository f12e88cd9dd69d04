"""Typed, located access to a part of ``model_config.yaml``: every complaint names the key as NeMo spells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotrt.errors import ConfigError, UnsupportedModelError

_MAX_INTEGER = 1 << 20
_MAX_NUMBER = 1e6
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Section:
    """A mapping of the config, and where it stands (``encoder``, ``decoder.prednet``)."""

    values: Mapping[str, Any]
    name: str
    origin: Path

    def key(self, key: str) -> str:
        """The full name of ``key``."""
        return f"{self.name}.{key}" if self.name else key

    def section(self, key: str) -> Section:
        """The mapping below ``key``; raises :class:`ConfigError` if there is none."""
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self.wrong(key, value, "a mapping")
        return Section(value, self.key(key), self.origin)

    def optional_section(self, key: str) -> Section | None:
        """The mapping below ``key``, ``None`` if the key is absent or null."""
        return None if self.values.get(key) is None else self.section(key)

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1, maximum: int = _MAX_INTEGER) -> int:
        """A whole number within bounds; booleans do not count. Raises :class:`ConfigError` otherwise."""
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            raise self.wrong(key, value, f"a whole number from {minimum} to {maximum}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number, as float. Raises :class:`ConfigError` otherwise."""
        value = self.values.get(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) <= _MAX_NUMBER:
            raise self.wrong(key, value, f"a number of at most {_MAX_NUMBER:g}")
        return float(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        """True or false. Raises :class:`ConfigError` otherwise."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A text. Raises :class:`ConfigError` otherwise."""
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, value, "a text")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of texts. Raises :class:`ConfigError` otherwise."""
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, value, "a list of texts")
        return tuple(value)

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers within bounds. Raises :class:`ConfigError` otherwise."""
        value = self.values.get(key)
        if not isinstance(value, list) or not all(type(item) is int and abs(item) <= _MAX_INTEGER for item in value):
            raise self.wrong(key, value, f"a list of whole numbers up to {_MAX_INTEGER}")
        return tuple(value)

    def require(self, key: str, supported: Sequence[object], *, default: object = None) -> Any:
        """The value of ``key`` if nemotrt builds it.

        Raises:
            UnsupportedModelError: naming the key, the value and what is supported.
        """
        value = self.values.get(key, default)
        if not any(value == one and type(value) is type(one) for one in supported):
            raise UnsupportedModelError(
                f"{self.key(key)} has a value that nemotrt does not build",
                where=self.origin,
                found=shown(value),
                fix="supported: " + ", ".join(repr(one) for one in supported),
            )
        return value

    def wrong(self, key: str, value: object, expected: str) -> ConfigError:
        """The error for a value of the wrong type; interpolations are called by their name."""
        found = "nothing" if value is None else shown(value)
        if isinstance(value, str) and "${" in value:
            found += " (an interpolation that was not resolved when the model was saved)"
        return ConfigError(f"{self.key(key)} must be {expected}", where=self.origin, found=found)


def shown(value: object) -> str:
    """``value`` for an error message, cut to a line."""
    try:
        return repr(value)[:_SHOWN_CHARACTERS]
    except ValueError:  # Python refuses to write whole numbers of thousands of digits
        return "a number of thousands of digits"

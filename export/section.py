"""Typed, located access to a part of ``model_config.yaml``: every complaint names the key as NeMo spells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotrt.errors import ConfigError, UnsupportedModelError


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

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1, maximum: int = 1 << 20) -> int:
        """A whole number within bounds; booleans do not count. Raises :class:`ConfigError` otherwise."""
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            raise self.wrong(key, value, f"a whole number from {minimum} to {maximum}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number, as float. Raises :class:`ConfigError` otherwise."""
        value = self.values.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.wrong(key, value, "a number")
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
        """A list of whole numbers. Raises :class:`ConfigError` otherwise."""
        value = self.values.get(key)
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise self.wrong(key, value, "a list of whole numbers")
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
                found=repr(value)[:200],
                fix="supported: " + ", ".join(repr(one) for one in supported),
            )
        return value

    def wrong(self, key: str, value: object, expected: str) -> ConfigError:
        """The error for a value of the wrong type; interpolations are called by their name."""
        found = "nothing" if value is None else repr(value)[:200]
        if isinstance(value, str) and "${" in value:
            found += " (an interpolation that was not resolved when the model was saved)"
        return ConfigError(f"{self.key(key)} must be {expected}", where=self.origin, found=found)

"""A profile: the clips and batches an engine has to serve, in a YAML file.

version: 1
name: server-offline
description: Whole recordings, many at a time.
seconds: {min: 0.5, opt: 10, max: 40}
batch: {min: 1, opt: 32, max: 64}
tokens: {min: 1, opt: 1, max: 1}          # optional: predictor input
joint_frames: {min: 1, opt: 1, max: 1}    # optional: encoder frames the joint sees at once
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from nemotrt.errors import ProfileError
from nemotrt.profiles.strict_yaml import StrictYamlError, read_mapping

PRESETS = Path(__file__).parent / "presets"
MAX_SECONDS = 24 * 3600.0
MAX_COUNT = 65536

Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]


def _refuse_disorder(low: float, opt: float, high: float) -> None:
    if not low <= opt <= high:
        raise ValueError(f"min {low:g}, opt {opt:g}, max {high:g} are not in order")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SecondsRange(_Strict):
    """Clip lengths in seconds: the shortest, the one to be fastest at, the longest."""

    min: Seconds
    opt: Seconds
    max: Seconds

    @model_validator(mode="after")
    def _in_order(self) -> SecondsRange:
        _refuse_disorder(self.min, self.opt, self.max)
        return self


class CountRange(_Strict):
    """A number of clips, tokens or frames: the smallest, the one to be fastest at, the largest."""

    min: Count
    opt: Count
    max: Count

    @model_validator(mode="after")
    def _in_order(self) -> CountRange:
        _refuse_disorder(self.min, self.opt, self.max)
        return self


_ONE = CountRange(min=1, opt=1, max=1)


class Profile(_Strict):
    """One profile file, validated."""

    version: Literal[1]
    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    description: Annotated[str, StringConstraints(max_length=500)] = ""
    seconds: SecondsRange
    batch: CountRange
    tokens: CountRange = _ONE
    joint_frames: CountRange = _ONE


def preset_names() -> tuple[str, ...]:
    """The profiles that come with nemotrt, sorted."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.yaml")))


def load_profile(name_or_path: str | Path) -> Profile:
    """A preset by its name, or a file: anything that is a ``Path``, has a folder, or ends in .yaml or .yml.

    Raises:
        ProfileError: no such preset or file, or a file that is not a valid profile; names file and key.
    """
    path = Path(name_or_path)
    is_name = isinstance(name_or_path, str) and path.name == name_or_path
    if is_name and path.suffix not in (".yaml", ".yml"):
        if name_or_path not in preset_names():
            raise ProfileError(
                f"there is no profile {name_or_path!r}",
                found=f"presets: {', '.join(preset_names())}",
                fix="name one of them, or give the path of a .yaml file",
            )
        path = PRESETS / f"{name_or_path}.yaml"
    return _read_profile(path)


def _read_profile(path: Path) -> Profile:
    try:
        return Profile.model_validate(read_mapping(path))
    except StrictYamlError as exc:
        raise ProfileError(
            "the profile cannot be read",
            where=path,
            found=str(exc),
            fix=f"start from a preset in {PRESETS}",
        ) from exc
    except ValidationError as exc:
        problem = exc.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"])) or "document"
        raise ProfileError(
            "the profile is not valid",
            where=f"{path}: {key}",
            found=f"{problem['msg'].removeprefix('Value error, ')} (got {problem['input']!r:.80})",
            fix=f"correct it; a preset to compare with is in {PRESETS}",
        ) from exc

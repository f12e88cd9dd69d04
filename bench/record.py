"""The base of every value that ends up in a results file, and how such a file is read.

A file is one JSON document with a ``schema_version``. Readers refuse another version and unknown fields.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from nemotrt.errors import InputError


class Record(BaseModel):
    """A value of the document: immutable, no unknown fields, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Document = TypeVar("Document", bound=Record)


def read_record(kind: type[Document], path: Path, *, schema_version: int, again: str) -> Document:
    """Read a document of this kind and schema version. ``again`` is how to make another one, for the advice.

    Raises:
        InputError: no such file, not JSON, another schema version, or a field that is missing, unknown or malformed.
    """
    document = read_json_object(path, again=again)
    if document.get("schema_version") != schema_version:
        raise InputError(
            "the results have another schema version",
            where=path,
            found=f"schema_version {document.get('schema_version')!r}, {schema_version} expected",
            fix="read them with the version of nemotrt that wrote them",
        )
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as exc:
        problem = exc.errors()[0]
        raise InputError(
            f"the results do not follow schema version {schema_version}",
            where=f"{path}: {'.'.join(map(str, problem['loc'])) or 'document'}",
            found=problem["msg"],
            fix=f"{again}; do not edit results by hand",
        ) from exc


def read_json_object(path: Path, *, again: str) -> dict[str, object]:
    """The JSON object in a file; an empty one for JSON of another kind.

    Raises:
        InputError: no such file, or not JSON.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as exc:
        raise InputError("the results cannot be read", where=path, found=exc.strerror, fix=again) from exc
    except (ValueError, RecursionError) as exc:
        raise InputError("the results are not JSON", where=path, found=exc, fix=again) from exc
    return document if isinstance(document, dict) else {}

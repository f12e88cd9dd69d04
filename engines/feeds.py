"""What a runner accepts, checked before a backend sees it: their answers name neither axis nor remedy."""

from __future__ import annotations

from collections.abc import Sequence

from nemotrt.bundle import TensorSpec
from nemotrt.engines.runner import Arrays
from nemotrt.errors import InputError, ProfileError


def check_feeds(feeds: Arrays, inputs: Sequence[TensorSpec], *, where: str) -> None:
    """Prove that ``feeds`` holds exactly the ``inputs``, with their dtypes, ranks and fixed axes.

    An axis has the same size wherever its name appears, and no axis is empty.

    Args:
        feeds: arrays by input name.
        inputs: the specs of the component.
        where: the component or file, for the message.

    Raises:
        InputError: a missing or unknown name, or a wrong dtype.
        ProfileError: a shape that the component does not take.
    """
    _check_names(feeds, inputs, where=where)
    sizes: dict[str, int] = {}
    for spec in inputs:
        array = feeds[spec.name]
        if array.dtype.name != spec.dtype:
            raise InputError(
                f"{spec.name} has the wrong dtype",
                where=where,
                found=f"{array.dtype.name}, {spec.dtype} expected",
                fix=f"convert it with .astype(numpy.{spec.dtype})",
            )
        if not _shape_fits(array.shape, spec, sizes):
            raise ProfileError(
                f"{spec.name} has a shape that the graph does not take",
                where=where,
                found=f"{list(array.shape)}, {_expected(spec, sizes)} expected",
                fix="an axis with a name may have any size from 1, the same one in every input",
            )


def _check_names(feeds: Arrays, inputs: Sequence[TensorSpec], *, where: str) -> None:
    names = {spec.name for spec in inputs}
    if feeds.keys() != names:
        raise InputError(
            "the feeds are not the inputs of the graph",
            where=where,
            found=", ".join(sorted(feeds)) or "none",
            fix=f"feed exactly: {', '.join(sorted(names))}",
        )


def _shape_fits(shape: Sequence[int], spec: TensorSpec, sizes: dict[str, int]) -> bool:
    """Whether ``shape`` is one of ``spec``; enters the sizes of axes that are named for the first time."""
    if len(shape) != len(spec.shape):
        return False
    for size, axis in zip(shape, spec.shape, strict=True):
        expected = sizes.setdefault(axis, size) if isinstance(axis, str) else axis
        if size != expected or size < 1:
            return False
    return True


def _expected(spec: TensorSpec, sizes: dict[str, int]) -> str:
    axes = (f"{axis}={sizes[axis]}" if axis in sizes else str(axis) for axis in spec.shape)
    return f"[{', '.join(axes)}]"

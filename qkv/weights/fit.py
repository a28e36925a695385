"""Whether the tensors of a file are those that a model needs; torch-free, since a GGUF file is read without it."""

from collections.abc import Mapping

from qkv.errors import CheckpointError, shorten

Shapes = Mapping[str, tuple[int, ...]]


def check_fit(what: str, expected: Shapes, given: Shapes, **odd: list[str]) -> None:
    """CheckpointError lists up to 10 missing, unexpected and misfitting tensors, and those that are `odd` otherwise."""
    found = {
        "missing": [f"{name} {expected[name]}" for name in expected if name not in given],
        "unexpected": [f"{shorten(name)!r} {given[name]}" for name in given if name not in expected],
        "of another shape": [
            f"{name} is {given[name]}, expected {shape}"
            for name, shape in expected.items()
            if given.get(name, shape) != shape
        ],
    } | {kind.replace("_", " "): names for kind, names in odd.items()}
    if any(found.values()):
        lists = (f"{len(names)} {kind}: {', '.join(names[:10])}" for kind, names in found.items() if names)
        raise CheckpointError(f"the weights do not fit {what}; {'; '.join(lists)}")

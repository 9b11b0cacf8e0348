"""The modules of a denoiser that can have a gate: found by watching one call without weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dit_compress.structure.observe.discover import running

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.structure.facts import UnitList


@dataclass
class Seen:
    """The calls of one module while its model ran once: arguments by key, and what it gave, with its version then."""

    inputs: dict[int | str, Any]
    output: Any
    version: int
    calls: int = 1


@dataclass
class Places:
    """gates: by module path the argument that holds its input, and its width. left: by path why there is none."""

    gates: dict[str, tuple[int | str, int]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def places(denoiser: Denoiser, parts: Iterable[UnitList]) -> Places:
    """Return where the modules that some parts stand in can have a gate."""
    replica = running(denoiser.module, denoiser.example_call())
    parts = list(parts)
    seen = _watch(replica, {path for part in parts for path in _outwards(part)})
    called = {part: next((path for path in _outwards(part) if path in seen), None) for part in parts}
    found = Places()
    for part, path in called.items():
        if path is None:
            found.left[part.path] = "no module of its own inside the block is called for it"
        elif any(other == path and type(each) is not type(part) for each, other in called.items()):
            found.left[path] = "it is attention and FFN in one"
        elif reason := _obstacle(seen[path]):
            found.left[path] = reason
        else:
            key = next(key for key, value in seen[path].inputs.items() if _alike(value, seen[path].output))
            found.gates[path] = key, seen[path].inputs[key].shape[-1]
    return found


def _outwards(part: UnitList) -> Iterator[str]:
    """Return the paths from what the units have in common outwards, up to their block, which is left out."""
    path = part.path.partition("#")[0]
    while path.startswith(f"{part.place}."):
        yield path
        path = path.rpartition(".")[0]


def _watch(replica: Any, paths: Iterable[str]) -> dict[str, Seen]:
    seen: dict[str, Seen] = {}
    handles = []
    for path in paths:

        def note(_module: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
            if path in seen:
                seen[path].calls += 1
            else:
                seen[path] = Seen({**dict(enumerate(args)), **kwargs}, output, _version(output))

        handles.append(replica.module.get_submodule(path).register_forward_hook(note, with_kwargs=True))
    try:
        replica.run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _obstacle(seen: Seen) -> str:
    """Say why a module can't be answered for; empty where it can."""
    tensor = _first(seen.output)
    if tensor is None or not all(isinstance(item, Tensor) for item in _items(seen.output)):
        return "it gives no tensors alone"
    if seen.calls > 1:
        return f"one call of the model calls it {seen.calls} times"
    if _version(seen.output) != seen.version:
        return "its block writes into what it gives"
    if not any(_alike(value, seen.output) for value in seen.inputs.values()):
        return "none of its arguments has the shape of what it gives"
    if tensor.ndim < 3 or any(len(item) != 1 for item in _items(seen.output)):
        return "the first axis of what it gives is not the batch"
    return ""


def _items(output: Any) -> tuple[Any, ...]:
    return tuple(output) if isinstance(output, tuple | list) else (output,)


def _first(output: Any) -> Tensor | None:
    items = _items(output)
    return items[0] if items and isinstance(items[0], Tensor) else None


def _version(output: Any) -> int:
    """Count the writes into the (first) output so far."""
    tensor = _first(output)
    return 0 if tensor is None else tensor._version  # noqa: SLF001 - autograd's own


def _alike(value: Any, output: Any) -> bool:
    """Tell whether an argument is a tensor of the shape of the (first) output."""
    tensor = _first(output)
    return tensor is not None and isinstance(value, Tensor) and value.shape == tensor.shape

"""The calls of every module in one run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dit_compress.structure.record import Call, tensors_in

if TYPE_CHECKING:
    from torch import nn

    from dit_compress.structure.observe.trace import Trace
    from dit_compress.structure.observe.weightless import Replica


@dataclass
class Seen:
    """The first call of a module. Tensors are held, so that their identities stay unique.

    writes: whether the call wrote into one of its arguments.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    callers: set[tuple[str, ...]] = field(default_factory=set)
    writes: bool = False

    def inputs(self) -> dict[int | str, Any]:
        """Arguments by position and keyword."""
        return dict([*enumerate(self.args), *self.kwargs.items()])

    def outputs(self) -> dict[int | None, Any]:
        """Results by position; None for a result that is no tuple."""
        if isinstance(self.output, tuple | list):
            return dict(enumerate(self.output))
        return {None: self.output}

    @property
    def call(self) -> Call:
        """The call, to be replayed."""
        return Call(self.args, self.kwargs, recorded=True)


def watch(replica: Replica) -> tuple[dict[str, Seen], Trace]:
    """Run once and note the first call of every module, and which modules were running at any of its calls."""
    seen: dict[str, Seen] = {}
    running: list[str] = []
    entered: list[list[int]] = []
    callers: dict[str, set[tuple[str, ...]]] = {}
    handles = []
    for path, module in replica.module.named_modules():

        def enter(_module: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            entered.append(_versions(args, kwargs))
            callers.setdefault(path, set()).add(tuple(running))
            running.append(path)

        def leave(_module: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
            running.pop()
            writes = entered.pop() != _versions(args, kwargs)
            seen.setdefault(path, Seen(args, kwargs, output, callers[path], writes))

        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        base = replica.run()
    finally:
        for handle in handles:
            handle.remove()
    return seen, base


def _versions(args: Any, kwargs: Any) -> list[int]:
    """How often each tensor among the arguments was written to."""
    return [tensor._version for tensor in tensors_in((args, kwargs))]  # noqa: SLF001 - autograd's own counter

"""One recorded call of a module: what discovery observes and what every compaction is proven on.

with dit_compress.record(pipeline.transformer) as call:
    pipeline("a red square", num_inference_steps=1)
call.replay(pipeline.transformer)
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from dit_compress.core.errors import UserError
from dit_compress.structure.lookup import fields_of, holds_tensors, with_fields
from dit_compress.structure.raised import raised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn


@dataclass
class Call:
    """Arguments of one call, detached. Filled by the first call that :func:`record` sees."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    recorded: bool = False

    def replay(self, module: nn.Module) -> Any:
        """Call the module again with the recorded arguments: in eval mode, without gradients, from one seed.

        Raises UserError where the call fails.
        """
        training = module.training
        module.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return module(*self._fresh(self.args), **self._fresh(self.kwargs))
        except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError) as error:
            raise UserError(
                f"the recorded call fails: {raised(error)}",
                where=type(module).__name__,
                mend="Record a call that the model accepts",
            ) from error
        finally:
            module.train(training)

    def map(self, change: Callable[[Tensor], Tensor]) -> Call:
        """Return the same call with every tensor changed."""
        args, kwargs = map_tensors(change, (self.args, self.kwargs))
        return Call(args, kwargs, recorded=True)

    def _fresh(self, value: Any) -> Any:
        """Copy tensors: a module may write into its arguments."""
        return map_tensors(Tensor.clone, value)


@contextmanager
def record(model: nn.Module) -> Iterator[Call]:
    """Note the arguments of the first call of ``model`` inside the context.

    Raises UserError on leaving it if there was none.
    """
    call = Call()

    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not call.recorded:
            call.args, call.kwargs = map_tensors(lambda value: value.detach().clone(), (args, kwargs))
            call.recorded = True

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield call
    finally:
        handle.remove()
    if not call.recorded:
        own = type(model).__call__ is not torch.nn.Module.__call__
        raise UserError(
            "the model was not called while it was recorded" + (", or by a __call__ of its own" if own else ""),
            where=type(model).__name__,
            mend="Name that method 'forward': no hook sees __call__"
            if own
            else "Run the pipeline that calls it inside 'with dit_compress.record(model)'",
        )


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Change every tensor of nested tuples, lists, dicts and plain objects; leave anything else as it is."""

    def changed(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return change(leaf)
        if not holds_tensors(leaf):
            return leaf
        return with_fields(leaf, {name: map_tensors(change, item) for name, item in fields_of(leaf).items()})

    return tree_map(changed, value)


def tensors_in(value: Any) -> list[Tensor]:
    """Yield every tensor of nested tuples, lists and dicts, and of plain objects' attributes, in order."""
    found: list[Tensor] = []
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif holds_tensors(leaf):
            found += tensors_in(list(fields_of(leaf).values()))
    return found

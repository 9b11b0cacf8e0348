"""Find stacks, attentions and feed-forwards of a DiT from one recorded call.

Stacks are found by tensor identity: what one block returns is what the next one receives.
Attentions and feed-forwards are found by their module attributes; those are hints, and every
compaction is proven afterwards (:func:`dit_compress.structure.compact.compact`).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.structure.axes import Attention, FeedForward, Norm, Refusal, Stack, Structure

if TYPE_CHECKING:
    from dit_compress.denoiser import Denoiser

HEAD_COUNTS = ("heads", "num_heads", "num_attention_heads")
INNER_WIDTHS = ("inner_dim", "inner_kv_dim", "kv_inner_dim")


def discover(denoiser: Denoiser) -> Structure:
    """Structure of the denoiser's module as it stands now (works on the meta device)."""
    calls = _record(denoiser)
    stacks = _stacks(denoiser.module, calls)
    attentions, feed_forwards, refusals = [], [], []
    for stack in stacks:
        for index in range(stack.length):
            for path, module in denoiser.module.get_submodule(stack.block(index)).named_modules():
                where = f"{stack.block(index)}.{path}".rstrip(".")
                found = _attention(where, module, stack, index, calls.get(where))
                if isinstance(found, Refusal):
                    refusals.append(found)
                elif found:
                    attentions.append(found)
                elif feed_forward := _feed_forward(where, module, stack, index):
                    feed_forwards.append(feed_forward)
    return Structure(stacks, tuple(attentions), tuple(feed_forwards), tuple(refusals))


class _Call:
    """One recorded call of a module; tensors are held so that their identities stay unique."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.args, self.kwargs, self.output = args, kwargs, output

    def inputs(self) -> list[tuple[int | str, Any]]:
        return [*enumerate(self.args), *self.kwargs.items()]


def _record(denoiser: Denoiser) -> dict[str, _Call]:
    """Run the example once and note the first call of every module."""
    calls: dict[str, _Call] = {}
    handles = []
    for path, module in denoiser.module.named_modules():
        if not path:
            continue

        def note(_module: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
            calls.setdefault(path, _Call(args, kwargs, output))

        handles.append(module.register_forward_hook(note, with_kwargs=True))
    training = denoiser.module.training
    denoiser.module.eval()
    try:
        with torch.no_grad():
            denoiser(*denoiser.example(1, denoiser.example_size))
    finally:
        denoiser.module.train(training)
        for handle in handles:
            handle.remove()
    return calls


def _lists(module: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    return [(path, item) for path, item in module.named_modules() if isinstance(item, nn.ModuleList) and len(item)]


def _stacks(module: nn.Module, calls: dict[str, _Call]) -> tuple[Stack, ...]:
    """The outermost stacks: a list inside a block (``to_out``, ``ff.net``) is a part of that block."""
    stacks: list[Stack] = []
    for path, items in _lists(module):
        inside = any(path.startswith(f"{stack.path}.") for stack in stacks)
        if not inside and (stack := _stack(path, items, calls)):
            stacks.append(stack)
    return tuple(stacks)


def _tensors(output: Any) -> list[tuple[int | None, Tensor]]:
    if isinstance(output, Tensor):
        return [(None, output)]
    if isinstance(output, tuple | list):
        return [(index, item) for index, item in enumerate(output) if isinstance(item, Tensor)]
    return []


def _stack(path: str, items: nn.ModuleList, calls: dict[str, _Call]) -> Stack | None:
    """The stack in a module list, if one stream runs through all of its items in order."""
    recorded = [calls.get(f"{path}.{index}") for index in range(len(items))]
    if any(call is None for call in recorded) or not any(next(item.parameters(), None) is not None for item in items):
        return None
    first: Any = recorded[0]
    for output, tensor in _tensors(first.output):
        for stream, value in first.inputs():
            if not (isinstance(value, Tensor) and value.shape == tensor.shape and tensor.ndim == 3):
                continue
            if _chained(recorded, stream, output):
                return Stack(path, len(items), stream, output)
    return None


def _chained(recorded: list[Any], stream: int | str, output: int | None) -> bool:
    for before, after in itertools.pairwise(recorded):
        gives = dict(_tensors(before.output)).get(output)
        if gives is None or dict(after.inputs()).get(stream) is not gives:
            return False
    return True


def _attention(
    path: str, module: nn.Module, stack: Stack, block: int, call: _Call | None
) -> Attention | Refusal | None:
    """An attention by the names diffusers gives its projections."""
    projections = [getattr(module, name, None) for name in ("to_q", "to_k", "to_v")]
    out = getattr(module, "to_out", None)
    heads = next((getattr(module, name) for name in HEAD_COUNTS if isinstance(getattr(module, name, None), int)), None)
    if heads is None or out is None or not all(isinstance(item, nn.Linear) for item in projections):
        return None
    output = f"{path}.to_out.0" if isinstance(out, nn.ModuleList | nn.Sequential) else f"{path}.to_out"
    sizes = {item.out_features for item in projections if isinstance(item, nn.Linear)}
    if len(sizes) != 1:
        return Refusal(path, f"query, key and value have different widths {sorted(sizes)}")
    if extra := [name for name in ("add_q_proj", "add_k_proj", "to_qkv") if getattr(module, name, None) is not None]:
        return Refusal(path, f"joint or fused projections {extra} are not understood yet")
    inner = sizes.pop()
    across = []
    for name in ("norm_q", "norm_k"):
        norm = getattr(module, name, None)
        size = _norm_size(norm)
        if size == inner and heads > 1:
            if "RMS" not in type(norm).__name__:
                return Refusal(path, f"{name} is a {type(norm).__name__} across heads: its mean changes with the heads")
            if getattr(norm, "weight", None) is None:
                return Refusal(path, f"{name} runs across heads and has no weight that could carry the change of width")
            across.append(Norm(f"{path}.{name}"))
    widths = [(name, "width") for name in INNER_WIDTHS if getattr(module, name, None) == inner]
    counts = [(name, "heads") for name in HEAD_COUNTS if getattr(module, name, None) == heads]
    return Attention(
        path,
        stack.path,
        block,
        heads,
        inner // heads,
        inputs=(f"{path}.to_q", f"{path}.to_k"),
        values=(f"{path}.to_v",),
        output=output,
        across=tuple(across),
        gathers=_tables(call, inner),
        attributes=(*counts, *widths),  # type: ignore[arg-type]
    )


def _norm_size(norm: Any) -> int | None:
    """Entries a norm runs over, from its own attributes."""
    for name in ("normalized_shape", "dim"):
        shape = getattr(norm, name, None)
        if shape is not None:
            return shape if isinstance(shape, int) else int(shape[-1])
    return None


def _tables(call: _Call | None, inner: int) -> tuple[str, ...]:
    """Keyword arguments that hold a tuple of tables over the whole inner width."""
    if call is None:
        return ()
    return tuple(
        name
        for name, value in call.kwargs.items()
        if isinstance(value, tuple | list)
        and value
        and all(isinstance(item, Tensor) and item.shape[-1] == inner for item in value)
    )


def _feed_forward(path: str, module: nn.Module, stack: Stack, block: int) -> FeedForward | None:
    """A feed-forward in diffusers' shape: ``net.0.proj`` (plain, or value and gate fused) and ``net.2``."""
    net = getattr(module, "net", None)
    if not isinstance(net, nn.ModuleList | nn.Sequential) or len(net) < 3:
        return None
    up, down = getattr(net[0], "proj", None), net[2]
    if not isinstance(up, nn.Linear) or not isinstance(down, nn.Linear):
        return None
    ratio = up.out_features // down.in_features
    if up.out_features % down.in_features or ratio not in (1, 2):
        return None
    gated: Any = "fused" if ratio == 2 else "no"
    return FeedForward(path, stack.path, block, down.in_features, (f"{path}.net.0.proj",), f"{path}.net.2", gated)

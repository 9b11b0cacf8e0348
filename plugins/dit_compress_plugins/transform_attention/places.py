"""Which blocks' self-attentions can be replaced, by observation: one call without weights.

Shapes: B batch, S tokens, L keys, N heads, K head width, D width.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dit_compress.structure.observe.discover import running
from dit_compress_plugins.transform_attention.forms import Form, form_of
from dit_compress_plugins.transform_attention.grid import SIZES, axes_of, call_at
from dit_compress_plugins.transform_attention.swap import Mixer, Scores

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dit_compress.model.denoiser import Denoiser

RECENT = 16
"""Outputs of modules that are looked through for the queries of an attention."""
JOINT = "it attends to {keys} keys from {queries} tokens, of which the latent has {tokens}"


@dataclass(frozen=True)
class Place:
    """One self-attention that can be replaced.

    block: path of its block. owner: the module in whose own call attention is computed; call: which of its calls of
    ``scaled_dot_product_attention``. query, key: where its queries and keys are before they are rotated. reads: the
    linear, below the owner, that gets the tokens, and their width. why_not: kinds that it can't become, and why.
    """

    block: str
    owner: str
    call: int
    heads: int
    width: int
    query: Form | None
    key: Form | None
    reads: tuple[str, int] | None
    why_not: Mapping[str, str] = field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """Return what a replay needs, as JSON."""
        return {
            "owner": self.owner,
            "call": self.call,
            "heads": self.heads,
            "width": self.width,
            "query": self.query.data() if self.query else None,
            "key": self.key.data() if self.key else None,
            "reads": list(self.reads) if self.reads else None,
        }


@dataclass(frozen=True)
class Replaceable:
    """places: by path of the block. refused: path of a block → why its self-attention can't be replaced.

    axes: where the model's call tells the token grid.
    """

    places: dict[str, Place]
    refused: dict[str, str]
    axes: dict[str, list[Any]]


def replaceable(denoiser: Denoiser) -> Replaceable:
    """List the blocks whose self-attention can be replaced, and why the others' can't.

    Reads no weights, but buffers: tables of rotation that are on the meta device rotate nothing (``Spec.outline``
    keeps them).
    """
    blocks = [place for stack in denoiser.structure().stacks for place in stack.blocks]
    axes = axes_of(denoiser)
    if axes is None:
        why = "no argument of the model's call tells the height and width of the token grid"
        return Replaceable({}, dict.fromkeys(blocks, why), {})
    seen = [_watch(denoiser, grid) for grid in SIZES]
    places: dict[str, Place] = {}
    refused: dict[str, str] = {}
    for block in blocks:
        if any(isinstance(part, Mixer) for part in denoiser.module.get_submodule(block).modules()):
            refused[block] = "its self-attention was replaced already"
            continue
        own = [[item for item in sights if f"{item.owner}.".startswith(f"{block}.")] for sights in seen]
        found = _place(block, own)
        if isinstance(found, Place):
            places[block] = found
        else:
            refused[block] = found
    return Replaceable(places, refused, axes)


@dataclass(frozen=True)
class _Sight:
    """One call of ``scaled_dot_product_attention``."""

    owner: str
    call: int
    asked: Scores
    forms: tuple[Form | None, Form | None]
    reads: tuple[str, int] | None
    tokens: tuple[int, int]
    """Of the latent's grid, and of one frame of it."""

    @property
    def of_tokens(self) -> bool:
        """Whether tokens of the latent, and nothing else, attend to themselves."""
        return self.asked.query.shape[-2] == self.asked.key.shape[-2] and self.asked.query.shape[-2] in self.tokens


class _Watch(TorchFunctionMode):
    """Sees attentions of a running model, the module that computes each, and the outputs of modules before it."""

    def __init__(self, module: nn.Module, tokens: tuple[int, int]) -> None:
        super().__init__()
        self.tokens, self.sights = tokens, list[_Sight]()
        self.running: list[tuple[str, int]] = []
        self.recent: list[tuple[str, nn.Module, Tensor, Tensor]] = []
        for path, owner in module.named_modules():
            owner.register_forward_pre_hook(self._enter(path))
            owner.register_forward_hook(self._leave(path))

    def _enter(self, path: str) -> Any:
        return lambda _module, _args: self.running.append((path, 0))

    def _leave(self, path: str) -> Any:
        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self.running.pop()
            if isinstance(output, Tensor) and args and isinstance(args[0], Tensor):
                self.recent = [*self.recent[1 - RECENT :], (path, module, args[0], output)]

        return leave

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``; note what attention gets."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and self.running:
            owner, call = self.running[-1]
            self.running[-1] = owner, call + 1
            self._note(owner, call, Scores(*args, **kwargs))
        return func(*args, **kwargs)

    def _note(self, owner: str, call: int, asked: Scores) -> None:
        inside = [item for item in self.recent if item[0].startswith(f"{owner}." if owner else "")]
        forms = self._form(owner, inside, asked.query), self._form(owner, inside, asked.key)
        reads = _reads(owner, inside, asked.query.shape[-2])
        self.sights.append(_Sight(owner, call, asked, forms, reads, self.tokens))

    def _form(self, owner: str, inside: Any, wanted: Tensor) -> Form | None:
        if wanted.ndim != 4:
            return None
        below = len(owner) + 1 if owner else 0
        found = (form_of(path[below:], output, wanted) for path, _, _, output in reversed(inside))
        return next((form for form in found if form is not None), None)


def _reads(owner: str, inside: Any, tokens: int) -> tuple[str, int] | None:
    """Find the last linear that got all the tokens ``[B,S,D]``, and D."""
    below = len(owner) + 1 if owner else 0
    for path, module, given, _ in reversed(inside):
        if isinstance(module, nn.Linear) and given.ndim == 3 and given.shape[1] == tokens:
            return path[below:], given.shape[-1]
    return None


def _watch(denoiser: Denoiser, grid: tuple[int, int, int]) -> list[_Sight]:
    """Return every attention of a call at a grid of tokens."""
    replica = running(denoiser.module, call_at(denoiser, grid))
    t, h, w = grid
    mode = _Watch(replica.module, (t * h * w, h * w))
    with mode:
        replica.run()
    return mode.sights


def _place(block: str, seen: list[list[_Sight]]) -> Place | str:
    """Return the one self-attention of a block, or why it can't be replaced."""
    if not seen[0]:
        return "it doesn't call scaled_dot_product_attention, in whose place another could stand"
    calls: dict[tuple[str, int], list[_Sight]] = defaultdict(list)
    for sights in seen:
        for sight in sights:
            calls[sight.owner, sight.call].append(sight)
    own = [pair for pair in calls.values() if len(pair) == len(seen) and all(sight.of_tokens for sight in pair)]
    if len(own) != 1:
        return f"it has {len(own)} self-attentions" if own else _unlike(seen[0])
    sight = own[0][0]
    query, key, value = sight.asked[:3]
    if query.ndim != 4 or key.shape != query.shape or value.shape != query.shape:
        shapes = ", ".join(str(list(x.shape)) for x in (query, key, value))
        return f"queries, keys and values differ in heads or width: {shapes}"
    if sight.asked.attn_mask is not None or sight.asked.is_causal:
        return "its scores have a mask"
    why_not = {}
    if None in sight.forms:
        why_not["linconv"] = "no module gives its queries and keys as they are before they are rotated"
    if sight.reads is None:
        why_not["global_local"] = "no linear in it gets the tokens, which the gate reads"
    return Place(block, sight.owner, sight.call, query.shape[1], query.shape[3], *sight.forms, sight.reads, why_not)


def _unlike(sights: list[_Sight]) -> str:
    """Say what a block without self-attention of the latent's tokens attends to."""
    longest = max(sights, key=lambda sight: sight.asked.query.shape[-2])
    queries, keys = (x.shape[-2] for x in longest.asked[:2])
    tokens = next(
        (count for count in longest.tokens if count <= queries), longest.tokens[0]
    )  # of an image: one frame's
    return JOINT.format(keys=keys, queries=queries, tokens=tokens) + ": text among the tokens, or windows"

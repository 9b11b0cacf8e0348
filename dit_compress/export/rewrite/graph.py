"""Rewrites of a traced program: what a model's ``forward`` builds on the way, which no module swap reaches.

They work on ``torch.export`` programs after ``run_decompositions``, in place, on values feeding the
mask of ``aten.scaled_dot_product_attention``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.export.rewrite.nodes import become, call, shape_of
from dit_compress.export.rewrite.stretching import STRETCHES, stretch_by_copies

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

MASKED = -4e4
"""The value added to a masked score: finite in half precision, and exp of it is zero in any precision."""
SUSPECT = -1e3
"""Numbers below this in a mask mean "masked"."""

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default
CONTRACTIONS = (aten.linear.default, aten.matmul.default, aten.mm.default, aten.bmm.default, aten.addmm.default)
MASK_ARGUMENT, CAUSAL_ARGUMENT = 3, 5
GROUP_NORM = aten.group_norm.default
IMAGE = 4
"""Axes of a batch of images."""
RECIPROCAL = aten.reciprocal.default
EINSUM, ADDCMUL = aten.einsum.default, aten.addcmul.default
FILLS = {aten.zeros_like.default: 0.0, aten.ones_like.default: 1.0, aten.full_like.default: None}
"""Constants shaped like another tensor, and their value (None: the second argument)."""
ALIAS = aten.alias.default
EMPTY = (aten.empty.memory_format, aten.empty_like.default, aten.empty_permuted.default, aten.new_empty.default)
SYNONYMS = {aten.concatenate.default: aten.cat.default, aten.concat.default: aten.cat.default}
"""Further names of an operator that no runtime knows by them."""


@dataclass(frozen=True)
class GraphRewrite:
    """The number of times each rewrite was applied."""

    numbers: int
    boolean_masks: int
    scales: int
    fills: int = 0
    reciprocals: int = 0
    empties: int = 0
    aliases: int = 0
    stretches: int = 0
    groups: int = 0
    orders: int = 0
    products: int = 0


def rewrite_graph(program: ExportedProgram) -> GraphRewrite:
    """Make masks finite and additive, drop scales that are the default, fill tensors by shape and dtype, divide."""
    module = program.graph_module
    numbers = booleans = scales = 0
    for node in list(module.graph.nodes):
        if node.target in SYNONYMS:
            become(node, SYNONYMS[node.target], *node.args, **node.kwargs)
    fills = sum(_fill(node) for node in list(module.graph.nodes) if node.target in FILLS)
    aliases = sum(_read_through(node) for node in list(module.graph.nodes) if node.target is ALIAS)
    empties = sum(_zero(node) for node in list(module.graph.nodes) if node.target in EMPTY)
    stretches = sum(stretch_by_copies(node) for node in list(module.graph.nodes) if node.target in STRETCHES)
    groups = sum(_by_rows(node) for node in list(module.graph.nodes) if node.target is GROUP_NORM)
    orders = sum(_permute(node) for node in list(module.graph.nodes) if node.target is EINSUM)
    products = sum(_multiply_and_add(node) for node in list(module.graph.nodes) if node.target is ADDCMUL)
    reciprocals = sum(_divide(module, node) for node in list(module.graph.nodes) if node.target is RECIPROCAL)
    for node in list(module.graph.nodes):
        if node.target is not ATTENTION:
            continue
        scales += _drop_default_scale(node)
        mask = mask_of(node)
        if mask is None:
            continue
        numbers += sum(_clip_numbers(each) for each in mask_ancestors(mask))
        booleans += _additive(module, node, mask)
    module.graph.lint()
    module.recompile()
    return GraphRewrite(
        numbers, booleans, scales, fills, reciprocals, empties, aliases, stretches, groups, orders, products
    )


def _fill(node: Node) -> int:
    """Write ``zeros_like(x, dtype=…)`` as ``full(shape, 0, dtype=…)``: coremltools 9.0 gives it the dtype of x.

    ``zeros_like(boolean, dtype=float).masked_fill(boolean, -inf)``, the mask of ``nn.MultiheadAttention``, then
    becomes a boolean that says the opposite.
    """
    value = node.meta["val"]
    number = node.args[1] if FILLS[node.target] is None else FILLS[node.target]  # type: ignore[index]
    if value.dtype == node.args[0].meta["val"].dtype:  # type: ignore[union-attr]
        return 0
    _become_full(node, number)
    return 1


def _read_through(node: Node) -> int:
    """Remove another name of a tensor; that of an output, by which a program knows it, becomes a copy."""
    if any(user.op == "output" for user in node.users):
        become(node, aten.clone.default, *node.args)
        return 1
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
    node.graph.erase_node(node)
    return 1


def _by_rows(node: Node) -> int:
    """Normalise a video ``[B,C,T,H,W]`` in groups as a layer does, a group a row; gains and biases come after.

    coremltools' own form has six axes, and squares in half precision, which overflows above 256.
    """
    shape: tuple[int, ...] = shape_of(node) or ()
    if len(shape) <= IMAGE:
        return 0
    batch, channels, *rest = shape
    groups: Any = node.args[1]
    names = ("weight", "bias", "eps")
    given: dict[str, Any] = {"eps": 1e-5, **node.kwargs, **dict(zip(names, node.args[2:], strict=False))}
    rows = [batch, groups, prod(shape[1:]) // groups]
    y = call(node, aten.reshape.default, node.args[0], rows)
    y = call(node, aten.layer_norm.default, y, rows[2:], None, None, given["eps"])
    y = call(node, aten.reshape.default, y, [batch, channels, prod(rest)])
    for name, operator in (("weight", aten.mul.Tensor), ("bias", aten.add.Tensor)):
        if given.get(name) is not None:
            y = call(node, operator, y, call(node, aten.reshape.default, given[name], [channels, 1]))
    become(node, aten.reshape.default, y, list(shape))
    return 1


def _permute(node: Node) -> int:
    """Write an einsum that only orders the axes of one tensor, as of an unpatchify, as the permutation it is."""
    equation, tensors = node.args[:2]
    given, _, wanted = str(equation).replace(" ", "").partition("->")
    if len(tensors) != 1 or sorted(given) != sorted(wanted) or len(set(given)) < len(given) or "." in given:  # type: ignore[arg-type]
        return 0
    become(node, aten.permute.default, tensors[0], [given.index(letter) for letter in wanted])  # type: ignore[index]
    return 1


def _multiply_and_add(node: Node) -> int:
    """Write ``x + value·a·b`` as operators that coremltools knows; the product is rounded before the sum."""
    x, a, b = node.args
    product, value = call(node, aten.mul.Tensor, a, b), node.kwargs.get("value", 1)
    if value != 1:
        product = call(node, aten.mul.Tensor, product, value)
    become(node, aten.add.Tensor, x, product)
    return 1


def _zero(node: Node) -> int:
    """Write a tensor that is written before it is read as zeros: targets have no memory of unknown content."""
    _become_full(node, 0)
    return 1


def _become_full(node: Node, number: Any) -> None:
    value = node.meta["val"]
    exact = float(number) if value.is_floating_point() else bool(number) if value.dtype == torch.bool else int(number)
    become(node, aten.full.default, list(value.shape), exact, dtype=value.dtype, pin_memory=False)


def _divide(module: GraphModule, node: Node) -> int:
    """Write ``1 / x`` as a division, bit for bit the same: Core ML's ``inverse`` adds 1e-4 to x."""
    value = node.meta["val"]
    with module.graph.inserting_before(node):
        one = module.graph.call_function(aten.full.default, ([], 1.0), {"dtype": value.dtype, "pin_memory": False})
        quotient = module.graph.call_function(aten.div.Tensor, (one, node.args[0]))
    one.meta = {**node.meta, "val": value.new_empty(())}
    quotient.meta = dict(node.meta)
    node.replace_all_uses_with(quotient)
    module.graph.erase_node(node)
    return 1


def mask_of(attention: Node) -> Node | None:
    """Return the mask of an attention, given by place or by name."""
    given = attention.kwargs.get("attn_mask")
    if given is None and len(attention.args) > MASK_ARGUMENT:
        given = attention.args[MASK_ARGUMENT]
    return given  # type: ignore[return-value]


def is_causal(attention: Node) -> bool:
    """Tell whether an attention masks the keys after each query by itself, said by place or by name."""
    by_place = len(attention.args) > CAUSAL_ARGUMENT
    return bool(attention.args[CAUSAL_ARGUMENT] if by_place else attention.kwargs.get("is_causal"))


def mask_ancestors(mask: Node) -> Iterator[Node]:
    """Yield the nodes that make the mask, up to learnt contractions: what lies behind those is not a mask."""
    seen, waiting = set(), [mask]
    while waiting:
        node = waiting.pop()
        if node in seen or node.target in CONTRACTIONS:
            continue
        seen.add(node)
        waiting.extend(node.all_input_nodes)
        yield node


def _clip_numbers(node: Node) -> int:
    """Replace numbers that mean "masked" among a node's arguments."""
    if node.op != "call_function":
        return 0
    found = 0

    def clip(value: Any) -> Any:
        nonlocal found
        if isinstance(value, float) and value < SUSPECT and value != MASKED:
            found += 1
            return MASKED
        return value

    node.args = tuple(clip(value) for value in node.args)
    node.kwargs = {name: clip(value) for name, value in node.kwargs.items()}
    return found


def _additive(module: GraphModule, attention: Node, mask: Node) -> int:
    """Write a boolean mask (true: attend) as ``(1 - mask) · MASKED``."""
    value = mask.meta["val"]
    if value.dtype != torch.bool:
        return 0
    dtype = attention.meta["val"].dtype
    with module.graph.inserting_before(attention):
        number = module.graph.call_function(aten._to_copy.default, (mask,), {"dtype": dtype})  # noqa: SLF001 - its name
        rest = module.graph.call_function(aten.rsub.Scalar, (number, 1.0))
        additive = module.graph.call_function(aten.mul.Tensor, (rest, MASKED))
    for node in (number, rest, additive):
        node.meta = {**mask.meta, "val": value.to(dtype), "stack_trace": attention.meta.get("stack_trace")}
    attention.replace_input_with(mask, additive)
    return 1


def _drop_default_scale(attention: Node) -> int:
    """Remove ``scale=`` where it is 1/sqrt(K)."""
    scale = attention.kwargs.get("scale")
    width = attention.args[0].meta["val"].shape[-1]  # type: ignore[union-attr]
    if not isinstance(scale, float) or not math.isclose(scale, width**-0.5, rel_tol=1e-6):
        return 0
    attention.kwargs = {name: value for name, value in attention.kwargs.items() if name != "scale"}
    return 1

"""Exact stand-ins for modules that can't have fewer units as they are: of torch's, and of code that reshapes."""

from __future__ import annotations
import __future__

import ast
import inspect
import textwrap
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FreeMultiheadAttention(nn.MultiheadAttention):
    """torch's attention with any number of heads: its own code demands heads × head width = stream width.

    Same parameters, same names, same results. The number of heads follows from the weights.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,  # noqa: FBT001, FBT002 - torch's signature
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,  # noqa: FBT001, FBT002
        is_causal: bool = False,  # noqa: ARG002, FBT001, FBT002 - a hint; the mask says the same
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as ``nn.MultiheadAttention.forward``, for batched input."""
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (self._split(*item) for item in zip((query, key, value), *self._projections(), strict=True))
        scores = q @ k.transpose(-1, -2) * self.head_dim**-0.5
        if attn_mask is not None:
            heads = attn_mask.unflatten(0, (-1, scores.shape[1])) if attn_mask.ndim == 3 else attn_mask
            scores = scores.masked_fill(heads, float("-inf")) if heads.dtype == torch.bool else scores + heads
        if key_padding_mask is not None:
            padding = key_padding_mask[:, None, None]
            whole = padding.dtype == torch.bool
            scores = scores.masked_fill(padding, float("-inf")) if whole else scores + padding
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        mixed = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        mixed = mixed if self.batch_first else mixed.transpose(0, 1)
        if not need_weights:
            return mixed, None
        return mixed, weights.mean(1) if average_attn_weights else weights

    def _projections(self) -> tuple[Any, Any]:
        """Return weights and biases of query, key and value."""
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        if self.in_proj_weight is None:
            return (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight), biases
        return self.in_proj_weight.chunk(3), biases

    def _split(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Split ``[B,S,D]`` into ``[B,N,S,K]``."""
        return F.linear(x, weight, bias).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


SUBSTITUTES: dict[type[nn.Module], type[nn.Module]] = {nn.MultiheadAttention: FreeMultiheadAttention}
"""Class → the subclass that stands for it; it adds no state, so that an instance changes class in place."""


def substitute(module: nn.Module) -> None:
    """Put the stand-in of a module in its place. Raises KeyError for a class that has none."""
    if type(module) not in SUBSTITUTES.values():
        module.__class__ = free_width(type(module)) or SUBSTITUTES[type(module)]


# ------------------------------------------------------------------ code that takes a width from the stream

RESHAPES = ("reshape", "view")
_ANNOTATIONS = __future__.annotations.compiler_flag
_FREE: dict[type, type | None] = {}


def free_width(kind: type) -> type | None:
    """Return a subclass whose reshapes infer what they took from the stream's width; None where its code has none such.

    ``b, n, c = x.shape`` … ``.reshape(b, n, 3, self.heads, c // self.heads)`` holds with all heads only. With -1 in
    that place it gives the same, and with fewer heads what they are.
    """
    if kind not in _FREE:
        methods = {name: made for name in _own_methods(kind) if (made := _inferring(getattr(kind, name))) is not None}
        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
        _FREE[kind] = type(kind.__name__, (kind,), {**names, **methods}) if methods else None
        if _FREE[kind] is not None:
            _FREE[_FREE[kind]] = _FREE[kind]  # type: ignore[index]
    return _FREE[kind]


def _own_methods(kind: type) -> list[str]:
    """Return the methods of a class and its bases, up to torch's."""
    own = [base for base in kind.__mro__ if not base.__module__.startswith(("torch.", "builtins"))]
    return sorted({name for base in own for name, item in vars(base).items() if isinstance(item, FunctionType)})


def _inferring(method: Any) -> Any:
    """Return a method with -1 where a reshape took the width from a shape; None where none did, or it can't be."""
    try:
        source = textwrap.dedent(inspect.getsource(method))
        tree = ast.parse(source)
    except (OSError, TypeError, SyntaxError):
        return None
    (function,) = tree.body
    if not isinstance(function, ast.FunctionDef) or function.decorator_list or method.__code__.co_freevars:
        return None
    rewriter = _Inferring(_width_names(function))
    tree = ast.fix_missing_locations(rewriter.visit(tree))
    if not rewriter.changed:
        return None
    ast.increment_lineno(tree, method.__code__.co_firstlineno - 1)
    made: dict[str, Any] = {}
    flags = method.__code__.co_flags & _ANNOTATIONS
    code = compile(tree, method.__code__.co_filename, "exec", flags, dont_inherit=True)
    exec(code, method.__globals__, made)  # noqa: S102 - the class's own code
    return made[function.name]


def _width_names(function: ast.FunctionDef) -> set[str]:
    """Return names that hold the last size of a tensor, or something made of it."""
    found: set[str] = set()
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign) or len(node.targets) != 1:
            continue
        target, value = node.targets[0], node.value
        if isinstance(target, ast.Tuple) and isinstance(target.elts[-1], ast.Name) and _is_shape(value):
            found.add(target.elts[-1].id)
        elif isinstance(target, ast.Name) and (_is_last_size(value) or _is_made_of(value, found)):
            found.add(target.id)
    return found


def _is_shape(node: ast.expr) -> bool:
    """Tell whether a value is ``x.shape`` or ``x.size()``."""
    called = isinstance(node, ast.Call) and not node.args and isinstance(node.func, ast.Attribute)
    if called:
        return node.func.attr == "size"  # type: ignore[attr-defined]
    return isinstance(node, ast.Attribute) and node.attr == "shape"


def _is_last_size(node: ast.expr) -> bool:
    """Tell whether a value is ``x.shape[-1]`` or ``x.size(-1)``, also by position."""
    return ast.unparse(node).endswith((".shape[-1]", ".size(-1)", ".shape[2]", ".size(2)"))


def _is_made_of(node: ast.expr, names: set[str]) -> bool:
    """Tell whether a value is arithmetic on one of the names."""
    return bool(_names_in(node) & names) and not any(isinstance(item, ast.Call) for item in ast.walk(node))


def _names_in(node: ast.AST) -> set[str]:
    return {item.id for item in ast.walk(node) if isinstance(item, ast.Name)}


class _Inferring(ast.NodeTransformer):
    """Puts -1 where a reshape names a width, once in a call. changed: whether it did."""

    def __init__(self, widths: set[str]) -> None:
        self.widths, self.changed = widths, False

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Rewrite one call, and those inside it."""
        self.generic_visit(node)
        if not (isinstance(node.func, ast.Attribute) and node.func.attr in RESHAPES):
            return node
        sizes = node.args[0].elts if len(node.args) == 1 and isinstance(node.args[0], ast.Tuple) else node.args
        named = [place for place, size in enumerate(sizes) if _names_in(size) & self.widths or _is_last_size(size)]
        if len(named) == 1 and not any(ast.unparse(size) == "-1" for size in sizes):
            sizes[named[0]] = ast.UnaryOp(ast.USub(), ast.Constant(1))
            self.changed = True
        return node

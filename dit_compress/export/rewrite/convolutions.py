"""Learnt linears as 1×1 convolutions, the form in which neural engines have them; convolutions of patches as linears.

``y[..., o] = Σ_i w[o, i] x[..., i] + b[o]`` is a convolution of ``[B, I, 1, S]`` with a kernel ``[O, I, 1, 1]``
(Apple, "Deploying Transformers on the Apple Neural Engine"). The kernel is the weight, seen with two more axes.
Sums may be taken in another order: ``|difference| <= 2·I·2⁻²⁴·(Σ_i |w x| + |b|)`` in float32.

A convolution over three axes whose stride is its kernel cuts a video into patches: it is a linear of each patch, and
runs where 3D convolutions do not. Any other one sums over the frames that its kernel sees: with those side by side in
the channels it is a convolution over two axes. The same bound holds, I the values of a patch, or under the kernel.

Shapes: B batch, S tokens, I channels in, O channels out, F frames of a kernel, T frames of its output, H W pixels.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dit_compress.export.rewrite.nodes import become, call, loosen, shape_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

aten = torch.ops.aten
LINEAR = aten.linear.default
BIAS_ARGUMENT = 2
MATRIX, TOKENS = 2, 3
"""Ranks of a weight, and of rows; of tokens."""


def linears_as_convolutions(program: ExportedProgram) -> int:
    """Rewrite every linear whose weight is a parameter or buffer, in place; how many there were."""
    graph = program.graph_module.graph
    linears: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        if node.target is LINEAR and _learnt(program, node.args[1]) and 0 not in (shape_of(node) or (0,)):
            linears.setdefault(node.args[1], []).append(node)
    for weight, users in linears.items():
        kernel = _seen(program, weight, users, [*(shape_of(weight) or ()), 1, 1])
        for node in users:
            _convolve(node, kernel)
    loosen(graph)
    graph.lint()
    program.graph_module.recompile()
    return sum(map(len, linears.values()))


def patches_as_linears(program: ExportedProgram) -> int:
    """Rewrite every convolution over three axes that cuts its input into patches, in place; how many there were."""
    graph = program.graph_module.graph
    found = [node for node in graph.nodes if cuts_patches(node) and _name(program, node.args[1]) is not None]
    for node in found:
        weight, wanted = node.args[1], shape_of(node) or ()
        (channels, *kernel), (batch, _, *cells) = (shape_of(weight) or ())[1:], wanted
        grid = [batch, channels, *(size for pair in zip(cells, kernel, strict=True) for size in pair)]
        x_patches = call(node, aten.reshape.default, node.args[0], grid)
        x_patches = call(node, aten.permute.default, x_patches, [0, 2, 4, 6, 1, 3, 5, 7])
        x_BSI = call(node, aten.reshape.default, x_patches, [batch, prod(cells), channels * prod(kernel)])
        matrix = _seen(program, weight, [node], [wanted[1], channels * prod(kernel)])
        bias = node.args[BIAS_ARGUMENT] if len(node.args) > BIAS_ARGUMENT else None
        y_BOS = call(node, aten.permute.default, call(node, LINEAR, x_BSI, matrix, bias), [0, 2, 1])
        become(node, aten.reshape.default, y_BOS, list(wanted))
    graph.lint()
    program.graph_module.recompile()
    return len(found)


def flatten_convolutions(program: ExportedProgram) -> int:
    """Rewrite every other convolution over three axes as one over two, in place; how many there were."""
    graph = program.graph_module.graph
    found: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        if goes_flat(node) and _name(program, node.args[1]) is not None:
            found.setdefault(node.args[1], []).append(node)
    for weight, users in found.items():
        outputs, channels, frames, *kernel = shape_of(weight) or ()
        flat = _seen(program, weight, users, [outputs, channels * frames, *kernel])
        for node in users:
            _flatten(node, flat, frames)
    loosen(graph)
    graph.lint()
    program.graph_module.recompile()
    return sum(map(len, found.values()))


def _flatten(node: Node, weight_OIHW: Node, frames: int) -> None:
    """Convolve over two axes, with the frames that the kernel sees beside each other among the channels."""
    x, _, bias, stride, padding, _, _ = _arguments(node)
    (batch, channels, _, height, width), wanted = shape_of(x) or (), shape_of(node) or ()
    count, outputs = wanted[2], wanted[1]
    if padding[0]:
        x = call(node, aten.constant_pad_nd.default, x, [0, 0, 0, 0, padding[0], padding[0]])
    ends = [(first, first + (count - 1) * stride[0] + 1) for first in range(frames)]
    seen = [call(node, aten.slice.Tensor, x, 2, *each, stride[0]) for each in ends]
    flat = [call(node, aten.reshape.default, each, [batch, channels, 1, count, height * width]) for each in seen]
    x_BIFTS = call(node, aten.cat.default, flat, 2) if frames > 1 else flat[0]
    x_BTIFS = call(node, aten.permute.default, x_BIFTS, [0, 3, 1, 2, 4])
    image = call(node, aten.reshape.default, x_BTIFS, [batch * count, channels * frames, height, width])
    y_NOHW = call(node, aten.conv2d.default, image, weight_OIHW, bias, list(stride[1:]), list(padding[1:]))
    y_BTOHW = call(node, aten.reshape.default, y_NOHW, [batch, count, outputs, *wanted[3:]])
    become(node, aten.permute.default, y_BTOHW, [0, 2, 1, 3, 4])


def _arguments(node: Node) -> tuple[Any, ...]:
    """Return input, weight, bias, stride, padding, dilation and groups of a convolution over three axes."""
    defaults = (None, None, None, [1], [0], [1], 1)
    given = (*node.args, *defaults[len(node.args) :])
    return tuple(each * 3 if isinstance(each, list) and len(each) == 1 else each for each in given)


def goes_flat(node: Node) -> bool:
    """Tell whether a node is a convolution over three axes without gaps in its kernel, and of all channels."""
    if node.target is not aten.conv3d.default or shape_of(node) is None:
        return False
    *_, padding, dilation, groups = _arguments(node)
    return set(dilation) == {1} and groups == 1 and not isinstance(padding, str)


def cuts_patches(node: Node) -> bool:
    """Tell whether a node is a convolution over three axes with stride = kernel and nothing left over or added."""
    if not goes_flat(node):
        return False
    *_, stride, padding, _, _ = _arguments(node)
    kernel, size = list((shape_of(node.args[1]) or ())[2:]), (shape_of(node.args[0]) or ())[2:]
    return (
        set(padding) == {0}
        and list(stride) == kernel
        and not any(cells % step for cells, step in zip(size, kernel, strict=True))
    )


def _name(program: ExportedProgram, weight: Node) -> str | None:
    signature = program.graph_signature
    return signature.inputs_to_parameters.get(weight.name) or signature.inputs_to_buffers.get(weight.name)


def _learnt(program: ExportedProgram, weight: Node) -> bool:
    return _name(program, weight) is not None and len(shape_of(weight) or ()) == MATRIX


def _seen(program: ExportedProgram, weight: Node, users: list[Node], shape: list[int]) -> Node:
    """Return a weight in another shape: the stored one itself where nothing else reads it, else a view in the graph."""
    name = _name(program, weight)
    alone = set(weight.users) == set(users) and all(user.args[0] is not weight for user in users)
    if name not in program.state_dict or not alone:
        return call(users[0], aten.reshape.default, weight, shape)
    stored = program.state_dict[name]
    seen = stored.detach().view(shape)
    program.state_dict[name] = nn.Parameter(seen, stored.requires_grad) if isinstance(stored, nn.Parameter) else seen
    weight.meta = {**weight.meta, "val": weight.meta["val"].detach().view(shape)}
    return weight


def _convolve(node: Node, kernel: Node) -> None:
    x, given = node.args[0], shape_of(node.args[0]) or ()
    bias = node.args[BIAS_ARGUMENT] if len(node.args) > BIAS_ARGUMENT else None
    width, wanted = given[-1], list(shape_of(node) or ())
    if len(given) < TOKENS:  # rows are the batch, of one token each
        image = call(node, aten.reshape.default, x, [prod(given[:-1]), width, 1, 1])
        become(node, aten.reshape.default, call(node, aten.conv2d.default, image, kernel, bias), wanted)
        return
    if len(given) > TOKENS:
        x = call(node, aten.reshape.default, x, [given[0], prod(given[1:-1]), width])
    x_BI1S = call(node, aten.unsqueeze.default, call(node, aten.permute.default, x, [0, 2, 1]), 2)
    y_BOS = call(node, aten.squeeze.dim, call(node, aten.conv2d.default, x_BI1S, kernel, bias), 2)
    if len(given) == TOKENS:
        become(node, aten.permute.default, y_BOS, [0, 2, 1])
    else:
        become(node, aten.reshape.default, call(node, aten.permute.default, y_BOS, [0, 2, 1]), wanted)

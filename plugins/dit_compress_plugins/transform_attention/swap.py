"""A module's own forward, with another computation where it calls ``scaled_dot_product_attention``.

The module keeps its projections, norms, rotation and output: what stands between them is its child ``mixer``.

Shapes: B batch, S tokens, N heads, K head width, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dit_compress.core.errors import UserError
from dit_compress_plugins.transform_attention.grid import Grids, bound, grid_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dit_compress_plugins.transform_attention.forms import Form

MIXER = "mixer"
"""Name of the child that an attention gets."""


class Scores(NamedTuple):
    """The arguments of ``scaled_dot_product_attention``."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False


class Mixer(nn.Module):
    """What stands for one call of ``scaled_dot_product_attention``. A kind subclasses it.

    call: which of the owner's calls. features: modules whose outputs go through :meth:`feature`, by ``query`` and
    ``key``. reads: the linear that gets the tokens.
    """

    def __init__(self, call: int = 0, features: Mapping[str, Form] | None = None, reads: str | None = None) -> None:
        super().__init__()
        self.call, self.reads = call, reads
        self.features = dict(features or {})
        self.grids = Grids()
        self.running: _Running | None = None

    @abstractmethod
    def forward(self, q_BNSK: Tensor, k_BNSK: Tensor, v_BNSK: Tensor, seen: Seen) -> Tensor:
        """Return ``[B,N,S,K]``."""

    def feature(self, side: str, x_BNSK: Tensor) -> Tensor:  # noqa: ARG002 - kinds without features
        """Return what goes on in place of queries or keys, before they are rotated."""
        return x_BNSK


@dataclass
class Seen:
    """What a mixer may ask for beside queries, keys and values.

    grid: tokens T, H, W. scale: of the scores. tokens: ``[B,S,D]`` that the projections got. features: queries and
    keys ``[B,N,S,K]`` as they were before rotation.
    """

    grid: tuple[int, int, int] = (1, 1, 1)
    scale: float | None = None
    tokens: Tensor | None = None
    features: dict[str, Tensor] = field(default_factory=dict)


def insert(owner: nn.Module, mixer: Mixer) -> None:
    """Put a mixer into an attention."""
    owner.add_module(MIXER, mixer)
    owner.register_forward_pre_hook(_begin)
    owner.register_forward_hook(_end, always_call=True)


def watch_grid(module: nn.Module, axes: Mapping[str, Any]) -> None:
    """Let every call of the whole model tell its mixers the token grid."""
    if not any(isinstance(part, Mixer) for part in module.modules()):  # else it was told by an earlier step
        module.register_forward_pre_hook(_tell, with_kwargs=True)
    module.token_axes = dict(axes)  # type: ignore[assignment]


def _tell(module: nn.Module, args: Any, kwargs: Any) -> None:
    grid = grid_of(module.token_axes, bound(module, args, kwargs))  # type: ignore[arg-type]
    for mixer in module.modules():
        if isinstance(mixer, Mixer):
            mixer.grids.tell(grid)


def _begin(owner: Any, _args: Any) -> None:
    owner.mixer.running = _Running(owner, owner.mixer)
    owner.mixer.running.begin()


def _end(owner: Any, _args: Any, _output: Any) -> None:
    running, owner.mixer.running = owner.mixer.running, None
    if running is not None:
        running.end()


class _Running(TorchFunctionMode):
    """One call of an attention whose mixer is another."""

    def __init__(self, owner: nn.Module, mixer: Mixer) -> None:
        super().__init__()
        self.mixer, self.seen, self.calls = mixer, Seen(), 0
        self.handles = [
            owner.get_submodule(form.module).register_forward_hook(self._replace(side, form))
            for side, form in mixer.features.items()
        ]
        if mixer.reads is not None:
            self.handles.append(owner.get_submodule(mixer.reads).register_forward_pre_hook(self._read))

    def begin(self) -> None:
        """Look at every function from now on."""
        self.__enter__()

    def end(self) -> None:
        """Look no longer."""
        self.__exit__(None, None, None)
        for handle in self.handles:
            handle.remove()

    def _replace(self, side: str, form: Form) -> Any:
        def replace(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            self.seen.features[side] = self.mixer.feature(side, form.read(output))
            return form.write(output, self.seen.features[side])

        return replace

    def _read(self, _module: nn.Module, args: Any) -> None:
        (self.seen.tokens,) = args[:1]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``, or the mixer in its place."""
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.calls += 1
        if self.calls != self.mixer.call + 1:
            return func(*args, **kwargs)
        asked = Scores(*args, **kwargs)
        if asked.attn_mask is not None or asked.is_causal:
            raise UserError("an attention was replaced, and its scores have a mask now", mend="Leave the mask out")
        self.seen.grid, self.seen.scale = self.mixer.grids.of(asked.query.shape[-2]), asked.scale
        return self.mixer(*asked[:3], self.seen)

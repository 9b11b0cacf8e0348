"""The denoiser contract: ``velocity = denoiser(latent, sigma, cond)``, whatever DiT stands behind it.

What a particular DiT wants (packed tokens, timesteps in 0…1000, RoPE tables, noise- or v-prediction)
is the business of its adapter: a subclass of :class:`Denoiser` with four methods.

Shapes: B batch, C channels, T H W latent frames, height, width, S tokens, D width, L text length.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.model.attention import attentions_at, captured
from dit_compress.model.clock import timesteps
from dit_compress.structure.lookup import output_at, with_output
from dit_compress.structure.modulation import timetable_of
from dit_compress.structure.observe.discover import observe
from dit_compress.structure.observe.weightless import hollow_copy
from dit_compress.structure.observe.width_units import observe_width
from dit_compress.structure.record import Call, record

if TYPE_CHECKING:
    from dit_compress.structure.facts import Structure


class Cond(Mapping[str, Tensor]):
    """A denoiser's conditions besides latent and sigma: named tensors with leading B.

    ``null`` holds those that the text encoder gives with leading 1: what "no caption" looks like to it. The others, a
    first frame's latents among them, stay where a caption is dropped (:mod:`dit_compress.model.conditions`).
    """

    def __init__(self, tensors: Mapping[str, Tensor], null: Mapping[str, Tensor]) -> None:
        self.tensors, self.null = dict(tensors), dict(null)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def drop(self, where_B: Tensor) -> Cond:
        """Remove the caption where ``where_B`` is true."""

        def swap(name: str, value: Tensor) -> Tensor:
            if name not in self.null:
                return value
            where = where_B.reshape(-1, *[1] * (value.ndim - 1)).to(value.device)
            return torch.where(where, self.null[name].to(value), value)

        return self._map(swap)

    def cat(self, other: Cond) -> Cond:
        """Join both along the batch."""
        return self._map(lambda name, value: torch.cat([value, other[name]]))

    def beside(self, tensors: Mapping[str, Tensor]) -> Cond:
        """Add conditions that no caption gives."""
        return Cond({**self.tensors, **tensors}, self.null)

    def take(self, index: Tensor | slice) -> Cond:
        """Take some of the batch."""
        return self._map(lambda _, value: value[index])

    def to(self, *args: Any, **kwargs: Any) -> Cond:
        """Move (and, for floating tensors, cast) like ``Tensor.to``."""
        moved = self._map(lambda _, value: value.to(*args, **kwargs))
        moved.null = {name: value.to(*args, **kwargs) for name, value in self.null.items()}
        return moved

    def detach(self) -> Cond:
        """Cut off from the graph."""
        cut = self._map(lambda _, value: value.detach())
        cut.null = {name: value.detach() for name, value in self.null.items()}
        return cut

    def _map(self, change: Any) -> Cond:
        return Cond({name: change(name, value) for name, value in self.tensors.items()}, self.null)


class Denoiser(nn.Module):
    """A DiT behind the engine's one convention. A model plugin subclasses it.

    module: the DiT itself, as its own library would save it.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._structure: Structure | None = None
        self._wide: Structure | None = None

    # -- what an adapter writes

    @abstractmethod
    def call(self, latent_BCTHW: Tensor, sigma_B: Tensor, cond: Cond) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the module for one call of the denoiser."""

    @abstractmethod
    def velocity(self, output: Any, latent_BCTHW: Tensor, sigma_B: Tensor) -> Tensor:
        """Turn the module's output into velocity ``[B,C,T,H,W]``, by exact change of variables."""

    @abstractmethod
    def example(
        self, batch: int, size_THW: tuple[int, int, int], *, text_length: int = 8
    ) -> tuple[Tensor, Tensor, Cond]:
        """Draw ``(latent, sigma, cond)`` of the right shapes, on the module's device and dtype."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Latent channels C."""

    @property
    @abstractmethod
    def patch(self) -> tuple[int, int, int]:
        """Latent cells per token along T, H, W."""

    @property
    def conditions(self) -> Mapping[str, bool]:
        """The conditions that the module takes, by name; True for those that it can't be called without."""
        return {"embedding": True, "mask": True}

    def rope_tables(self, size_THW: tuple[int, int, int]) -> dict[str, Tensor]:  # noqa: ARG002 - the contract
        """Return the tables that rotate queries and keys, by name, for a latent of that size; empty where unknown.

        They are constants of an exported step; the package holds them as a file for engines written by hand.
        """
        return {}

    # -- what the engine gives

    def forward(self, latent_BCTHW: Tensor, sigma_B: Tensor, cond: Cond) -> Tensor:
        """Return the velocity at ``sigma`` (``[B]``, in [0, 1])."""
        args, kwargs = self.call(latent_BCTHW, sigma_B, cond)
        return self.velocity(self.module(*args, **kwargs), latent_BCTHW, sigma_B)

    def structure(self) -> Structure:
        """Find stacks, attentions and feed-forwards of the module; once, until it is edited."""
        from dit_compress.model.denoiser import discover

        if self._structure is None:
            self._structure = discover(self)
        return self._structure

    def forget_structure(self) -> None:
        """Forget the structure; call this after an edit of the module."""
        self._structure = self._wide = None

    def with_width(self) -> Structure:
        """Return the structure with the channels of the main stream, which only this looks for; until it is edited."""
        if self._wide is None:
            self._wide = observe_width(self.module, self.example_calls(), self.structure())
        return self._wide

    def blocks(self) -> list[nn.Module]:
        """Return the blocks of every stack."""
        places = [stack.block(index) for stack in self.structure().stacks for index in range(stack.length)]
        return [self.module.get_submodule(place) for place in places]

    def features(
        self, latent_BCTHW: Tensor, sigma_B: Tensor, cond: Cond, at: Sequence[int], stack: str | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return the velocity, and the stream ``[B,S,D]`` after the blocks ``at``.

        stack: the path of the list of blocks that they are positions in; the main stack if absent.
        """
        with self.tapped(at, stack) as taken:
            output = self(latent_BCTHW, sigma_B, cond)
        return output, taken

    @contextmanager
    def tapped(self, at: Sequence[int], stack: str | None = None) -> Iterator[dict[int, Tensor]]:
        """Collect the stream after the blocks ``at`` for as long as the context is open. stack: as in `features`."""
        taken: dict[int, Tensor] = {}
        structure = self.structure()
        blocks = structure.main if stack is None else structure.stack(stack)

        def keep(index: int) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                taken[index] = output_at(output, blocks.output)

            return hook

        handles = [self.module.get_submodule(blocks.block(i)).register_forward_hook(keep(i)) for i in at]
        try:
            yield taken
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def leaf(self, at: int) -> Iterator[list[Tensor]]:
        """Cut the graph after block ``at`` for as long as the context is open.

        The stream there becomes a leaf that requires grad, one per call, in the list.
        """
        leaves: list[Tensor] = []
        stack = self.structure().main

        def cut(_module: nn.Module, _args: Any, output: Any) -> Any:
            leaves.append(output_at(output, stack.output).detach().requires_grad_())
            return with_output(output, stack.output, leaves[-1])

        handle = self.module.get_submodule(stack.block(at)).register_forward_hook(cut)
        try:
            yield leaves
        finally:
            handle.remove()

    @contextmanager
    def attention(self, at: Sequence[int | str]) -> Iterator[dict[str, Tensor]]:
        """Collect attention probabilities ``[B,N,S,L]``, by module path, for as long as the context is open.

        at: positions in the main stack (every attention of that block), or module paths of attentions that
        :meth:`structure` found. They are those of the last call, have gradients, and change no output. Where blocks
        run again in the backward pass the context stays open until then. UserError where there is no such attention,
        or it calls neither ``scaled_dot_product_attention`` nor ``softmax``.
        """
        with captured(self.module, attentions_at(self.structure(), at)) as taken:
            yield taken

    def typical(
        self, batch: int, size_THW: tuple[int, int, int], *, text_length: int = 8
    ) -> tuple[Tensor, Tensor, Cond]:
        """Draw an example that the module can be called with: at a sigma of its table, where it has one."""
        latent, sigma_B, cond = self.example(batch, size_THW, text_length=text_length)
        return latent, self.possible(sigma_B), cond

    def possible(self, sigma_B: Tensor) -> Tensor:
        """Return the nearest sigmas that the module can be called with: those of its table of modulations."""
        timetable = timetable_of(self.module)
        if timetable is None or not timetable.sigmas:
            return sigma_B
        table = torch.tensor(timetable.sigmas, dtype=sigma_B.dtype, device=sigma_B.device)
        return table[(sigma_B[..., None] - table).abs().argmin(-1)]

    def example_call(self) -> Call:
        """Return one call of the module, on the CPU."""
        return first_call(self)

    def example_calls(self) -> list[Call]:
        """Return calls of the module at two sizes: code that makes tables anew for another one shows on the second."""
        t, h, w = self.example_size
        return [self.example_call(), first_call(self, (2 * t, 2 * h, 2 * w))]

    def timesteps(self, sigmas: Sequence[float]) -> dict[int | str, tuple[float, ...]]:
        """Return the arguments of the module's call that carry the timestep, with their values at some sigmas."""
        stand_in = hollow(self)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            latent, _, cond = stand_in.example(1, stand_in.example_size)
            return timesteps(lambda x, sigma_B: stand_in.call(x, sigma_B, cond), latent, sigmas)

    @property
    def example_size(self) -> tuple[int, int, int]:
        """The smallest latent size (T, H, W) with more than one token along every axis."""
        t, h, w = self.patch
        return 2 * t, 2 * h, 2 * w

    @torch.no_grad()
    def stream_width(self) -> int:
        """Return the width D of the main stream, seen on one example."""
        with self.tapped([0]) as taken, suppress(_StoppedError):
            first = self.module.get_submodule(self.structure().main.block(0))
            handle = first.register_forward_hook(_stop)
            try:
                self(*self.typical(1, self.example_size))
            finally:
                handle.remove()
        return taken[0].shape[-1]

    def tokens(self, size_THW: tuple[int, int, int]) -> int:
        """Count the tokens S of a latent of this size."""
        t, h, w = (size // patch for size, patch in zip(size_THW, self.patch, strict=True))
        return t * h * w


def discover(denoiser: Denoiser) -> Structure:
    """Find the structure of the denoiser's module as it stands now, from its own example (works on the meta device)."""
    return observe(denoiser.module, first_call(denoiser))


def first_call(denoiser: Denoiser, size_THW: tuple[int, int, int] | None = None) -> Call:
    """Record how the denoiser calls its module on its example, on the CPU. The module stays untouched.

    size_THW: another size than the example's.
    """
    stand_in = hollow(denoiser)
    with suppress(_StoppedError), torch.no_grad(), torch.random.fork_rng(devices=[]), record(stand_in.module) as call:
        torch.manual_seed(0)
        stand_in.module.register_forward_pre_hook(_stop)
        stand_in(*stand_in.example(1, size_THW or stand_in.example_size))
    return call


def hollow(denoiser: Denoiser) -> Denoiser:
    """Copy a denoiser with a module that takes no memory, on the CPU. It can make calls; they are not to be run."""
    stand_in = copy.copy(denoiser)
    own = stand_in._modules  # noqa: SLF001 - a copy shares its children with the original
    stand_in.__dict__["_modules"] = {**own, "module": hollow_copy(denoiser.module)}
    return stand_in


class _StoppedError(Exception):
    """The call was recorded."""


def _stop(*_: Any) -> None:
    raise _StoppedError

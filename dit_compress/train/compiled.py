"""Compiled training: ``torch.compile`` of each block of the denoisers; blocks that are alike share the code."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.errors import UserError
from dit_compress.train.memory import allowed_kernels, around_blocks, blocks_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import nn

    from dit_compress.train.objective import Role

BACKEND = "inductor"
VARIANTS = 16
"""Versions of one block's code: batch and image sizes, with gradients or without, trained or frozen. torch gives up
after 8 of all blocks together, without a word."""
WATCHED = "where something looks into blocks (masks, attention, second derivatives) they run as they are, uncompiled"


def need_compiler(where: str = "") -> None:
    """Raise a UserError where this machine can't compile: a C++ compiler is missing, or Triton on a GPU."""
    from torch._inductor import config

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with config.patch(force_disable_caches=True, compile_threads=1), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the caches, which must not hide a compiler that is missing
            torch.compile(lambda x: x + 1, backend=BACKEND)(torch.ones(2, device=device))
    except Exception as error:
        inner = getattr(error, "inner_exception", error)
        raise UserError(
            f"nothing can be compiled on this machine: {(str(inner) or type(inner).__name__).splitlines()[0]}",
            where=where,
            mend="Install a C++ compiler (g++; on a GPU Triton, too), or set 'compile: false'",
        ) from error


@contextmanager
def compiling(roles: Mapping[str, Role], say: Callable[[str], None]) -> Iterator[None]:
    """Run the blocks of the roles' denoisers compiled, for as long as the context is open.

    A block's own ``forward`` is replaced: names of parameters stay, and hooks around blocks (taps, masks of blocks,
    FSDP) run as before. Where recomputed, it is the compiled code that runs again. UserError where there is no block,
    or no compiler.
    """
    blocks = blocks_of(roles)
    if not blocks:
        raise UserError("'compile' finds no denoiser here, whose blocks it compiles", mend="Take 'compile' out")
    need_compiler()
    told: list[str] = []

    def tell() -> None:
        if not told:
            told.append(WATCHED)
            say(WATCHED)

    most = VARIANTS * len(blocks)
    limits: dict[str, Any] = {"recompile_limit": most, "accumulated_recompile_limit": 4 * most}
    with torch._dynamo.config.patch(limits), around_blocks(roles, lambda block: _Compiled(block, tell)):  # noqa: SLF001 - torch's way to set them
        yield


class _Compiled:
    """A block's ``forward``, compiled; as it is where hooks are inside, or other attention kernels are asked for.

    Compiled code would leave the hooks out, and has neither those kernels nor second derivatives.
    """

    def __init__(self, block: nn.Module, tell: Callable[[], None]) -> None:
        self.plain, self.tell = block.forward, tell
        self.compiled: Callable[..., Any] = torch.compile(block.forward, backend=BACKEND, dynamic=False)
        self.inside = [part for part in block.modules() if part is not block]
        self.kernels = allowed_kernels()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the block's output."""
        if self._watched():
            self.tell()
            return self.plain(*args, **kwargs)
        return self.compiled(*args, **kwargs)

    def _watched(self) -> bool:
        hooked = any(part._forward_hooks or part._forward_pre_hooks for part in self.inside)  # noqa: SLF001 - torch has no other way to ask
        return hooked or allowed_kernels() != self.kernels

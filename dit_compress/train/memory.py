"""Memory of training: what it is spent on, recomputed activations, and one message where it runs out."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from dit_compress.core.errors import UserError
from dit_compress.model.denoiser import Denoiser
from dit_compress.train.parallel import local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from dit_compress.step.world import World
    from dit_compress.train.objective import Objective, Role
    from dit_compress.train.options import TrainOptions

MOMENTS = 2
"""The tensors AdamW holds of each weight besides itself and its gradient."""


def state_bytes(roles: Mapping[str, Role]) -> dict[str, int]:
    """Count bytes per role on this process: weights, and where it is trained gradients, moments and average.

    Weights that several roles share are counted with the first.
    """
    held, seen = dict.fromkeys(roles, 0), set[int]()
    for name, role in roles.items():
        trained = {id(parameter) for parameter in role.trained().values()}
        for parameter in role.module.parameters():
            copies = (id(parameter) not in seen) + (1 + MOMENTS + bool(role.ema) if id(parameter) in trained else 0)
            held[name] += copies * local(parameter).numel() * parameter.element_size()
            seen.add(id(parameter))
    return held


@contextmanager
def memory_errors(objective: Objective, options: TrainOptions, world: World) -> Iterator[None]:
    """Report memory that runs out as one message: what the roles hold, and what to lower for the activations."""
    trained = {name: [p.requires_grad for p in role.module.parameters()] for name, role in objective.roles.items()}
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
            raise
        for name, role in objective.roles.items():  # phases switch gradients on and off
            for parameter, on in zip(role.module.parameters(), trained[name], strict=True):
                parameter.requires_grad_(on)
        held = state_bytes(objective.roles)
        plan = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in held.items() if size)
        raise UserError(
            f"out of memory on {world.device}: weights, gradients and optimiser of the roles take "
            f"{sum(held.values()) / 2**30:.2f} GiB ({plan}), activations of {options.batch} samples in "
            f"{world.size * options.accumulate} parts the rest",
            mend=_mend(options, world),
        ) from error


def _mend(options: TrainOptions, world: World) -> str:
    each = options.batch // (world.size * options.accumulate)
    ways = [f"raise 'accumulate' (now {options.accumulate})"] if each > 1 else []
    ways += [] if options.checkpoint_activations else ["set 'checkpoint_activations: true'"]
    ways += [] if options.bf16 else ["set 'bf16: true'"]
    ways += [f"start more processes (now {world.size})", f"lower 'batch' (now {options.batch})"]
    text = ", or ".join(ways)
    again = "The same command then continues, with --force where an option changed and there are checkpoints"
    return f"{text[0].upper()}{text[1:]}. {again}"


@contextmanager
def recomputing(roles: Mapping[str, Role]) -> Iterator[None]:
    """Let blocks of denoisers keep only their inputs, and run again in the backward pass.

    Also those of frozen ones: gradients go through them to masks, or to what a discriminator judges. The block's own
    ``forward`` is replaced, so that hooks around the block (taps, FSDP) see one call, as before. What an objective
    changes inside blocks (masks) must stay until its loss has been differentiated.
    """
    with around_blocks(roles, lambda block: partial(_run_again, block.forward)):
        yield


@contextmanager
def around_blocks(roles: Mapping[str, Role], make: Callable[[Any], Callable[..., Any]]) -> Iterator[None]:
    """Put what ``make`` gives for a block in its ``forward``'s place, for as long as the context is open.

    Names of parameters stay, and hooks around the block see one call.
    """
    with ExitStack() as stack:
        for block in blocks_of(roles):
            before = block.__dict__.get("forward")
            block.forward = make(block)
            stack.callback(_put_back, block, before)
        yield


def _put_back(block: Any, forward: Callable[..., Any] | None) -> None:
    if forward is None:
        del block.forward
    else:
        block.forward = forward


def _run_again(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return a block's output; where a backward pass may come, nothing inside is kept for it."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=_same_attention, **kwargs)


def _same_attention() -> tuple[Any, Any]:
    """Return two contexts: around the first pass nothing, around later ones the attention kernels that it allowed."""
    return nullcontext(), _Attention()


def allowed_kernels() -> list[SDPBackend]:
    """Return the attention kernels that torch may choose from now."""
    cuda = torch.backends.cuda
    allowed = {
        SDPBackend.FLASH_ATTENTION: cuda.flash_sdp_enabled(),
        SDPBackend.EFFICIENT_ATTENTION: cuda.mem_efficient_sdp_enabled(),
        SDPBackend.CUDNN_ATTENTION: cuda.cudnn_sdp_enabled(),
        SDPBackend.MATH: cuda.math_sdp_enabled(),
    }
    return [kernel for kernel, on in allowed.items() if on]


class _Attention:
    """The kernels allowed now, to be allowed again; twice where second derivatives are taken."""

    def __init__(self) -> None:
        self.kernels = allowed_kernels()
        self.open: list[ExitStack] = []

    def __enter__(self) -> None:
        self.open.append(ExitStack())
        self.open[-1].enter_context(sdpa_kernel(self.kernels))

    def __exit__(self, *_: object) -> None:
        self.open.pop().close()


def blocks_of(roles: Mapping[str, Role]) -> list[Any]:
    """Return every block of the roles' denoisers, once."""
    denoisers = [item for role in roles.values() for item in role.module.modules() if isinstance(item, Denoiser)]
    return list({id(block): block for denoiser in denoisers for block in denoiser.blocks()}.values())

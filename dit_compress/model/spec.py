"""A bundle before its weights exist: the currency of ``plan``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from dit_compress.core.errors import UserError
from dit_compress.model.flow import Flow
from dit_compress.plugin.options import load_object
from dit_compress.plugin.registry import installed

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.protocols import Codec, TextEncoder


@dataclass(frozen=True)
class ComponentSpec:
    """One component: the plugin that loads it, its config, and its transform log.

    latents: of a VAE whose decoder was changed, the name of the latents that its encoder still makes.
    tokens: of a text encoder in a bundle, the folder of what it tokenizes by, where it holds that.
    """

    kind: str
    plugin: str
    config: dict[str, Any]
    log: tuple[dict[str, Any], ...] = ()
    latents: str | None = None
    tokens: Path | None = field(default=None, compare=False)

    def loader(self) -> Any:
        """Import the plugin's class."""
        return load_object(installed().get(self.kind, self.plugin).load)

    def build(self) -> nn.Module:
        """Build the module without weights (parameters on the meta device), the log replayed."""
        from dit_compress.structure.empty import empty_weights
        from dit_compress.structure.files.pruned import remember_log, shapes_of

        with empty_weights():
            module = self.loader().from_config(self.config)
            base = shapes_of(module) if self.log else {}
            replay(module, self.log)
        remember_log(module, base, self.log)
        if self.tokens is not None:
            cast("TextEncoder", module).take_tokens(self.tokens)
        return module.eval()

    @cached_property
    def outline(self) -> nn.Module:
        """The module without weights, made once: to be read, not changed; ``build`` makes one of your own."""
        return self.build()

    @cached_property
    def denoiser_outline(self) -> Denoiser:
        """The same as a denoiser; what it finds of its structure is found once."""
        return self.loader().denoiser(self.outline)

    def appended(self, entry: dict[str, Any]) -> ComponentSpec:
        """Return the same with one more transform."""
        return replace(self, log=(*self.log, entry))

    def narrowed(self, width: float) -> ComponentSpec:
        """Return the same cut to one of its nested widths; UserError where it has no such width."""
        from dit_compress.structure.nesting import need_nesting

        return self.appended(need_nesting(self.log).cut(width))


def replay(module: nn.Module, log: tuple[dict[str, Any], ...]) -> None:
    """Repeat every transform of a log on a module without weights."""
    from dit_compress.structure.apply import apply_edits
    from dit_compress.structure.compact import LOG_NAME
    from dit_compress.structure.edits import edits_from_data

    for entry in log:
        if entry["name"] == LOG_NAME:
            apply_edits(module, edits_from_data(entry["data"]["edits"]))
        else:
            load_object(installed().get("transform", entry["name"]).load).replay(module, entry["data"])


@dataclass(frozen=True)
class Spec:
    """A bundle without weights, and the video it is meant for.

    video: frames, height, width in pixels. data: whether there are clips to measure on. longest: frames of the longest
    of them, where the data says so. notes: what a step leaves for ``plan`` to print.
    """

    video: tuple[int, int, int] | None = None
    denoiser: ComponentSpec | None = None
    latent: ComponentSpec | None = None
    text: ComponentSpec | None = None
    flow: Flow = field(default_factory=Flow)
    notes: tuple[str, ...] = ()
    data: bool = False
    longest: int | None = None

    def need_denoiser(self) -> ComponentSpec:
        """Return the denoiser; raise an error that says what is missing."""
        if self.denoiser is None:
            raise UserError("the bundle has no denoiser", mend="Name a 'model' in the recipe")
        return self.denoiser

    def narrowed(self, width: float) -> Spec:
        """Return the same with the denoiser cut to one of its nested widths."""
        return replace(self, denoiser=self.need_denoiser().narrowed(width))

    def need_latent(self) -> ComponentSpec:
        """Return the codec; raise an error that says what is missing."""
        if self.latent is None:
            raise UserError("the bundle has no VAE", mend="Put a 'latent' step before this one")
        return self.latent

    def build_denoiser(self) -> Denoiser:
        """Build a denoiser without weights, which may be changed."""
        from dit_compress.structure.copies import shared_copy

        return shared_copy(self.outline())

    def outline(self) -> Denoiser:
        """Return the denoiser without weights, made once: to be read, not changed."""
        return self.need_denoiser().denoiser_outline

    def need_sampled(self, num_steps: int | None = None) -> None:
        """Raise a UserError where the denoiser can't be sampled in so many steps; None: in those of the bundle.

        One whose modulation is a table knows the noise levels of one schedule. Where the bundle names a sampler of its
        own, which may call the model at others, that is found when it runs.
        """
        from dit_compress.structure.modulation import need_sigmas

        if not self.flow.by_steps or self.flow.between is not None:
            return
        sigmas = self.flow.sigmas(num_steps)
        need_sigmas(self.outline().module, sigmas[:-1], f"sampling in {len(sigmas) - 1} steps")

    def codec(self) -> Codec:
        """Return the VAE without weights, made once: to be read, not changed."""
        return cast("Codec", self.need_latent().outline)

    def latent_size(self) -> tuple[int, int, int]:
        """Return the latent cells (T, H, W) of the video; raise a UserError where the video does not fit the ratio."""
        codec = self.codec()
        if self.video is None:
            raise UserError("the video size is unknown", mend="Name a 'data' source in the recipe")
        return latent_size(self.video, codec.ratio, codec.frame_rule)


def latent_size(
    video: tuple[int, int, int], ratio: tuple[int, int, int], rule: tuple[int, int] | None = None
) -> tuple[int, int, int]:
    """Return the cells (T, H, W) of ``video`` (frames, height, width): ``1 + (F-lead)/t``, ``Y/h``, ``X/w``.

    ``rule`` is (lead, step) of a codec that takes ``lead + step·k`` frames; (1, t) where it is None.
    """
    (frames, height, width), (t, h, w) = video, ratio
    lead, step = rule or (1, t)
    if frames < lead or (frames - lead) % step:
        below = max(lead, frames - (frames - lead) % step)
        raise UserError(f"{frames} frames are not {lead} + {step}·k", mend=f"Take {below} or {below + step} frames")
    if height % h or width % w:
        raise UserError(
            f"{height}×{width} pixels can't be divided by the ratio {h}×{w}",
            mend=f"Take {max(h, height // h * h)}×{max(w, width // w * w)}",
        )
    return 1 + (frames - lead) // t, height // h, width // w

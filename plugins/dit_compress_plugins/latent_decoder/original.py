"""The VAE whose latents stay: that of the step's input, of another bundle, or of a folder of diffusers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.model.bundle import Bundle, component_digest
from dit_compress.model.halves import frame_rule
from dit_compress.model.paths import resolve_bundle
from dit_compress.model.spec import Spec
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from dit_compress.model.spec import ComponentSpec

SAME = 1e-3
"""Largest difference of equal latents, computed by other kernels; their standard deviation is 1."""
_MEND = "Name the VAE that the bundle's model was trained with"


@dataclass(frozen=True)
class Original:
    """component: without weights. latents: their name, None where only weights will tell. load: with weights."""

    component: ComponentSpec
    latents: str | None
    load: Callable[[], Any]

    @classmethod
    def opened(cls, of: str | None, spec: Spec, bundle: Bundle | None = None) -> Original:
        """Open what stands at ``of``, or the VAE of the input: ``bundle``, where it is there already."""
        if of is None:
            component = spec.need_latent()
            return cls(component, bundle.latents if bundle else None, bundle.codec if bundle else _not_yet)
        if (resolve_bundle(of) / "bundle.json").is_file():
            found = Bundle.open(of)
            return cls(found.spec.need_latent(), found.latents, found.codec)
        step = make_part("latent", {"use": "diffusers_vae", "path": of}, installed()).build()
        return cls(step.plan(Spec()).need_latent(), None, step.load)

    def name_latents(self, scratch: Path) -> str:
        """Return the latents' name; of a folder of diffusers the one that they have in a bundle made of it.

        scratch: where the VAE is written for the moment.
        """
        if self.latents is not None:
            return self.latents
        codec = self.load()
        return component_digest(codec, codec.config, scratch)


def _not_yet() -> Any:
    raise AssertionError("a plan loads no weights")


def need_same_geometry(original: ComponentSpec, present: ComponentSpec) -> None:
    """Raise a UserError where two VAEs can't have the same latents: their shapes differ."""
    theirs, ours = (_geometry(component.outline) for component in (original, present))
    if ours != theirs:
        raise UserError(
            f"'of' makes latents of {_said(*theirs)}, the bundle's VAE of {_said(*ours)}: "
            "a decoder of one can't read the other's",
            mend=_MEND,
        )


def need_same_latents(codec: Any, other: Any, video_BCFYX: Tensor, who: str) -> None:
    """Raise a UserError unless both encode a clip to one latent. who: the other."""
    ours, theirs = (each.encode(video_BCFYX) for each in (codec, other))
    apart = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")
    if not apart <= SAME:
        raise UserError(
            f"{who} makes other latents than the VAE whose decoder is to be replaced: of one clip they differ by "
            f"{apart:.2g} standard deviations",
            mend=_MEND,
        )


def _geometry(codec: Any) -> tuple[tuple[int, int, int], int, tuple[int, int]]:
    return codec.ratio, codec.channels, frame_rule(codec)


def _said(ratio: tuple[int, int, int], channels: int, rule: tuple[int, int]) -> str:
    return f"{'x'.join(map(str, ratio))} in {channels} channels ({rule[0]} + {rule[1]}·k frames)"

"""The engine's contracts with models, VAEs, text encoders and samplers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self, cast

from dit_compress.core.errors import UserError
from dit_compress.model.flow import Flow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress.model.flow import Fixed


class Codec(Protocol):
    """What stands between pixels and latents. A base beside ``nn.Module``."""

    ratio: tuple[int, int, int]
    channels: int
    decodes: bool = True
    """False of one that stands for latents alone: packages then end with the latent."""
    frame_rule: tuple[int, int] | None = None
    """(lead, step) of videos of ``lead + step·k`` frames, ``1 + (F - lead)/ratio[0]`` of them latent; (1, ratio[0])."""

    def eval(self) -> Self:
        """Set evaluation mode, as ``nn.Module.eval`` does."""

    def encode(self, video_BCFYX: Tensor) -> Tensor:
        """Encode video in [-1, 1] as a normalised latent ``[B,C,T,H,W]`` (mean 0, std 1 over the training set)."""

    takes_first: bool = False
    """True of a :class:`FirstFrameCodec`: ``decode`` also takes the video's first frame."""

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        """Decode a normalised latent to video in [-1, 1], clipped by the caller; may work in tiles."""

    def forward(self, latent_BCTHW: Tensor) -> Tensor:
        """Decode in one piece: what exporters trace."""

    def features(self, latent_BCTHW: Tensor) -> list[Tensor] | None:  # noqa: ARG002 - for those that have some
        """Return the decoder's streams ``[B,D,T,H,W]``, by which it can teach another's; None where it shows none."""
        return None


class FirstFrameCodec(Codec, Protocol):
    """A codec whose decoder also takes the first frame, where known."""

    takes_first: bool = True

    def decode(self, latent_BCTHW: Tensor, first_BCYX: Tensor | None = None) -> Tensor:
        """Decode, given the first frame: ``first_BCYX``, at the video's size, in [-1, 1]."""


def decoded(codec: Codec, latent_BCTHW: Tensor, first_BCYX: Tensor | None = None) -> Tensor:
    """Decode with a codec, its first frame given or not; raise a UserError where it is, and the codec takes none."""
    if first_BCYX is None:
        return codec.decode(latent_BCTHW)
    if not codec.takes_first:
        raise UserError(
            f"the decoder of {type(codec).__name__} takes no first frame",
            mend="Leave the first frame out, or use a VAE that is trained to take one",
        )
    return cast("FirstFrameCodec", codec).decode(latent_BCTHW, first_BCYX)


class Model(Protocol):
    """Makes a denoiser: the module, its config, and the adapter around it."""

    def create(self) -> nn.Module:
        """Make the module the options ask for: random weights, or those of the folder they name."""

    def licence(self) -> str | None:
        """Return the licence of the options' weights, as their folder states it; a recipe's own precedes it."""
        return None

    def flow(self) -> Flow:
        """Return how the options' weights are sampled, as their folder states it; else the default."""
        return Flow()

    @staticmethod
    def config_of(module: nn.Module) -> dict[str, Any]:
        """Return JSON config from which :meth:`from_config` makes the same *unpruned* module."""

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> nn.Module:
        """Make an empty module of the base class; called on the meta device."""

    @staticmethod
    def denoiser(module: nn.Module) -> Denoiser:
        """Put the module behind the engine's one convention."""


class Text(Protocol):
    """Makes a caption encoder."""

    trainable: bool = False
    """True if the encoder is trained together with the denoiser in the first ``distill`` step."""

    def create(self) -> nn.Module:
        """Make the encoder; it follows :class:`TextEncoder`."""

    def follow(self, plugin: str, config: Mapping[str, Any], *, sees_padding: bool = False) -> nn.Module:  # noqa: ARG002
        """Make an encoder that can be trained to give what another does: of its tokens, as wide as it.

        plugin, config: of the teacher, as its bundle has them; what that is made of without weights is enough.
        sees_padding: the teacher's embeddings of the padding count like others.
        """
        raise UserError("this text encoder can't learn from another", mend="Name one that can (docs/plugins/text.md)")

    @staticmethod
    def config_of(module: nn.Module) -> dict[str, Any]:
        """Return JSON config from which :meth:`from_config` makes the same encoder."""

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> nn.Module:
        """Make an empty encoder; called on the meta device."""


class TextEncoder(Protocol):
    """Turn captions into the tensors a denoiser takes. A base beside ``nn.Module``."""

    width: int
    tokenizer_kind: str | None = None
    """The kind of tokenizer that :meth:`save_tokenizer` writes: ``words`` or ``tokenizers``.

    An encoder without it, or without parameters of its own, stays on the host: an exported package takes embeddings.
    """
    embeddings: str = "float32"
    """How training keeps the embeddings of a frozen encoder on disk: ``bfloat16`` takes half the place."""
    sees: tuple[int, int] | None = None
    """Number and width of the embeddings that :meth:`encode_image` makes of an image; None where there is no such."""
    num_tokens: int = 0
    """How many different tokens there are; 0 where another encoder can't read them (``distill: {use: text}``).

    Tokens without a ``mask`` have 0 at padding.
    """

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Turn captions into integer tensors with leading B, padded to one fixed length."""

    def forward(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turn tokens into ``embedding [B,L,D]`` and ``mask [B,L]`` (1 real, 0 padding).

        Further conditions have names of their own: ``pooled [B,D]``; ``embedding_2`` and ``mask_2`` of a second one.
        """

    def save_tokenizer(self, folder: Path) -> dict[str, Any]:
        """Write what an app needs to tokenize; say its ``file``, ``length`` and ``padding``."""
        raise NotImplementedError

    def keep_tokens(self, folder: Path) -> bool:  # noqa: ARG002 - for those that have some
        """Write what :meth:`tokenize` reads, for a bundle with this encoder's weights; return whether there is any."""
        return False

    def take_tokens(self, folder: Path) -> None:  # noqa: ARG002 - for those that have some
        """Tokenize by what :meth:`keep_tokens` wrote, from now on."""
        raise UserError("this text encoder keeps no tokens", mend="Write 'take_tokens' beside 'keep_tokens'")

    def encode_image(self, first_BCYX: Tensor) -> Tensor:  # noqa: ARG002 - for those that have some
        """Encode images in [-1, 1] as ``[B,N,D]``, on their device, as the model's pipeline encodes a first frame."""
        raise UserError("this text encoder sees no image", mend="Write 'encode_image', and 'sees'")

    def digest(self) -> str | None:
        """Return a digest of weights outside the bundle: it names the cache of embeddings; None without such."""
        return None

    def release(self) -> bool:
        """Give back the memory of weights outside the bundle, all captions being encoded; return whether it had any."""
        return False


class Sampler(Protocol):
    """Turns noise into a latent."""

    def sample(
        self, denoiser: Denoiser, noise_BCTHW: Tensor, cond: Cond, sigmas: Sequence[float], guidance: float = 1.0
    ) -> Tensor:
        """Sample, differentiably; guidance as one doubled batch, none at 1.0."""

    def fixed(self, denoiser: Denoiser, sigmas: Sequence[float]) -> Fixed | None:  # noqa: ARG002 - for those that can
        """Return this sampling as calls that no value decides, for a file that does all steps at once; None: it can't.

        The denoiser may lie on the meta device: what such a file leaves out may then be any of the right number.
        """
        return None

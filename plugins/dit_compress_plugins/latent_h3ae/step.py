"""The step ``latent: {use: h3ae}``: as every codec is trained, from random weights, the first frame given or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dit_compress.train.codec.objective import CodecObjective
from dit_compress.train.codec.step import CodecStep, round_trip_db
from dit_compress_plugins.latent_h3ae.codec import H3AE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dit_compress.data.samples import Samples
    from dit_compress.model.codec.causal import CausalCodec
    from dit_compress.train.codec.likeness import Likeness
    from dit_compress.train.objective import Batch


class H3AEObjective(CodecObjective):
    """The codec's objective; a share of the samples is decoded with its first frame."""

    def decoded(self, raw: Tensor, batch: Batch, features: list[Tensor] | None) -> Tensor:
        """Decode a batch's raw latent; ``features`` gets the decoder's streams."""
        options: Any = self.options
        if not options.first_share:
            return super().decoded(raw, batch, features)
        known_B = batch.streams.uniform("first frame") < options.first_share
        return self.codec.decode_raw(raw, features=features, first=batch.x0[:, :, 0], known=known_B)


class H3AEStep(CodecStep):
    """Trains an :class:`H3AE` on the recipe's clips."""

    plugin = "h3ae"

    @property
    def looked_at(self) -> int:
        """Training clips that statistics are measured on."""
        return self.options.statistics_clips

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> H3AE:
        """Make an empty codec of a saved config, statistics included; works on the meta device."""
        return H3AE.from_config(dict(config))

    def network(self) -> H3AE:
        """Make a codec of the options."""
        options = self.options
        return H3AE(
            options.ratio_numbers(),
            options.channels,
            options.widths,
            options.blocks,
            options.heads,
            options.window,
            options.radius,
            tile=options.tile,
            chunk=options.chunk,
        )

    def objective(self, codec: CausalCodec, likeness: Likeness | None = None, seed: int = 0) -> H3AEObjective:
        """Make what the training loop runs for ``options.steps`` steps of ``options.batch`` clips."""
        return H3AEObjective(codec, self.options, likeness, seed=seed)

    def measured(self, codec: H3AE, held_out: Samples, began: dict[str, float]) -> dict[str, float]:
        """Return PSNR, and that of the later frames without and with the first one given."""
        found = super().measured(codec, held_out, began)
        if len(held_out) and held_out.x0([0]).shape[2] > 1:
            found["later_psnr_db"] = round_trip_db(codec, held_out, later=True)
            found["later_psnr_given_first_db"] = round_trip_db(codec, held_out, given=True, later=True)
        return found

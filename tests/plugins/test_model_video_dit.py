"""The reference DiT: its size beside the paper's, its shape after pruning, and that it exports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError

from dit_compress.model.cut import compact, example_output, masked_output
from dit_compress.structure.apply import apply_edits
from dit_compress.structure.compact import relative_error
from dit_compress.structure.edits import SetAttribute, Take
from dit_compress_plugins.granularity_block import BlockOptions
from dit_compress_plugins.granularity_block.axes import BlockGranularity
from dit_compress_plugins.granularity_ffn import FfnOptions
from dit_compress_plugins.granularity_ffn.axes import FfnGranularity
from dit_compress_plugins.granularity_head import HeadOptions
from dit_compress_plugins.granularity_head.axes import HeadGranularity
from dit_compress_plugins.model_video_dit import VideoDiTOptions
from dit_compress_plugins.model_video_dit.adapter import VideoDiTModel
from dit_compress_plugins.model_video_dit.layers import MASKED, RMSNorm, patchify, rope, rotate, unpatchify
from dit_compress_plugins.model_video_dit.model import VideoDiT, config_of, precondition

if TYPE_CHECKING:
    from pathlib import Path

SIZE = (2, 2, 4)


def make(**options: Any) -> VideoDiT:
    given = {"preset": "tiny", "layers": 2, "channels": 4, "text_width": 8, **options}
    torch.manual_seed(0)
    return VideoDiTModel(VideoDiTOptions(**given)).create().eval()


def millions(**options: Any) -> float:
    with torch.device("meta"):
        module = VideoDiTModel(VideoDiTOptions(**options)).create()
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"preset": "2b"}, 1923),
        ({"preset": "2b", "layers": 20, "hidden": 2048, "heads": 20, "ffn": 6144}, 966),
        ({"preset": "shallow"}, 983),
        ({"preset": "narrow"}, 996),
        ({"preset": "small"}, 8),
        ({"preset": "tiny"}, 1.3),
    ],
)
def test_parameters_beside_the_paper(options: dict[str, Any], expected: float) -> None:
    assert millions(**options) == pytest.approx(expected, abs=1)


def test_one_velocity_per_latent_cell() -> None:
    denoiser = VideoDiTModel.denoiser(make())
    latent, sigma, cond = denoiser.example(3, SIZE)
    assert denoiser(latent, sigma, cond).shape == latent.shape
    assert (denoiser.channels, denoiser.tokens(SIZE)) == (4, 16)


@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (2, 2, 4)])
def test_unpatchify_undoes_patchify(patch: tuple[int, int, int]) -> None:
    latent = torch.randn(2, 3, *SIZE)
    tokens = patchify(latent, patch)
    size = tuple(cells // step for cells, step in zip(SIZE, patch, strict=True))
    assert tokens.shape == (2, torch.Size(size).numel(), 3 * torch.Size(patch).numel())
    assert torch.equal(unpatchify(tokens, size, patch), latent)


def test_a_patch_becomes_the_channels_of_one_token() -> None:
    latent = torch.arange(16.0).reshape(1, 1, 1, 4, 4)
    assert patchify(latent, (1, 2, 2))[0, 1].tolist() == [2, 6, 3, 7]


def test_padding_of_the_text_changes_nothing() -> None:
    denoiser = VideoDiTModel.denoiser(make())
    latent, sigma, cond = denoiser.example(2, SIZE)
    other = {**cond, "embedding": cond["embedding"] + 9 * (1 - cond["mask"])[..., None]}
    assert torch.equal(denoiser(latent, sigma, cond), denoiser(latent, sigma, type(cond)(other, cond.null)))
    assert torch.isfinite(torch.tensor(MASKED, dtype=torch.float16))


def test_every_parameter_learns_from_the_first_step() -> None:
    module = make()
    denoiser = VideoDiTModel.denoiser(module)
    latent, sigma, cond = denoiser.example(2, SIZE)
    (denoiser(latent, sigma, cond) - latent).square().mean().backward()
    assert [name for name, value in module.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_checkpointing_gives_the_same_gradients() -> None:
    module = make().train()
    denoiser = VideoDiTModel.denoiser(module)
    inputs = denoiser.example(1, SIZE)
    plain = torch.autograd.grad(denoiser(*inputs).square().sum(), list(module.parameters()))
    module.enable_gradient_checkpointing()
    again = torch.autograd.grad(denoiser(*inputs).square().sum(), list(module.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


def test_rms_norm_by_hand() -> None:
    assert RMSNorm(2, eps=0.5)(torch.tensor([1.0, 2.0])).tolist() == pytest.approx([1 / 3**0.5, 2 / 3**0.5])
    huge = torch.full((1, 4), 3e4, dtype=torch.float16)
    assert RMSNorm(4)(huge).tolist() == [[1, 1, 1, 1]]


def test_rope_is_relative_along_each_axis() -> None:
    tables = rope((3, 3, 3), 12, 1e4, torch.zeros(()))
    query, key = torch.randn(2, 12).expand(27, 2, 12).permute(1, 0, 2)[:, None]
    scores = (rotate(query, tables)[0] @ rotate(key, tables)[0].T).reshape(3, 3, 3, 3, 3, 3)
    torch.testing.assert_close(scores[0, 0, 0, 1, 1, 0], scores[1, 1, 1, 2, 2, 1])
    assert not torch.allclose(scores[0, 0, 0, 1, 0, 0], scores[0, 0, 0, 0, 1, 0])


def test_preconditioning_is_the_best_linear_guess_plus_a_unit_target() -> None:
    """Over white latents and noise, what the guess leaves of the velocity has the std that c_out gives the output."""
    torch.manual_seed(0)
    x0, noise = torch.randn(2, 1, 1, 1, 1, 200_000, dtype=torch.float64)
    for sigma in (0.0, 0.3, 0.5, 0.9, 1.0):
        x = (1 - sigma) * x0 + sigma * noise
        where = torch.full((1,), sigma, dtype=torch.float64)
        guess = precondition(torch.zeros_like(x), x, where)
        slope = float(((noise - x0) * x).mean() / x.square().mean())
        torch.testing.assert_close(guess, float((guess / x).median()) * x)
        assert float((guess / x).median()) == pytest.approx(slope, abs=0.01)
        c_out = float((precondition(torch.ones_like(x), x, where) - guess).mean())
        assert c_out == pytest.approx(float((noise - x0 - guess).std()), rel=0.01)


def test_discovery_finds_blocks_heads_and_channels() -> None:
    structure = VideoDiTModel.denoiser(make()).structure()
    main = structure.main
    assert (main.path, main.length, main.deletable) == ("transformer_blocks", 2, True)
    assert [(found.heads, found.width) for found in structure.attentions] == [(4, 32)] * 4
    assert [found.width for found in structure.feed_forwards] == [512] * 2
    assert structure.refusals == ()


def test_features_are_the_stream_after_a_block() -> None:
    denoiser = VideoDiTModel.denoiser(make())
    velocity, taken = denoiser.features(*denoiser.example(2, SIZE), at=[0, 1])
    assert velocity.shape == (2, 4, *SIZE)
    assert [taken[index].shape for index in (0, 1)] == [(2, 16, 128)] * 2


def test_a_pruned_model_is_saved_as_an_ordinary_one(tmp_path: Path) -> None:
    module = make()
    edits: list[Any] = [SetAttribute("transformer_blocks.0.attn1", "heads", 3)]
    for name, dim in (("to_q", 0), ("to_k", 0), ("to_v", 0), ("to_out.0", 1)):
        edits.append(Take(f"transformer_blocks.0.attn1.{name}.weight", dim, tuple(range(32, 128))))
        if dim == 0:
            edits.append(Take(f"transformer_blocks.0.attn1.{name}.bias", 0, tuple(range(32, 128))))
    apply_edits(module, edits)
    assert config_of(module)["heads"] == [3, 4]
    module.save_pretrained(tmp_path)
    inputs = VideoDiTModel.denoiser(module).call(*VideoDiTModel.denoiser(module).example(1, SIZE))[0]
    again = VideoDiT.from_pretrained(tmp_path).eval()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in module.state_dict().items())
    # MKL's last bit depends on where in memory a weight begins, and a file begins where its header ends.
    torch.testing.assert_close(again(*inputs), module(*inputs), atol=1e-6, rtol=1e-6)


def test_masked_equals_compact_and_gives_an_ordinary_config() -> None:
    module = make(layers=3)
    denoiser = VideoDiTModel.denoiser(module)
    structure = denoiser.structure()
    levels = [BlockGranularity(BlockOptions()), HeadGranularity(HeadOptions()), FfnGranularity(FfnOptions())]
    axes = [axis for level in levels for axis in level.axes(structure)]
    kept = {axis.name: tuple(range(max(axis.units // 4, 1), axis.units)) for axis in axes}
    whole, masked = example_output(denoiser), masked_output(denoiser, axes, kept)
    assert relative_error(masked, whole) > 1e-3
    compact(denoiser, axes, kept)
    assert relative_error(example_output(denoiser), masked) < 3e-6
    config = config_of(module)
    assert (config["layers"], config["heads"], config["cross_heads"], config["ffn"]) == (2, 3, 3, 384)
    ordinary = VideoDiTModel.from_config(config)
    ordinary.load_state_dict(module.state_dict())
    assert torch.equal(example_output(VideoDiTModel.denoiser(ordinary)), example_output(denoiser))


def test_autocast_keeps_the_stream_and_the_gradients_finite() -> None:
    module = make()
    denoiser = VideoDiTModel.denoiser(module)
    latent, sigma, cond = denoiser.example(2, SIZE)
    exact = denoiser(latent, sigma, cond)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = denoiser(latent, sigma, cond).float()
    rounded.square().mean().backward()
    assert relative_error(rounded, exact) < 0.03
    assert all(value.grad is not None and value.grad.isfinite().all() for value in module.parameters())


def test_config_makes_the_same_module() -> None:
    module = make(heads=[2, 4], hidden=96, ffn=[64, 96], patch=(1, 2, 2))
    with torch.device("meta"):
        again = VideoDiTModel.from_config(config_of(module))
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    assert {name: value.shape for name, value in again.state_dict().items()} == shapes
    assert VideoDiTModel.denoiser(again).structure().main.length == 2


@pytest.mark.parametrize("options", [{"ffn": [64]}, {"heads": [2, 4, 4, 4]}, {"head_width": 7}, {"depth": 3}])
def test_options_that_do_not_fit(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        VideoDiTOptions(**options)


def test_exports_without_a_tensor_over_rank_five() -> None:
    module = make(patch=(1, 2, 2))
    inputs = VideoDiTModel.denoiser(module).call(*VideoDiTModel.denoiser(module).example(1, SIZE))[0]
    program = torch.export.export(module, inputs, strict=False).run_decompositions({})
    ranks = [node.meta["val"].ndim for node in program.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    assert max(ranks) <= 5
    torch.testing.assert_close(program.module()(*inputs), module(*inputs))

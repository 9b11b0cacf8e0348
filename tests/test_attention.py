"""Attention probabilities from outside: equal to the module's own, with gradients, whatever function it calls."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.model.attention import captured, probabilities
from dit_compress.model.denoiser import Cond
from dit_compress.structure.facts import Attention
from dit_compress.testing.models import MODELS, tiny_denoiser
from dit_compress.train.memory import recomputing
from dit_compress.train.objective import Role

HEADS = 4


def example(denoiser: Any) -> tuple[Tensor, Tensor, Cond]:
    torch.manual_seed(0)
    return denoiser.example(2, denoiser.example_size)


@pytest.mark.parametrize("name", MODELS)
def test_self_and_cross_attention_of_a_block_are_seen_and_nothing_changes(name: str) -> None:
    denoiser = tiny_denoiser(name)
    given = example(denoiser)
    plain = denoiser(*given)
    paths = [item.path for item in denoiser.structure().attentions if item.block == 1]
    with denoiser.attention([1]) as taken:
        assert torch.equal(denoiser(*given), plain)
    assert list(taken) == paths
    assert [path.rpartition(".")[2] for path in paths] == ["attn1", "attn2"]
    tokens = denoiser.tokens(denoiser.example_size)
    assert [tuple(taken[path].shape) for path in paths] == [(2, HEADS, tokens, tokens), (2, HEADS, tokens, 8)]
    for value in taken.values():
        torch.testing.assert_close(value.sum(-1), torch.ones(value.shape[:-1]))
        assert float(value.min().detach()) >= 0


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_queries_and_keys_and_no_later_block(name: str) -> None:
    denoiser = tiny_denoiser(name)
    path = [item.path for item in denoiser.structure().attentions if item.block == 1][1]
    with denoiser.attention([path]) as taken:
        denoiser(*example(denoiser))
    assert list(taken) == [path]
    taken[path].square().sum().backward()
    graded = {key for key, value in denoiser.module.named_parameters() if value.grad is not None and value.grad.any()}
    assert {f"{path}.to_q.weight", f"{path}.to_k.weight"} <= graded
    assert f"{path}.to_v.weight" not in graded
    assert not any(key.startswith(("transformer_blocks.2.", "blocks.2.")) for key in graded)


@pytest.mark.parametrize("name", MODELS)
def test_the_probabilities_give_the_modules_own_output(name: str) -> None:
    """What goes into the output projection is P·V, heads side by side."""
    denoiser = tiny_denoiser(name)
    path = denoiser.structure().attentions[0].path
    module: Any = denoiser.module.get_submodule(path)
    seen: list[Tensor] = []
    module.to_v.register_forward_hook(lambda _module, _args, output: seen.append(output))
    module.to_out[0].register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with denoiser.attention([path]) as taken:
        denoiser(*example(denoiser))
    value_BSD, mixed_BSD = seen
    mixed_BNSK = taken[path] @ value_BSD.unflatten(-1, (HEADS, -1)).transpose(1, 2)
    torch.testing.assert_close(mixed_BNSK.transpose(1, 2).flatten(2), mixed_BSD)


def test_padding_gets_no_attention() -> None:
    denoiser = tiny_denoiser("video_dit")
    latent, sigma, cond = example(denoiser)
    mask = torch.ones(2, 8)
    mask[1, 3:] = 0
    with denoiser.attention(["transformer_blocks.0.attn2"]) as taken:
        denoiser(latent, sigma, Cond({**cond, "mask": mask}, cond.null))
    (value,) = taken.values()
    assert float(value[1, ..., 3:].abs().max().detach()) == 0
    assert float(value[0, ..., 3:].min().detach()) > 0


def test_recomputed_blocks_give_the_same_gradients() -> None:
    found = []
    for again in (False, True):
        denoiser = tiny_denoiser("video_dit").requires_grad_()
        with recomputing({"student": Role(denoiser)} if again else {}), denoiser.attention([0]) as taken:
            output = denoiser(*example(denoiser))
            (output.square().mean() + sum(value.square().sum() for value in taken.values())).backward()
        found.append({key: value.grad for key, value in denoiser.module.named_parameters() if value.grad is not None})
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value)


def test_an_attention_that_is_not_there_is_refused() -> None:
    denoiser = tiny_denoiser("video_dit")
    said = "^no attention was found at 'attn'. Found are such as transformer_blocks.0.attn1, transformer_blocks.0.attn2"
    with pytest.raises(UserError, match=said), denoiser.attention(["attn"]):
        pass
    with pytest.raises(UserError, match="^no attention was found at 9"), denoiser.attention([9]):
        pass


# ------------------------------------------------------------------ by hand


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, [[0.5, 0.5], [0.75, 0.25]]),
        ({"is_causal": True}, [[1.0, 0.0], [0.75, 0.25]]),
        ({"attn_mask": torch.tensor([[False, False], [False, True]])}, [[0.0, 0.0], [0.0, 1.0]]),
        ({"attn_mask": torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])}, [[0.25, 0.75], [0.75, 0.25]]),
        ({"scale": 0.0}, [[0.5, 0.5], [0.5, 0.5]]),
    ],
)
def test_probabilities_by_hand(more: dict[str, Any], expected: list[list[float]]) -> None:
    """K = 4, so that scores are halved: q·k = 0, 0 and 2·ln 3, 0; three to one for the second query."""
    query = torch.tensor([[0.0] * 4, [2 * math.log(3), 0, 0, 0]])[None, None]
    key = torch.tensor([[1.0, 0, 0, 0], [0.0] * 4])[None, None].requires_grad_()
    found = probabilities(query, key, key, **more)
    assert found[0, 0].tolist() == [pytest.approx(row) for row in expected]
    found.square().sum().backward()
    assert torch.isfinite(key.grad).all()


def test_grouped_queries_share_a_key() -> None:
    query, key = torch.randn(1, 4, 3, 2), torch.randn(1, 2, 3, 2)
    found = probabilities(query, key, key, enable_gqa=True)
    expected = F.scaled_dot_product_attention(query, key, torch.eye(3).expand(1, 2, 3, 3), enable_gqa=True)
    torch.testing.assert_close(found, expected)


class Plain(nn.Module):
    """Attention written out, heads in the batch, as ``softmax`` is called in three ways; or another attention."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x_BSD: Tensor) -> Tensor:
        heads = x_BSD.unflatten(-1, (2, -1)).transpose(1, 2).flatten(0, 1)
        scores = heads @ heads.mT
        if self.how == "linear":
            return scores @ heads
        if self.how == "twice":
            return scores.softmax(-1) @ scores.softmax(2) @ heads
        ways = {
            "torch": lambda: torch.softmax(scores, dim=-1),
            "method": lambda: scores.softmax(2),
            "functional": lambda: F.softmax(scores, dim=-1),
        }
        return ways[self.how]() @ heads


def of(path: str) -> list[Attention]:
    return [Attention(path, "", 0, 2)]


@pytest.mark.parametrize("how", ["torch", "method", "functional"])
def test_softmax_written_out_is_seen(how: str) -> None:
    module, x_BSD = nn.ModuleDict({"attn": Plain(how)}), torch.randn(3, 5, 8)
    with captured(module, of("attn")) as taken:
        module["attn"](x_BSD)
    heads = x_BSD.unflatten(-1, (2, -1)).transpose(1, 2)
    torch.testing.assert_close(taken["attn"], (heads @ heads.mT).softmax(-1))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("linear", "^'attn' shows no attention probabilities. Take one that calls"),
        ("twice", "^'attn' computes 2 attentions in a call. Take one that calls"),
    ],
)
def test_what_shows_no_or_two_attentions_is_refused(how: str, said: str) -> None:
    module = nn.ModuleDict({"attn": Plain(how)})
    with pytest.raises(UserError, match=said), captured(module, of("attn")):
        module["attn"](torch.randn(3, 5, 8))
    assert not module["attn"]._forward_hooks

"""Weights that stay in their files give what they would give in memory, and hold none of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dit_compress.structure.apply import apply_edits
from dit_compress.structure.edits import Scale, Take
from dit_compress.structure.empty import empty_weights
from dit_compress.structure.files import on_disk, slices
from dit_compress.structure.files.on_disk import Memory, OnDisk, bring_to_memory, left_on_disk
from dit_compress.structure.files.tensor_files import open_weights
from dit_compress.structure.precision import in_double

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


class Small(nn.Module):
    """A matrix that two names share, a norm, a convolution, a saved buffer and one that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 10)
        self.norm = nn.LayerNorm(10)
        self.conv = nn.Conv1d(10, 4, 1)
        self.tied = nn.Linear(6, 10, bias=False)
        self.tied.weight = self.first.weight
        self.register_buffer("table", torch.arange(4.0))
        self.register_buffer("made", torch.ones(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x) * self.tied(x))
        return self.conv(y.transpose(1, 2)).transpose(1, 2) + self.table * self.made


def pair(folder: Path, dtype: torch.dtype = torch.bfloat16) -> tuple[Small, Small]:
    """The module with weights of a dtype in float32, and the same on disk."""
    torch.manual_seed(0)
    module = Small().requires_grad_(requires_grad=False)
    for tensor in module.state_dict(keep_vars=True).values():
        tensor.copy_(torch.randn_like(tensor).to(dtype))
    folder.mkdir(exist_ok=True)
    save_file({name: value.to(dtype).clone() for name, value in module.state_dict().items()}, folder / "m.safetensors")
    with empty_weights():
        empty = Small()
    with left_on_disk(empty, open_weights(folder).tensors):
        return module, empty


OPERATIONS: dict[str, Callable[[Tensor], Any]] = {
    "float": lambda w: w.float() + 0,
    "double": lambda w: w.double() * 1,
    "half, then double": lambda w: w.half().double() * 1,
    "square": lambda w: w.float().square().sum(0),
    "rows": lambda w: w.square().sum(1),
    "norm": lambda w: w.float().norm(),
    "transposed": lambda w: w.t() + 0,
    "reshaped": lambda w: w.view(2, 5, 6).transpose(0, 1)[1] * 2,
    "split": lambda w: torch.cat(w.split(5)[::-1]),
    "slice": lambda w: w[2:5, 1] - 1,
    "ascending": lambda w: w.index_select(0, torch.tensor([1, 4, 5])).index_select(1, torch.tensor([0, 3])) * 1,
    "descending": lambda w: w.index_select(0, torch.tensor([4, 1])) * 1,
    "twice": lambda w: torch.stack([w + 0, w.double().t().float().t() + 0]),
    "clone": lambda w: w.clone(),
    "equal": lambda w: w == w.float(),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_gives_what_it_gives_in_memory(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    module, stays = pair(tmp_path / "m", dtype)
    found, expected = (OPERATIONS[name](each.first.weight.detach()) for each in (stays, module))
    assert type(found) is Tensor
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at_once", [1, 7, 1 << 20])
@pytest.mark.parametrize("chunk", [16, 1 << 20])
def test_a_product_is_that_of_the_whole_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, at_once: int, chunk: int
) -> None:
    monkeypatch.setattr(on_disk, "AT_ONCE", at_once)
    monkeypatch.setattr(slices, "CHUNK_BYTES", chunk)
    module, stays = pair(tmp_path / "m", dtype)
    torch.manual_seed(1)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    rows, columns = torch.tensor([0, 2, 3, 9]), torch.tensor([1, 5])
    with torch.no_grad():
        for bias in (None, module.first.bias.double()):
            found = nn.functional.linear(x, stays.first.weight.double(), bias)
            expected = nn.functional.linear(x, module.first.weight.double(), bias)
            assert torch.allclose(found, expected, rtol=0, atol=1e-14)
        few = stays.first.weight.index_select(0, rows).index_select(1, columns).double()
        whole = module.first.weight[rows][:, columns].double()
        assert torch.allclose(x[..., columns] @ few.t(), x[..., columns] @ whole.t(), rtol=0, atol=1e-14)


def test_a_module_computes_the_same_before_and_after_edits(tmp_path: Path) -> None:
    module, stays = pair(tmp_path / "m")
    torch.manual_seed(1)
    x = torch.randn(2, 3, 6)
    edits = [
        Take("conv.weight", 0, (0, 2)),
        Take("conv.bias", 0, (0, 2)),
        Take("table", 0, (0, 2)),
        Scale("norm.weight", 0.3),
    ]
    edits += [Take("made", 0, (0, 2), stored=False)]
    for made in ([], edits):
        for each in (module, stays):
            apply_edits(each, made)
        with torch.no_grad(), in_double():
            assert float((stays(x) - module(x)).abs().max()) < 1e-14
        with torch.no_grad():
            assert torch.allclose(stays(x), module(x), atol=1e-6)
    assert isinstance(stays.conv.weight, OnDisk), "an edit reads no matrix"
    assert stays.conv.out_channels == 2


def test_names_share_a_weight_and_buffers_are_read(tmp_path: Path) -> None:
    module, stays = pair(tmp_path / "m")
    assert stays.tied.weight is stays.first.weight
    assert isinstance(stays.first.weight, nn.Parameter)
    assert stays.first.weight.requires_grad
    assert not any(parameter.is_meta for parameter in stays.parameters())
    assert [type(value) for value in stays.buffers()] == [Tensor, Tensor]
    assert torch.equal(stays.table, module.table)
    bring_to_memory(stays)
    assert stays.tied.weight is stays.first.weight
    assert type(stays.norm.weight) is nn.Parameter
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in stays.state_dict().items())


def test_nothing_writes_to_a_file(tmp_path: Path) -> None:
    _, stays = pair(tmp_path / "m")
    before = (tmp_path / "m" / "m.safetensors").read_bytes()
    for write in (lambda w: w.mul_(2), lambda w: w.copy_(w), lambda w: torch.add(w, 1, out=w), lambda w: w[0].zero_()):
        with pytest.raises(RuntimeError, match="weights on disk are read, not written to"):
            write(stays.first.weight.detach())
    assert (tmp_path / "m" / "m.safetensors").read_bytes() == before


def test_memory_is_lent_again_when_nothing_stands_in_it() -> None:
    memory = Memory()
    first = memory.empty((4, 8), torch.float32).fill_(1)
    view = first[1]
    second = memory.empty((4, 8), torch.float32).fill_(2)
    assert first.data_ptr() != second.data_ptr()
    place = first.data_ptr()
    del first
    third = memory.empty((2, 8), torch.float64).fill_(3)
    assert third.data_ptr() not in (place, second.data_ptr()), "a view still stands there"
    assert torch.equal(view, torch.ones(8))
    del view
    assert memory.empty((4, 4), torch.float32).data_ptr() == place
    memory.release()
    assert torch.equal(second, torch.full((4, 8), 2.0)), "what is in use stays"


def test_what_was_read_last_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, stays = pair(tmp_path / "m")
    reads: list[str] = []
    whole = on_disk.cut
    monkeypatch.setattr(on_disk, "cut", lambda piece, buffers: reads.append(piece.name) or whole(piece, buffers))
    weight = stays.first.weight.detach()
    weight.float().norm(), weight.float().square().sum(0), weight.float().square().sum(1)
    assert reads == ["tied.weight"], "the last of its names"
    stays.norm.weight.detach().norm()
    weight.norm()
    assert reads == ["tied.weight", "norm.weight", "tied.weight"]

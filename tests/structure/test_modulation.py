"""Modulation by observation: which linears it is, what they read, and what stands in their place."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from modulated import MIXED, QWEN, TABLES, UNMODULATED, recorded
from torch import Tensor, nn

import dit_compress
from dit_compress.core.errors import UserError
from dit_compress.structure.apply import apply_edits
from dit_compress.structure.edits import Factor, KeepBlocks, Tabulate, edits_as_data, edits_from_data
from dit_compress.structure.modulation import TimeTable, Timetable
from dit_compress.structure.observe.modulation import modulation
from dit_compress.structure.record import Call

if TYPE_CHECKING:
    from pathlib import Path

# ------------------------------------------------------------------ found


@pytest.mark.parametrize("name", TABLES)
def test_what_reads_the_timestep_alone_is_found(name: str) -> None:
    argument, count = TABLES[name]
    denoiser, _ = recorded(name)
    found = modulation(denoiser.module, denoiser.recorded)
    assert [item.reads for item in found.linears] == [{argument}] * count
    assert all(len(item.upstream) >= 2 for item in found.linears), "the two linears of the embedding, at least"
    blocks = {item.path.split(".")[1] for item in found.linears}
    assert blocks == {"0", "1", "2", "3"}
    assert found.refusals == ()


@pytest.mark.parametrize("name", MIXED)
def test_what_reads_more_is_told_apart(name: str) -> None:
    reads, count = MIXED[name]
    denoiser, _ = recorded(name)
    found = modulation(denoiser.module, denoiser.recorded)
    main = [item for item in found.linears if "refiner" not in item.path]
    assert [item.reads for item in main] == [reads] * count


@pytest.mark.parametrize("name", UNMODULATED)
def test_tables_and_shared_modulation_are_no_linears_of_blocks(name: str) -> None:
    denoiser, _ = recorded(name)
    found = modulation(denoiser.module, denoiser.recorded)
    assert found.linears == ()
    assert "no linear inside its blocks" in found.reasons()


class Block(nn.Module):
    """Modulated by a linear of its own, or by one that it shares."""

    def __init__(self, modulate: nn.Linear, width: int = 8) -> None:
        super().__init__()
        self.modulate, self.mix = modulate, nn.Linear(width, width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.modulate(time).chunk(2, -1)
        return x + self.mix(x * (1 + scale[:, None]) + shift[:, None])


class Model(nn.Module):
    """labels: whether an embedding of an integer is added to the timestep's."""

    def __init__(self, *, shared: bool = False, labels: bool = False, width: int = 8) -> None:
        super().__init__()
        self.embed, self.label = nn.Linear(1, width), nn.Embedding(5, width) if labels else None
        one = nn.Linear(width, 2 * width)
        self.blocks = nn.ModuleList(Block(one if shared else nn.Linear(width, 2 * width)) for _ in range(3))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        time = self.embed(t[:, None])
        time = time if self.label is None else time + self.label(label)
        for block in self.blocks:
            x = block(x, time)
        return x


def made(**options: bool) -> tuple[Model, Call]:
    torch.manual_seed(0)
    arguments = (torch.randn(2, 6, 8), torch.tensor([0.5, 0.25]))
    if options.get("labels"):
        arguments += (torch.tensor([1, 3]),)
    return Model(**options).eval(), Call(arguments, {}, recorded=True)


def test_a_plain_module_called_by_position() -> None:
    found = modulation(*made())
    assert [item.path for item in found.linears] == [f"blocks.{index}.modulate" for index in range(3)]
    assert found.linears[0].reads == {1}
    assert found.linears[0].upstream == ("embed",)


def test_an_index_into_an_embedding_is_something_that_is_read() -> None:
    """A label reaches no matmul before the embedding: without it the table would be made for one label."""
    found = modulation(*made(labels=True))
    assert found.linears[0].reads == {1, 2}


def test_a_shared_linear_is_refused() -> None:
    found = modulation(*made(shared=True))
    assert found.linears == ()
    assert "shared with 'blocks.2.modulate" in found.reasons()


# ------------------------------------------------------------------ in their place


def test_edits_are_json_and_come_back() -> None:
    edits = [Factor("a.b", 4, bias=False), Tabulate(("x", "y"), "timestep", (500.0, 1000.0), (0.5, 1.0), ("embed",))]
    assert edits_from_data(edits_as_data(edits)) == edits
    assert edits[0].made == ("a.b.0.weight", "a.b.1.weight")
    assert Factor("a", 1).made == ("a.0.weight", "a.1.weight", "a.1.bias")
    assert edits[1].made == ("x.rows", "y.rows")


def test_new_tensors_are_nan_until_they_are_filled() -> None:
    model, call = made()
    apply_edits(model, [Factor("blocks.0.modulate", 3), Tabulate(("blocks.1.modulate",), 1, (0.25, 0.5))])
    first, second = model.blocks[0].modulate, model.blocks[1].modulate
    assert [tuple(item.weight.shape) for item in first] == [(3, 8), (16, 3)]
    assert first[0].bias is None
    assert tuple(second.rows.shape) == (2, 16)
    assert all(bool(value.isnan().all()) for part in (first, second) for value in part.parameters())
    assert bool(call.replay(model).isnan().any())


def tabled(times: tuple[float, ...] = (0.25, 0.5, 1.0)) -> Model:
    """A model whose tables hold, for the i-th timestep, the number i everywhere."""
    model, _ = made()
    apply_edits(model, [Tabulate(tuple(f"blocks.{index}.modulate" for index in range(3)), 1, times)])
    with torch.no_grad():
        for block in model.blocks:
            block.modulate.rows.copy_(torch.arange(len(times))[:, None].expand(-1, 16))
    return model


def rows_of(model: Model, *args: Tensor, **kwargs: Tensor) -> list[float]:
    seen: list[Tensor] = []
    handle = model.blocks[2].modulate.register_forward_hook(lambda _m, _a, output: seen.append(output))
    with torch.no_grad():
        model(*args, **kwargs)
    handle.remove()
    return seen[0][:, 0].tolist()


def test_every_sample_gets_the_row_of_its_timestep() -> None:
    model, x = tabled(), torch.randn(2, 6, 8)
    assert rows_of(model, x, torch.tensor([0.25, 1.0])) == [0.0, 2.0]
    assert rows_of(model, x, t=torch.tensor([0.5, 0.5])) == [1.0, 1.0], "also by name"
    assert rows_of(copy.deepcopy(model), x, torch.tensor([0.5, 1.0])) == [1.0, 2.0]


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 0.3000001), (torch.bfloat16, 0.301), (torch.float64, 0.3)])
def test_a_timestep_may_differ_by_its_own_precision(dtype: torch.dtype, near: float) -> None:
    model = tabled((0.3, 0.7))
    assert model.timetable.times == (0.3, 0.7)
    model.timetable.note(torch.tensor([near], dtype=dtype))
    assert model.timetable.index(check=True).tolist() == [0]


@pytest.mark.parametrize("wrong", [0.30001, 0.5, 0.0, 1.0])
def test_another_timestep_is_refused(wrong: float) -> None:
    model = tabled((0.3, 0.7))
    with pytest.raises(UserError, match=r"is not in the modulation's table, which holds 0.3, 0.7") as caught:
        model(torch.randn(2, 6, 8), torch.tensor([0.7, wrong]))
    assert caught.value.problems[0][2].startswith("Sample with the schedule")


def test_a_block_alone_has_no_timestep() -> None:
    with pytest.raises(UserError, match="before its model was called"):
        tabled().blocks[0](torch.randn(2, 6, 8), torch.randn(2, 8))


def test_rows_for_more_places_than_timesteps() -> None:
    timetable = Timetable("t", (3.0, 4.0), ())
    table = TimeTable(timetable, torch.tensor([[3.0], [4.0]]))
    timetable.note(torch.tensor([4.0, 3.0]))
    assert table(torch.zeros(2, 3, 5))[..., 0].tolist() == [[4.0] * 3, [3.0] * 3]
    with pytest.raises(UserError, match="2 different timesteps in one call"):
        table(torch.zeros(6, 5))
    timetable.note(torch.tensor(4.0))
    assert table(torch.zeros(2, 3, 5)).flatten().tolist() == [4.0] * 6


def test_tables_go_with_their_blocks() -> None:
    model = tabled()
    apply_edits(model, [KeepBlocks("blocks", (0, 2))])
    assert sorted(name for name in model.state_dict() if "rows" in name) == [
        "blocks.0.modulate.rows",
        "blocks.1.modulate.rows",
    ]
    assert model(torch.randn(2, 6, 8), torch.tensor([1.0, 0.5])).shape == (2, 6, 8)


def test_a_table_is_learned() -> None:
    model = tabled()
    model(torch.randn(2, 6, 8), torch.tensor([0.5, 0.5])).sum().backward()
    rows = model.blocks[0].modulate.rows.grad
    assert rows is not None
    assert (rows != 0).any(1).tolist() == [False, True, False]


def test_a_table_is_constants_of_a_traced_program() -> None:
    model, x = tabled(), torch.randn(1, 6, 8)
    program = torch.export.export(model, (x, torch.tensor([0.5]))).module()
    for time in (1.0, 0.5, 0.25):
        with torch.no_grad():
            assert torch.equal(program(x, torch.tensor([time])), model(x, torch.tensor([time])))


@pytest.mark.parametrize("target", ["onnx", "coreml"])
def test_a_table_is_exported_and_proven(target: str, tmp_path: Path) -> None:
    model = tabled()
    with dit_compress.record(model) as call:
        model(torch.randn(1, 6, 8), torch.tensor([0.5]))
    report = dit_compress.export(model, call=call, target=target, out=tmp_path / target)
    assert report["passed"]
    assert min(row["psnr_db"] for row in report["rows"]) >= 70


def test_structure_is_found_behind_tables() -> None:
    denoiser, _ = recorded(QWEN)
    before = denoiser.structure()
    paths = tuple(item.path for item in modulation(denoiser.module, denoiser.recorded).linears)
    apply_edits(denoiser.module, [Tabulate(paths, "timestep", (0.44,))])
    denoiser.forget_structure()
    after = denoiser.structure()
    assert [item.path for item in after.feed_forwards] == [item.path for item in before.feed_forwards]
    assert [item.path for item in after.attentions] == [item.path for item in before.attentions]

"""Copies without weights: what is shared, what is not, and that the original never changes."""

from __future__ import annotations

import copy

import pytest
import torch
from toy import context_in

from dit_compress.model.cut import example_output, truncated
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.structure.apply import apply_edits
from dit_compress.structure.copies import deep_copy, meta_copy, shared_copy, single_copy
from dit_compress.structure.edits import KeepBlocks, Scale, SetAttribute, Take
from dit_compress.testing.models import tiny_denoiser
from dit_compress_plugins.granularity_head.axes import head_axis


def storages(module: torch.nn.Module) -> list[int]:
    return [tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())]


def test_a_shared_copy_holds_the_same_tensors_in_other_modules() -> None:
    denoiser = tiny_denoiser("wan")
    copied = shared_copy(denoiser)
    assert storages(copied) == storages(denoiser)
    assert copied.module is not denoiser.module
    assert copied.module.blocks[0] is not denoiser.module.blocks[0]


def test_edits_hooks_and_freezing_of_a_copy_leave_the_original_alone() -> None:
    denoiser = tiny_denoiser("wan")
    before = {name: value.clone() for name, value in denoiser.module.state_dict().items()}
    expected = example_output(denoiser)
    copied = shared_copy(denoiser)
    copied.module.blocks[1].register_forward_hook(lambda _m, _a, output: 0 * output)
    eps = "blocks.0.attn1.norm_q"
    edits = [Take("proj_out.bias", 0, (0,)), Scale(f"{eps}.weight", 3.0), SetAttribute(eps, "eps", 0.5)]
    apply_edits(copied.module, [*edits, KeepBlocks("blocks", (0, 1))])
    assert len(copied.module.blocks) == 2
    after = denoiser.module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(example_output(denoiser), expected)


def test_a_deep_copy_is_that_of_the_library() -> None:
    """Tables of hooks among them: full ones, empty ones, and one that two modules have in common."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2), torch.nn.MultiheadAttention(2, 1))
    module[1]._forward_hooks = module[2]._forward_hooks
    module[0].register_forward_hook(print)
    module[0].own, module[2].own, module[2].weight = {}, module[0], module[0].weight
    expected, copied = copy.deepcopy(module), deep_copy(module)
    for one, other, original in zip(copied.modules(), expected.modules(), module.modules(), strict=True):
        assert vars(one).keys() == vars(other).keys()
        assert str(one) == str(other)
        for name, value in vars(one).items():
            assert type(value) is type(vars(other)[name])
            assert value is not vars(original)[name] or isinstance(value, bool | int | float | str | None)
    assert list(copied[0]._forward_hooks.values()) == [print]
    assert copied[1]._forward_hooks is copied[2]._forward_hooks is not module[2]._forward_hooks
    assert copied[2].own is copied[0]
    assert copied[2].weight is copied[0].weight is not module[0].weight
    copied[1].register_forward_hook(print)
    assert not module[1]._forward_hooks
    assert all(torch.equal(value, copied.state_dict()[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_single_copy_widens_half_precision_and_shares_the_rest(dtype: torch.dtype) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).to(dtype)
    copied = single_copy(module)
    half = dtype in (torch.bfloat16, torch.float16)
    assert {value.dtype for value in copied.parameters()} == {torch.float32 if half else dtype}
    assert copied[1].num_batches_tracked is module[1].num_batches_tracked
    assert (copied[0].weight is module[0].weight) != half
    assert torch.equal(copied[0].weight, module[0].weight.to(copied[0].weight.dtype))
    assert {value.dtype for value in module.parameters()} == {dtype}


def test_a_meta_copy_has_shapes_only() -> None:
    denoiser = tiny_denoiser("ltx")
    copied = meta_copy(denoiser)
    assert {tensor.device.type for tensor in (*copied.parameters(), *copied.buffers())} == {"meta"}
    assert [tuple(p.shape) for p in copied.parameters()] == [tuple(p.shape) for p in denoiser.parameters()]
    assert {tensor.device.type for tensor in denoiser.parameters()} == {"cpu"}


def test_a_truncated_denoiser_has_weights_of_its_own() -> None:
    denoiser = tiny_denoiser("wan")
    short = truncated(denoiser, 2)
    assert not set(storages(short)) & set(storages(denoiser))


def test_the_teacher_of_a_search_takes_no_memory(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """The objective is given a teacher whose weights are the student's, and whose masks are its own."""
    from dit_compress.search import trial as module
    from dit_compress.search.problem import SearchProblem

    given = []

    class StoppedError(Exception):
        pass

    class Noting:
        def objective(self, context, student, teacher, text):
            given.extend([student, teacher])
            raise StoppedError

    class Objective:
        def build(self):
            return Noting()

    context = context_in(tmp_path)
    monkeypatch.setattr(type(context), "text", lambda self: None)
    denoiser = tiny_denoiser("wan")
    axes = tuple(head_axis(item) for item in denoiser.structure().attentions)
    problem = SearchProblem(denoiser, axes, {axis.name: 3 for axis in axes})
    options = make_part("search", {"use": "taylor", "batches": 1, "batch": 1}, installed()).options
    with pytest.raises(StoppedError), module.trial(problem, context, Objective(), options):
        pass
    student, teacher = given
    assert student is denoiser
    assert storages(teacher) == storages(student)
    assert teacher.module is not student.module

"""Two processes do what one does: losses, weights, checkpoints that either writes and the other reads."""

from __future__ import annotations

import errno
import json
import os
import shutil
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import pytest
import torch
from processes import one_after_another, together
from safetensors.torch import load_file, save_file
from test_loop import Remembering, killer
from test_loop import context_in as loop_context
from test_loop import options as loop_options
from test_loop import samples as loop_samples
from torch.distributed.tensor import distribute_tensor
from toy import Colours, Pixels, batch, context_in, part, words

from dit_compress.core.errors import UserError
from dit_compress.core.files import full_disk
from dit_compress.core.randomness import Streams
from dit_compress.data.samples import Samples
from dit_compress.model.flow import Flow, euler
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.search.problem import SearchProblem
from dit_compress.step.world import World
from dit_compress.testing.models import tiny_denoiser
from dit_compress.train.guards import Alarms
from dit_compress.train.held import hold
from dit_compress.train.loop import batch_index, fit
from dit_compress.train.lora import adapt, adapted
from dit_compress.train.muon import ShardedMuon
from dit_compress.train.objective import Phase, Role
from dit_compress.train.targets import linears
from dit_compress.train.trainee import Trainee
from dit_compress.train.validation import Monitors, Validator, Watcher
from dit_compress_plugins.distill_adversarial import AdversarialOptions
from dit_compress_plugins.distill_adversarial.objective import AdversarialObjective
from dit_compress_plugins.distill_affine import AffineOptions
from dit_compress_plugins.distill_affine.distiller import AffineObjective
from dit_compress_plugins.distill_dmd import DmdOptions
from dit_compress_plugins.distill_dmd.distiller import DmdObjective, Real
from dit_compress_plugins.distill_elastic import ElasticOptions
from dit_compress_plugins.distill_elastic.distiller import ElasticObjective
from dit_compress_plugins.distill_flow import FlowOptions
from dit_compress_plugins.distill_flow.distiller import FlowObjective
from dit_compress_plugins.distill_reward import RewardOptions
from dit_compress_plugins.distill_reward.distiller import RewardObjective
from dit_compress_plugins.distill_scaled import ScaledOptions
from dit_compress_plugins.distill_scaled.distiller import ScaledObjective
from dit_compress_plugins.prune_nested import NestedOptions
from dit_compress_plugins.prune_nested.step import Widths
from dit_compress_plugins.search_groupwise.search import CandidateLogits, MaskedObjective

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow(50)
ALONE = World()
STEPS = 4
FLOW = {"steps": STEPS, "batch": 4, "lr": 1e-3, "warmup": 0, "ema": 0.5, "checkpoint_every": 2}


SEARCH = {"steps": STEPS, "batch": 4, "lr": 0.1, "ema": 0.5}


class KilledError(Exception):
    pass


def nested(student: Any) -> Any:
    widths = Widths.of(NestedOptions(levels=["block", "head", "ffn"]), student)
    return widths.proven(student, lambda axis: tuple(range(axis.units)))[0]


def objective(kind: str, name: str, options: Any) -> Any:  # noqa: PLR0911 - one a kind
    if kind == "flow":
        return FlowObjective(options, tiny_denoiser(name).requires_grad_(), words(), 1e-3)
    if kind == "affine":
        return AffineObjective(options, tiny_denoiser(name), tiny_denoiser(name, 1), words(), [(0, 0), (2, 2)], Flow())
    student = tiny_denoiser(name)
    if kind == "elastic":
        return ElasticObjective(options, student, nested(student), words(), Flow(), 1e-3)
    torch.manual_seed(2)
    if kind == "scaled":
        return ScaledObjective(options, student, tiny_denoiser("wan", 1), words(), Flow(), 1e-3, words())
    if kind in ("dmd", "lora", "int8"):
        teacher = hold(tiny_denoiser(name, 1), "int8" if kind == "int8" else "float32")
        real = Real(teacher, Flow(3.0, 4, 2.0), euler)
        return DmdObjective(options, student, real, words(), Flow(3.0, 3, 1.0), tiny_denoiser("wan", 2))
    if kind == "reward":
        made = {"reward": Colours(), "judge": Colours()}
        return RewardObjective(options, student, words(), Pixels(), made, Flow(3.0, 3, 2.0))
    judge = part("discriminator", "dit_block", frozen_blocks=1, learnable_blocks=1).create(student)
    return AdversarialObjective(options, student, judge, words(), Flow(3.0, 4, 1.0), None)


def options_of(kind: str, **more: Any) -> Any:
    given = {**FLOW, **more}
    if kind == "affine":
        return AffineOptions(**{"kd_share": 0.2, "share_every": 2, "output_weight": 0.5, **given})
    if kind == "elastic":
        return ElasticOptions(**given)
    if kind == "scaled":
        return ScaledOptions(**{"bins": 3, "ratio_decay": 0.5, **given})
    if kind in ("dmd", "lora", "int8"):
        given |= {} if kind == "dmd" else {"lora": {"rank": 2, "base": "int8" if kind == "int8" else "float32"}}
        return DmdOptions(**{"critic_warmup": 1, "student_every": 2, "critic_lr": 1e-3, **given})
    if kind == "reward":
        critic = make_part("reward", {"use": "reader"}, installed())
        return RewardOptions(**{"reward": critic, "last_steps": 2, "recompute": True, "anchor_weight": 5, **given})
    return (
        FlowOptions(**given)
        if kind == "flow"
        else AdversarialOptions(
            **{
                "discriminator_warmup": 1,
                "r1": 0.1,
                **({} if more.get("r1_kind") == "exact" else {"r1_kind": "approximate", "r1_scale": 0.1}),
                "share_every": 2,
                **given,
            },
            **({"renoise": "grid"} if kind == "grid" else {"balance": "gradient", "adversarial_weight": 0.5}),
        )
    )


def samples() -> Samples:
    given = batch(words(), size=8)
    return Samples(given.x0.numpy(), given.captions, given.tokens, pixels=False)


def train(world: World, folder: Path, kind: str, name: str, die_at: int | None = None, more: Any = None) -> None:
    """A short training; the first process writes what the student answers, and its curves."""
    context = context_in(folder)
    context.world = world
    context.trackers = [make_part("tracker", "jsonl", installed())]
    made = objective(kind, name, options_of(kind, **(more or {})))
    if made.options.lora is not None:
        adapt(made.roles, made.options.lora, context.seed)
    if die_at is not None:
        inner = made.loss

        def loss(phase: Any, given: Any) -> Any:
            if given.step == die_at:
                raise KilledError
            return inner(phase, given)

        made.loss = loss
    try:
        fit(made, samples(), made.options, context)
    except KilledError:
        return
    (folder / "notes.json").write_text(json.dumps(context.notes))
    save_file({"answer": answer(made)}, folder / "answer.safetensors")


@torch.no_grad()
def answer(made: Any) -> torch.Tensor:
    given = batch(made.text.cpu(), step=99)  # what is frozen stays on a GPU
    return made.student.eval()(given.x0, torch.full((4,), 0.5), made.text(given.tokens)).contiguous()


def outcome(folder: Path) -> tuple[torch.Tensor, list[dict[str, float]]]:
    lines = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    return load_file(folder / "answer.safetensors")["answer"], lines


def assert_alike(one: Path, other: Path) -> None:
    (answer_1, lines_1), (answer_2, lines_2) = outcome(one), outcome(other)
    torch.testing.assert_close(answer_1, answer_2, rtol=1e-3, atol=1e-3 * float(answer_1.abs().max()))
    assert len(lines_1) == len(lines_2) == STEPS
    for line_1, line_2 in zip(lines_1, lines_2, strict=True):
        assert line_1.keys() == line_2.keys()
        assert list(line_1.values()) == pytest.approx(list(line_2.values()), rel=5e-3, abs=5e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One process' outcome, by objective and model."""
    folders: dict[tuple[str, str], Path] = {}

    def outcome_of(kind: str, name: str) -> Path:
        if (kind, name) not in folders:
            folders[kind, name] = tmp_path_factory.mktemp(f"{kind}-{name}")
            train(ALONE, folders[kind, name], kind, name)
        return folders[kind, name]

    return outcome_of


TRAININGS = [
    ("flow", "video_dit"),
    ("affine", "video_dit"),
    ("adversarial", "video_dit"),
    ("adversarial", "wan"),
    ("grid", "video_dit"),
    ("dmd", "video_dit"),
    ("lora", "video_dit"),
    ("int8", "video_dit"),
    ("scaled", "video_dit"),
    ("reward", "video_dit"),
    ("elastic", "video_dit"),
    ("elastic", "ltx"),
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    """Two processes' outcomes: of the trainings, and of what is checked below without one; one pair does all."""
    folder = tmp_path_factory.mktemp("pairs")
    checks = (break_a_sample, refuse_batch, norms, uneven)
    folders: dict[Any, Path] = {each: folder / "-".join(each) for each in TRAININGS}
    one_after_another(
        [
            *((check, folder / check.__name__) for check in checks),
            (muon, folder / "muon"),
            *((train, place, *each) for each, place in folders.items()),
        ]
    )
    return {**folders, "muon": folder / "muon"}


@pytest.mark.parametrize(("kind", "name"), TRAININGS)
def test_two_processes_equal_one(pairs: Any, alone: Any, kind: str, name: str) -> None:
    assert_alike(pairs[kind, name], alone(kind, name))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What else two processes write in a training from its beginning: a folder each."""
    folder = tmp_path_factory.mktemp("others")
    one_after_another(
        [
            (search, folder / "search", False),
            (search, folder / "search with LoRA", True),
            (half_done, folder / "half", "flow"),
            (remember, folder / "remember"),
            (looked_at, folder / "looked at"),
            (train_parts, folder / "parts"),
            (train_parts, folder / "half of parts", 3),
            (muon, folder / "half of muon", 3),
        ]
    )
    return folder


def search(world: World, folder: Path, lora: bool) -> None:
    """A short search; the first process writes logits, and what the masked model's loss was."""
    context = context_in(folder)
    context.world = world
    context.trackers = [make_part("tracker", "jsonl", installed())]
    inner = objective("flow", "video_dit", options_of("flow"))
    levels = [part("granularity", level, remove=1) for level in ("block", "head", "ffn")]
    axes = tuple(axis for level in levels for axis in level.axes(inner.student.structure()))
    problem = SearchProblem(inner.student, axes, {axis.name: axis.units - 1 for axis in axes}, {"ffn": 4}, {})
    more = {"lora": {"rank": 2, "lr": 1e-2} if lora else None}
    made = part("search", "groupwise", objective={"use": "flow"}, **{**SEARCH, **more})
    logits = CandidateLogits({axis.name: made.cut(axis, problem, torch.ones(axis.units)) for axis in axes}, 0.0, 0)
    with adapted(inner.student.module, linears(inner.student), made.options.lora.rank, 0) if lora else nullcontext():
        masked = MaskedObjective(inner, problem, logits, made.options, None)
        fit(masked, samples(), made.options, context)
        weights = {name: value.detach().clone() for name, value in logits.named_parameters()}
        if lora:
            named = inner.student.module.named_parameters()
            weights |= {name: value.detach().clone() for name, value in named if "lora_B" in name}
    save_file(weights, folder / "logits.safetensors")


@pytest.mark.parametrize("lora", [False, True])
def test_a_search_on_two_processes_equals_one(tmp_path: Path, others: Path, lora: bool) -> None:
    two, one = others / ("search with LoRA" if lora else "search"), tmp_path
    search(ALONE, one, lora)
    found, wanted = (load_file(folder / "logits.safetensors") for folder in (two, one))
    assert found.keys() == wanted.keys()
    assert any("lora_B" in name and float(value.abs().max()) > 1e-3 for name, value in wanted.items()) == lora
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
    lines = [[json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()] for folder in (two, one)]
    assert len(lines[1]) == STEPS
    assert [line["loss"] for line in lines[0]] == pytest.approx([line["loss"] for line in lines[1]], rel=1e-3)


@pytest.mark.parametrize("kind", ["flow", "affine", "adversarial", "dmd", "scaled", "reward"])
def test_four_parts_of_a_quarter_equal_one_whole(tmp_path: Path, alone: Any, kind: str) -> None:
    train(ALONE, tmp_path, kind, "video_dit", None, {"accumulate": 4})
    assert_alike(tmp_path, alone(kind, "video_dit"))


def test_recomputed_activations_change_nothing_under_exact_r1(tmp_path: Path) -> None:
    """Its second derivatives go through plain attention, in the second pass as in the first."""
    for name, on in (("kept", False), ("again", True)):
        (tmp_path / name).mkdir()
        train(
            ALONE, tmp_path / name, "adversarial", "video_dit", None, {"r1_kind": "exact", "checkpoint_activations": on}
        )
    (answer_1, lines_1), (answer_2, lines_2) = outcome(tmp_path / "kept"), outcome(tmp_path / "again")
    assert min(line["discriminator/r1"] for line in lines_1[1:]) > 0
    assert torch.equal(answer_1, answer_2)
    assert lines_1 == lines_2


def test_recomputed_activations_change_nothing(tmp_path: Path, alone: Any) -> None:
    train(ALONE, tmp_path, "adversarial", "video_dit", None, {"checkpoint_activations": True})
    (answer_1, lines_1), (answer_2, lines_2) = outcome(tmp_path), outcome(alone("adversarial", "video_dit"))
    assert torch.equal(answer_1, answer_2)
    assert lines_1 == lines_2


# ------------------------------------------------------------------ checkpoints


def half_done(world: World, folder: Path, kind: str) -> None:
    train(world, folder, kind, "video_dit", die_at=3)


@pytest.fixture(scope="module")
def written_by_two(others: Path) -> Path:
    return others / "half"


@pytest.fixture(scope="module")
def written_by_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    half_done(ALONE, folder, "flow")
    return folder


def tensors_of(place: Path) -> list[dict[str, torch.Tensor]]:
    return [load_file(path) for path in sorted(place.glob("*.safetensors"))]


def num_bytes(tensors: dict[str, torch.Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors.values())


def test_two_processes_write_every_byte_once(written_by_one: Path, written_by_two: Path) -> None:
    (whole,) = tensors_of(written_by_one / "checkpoints" / "step-00000002")
    shards = tensors_of(written_by_two / "checkpoints" / "step-00000002")
    sizes = [num_bytes(shard) for shard in shards]
    assert len(sizes) == 2
    assert sum(sizes) == num_bytes(whole)
    assert min(sizes) > 0.4 * sum(sizes)
    state = json.loads((written_by_two / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert {name: tuple(shape) for name, shape in state["tensors"].items()} == {
        name: tuple(value.shape) for name, value in whole.items()
    }


def test_the_shards_of_two_together_are_the_tensors_of_one(written_by_one: Path, written_by_two: Path) -> None:
    """Rows of the first process above those of the second; what is not sharded is in one of them."""
    (whole,) = tensors_of(written_by_one / "checkpoints" / "step-00000002")
    first, second = tensors_of(written_by_two / "checkpoints" / "step-00000002")
    for name, value in whole.items():
        parts = [shard[name] for shard in (first, second) if name in shard]
        if name.endswith("to_k.bias"):
            continue  # its gradient is zero but for rounding, which Adam blows up
        torch.testing.assert_close(torch.cat(parts) if value.ndim else parts[0], value, rtol=1e-2, atol=2e-4)


def test_one_goes_on_where_two_were(written_by_two: Path, alone: Any, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    folder.mkdir()
    shutil.copytree(written_by_two / "checkpoints", folder / "checkpoints")
    (folder / "curves.jsonl").write_text((written_by_two / "curves.jsonl").read_text())
    train(ALONE, folder, "flow", "video_dit")
    assert_alike(folder, alone("flow", "video_dit"))
    (said,) = json.loads((folder / "notes.json").read_text())
    assert said.startswith("going on in 1 processes; the checkpoint was written by 2")


def test_two_go_on_where_one_was(written_by_one: Path, alone: Any, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    folder.mkdir()
    shutil.copytree(written_by_one / "checkpoints", folder / "checkpoints")
    (folder / "curves.jsonl").write_text((written_by_one / "curves.jsonl").read_text())
    together(train, folder, 2, "flow", "video_dit")
    assert_alike(folder, alone("flow", "video_dit"))


def test_two_that_were_interrupted_equal_two_that_were_not(written_by_two: Path, tmp_path: Path) -> None:
    """Bit for bit: the sums of two processes have one order."""
    again, whole = tmp_path / "again", tmp_path / "whole"
    for folder in (again, whole):
        folder.mkdir()
    shutil.copytree(written_by_two / "checkpoints", again / "checkpoints")
    (again / "curves.jsonl").write_text((written_by_two / "curves.jsonl").read_text())
    for folder in (again, whole):
        together(train, folder, 2, "flow", "video_dit")
    assert torch.equal(outcome(again)[0], outcome(whole)[0])
    assert outcome(again)[1] == outcome(whole)[1]


def remember(world: World, folder: Path) -> None:
    """A role with buffers that move, whole numbers among them; interrupted, then gone on with."""
    for watch in (killer(5), lambda _: None):
        context = loop_context(folder)
        context.world = world
        made = Remembering(watch=watch)
        with suppress(KeyboardInterrupt):
            fit(made, loop_samples(), loop_options(7, checkpoint_every=2), context)
            state = made.net.state_dict()
            assert int(state["1.num_batches_tracked"]) == 7
            save_file({name: value.contiguous() for name, value in state.items()}, folder / "state.safetensors")


def test_what_layers_remember_goes_through_the_shards_of_two(others: Path) -> None:
    """Every process draws of its own samples; what is written is one process', and the resume reads it back."""
    saved = [
        {name: value for part in tensors_of(place) for name, value in part.items()}
        for place in sorted((others / "remember" / "checkpoints").iterdir())
    ]
    assert [int(tensors["first/buffer/1.num_batches_tracked"]) for tensors in saved] == [4, 6]
    assert int(load_file(others / "remember" / "state.safetensors")["1.num_batches_tracked"]) == 7


def looked_at(world: World, folder: Path) -> None:
    """A held-out loss of five samples, two at a time, and samples that are looked at."""
    context = context_in(folder)
    context.world, context.trackers = world, [make_part("tracker", "jsonl", installed())]
    options = options_of("flow", validation={"every": 2, "samples": 5}, watch={"every": 2, "captions": 3})
    made, given, alarms = objective("flow", "video_dit", options), samples(), Alarms(context)
    asked: list[int] = []

    def decode(latent: torch.Tensor) -> torch.Tensor:
        asked.append(len(latent))
        return latent[:, :3]

    watch = Watcher(
        made.student, made.text, Flow(3.0, 2, 2.0), given, options.watch, decode, seed=0, world=world, trained=True,
        batch=4 // world.size,
    )  # fmt: skip
    validator = Validator(given, 5, 2, 0, world, bf16=False)
    try:
        fit(made, given, options, context, Monitors(options, alarms, validator, watch))
    finally:
        assert asked == ([] if world.rank else [2, 1, *[2, 2, 2] * 3])  # real clips; before, and after 2 and 4 steps


def test_two_processes_look_at_what_one_looks_at(tmp_path: Path, others: Path) -> None:
    looked_at(ALONE, tmp_path)
    one, two = ([*map(json.loads, (place / "curves.jsonl").open())] for place in (tmp_path, others / "looked at"))
    assert [line.keys() for line in one] == [line.keys() for line in two]
    assert {"validation_loss", "watch/motion", "watch/diversity"} < one[1].keys()
    for line_1, line_2 in zip(one, two, strict=True):
        assert list(line_1.values()) == pytest.approx(list(line_2.values()), rel=1e-2, abs=1e-3)


def break_a_sample(world: World, folder: Path) -> None:
    """The last sample of the first batch, which the second process has, is broken: both say so."""
    context = context_in(folder)
    context.world = world
    made, given = objective("flow", "video_dit", options_of("flow")), samples()
    bad = batch_index(8, 4, context.seed, 0, [3])[0]
    x0 = given.x0(range(8)).numpy().copy()
    x0[bad] = float("nan")
    given = Samples(x0, given.captions(range(8)), given.tokens(range(8)), pixels=False)
    said = rf"the loss of phase 'flow' is nan at step 0: training samples \[{bad}\] hold NaN or infinity. Remove or"
    with pytest.raises(UserError, match=said):
        fit(made, given, made.options, context)


@pytest.mark.usefixtures("pairs")
def test_a_broken_sample_of_one_process_is_named_by_all() -> None:
    """Both processes passed ``break_a_sample``."""


def fill_the_disk(world: World, folder: Path) -> None:
    """No space is left when the second process writes its shard: both are told, and nothing half-written stays."""
    from torch.distributed.checkpoint import filesystem

    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if world.rank:
        filesystem._write_item = no_space
    with pytest.raises(UserError, match="no space left on the disk. Free some space"), full_disk(folder):
        train(world, folder, "flow", "video_dit")


def test_a_disk_that_is_full_for_one_process_is_a_message_of_all(tmp_path: Path) -> None:
    together(fill_the_disk, tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []


# ------------------------------------------------------------------ roles of one module


class Parts(FlowObjective):
    """The student's first block and the rest of it under optimisers of their own; a frozen role holds it, too."""

    def __init__(self) -> None:
        super().__init__(options_of("flow"), tiny_denoiser("video_dit"), words(), None)
        again = type(self.student)(self.student.module)
        self.roles = {
            "frozen": Role(again),
            "block": Role(self.student, lr=1e-3, ema=0.5, only=("*transformer_blocks.0.*",)),
            "ends": Role(self.student, lr=1e-3, only=("module.proj_*", "*transformer_blocks.[12].attn*")),
            "text": Role(self.text),
        }
        self.phases = (Phase("block", ("block",)), Phase("ends", ("ends",), start=1, every=2))


def train_parts(world: World, folder: Path, die_at: int | None = None) -> None:
    context = context_in(folder)
    context.world, context.trackers = world, [make_part("tracker", "jsonl", installed())]
    made = Parts()
    before = {name: value.clone() for name, value in made.student.module.state_dict().items()}
    inner = made.loss

    def loss(phase: Any, given: Any) -> Any:
        if given.step == die_at:
            raise KilledError
        return inner(phase, given)

    made.loss = loss
    with suppress(KilledError):
        fit(made, samples(), made.options, context)
        after = made.roles["frozen"].module.module.state_dict()
        assert made.roles["frozen"].module.module is made.student.module
        moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert moved == {
            name for name in before if name.startswith(("transformer_blocks.0.", "proj_")) or ".attn" in name
        }
        save_file({"answer": answer(made)}, folder / "answer.safetensors")


@pytest.fixture(scope="module")
def parts_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    train_parts(ALONE, folder)
    return folder


def test_roles_of_one_sharded_module_equal_those_of_one_process(others: Path, parts_alone: Path) -> None:
    assert_alike(parts_alone, others / "parts")


def test_roles_of_one_module_go_on_in_another_number_of_processes(others: Path, parts_alone: Path) -> None:
    two = others / "half of parts"
    held = {name for shard in tensors_of(two / "checkpoints" / "step-00000002") for name in shard}
    assert {name.partition("/")[0] for name in held} == {"block", "ends"}
    assert all("transformer_blocks.0." in name for name in held if name.startswith("block/"))
    train_parts(ALONE, two)
    assert_alike(parts_alone, two)


# ------------------------------------------------------------------ Muon

MUON = {"muon_lr": 0.02, "weight_decay": 0.1}


def muon(world: World, folder: Path, die_at: int | None = None) -> None:
    train(world, folder, "flow", "video_dit", die_at, MUON)


@pytest.fixture(scope="module")
def muon_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("muon")
    muon(ALONE, folder)
    return folder


def test_muon_on_two_processes_equals_muon_on_one(pairs: Any, muon_alone: Path, alone: Any) -> None:
    assert_alike(pairs["muon"], muon_alone)
    adam, turned = outcome(alone("flow", "video_dit"))[0], outcome(muon_alone)[0]
    assert (adam - turned).abs().max() > 0.01 * adam.abs().max()  # ten times what may differ: not AdamW


@pytest.mark.parametrize("after", [1, 2])
def test_a_training_under_muon_goes_on_in_another_number_of_processes(
    tmp_path: Path, others: Path, muon_alone: Path, after: int
) -> None:
    folder = others / "half of muon" if after == 1 else tmp_path
    if after == 2:
        muon(ALONE, folder, 3)
    names = json.loads((folder / "checkpoints" / "step-00000002" / "state.json").read_text())["tensors"]
    assert sum("/momentum_buffer/" in name for name in names) > 10
    muon(ALONE, folder) if after == 1 else together(muon, folder)
    assert_alike(folder, muon_alone)


class Rows(torch.nn.Module):
    """Matrices that do not divide by the processes, tall and wide, more of them than processes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(*size, bias=False) for size in ((5, 3), (3, 7), (4, 4))])


def uneven(world: World, folder: Path) -> None:
    """Three updates of sharded matrices against torch's own Muon on whole ones."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    whole, shared = Rows(), Rows()
    fully_shard(shared, mesh=init_device_mesh("cpu", (world.size,)))
    alone = torch.optim.Muon(whole.parameters(), lr=0.1, weight_decay=0.2)
    ours = ShardedMuon(shared.parameters(), lr=0.1, weight_decay=0.2)
    other: Any
    for step in range(3):
        for one, other in zip(whole.parameters(), shared.parameters(), strict=True):
            one.grad = Streams(0, step, [0]).normal("gradient", one.shape)[0]
            other.grad = distribute_tensor(one.grad, other.device_mesh, other.placements)
        alone.step()
        ours.step()
    for one, other in zip(whole.parameters(), shared.parameters(), strict=True):
        torch.testing.assert_close(other.full_tensor(), one, rtol=0, atol=1e-6)
        momentum = ours.state[other]["momentum_buffer"]
        assert momentum.to_local().numel() < one.numel()
        torch.testing.assert_close(momentum.full_tensor(), alone.state[one]["momentum_buffer"], rtol=0, atol=1e-6)


@pytest.mark.usefixtures("pairs")
def test_rows_that_do_not_divide_are_turned_as_torch_turns_whole_matrices() -> None:
    """Both processes passed ``uneven``."""


# ------------------------------------------------------------------ refusals


def refuse_batch(world: World, folder: Path) -> None:
    context = context_in(folder)
    context.world = world
    made = objective("flow", "video_dit", options_of("flow", batch=6, accumulate=2))
    with pytest.raises(UserError, match="a batch of 6 can't be shared by 2 processes in 2 equal parts"):
        fit(made, samples(), made.options, context)


@pytest.mark.usefixtures("pairs")
def test_a_batch_that_can_not_be_shared_is_refused() -> None:
    """Both processes passed ``refuse_batch``."""


def norms(world: World, folder: Path) -> None:
    """Gradients 3 and 1, 4 and 8 in two whole weights: means 2 and 6, norm sqrt(40), clipped to 1."""
    module = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(1)) for _ in range(3)])
    trainee = Trainee("role", Role(module, lr=0.1, clip=1.0), world)
    for parameter, gradient in zip(module, ((3.0, 1.0), (4.0, 8.0)), strict=False):
        parameter.grad = torch.tensor([gradient[world.rank]])
    assert trainee.update(1.0) == pytest.approx(40**0.5)
    moments = [float(trainee.optimizers[0].state[parameter]["exp_avg"]) for parameter in list(module)[:2]]
    assert moments == pytest.approx([0.1 * 2 / 40**0.5, 0.1 * 6 / 40**0.5], rel=1e-4)
    assert module[2] not in trainee.optimizers[0].state  # without a gradient on any process


@pytest.mark.usefixtures("pairs")
def test_gradients_of_whole_weights_are_averaged_and_clipped_together() -> None:
    """Both processes passed ``norms``."""

"""Options of training as a lab runs it: compiled blocks, bfloat16 gathers, replicas of groups, decay, images."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from processes import one_after_another
from test_loop import Noisy
from test_loop import context_in as loop_context
from test_loop import options as loop_options
from test_loop import samples as loop_samples
from test_parallel import ALONE, FLOW, MUON, STEPS, assert_alike, objective, options_of, outcome, samples, train
from toy import context_in, part, words

from dit_compress.core.errors import UserError
from dit_compress.core.randomness import Streams
from dit_compress.data.sheet import write_sheet
from dit_compress.model.flow import Flow
from dit_compress.model.spec import Spec
from dit_compress.testing.models import tiny_denoiser
from dit_compress.train import compiled
from dit_compress.train.compiled import WATCHED, compiling, need_compiler
from dit_compress.train.distill import student_role
from dit_compress.train.guards import Alarms
from dit_compress.train.loop import draw_batch, fit, on_images
from dit_compress.train.objective import Role
from dit_compress.train.options import TrainOptions, check_parts
from dit_compress.train.trainee import Trainee
from dit_compress.train.validation import Monitors, Watcher
from dit_compress_plugins.distill_adversarial import AdversarialOptions
from dit_compress_plugins.distill_adversarial.distiller import AdversarialObjective
from dit_compress_plugins.distill_flow import FlowOptions

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow(40)
IMAGES = {"images": 0.5}
WITH_IMAGES = ("flow", "affine", "adversarial")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flow")
    train(ALONE, folder, "flow", "video_dit")
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the tests below look for of two processes: a folder each; one pair writes all."""
    folder = tmp_path_factory.mktemp("pair")
    one_after_another(
        [
            *((train, folder / kind, kind, "video_dit", None, IMAGES) for kind in WITH_IMAGES),
            (in_half, folder / "whole", False),
            (in_half, folder / "half", True),
            (watched, folder / "watched", 1),
            (train, folder / "layout-1", "flow", "video_dit", 3, {"shard": 1}),
            (train, folder / "layout-1", "flow", "video_dit", None, {"shard": 2}),
            (compiled_flow, folder / "compiled"),
        ]
    )
    return folder


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of four processes, in two groups."""
    folder = tmp_path_factory.mktemp("four")
    (folder / "on").mkdir()
    train(ALONE, folder / "on", "flow", "video_dit", 3)
    one_after_another(
        [
            (train, folder / "flow", "flow", "video_dit", None, {"shard": 2}),
            (train, folder / "muon", "flow", "video_dit", None, {**MUON, "shard": 2}),
            (train, folder / "on", "flow", "video_dit", None, {"shard": 2}),
            (train, folder / "off", "flow", "video_dit", 3, {"shard": 2}),
        ],
        4,
    )
    train(ALONE, folder / "off", "flow", "video_dit")
    return folder


# ------------------------------------------------------------------ optimiser


def decayed(**given: Any) -> dict[str, torch.Tensor]:
    """Weights of ones after one update without gradients: what decays is 1 - 0.1·0.5."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    for value in module.parameters():
        value.data.fill_(1.0)
        value.grad = torch.zeros_like(value)
    Trainee("role", Role(module, lr=0.1, weight_decay=0.5, **given)).update(1.0)
    return {name: value.detach() for name, value in module.named_parameters()}


def test_norms_and_biases_do_not_decay() -> None:
    found = decayed()
    assert found.pop("0.weight").tolist() == [[pytest.approx(0.95)] * 3] * 2
    assert {name: value.tolist() for name, value in found.items()} == {
        "0.bias": [1.0, 1.0],
        "1.weight": [1.0, 1.0],
        "1.bias": [1.0, 1.0],
    }


def test_norms_and_biases_decay_where_that_is_asked_for() -> None:
    for value in decayed(decay_norms=True).values():
        torch.testing.assert_close(value, torch.full_like(value, 0.95))


def test_the_students_role_has_the_steps_options() -> None:
    options = FlowOptions(betas=(0.8, 0.95), clip=None, decay_norms=True, weight_decay=0.1)
    role = student_role(tiny_denoiser("video_dit"), options)
    assert (role.betas, role.clip, role.decay_norms, role.weight_decay) == ((0.8, 0.95), None, True, 0.1)
    groups = Trainee("student", role).optimizers[0].param_groups
    assert {(group["betas"], group["weight_decay"]) for group in groups} == {((0.8, 0.95), 0.1)}
    usual = student_role(tiny_denoiser("video_dit"), FlowOptions())
    assert (usual.betas, usual.clip, usual.decay_norms) == ((0.9, 0.999), 1.0, False)


@pytest.mark.parametrize("given", [{"betas": (0.9, 1.0)}, {"clip": 0}, {"images": 1.0}, {"bf16_gather": True}])
def test_what_can_not_be_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="1 validation error"):
        FlowOptions(**given)


@pytest.mark.parametrize("on", [False, True])
def test_deterministic_kernels_are_an_option(tmp_path: Path, on: bool) -> None:
    seen: list[bool] = []
    made = Noisy(watch=lambda _: seen.append(torch.are_deterministic_algorithms_enabled()))
    fit(made, loop_samples(), loop_options(1, deterministic=on), loop_context(tmp_path))
    assert set(seen) == {on}


# ------------------------------------------------------------------ compiled blocks


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks go through torch's tracer and its autograd, and need no C++ compiler: that takes a minute a model."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("again", [False, True])
def test_compiled_blocks_give_what_blocks_give(tmp_path: Path, alone: Path, again: bool) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    train(ALONE, tmp_path, "flow", "video_dit", None, {"compile": True, "checkpoint_activations": again})
    assert_alike(tmp_path, alone)
    assert counters["stats"]["unique_graphs"] == 2  # the first look at the compiler, and all blocks together
    assert not counters["graph_break"]
    assert json.loads((tmp_path / "notes.json").read_text()) == []


@pytest.mark.usefixtures("traced")
def test_compiled_blocks_keep_their_names_and_are_let_go() -> None:
    student = tiny_denoiser("video_dit")
    names = list(student.state_dict())
    with compiling({"student": Role(student)}, print):
        assert list(student.state_dict()) == names
        assert all("forward" in vars(block) for block in student.blocks())
    assert not any("forward" in vars(block) for block in student.blocks())


@pytest.mark.usefixtures("traced")
def test_a_block_with_masks_inside_runs_as_it_is() -> None:
    student, said = tiny_denoiser("video_dit"), list[str]()
    inside = student.blocks()[1].get_submodule("ffn" if hasattr(student.blocks()[1], "ffn") else "ff")
    given = student.example(1, student.example_size)
    with torch.no_grad(), compiling({"student": Role(student)}, said.append):
        before = student(*given)
        for factor in (0.0, 1.0):
            handle = inside.register_forward_hook(lambda _m, _a, output, factor=factor: output * factor)
            masked = student(*given)
            handle.remove()
            assert torch.allclose(masked, before, atol=1e-6) == (factor == 1.0)
    assert said == [WATCHED]


@pytest.mark.usefixtures("traced")
def test_exact_r1_has_its_second_derivatives_beside_compiled_blocks(tmp_path: Path) -> None:
    for name, on in (("plain", False), ("compiled", True)):
        (tmp_path / name).mkdir()
        train(ALONE, tmp_path / name, "adversarial", "video_dit", None, {"r1_kind": "exact", "compile": on})
    assert_alike(tmp_path / "plain", tmp_path / "compiled")
    assert json.loads((tmp_path / "compiled" / "notes.json").read_text()) == [WATCHED]


def compiled_flow(world: Any, folder: Path) -> None:
    compiled.BACKEND = "aot_eager"
    train(world, folder, "flow", "video_dit", None, {"compile": True, "checkpoint_activations": True})


def test_compiled_blocks_of_two_processes_equal_those_of_one(pair: Path, alone: Path) -> None:
    assert_alike(pair / "compiled", alone)


def refuses(*_: Any, **__: Any) -> Any:
    raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nmore")


def test_a_machine_without_a_compiler_is_named_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "BACKEND", refuses)
    torch._dynamo.reset()
    said = (
        r"nothing can be compiled on this machine: .*No working C\+\+ compiler found\. "
        r"Install a C\+\+ compiler \(g\+\+; on a GPU Triton, too\), or set 'compile: false'"
    )
    with pytest.raises(UserError, match=said):
        train(ALONE, tmp_path, "flow", "video_dit", None, {"compile": True})
    assert not (tmp_path / "curves.jsonl").exists()


def test_a_step_without_a_denoiser_has_nothing_to_compile(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'compile' finds no denoiser here, whose blocks it compiles. Take 'compile'"):
        fit(Noisy(), loop_samples(), loop_options(1, compile=True), loop_context(tmp_path))


def test_the_compiler_of_this_machine_is_found() -> None:
    if shutil.which("g++") is None:
        pytest.skip("there is none")
    torch._dynamo.reset()
    need_compiler()


# ------------------------------------------------------------------ processes


class Looking:
    """An objective that notes the types of a block's weights while it computes, and of the student's while not."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.seen = inner, set[torch.dtype]()
        linear = next(item for item in inner.student.blocks()[0].modules() if isinstance(item, torch.nn.Linear))
        linear.register_forward_pre_hook(lambda module, _: self.seen.add(module.weight.dtype))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def in_half(world: Any, folder: Path, gather: bool) -> None:
    context = context_in(folder)
    context.world = world
    made = Looking(objective("flow", "video_dit", options_of("flow", bf16=True, bf16_gather=gather)))
    try:
        fit(made, samples(), made.options, context)
        assert {value.dtype for value in made.student.parameters()} == {torch.float32}
        weights = {name: value.detach().clone() for name, value in made.student.module.named_parameters()}
        torch.save(weights, folder / "weights.pt")
    finally:
        assert made.seen == {torch.bfloat16 if gather else torch.float32}


def test_weights_are_gathered_in_bfloat16_and_kept_in_float32(pair: Path) -> None:
    """What is learnt differs by the rounding of norms' weights: far less than a step of it."""
    one, other = (torch.load(pair / name / "weights.pt") for name in ("whole", "half"))
    start = dict(objective("flow", "video_dit", options_of("flow")).student.module.named_parameters())
    moved = torch.cat([(one[name] - start[name]).flatten() for name in one])
    apart = torch.cat([(one[name] - other[name]).flatten() for name in one])
    assert 0 < apart.norm() < 0.25 * moved.norm()


def test_two_replicas_of_two_processes_equal_one_process(four: Path, alone: Path) -> None:
    """Gradient norms are logged, too: rows that are held twice count once."""
    assert_alike(four / "flow", alone)


def test_replicas_under_muon_equal_one_process(tmp_path: Path, four: Path) -> None:
    train(ALONE, tmp_path, "flow", "video_dit", None, MUON)
    assert_alike(tmp_path, four / "muon")


def test_a_training_goes_on_in_another_layout(pair: Path, four: Path, alone: Path) -> None:
    """From one process to groups of two of four, from those to one, and from whole copies on two to shards of both."""
    for place in (four / "on", four / "off", pair / "layout-1"):
        assert_alike(place, alone)


def test_groups_that_do_not_divide_the_processes_are_refused() -> None:
    check_parts(TrainOptions(batch=8, shard=3), 1)
    check_parts(TrainOptions(batch=8, shard=2), 4)
    check_parts(TrainOptions(batch=8, shard=8), 4)  # all of them
    with pytest.raises(UserError, match="4 processes can't be cut into groups of 3. Set 'shard' to a divisor of 4, or"):
        check_parts(TrainOptions(batch=8, shard=3), 4)


# ------------------------------------------------------------------ samples as pictures


def watched(world: Any, folder: Path, sheets: int) -> None:
    """Six steps with a look after each, of one caption's two videos."""
    context = context_in(folder)
    context.world = world
    options = options_of("flow", steps=6, watch={"every": 1, "captions": 2, "sheets": sheets})
    made, given = objective("flow", "video_dit", options), samples()
    watch = Watcher(
        made.student, made.text, Flow(3.0, 2, 1.0), given, options.watch, lambda latent: latent[:, :3].tanh(), seed=0,
        world=world, trained=False,
    )  # fmt: skip
    fit(made, given, options, context, Monitors(options, Alarms(context), None, watch))


@pytest.mark.parametrize(("sheets", "kept"), [(0, []), (2, [3, 6]), (4, [2, 3, 5, 6]), (8, [1, 2, 3, 4, 5, 6])])
def test_some_looks_are_kept_as_pictures(tmp_path: Path, sheets: int, kept: list[int]) -> None:
    watched(ALONE, tmp_path, sheets)
    assert sorted(path.name for path in tmp_path.glob("samples/*")) == [f"step-{step:08d}.jpg" for step in kept]


def test_two_processes_keep_one_picture(pair: Path) -> None:
    assert [path.name for path in pair.glob("watched/samples/*")] == ["step-00000006.jpg"]


def test_a_sheet_has_a_row_a_video_and_at_most_six_frames_of_it(tmp_path: Path) -> None:
    from matplotlib.image import imread

    red, blue = torch.tensor([1.0, -1.0, -1.0]), torch.tensor([-1.0, -1.0, 1.0])
    videos = torch.stack([red, blue])[:, :, None, None, None].expand(2, 3, 9, 96, 192)
    write_sheet(tmp_path / "samples" / "s.jpg", videos)
    picture = imread(tmp_path / "samples" / "s.jpg")
    assert picture.shape == (2 * (48 + 2), 6 * (96 + 2), 3)
    for row, colour in ((26, (255, 0, 0)), (76, (0, 0, 255))):
        for column in range(6):
            assert picture[row, 50 + 98 * column].tolist() == pytest.approx(colour, abs=8)
    assert picture[0, 0].tolist() == pytest.approx((255, 255, 255), abs=8)


# ------------------------------------------------------------------ images

ON = [step for step in range(STEPS) if on_images(0, step, 0.5)]


def test_the_share_of_the_steps_is_on_images() -> None:
    found = [on_images(0, step, 0.25) for step in range(4000)]
    assert sum(found) == pytest.approx(1000, abs=100)
    assert found == [on_images(0, step, 0.25) for step in range(4000)]
    assert not any(on_images(0, step, 0.0) for step in range(100))
    assert 0 < len(ON) < STEPS  # of both in the trainings below


def test_a_batch_of_images_is_the_first_latent_frame_of_its_clips() -> None:
    given = samples()
    clips, images = (
        next(draw_batch(given, 4, 0, step, images=0.5) for step in range(9) if on_images(0, step, 0.5) == on)
        for on in (False, True)
    )
    assert clips.x0.shape[2] > 1
    assert images.x0.shape[2] == 1
    assert torch.equal(images.x0, given.x0(images.sample)[:, :, :1])
    assert images.streams.normal("noise", images.x0.shape[1:]).shape == images.x0.shape


@pytest.mark.parametrize("kind", WITH_IMAGES)
def test_images_and_clips_on_two_processes_equal_those_on_one(tmp_path: Path, pair: Path, kind: str) -> None:
    train(ALONE, tmp_path, kind, "video_dit", None, IMAGES)
    assert_alike(tmp_path, pair / kind)
    assert [line["step"] for line in outcome(tmp_path)[1] if line["images"]] == ON


def test_images_go_on_after_a_kill(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    train(ALONE, tmp_path / "whole", "flow", "video_dit", None, IMAGES)
    train(ALONE, tmp_path / "killed", "flow", "video_dit", 3, IMAGES)
    train(ALONE, tmp_path / "killed", "flow", "video_dit", None, IMAGES)
    (answer, lines), (answer_2, lines_2) = outcome(tmp_path / "whole"), outcome(tmp_path / "killed")
    assert torch.equal(answer, answer_2)
    assert lines == lines_2


@pytest.mark.parametrize("head", ["dit_block", "resblock2d_temporal", "light_resblock3d"])
@pytest.mark.parametrize("renoise", ["grid", "logit_normal"])
def test_every_head_judges_images_and_clips(head: str, renoise: Any) -> None:
    """A logit per token of either, and gradients of the generator through them."""
    options = AdversarialOptions(steps=9, batch=4, renoise=renoise, discriminator_warmup=0, images=0.5)
    student = tiny_denoiser("video_dit").requires_grad_()
    judge = part("discriminator", head, frozen_blocks=1).create(student)
    made = AdversarialObjective(options, student, judge, words(), Flow(3.0, 4, 1.0), None)
    sizes = set()
    for step in range(STEPS):
        given = draw_batch(samples(), 4, 0, step, images=0.5)
        sizes.add(given.x0.shape[2])
        tokens = student.tokens(given.x0.shape[2:])
        assert judge(given.x0, torch.full((4,), 0.5), made.text(given.tokens)).shape == (4, tokens)
        for phase in made.phases:
            student.zero_grad()
            made.loss(phase, given)["loss"].backward()
            if phase.name == "generator":
                assert all(value.grad is not None for value in student.blocks()[0].parameters())
    assert sizes == {1, samples().x0([0]).shape[2]}


def test_a_first_latent_frame_is_what_the_vae_makes_of_the_first_frame() -> None:
    torch.manual_seed(0)
    from dit_compress_plugins.latent_video_vae.vae import VideoVAE

    vae = VideoVAE(channels=8, widths=(8, 8, 8, 8), num_blocks=1).eval()
    video = Streams(0, 0, [0]).normal("video", (3, 1 + 2 * vae.ratio[0], 64, 64)).clamp(-1, 1)
    with torch.no_grad():
        torch.testing.assert_close(vae.encode(video)[:, :, :1], vae.encode(video[:, :, :1]), rtol=1e-4, atol=1e-5)


def test_a_denoiser_whose_tokens_take_two_frames_sees_no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    spec: Any = Spec()
    monkeypatch.setattr(Spec, "need_denoiser", lambda _: None)
    monkeypatch.setattr(Spec, "need_latent", lambda _: None)
    monkeypatch.setattr(Spec, "outline", lambda _: type("Outline", (), {"patch": (2, 1, 1)}))
    with pytest.raises(UserError, match="'images' are single latent frames, and a token of this denoiser takes 2"):
        part("distill", "flow", **FLOW, images=0.5).plan(spec)
    assert part("distill", "flow", **FLOW).plan(spec).flow.num_steps == 40

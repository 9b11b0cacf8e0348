"""What a loss touches lies where its modules and its batch are, forward and backward: a mistake only a GPU would show.

No GPU is needed: fake tensors have shape, type and device, and no values; where two devices meet they raise. The device
is one that torch lets Python make up; it stays for the life of a process, so one of its own does all the work.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from processes import together
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from toy import Colours, Pixels, batch, part, words

from dit_compress.core.randomness import Streams
from dit_compress.model.denoiser import Denoiser
from dit_compress.model.flow import Flow, euler
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.search.problem import SearchProblem
from dit_compress.search.trial import Trial
from dit_compress.testing.models import MODELS, tiny_denoiser
from dit_compress.train.codec.objective import CodecObjective
from dit_compress.train.objective import Batch, Phase, Role
from dit_compress_plugins.distill_adversarial import AdversarialOptions
from dit_compress_plugins.distill_adversarial.objective import AdversarialObjective
from dit_compress_plugins.distill_affine import AffineOptions
from dit_compress_plugins.distill_affine.distiller import AffineObjective
from dit_compress_plugins.distill_dmd import DmdOptions
from dit_compress_plugins.distill_dmd.distiller import DmdObjective, Real
from dit_compress_plugins.distill_flow import FlowOptions
from dit_compress_plugins.distill_flow.distiller import FlowObjective
from dit_compress_plugins.distill_reward import RewardOptions
from dit_compress_plugins.distill_reward.distiller import RewardObjective
from dit_compress_plugins.distill_scaled import ScaledOptions
from dit_compress_plugins.distill_scaled.distiller import ScaledObjective
from dit_compress_plugins.latent_h3ae import H3AEOptions
from dit_compress_plugins.latent_h3ae.step import H3AEStep
from dit_compress_plugins.latent_video_vae import VideoVAEOptions
from dit_compress_plugins.latent_video_vae.vae import VideoVAE
from dit_compress_plugins.search_groupwise.search import CandidateLogits, MaskedObjective

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dit_compress.step.world import World

pytestmark = pytest.mark.slow(15)

THERE = "elsewhere:0"
HEADS = ("dit_block", "resblock2d_temporal", "light_resblock3d")


def make_up_the_device() -> None:
    from torch.utils import backend_registration

    backend_registration._setup_privateuseone_for_python_backend("elsewhere")
    torch.elsewhere.get_amp_supported_dtype = lambda: [torch.bfloat16]  # type: ignore[attr-defined]  # autocast asks
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for an encoder layer, which fakes don't know


@contextmanager
def moved(*modules: nn.Module) -> Iterator[FakeTensorMode]:
    """Modules of fakes that lie there, and a mode in which what is made becomes a fake, on the CPU unless told."""
    every = {id(each): each for outer in modules for each in outer.modules()}.values()
    for denoiser in (each for each in every if isinstance(each, Denoiser)):
        denoiser.structure()  # found by looking at values
    fakes: dict[int, Any] = {}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in every:
            for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                if id(value) not in fakes:
                    fake: Any = mode.from_tensor(value.detach()).to(THERE)
                    fakes[id(value)] = (
                        nn.Parameter(fake, value.requires_grad) if isinstance(value, nn.Parameter) else fake
                    )
                setattr(module, name, fakes[id(value)])
        yield mode


def step(objective: Any, given: Batch) -> None:
    """Every phase's loss and its gradients."""
    with moved(*(role.module for role in objective.roles.values())) as mode:
        for name, value in vars(objective).items():
            if isinstance(value, Tensor):
                setattr(objective, name, mode.from_tensor(value))
        tokens = {name: mode.from_tensor(value) for name, value in given.tokens.items()}
        placed = replace(given, x0=mode.from_tensor(given.x0), tokens=tokens).to(THERE)  # type: ignore[arg-type]
        for phase in objective.phases:
            loss = objective.loss(phase, placed)["loss"]
            assert str(loss.device) == THERE
            loss.backward()


def latents() -> Batch:
    return batch(words(), step=1, size=2)


def flow(name: str) -> FlowObjective:
    return FlowObjective(FlowOptions(steps=2, batch=2), tiny_denoiser(name).requires_grad_(), words(), 1e-3)


def affine(name: str) -> AffineObjective:
    options = AffineOptions(steps=2, batch=2, output_weight=1.0)
    return AffineObjective(options, tiny_denoiser(name), tiny_denoiser(name), words(), [(0, 0), (1, 1)], Flow())


def adversarial(head: str, r1: str) -> AdversarialObjective:
    options = AdversarialOptions(steps=2, batch=2, r1=0.1, r1_kind=r1, discriminator_warmup=0)  # type: ignore[arg-type]
    student = tiny_denoiser("video_dit")
    judge = make_part("discriminator", {"use": head, "frozen_blocks": 1}, installed()).build().create(student)
    return AdversarialObjective(options, student, judge, words(), Flow(3.0, 4, 1.0), None)


def dmd(guide: str) -> DmdObjective:
    options, teacher = DmdOptions(steps=2, batch=2, critic_warmup=1), tiny_denoiser("video_dit", 1)
    real = Real(teacher, Flow(3.0, 4, 2.0), euler)
    return DmdObjective(options, tiny_denoiser("video_dit"), real, words(), Flow(3.0, 3, 1.0), tiny_denoiser(guide, 2))


def scaled(teacher: str) -> ScaledObjective:
    options = ScaledOptions(steps=2, batch=2)
    return ScaledObjective(options, tiny_denoiser("video_dit"), tiny_denoiser(teacher), words(), Flow(), 1e-3, words())


def rewarded(name: str) -> RewardObjective:
    critic = make_part("reward", {"use": "reader"}, installed())
    options = RewardOptions(steps=2, batch=2, reward=critic, last_steps=2, recompute=True)
    made = {"reward": Colours()}
    return RewardObjective(options, tiny_denoiser(name), words(), Pixels(), made, Flow(3.0, 3, 2.0))


def searched(name: str, notes: Path) -> MaskedObjective:
    inner = flow(name)
    levels = [part("granularity", level, remove=1) for level in ("block", "head", "ffn")]
    axes = tuple(axis for level in levels for axis in level.axes(inner.student.structure()))
    problem = SearchProblem(inner.student, axes, {axis.name: axis.units - 1 for axis in axes}, {}, {})
    search = part("search", "groupwise", steps=100, batch=2, objective={"use": "flow"}, lora=None)
    logits = CandidateLogits({axis.name: search.cut(axis, problem, torch.ones(axis.units)) for axis in axes}, 0.0, 0)
    return MaskedObjective(inner, problem, logits, search.options, notes)


def tried(name: str, notes: Path) -> None:
    """What searches measure: slopes by masks and by weights, with a block settled."""
    masked = searched(name, notes)
    axes = tuple(axis for axis in masked.axes if axis.blocks or axis.block)
    problem = SearchProblem(masked.inner.student, axes, {}, {}, {axes[0].name: tuple(range(1, axes[0].units))})
    given = latents()
    weight = next(member.tensor for axis in axes for member in axis.members)
    with moved(*(role.module for role in masked.inner.roles.values())) as mode:
        tokens = {key: mode.from_tensor(value) for key, value in given.tokens.items()}
        placed = replace(given, x0=mode.from_tensor(given.x0), tokens=tokens).to(THERE)  # type: ignore[arg-type]
        trial = Trial(masked.inner, problem, [placed])
        found = [
            *trial.gradients().values(),
            *(slope for each in trial.weight_gradients([weight]) for slope in each.values()),
        ]
        assert {str(slope.device) for slope in found} == {THERE}


def vae() -> CodecObjective:
    every: Any = {"haar": 1.0, "multiscale": 1.0}
    options = VideoVAEOptions(channels=8, widths=(8, 8, 8, 8), blocks=1, losses=every)
    return CodecObjective(VideoVAE(channels=8, widths=(8, 8, 8, 8), num_blocks=1), options)


def h3ae() -> CodecObjective:
    every = dict.fromkeys(("haar", "multiscale", "consistency", "scale", "perceptual", "adversarial"), 1.0)
    options: Any = {"channels": 8, "widths": (8, 8, 8, 8), "blocks": 1, "heads": 2, "losses": every}
    maker = H3AEStep(H3AEOptions(**options))
    return maker.objective(maker.create())


class Forgetful:
    """A loss with a tensor that was never moved."""

    def __init__(self) -> None:
        self.roles = {"student": Role(nn.Linear(2, 2), lr=1.0)}
        self.phases = (Phase("only", ("student",)),)

    def loss(self, phase: Phase, given: Batch) -> dict[str, Tensor]:
        return {"loss": (self.roles["student"].module(given.x0) * torch.ones(2)).sum()}


def cases(notes: Path) -> dict[str, Callable[[], None]]:
    """Every denoiser in the plainest loss and under masks; what a loss adds is the same code for all: one or two."""
    clips = Batch(1, [0, 1], torch.zeros(2, 3, 9, 64, 64), Streams(0, 1, [0, 1]))
    rows = Batch(1, [0, 1], torch.zeros(2, 2), Streams(0, 1, [0, 1]))
    return {
        **{f"flow, {name}": lambda name=name: step(flow(name), latents()) for name in MODELS},
        **{f"affine, {name}": lambda name=name: step(affine(name), latents()) for name in ("video_dit", "wan")},
        **{f"trial, {name}": lambda name=name: tried(name, notes) for name in MODELS},
        **{head: lambda head=head: step(adversarial(head, "approximate"), latents()) for head in HEADS},
        **{f"dmd, {name}": lambda name=name: step(dmd(name), latents()) for name in ("video_dit", "wan")},
        "search": lambda: step(searched("video_dit", notes), latents()),
        "scaled": lambda: step(scaled("ltx"), latents()),
        "reward": lambda: step(rewarded("video_dit"), latents()),
        "exact R1": lambda: step(adversarial("dit_block", "exact"), latents()),
        "VAE": lambda: step(vae(), clips),
        "h3ae": lambda: step(h3ae(), clips),
        "forgetful": lambda: step(Forgetful(), rows),
    }


def try_all(_: World, folder: Path) -> None:
    """In a process of its own: what went wrong, by case."""
    make_up_the_device()
    wrong = {}
    for name, case in cases(folder / "notes.jsonl").items():
        try:
            case()
            wrong[name] = ""
        except Exception as error:  # noqa: BLE001 - told by the test of the case
            wrong[name] = f"{type(error).__name__}: {error}"
    (folder / "wrong.json").write_text(json.dumps(wrong))


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("devices")
    together(try_all, folder, 1)
    return json.loads((folder / "wrong.json").read_text())


NAMES = [name for name in cases(Path()) if name != "forgetful"]


@pytest.mark.parametrize("name", NAMES)
def test_a_step_stays_on_its_device(name: str, wrong: dict[str, str]) -> None:
    assert wrong[name] == ""


def test_a_tensor_that_was_never_moved_is_seen(wrong: dict[str, str]) -> None:
    assert "on the same device" in wrong["forgetful"]

"""The critic as a part: trained once for a run's clips, kept in its cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import binary_cross_entropy_with_logits

from dit_compress.core.errors import UserError
from dit_compress.core.files import sha256_data, whole_file
from dit_compress.core.progress import progress
from dit_compress.core.randomness import generator
from dit_compress_plugins.reward_shapes.critic import Critic, Network, answers_of, questions_of
from dit_compress_plugins.reward_shapes.damage import KINDS, damaged

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from dit_compress.data.clips import Clip
    from dit_compress.data.samples import Samples
    from dit_compress.step.context import Context
    from dit_compress_plugins.reward_shapes import ShapesRewardOptions

REVISION = 1
"""Of the training: raise it where equal options give other weights."""
HELD_OUT, DOUBTFUL = 64, 0.8
"""Held-out clips by which a critic is judged, and the share of right attributes below which it warns."""


class ShapesReward:
    """Part ``reward: {use: shapes}``."""

    def __init__(self, options: ShapesRewardOptions) -> None:
        self.options = options

    def create(self, context: Context) -> Critic:
        """Return the trained critic: from the run's cache, or trained now by the first process."""
        clips = {split: context.clips(split) for split in ("train", "test")}
        truths = {clip.caption: truth_of(clip) for split in clips.values() for clip in split}
        questions = questions_of(next(iter(truths.values()))["world"])
        critic = Critic(Network(self.options.width, len(questions)), questions, truths)
        samples = {split: context.pixels(split) for split in ("train", "test")}
        place = context.cache / f"reward-shapes-{self.key(context)}.safetensors"
        with context.world.first():
            if not place.exists():
                self.train(critic, samples["train"], context)
                self.report(critic, samples["test"], context)
                _save(critic.network, place)
        critic.network.load_state_dict(load_file(place))
        return critic

    def key(self, context: Context) -> str:
        """Return what decides the critic's weights, as 16 hexadecimal digits."""
        made_of = [REVISION, self.options.model_dump(), context.manifest_digest, context.video]
        return sha256_data(made_of)[:16]

    def train(self, critic: Critic, samples: Samples, context: Context) -> None:
        """Train the network to answer every question, half of the clips damaged."""
        options, device = self.options, context.world.device
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            critic.network.load_state_dict(Network(options.width, len(critic.questions)).state_dict())
        network = critic.network.to(device).requires_grad_()
        optimiser = torch.optim.Adam(network.parameters(), options.lr)
        rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.lr, options.steps)
        with progress(f"{context.name}: critic", options.steps) as advance:
            for step in range(options.steps):
                video, answers = self.drawn(critic, samples, step)
                loss = binary_cross_entropy_with_logits(network(video.to(device)), answers.to(device))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                rates.step()
                advance()

    def drawn(self, critic: Critic, samples: Samples, step: int) -> tuple[Tensor, Tensor]:
        """Return the videos of a step and the answers to all questions; those at odd places are damaged."""
        rng = generator(self.options.seed, "reward_shapes", step)
        index = rng.integers(len(samples), size=self.options.batch).tolist()
        video, captions = samples.x0(index).clone(), samples.captions(index)
        answers = [answers_of(critic.truths[caption], critic.questions) for caption in captions]
        opposite = opposites(critic.truths[captions[0]]["world"]["directions"])
        for place in range(1, len(index), 2):
            kind = KINDS[int(rng.integers(len(KINDS)))]
            video[place], answers[place] = damaged(
                video[place], answers[place], kind, critic.questions, opposite, int(rng.integers(2**31))
            )
        return video, torch.tensor(answers).float()

    @torch.no_grad()
    def report(self, critic: Critic, samples: Samples, context: Context) -> None:
        """Say how often the critic is right about held-out clips, and about those with another one's caption."""
        index = list(range(min(HELD_OUT, len(samples))))
        video, captions = samples.x0(index).to(context.world.device), samples.captions(index)
        own, other = critic.expected(captions), critic.expected([*captions[1:], captions[0]])
        logits = critic.network(video).cpu()
        same = _as_asked(critic, own, other)
        right = torch.cat([critic.judged(logits, own) > 0, (critic.judged(logits, other) > 0) == same])
        share = float(right.float().mean())
        context.say(f"the critic is right about {share:.1%} of the attributes of {len(index)} held-out clips")
        if share < DOUBTFUL:
            context.say("warning, a critic that is often wrong teaches what is wrong. Raise its 'steps' or 'width'")


def _as_asked(critic: Critic, own: Tensor, other: Tensor) -> Tensor:
    """Tell for each attribute whether two captions ask for the same, ``[B,A]``."""
    return critic.judged(100 * (2 * own - 1), other) > 0


def opposites(directions: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Return of each direction the one that is its negative."""
    by_way = {tuple(way): name for name, way in directions.items()}
    return {name: by_way[tuple(-value for value in way)] for name, way in directions.items()}


def truth_of(clip: Clip) -> Mapping[str, Any]:
    """Return the clip's ground truth; the data must come from the shapes world."""
    if clip.truth is None:
        raise UserError(
            "the clip has no ground truth", where=str(clip.path), mend="Use clips written by 'data: {use: shapes}'"
        )
    return clip.truth


def _save(network: Network, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(place) as partial:
        save_file({name: value.cpu().contiguous() for name, value in network.state_dict().items()}, partial)

"""CountDiffusion: denoise, decode, count; then denoise again from the same noise, with corrections in early steps.

    x ← x − scale·sqrt(d)·ĝ inside a mask, the first pass's x outside; d from 1 to 0.8

ĝ is the normalised gradient of :func:`attention_loss` for the object's word. Kinds of objects are corrected apart, and
what comes of them is averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from dit_compress.core.errors import UserError
from dit_compress.model.flow import euler
from dit_compress.model.halves import frame_rule
from dit_compress.model.protocols import Sampler, decoded
from dit_compress_plugins.sampler_count.attention import (
    attention_loss,
    blurred,
    cross_attentions,
    normalised,
    word_maps,
)
from dit_compress_plugins.sampler_count.masks import smallest, squares, to_latent, to_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress.model.scene import Scene
    from dit_compress_plugins.sampler_count import CountOptions
    from dit_compress_plugins.sampler_count.counters import Counted, Counter

LAST = 0.8
"""The factor d of the last corrected step; it is 1 at the first."""


@dataclass(frozen=True)
class Task:
    """One kind of object in one video: its word's attention inside the mask is to fall, or to rise.

    row: of the videos that are drawn again. places: of the word among the caption's tokens. weight: 1, or -2 to add.
    """

    row: int
    places: range
    mask_THW: Tensor
    weight: float


class CountSampler(Sampler):
    """Part ``sampler: {use: count}``."""

    def __init__(self, options: CountOptions) -> None:
        self.options = options
        self.counter: Counter = options.counter.build().create()

    def sample(
        self,
        denoiser: Denoiser,
        noise_BCTHW: Tensor,
        cond: Cond,
        sigmas: Sequence[float],
        guidance: float = 1.0,
        scene: Scene | None = None,
    ) -> Tensor:
        """Turn noise into clean latents; those whose counts are right are bit for bit what Euler steps give."""
        if scene is None:
            raise UserError(
                "the sampler 'count' looks at the videos that it makes, and this step has none to show",
                mend="Name it in 'evaluate: {use: shapes, sampler: …}' or for 'generate', not for the whole recipe",
            )
        path = [noise_BCTHW]
        for step in pairwise(sigmas):
            path.append(euler(denoiser, path[-1], cond, step, guidance))
        before = self.counts(path[-1], scene, range(len(noise_BCTHW)))
        tasks, rows = self.tasks(before, path[-1].shape[2:], scene)
        notes = [_note(found) for found in before]
        result = path[-1]
        if rows:
            index = torch.tensor(rows, device=result.device)
            window = self.window(len(sigmas) - 1)
            drawn = self.again(denoiser, [x[index] for x in path], cond.take(index), sigmas, guidance, tasks, window)
            result = result.index_copy(0, index, drawn)
            calls = (len(sigmas) - 1 - window.start) * (1 if guidance == 1 else 2) + len(window)
            for row, found in zip(rows, self.counts(drawn, scene, rows), strict=True):
                notes[row] |= _after(found) | {"extra_calls": calls, "extra_gradients": len(window)}
        scene.notes.extend(notes)
        return result

    def window(self, num_steps: int) -> range:
        """Return the steps that are corrected: at least one."""
        begin = min(round(self.options.begin * num_steps), num_steps - 1)
        return range(begin, max(begin + 1, round(self.options.end * num_steps)))

    def counts(self, latent: Tensor, scene: Scene, rows: Sequence[int]) -> Sequence[Sequence[Counted]]:
        """Decode latents, of some of the scene's videos, and count."""
        return self.counter(decoded(scene.codec, latent), [scene.captions[row] for row in rows])

    def tasks(
        self, counted: Sequence[Sequence[Counted]], size: Sequence[int], scene: Scene
    ) -> tuple[list[Task], list[int]]:
        """Return what is to be corrected, and in which videos. Where nothing is seen, nothing says how large it is."""
        lead, options = frame_rule(scene.codec)[0], self.options
        tasks: list[Task] = []
        rows: list[int] = []
        for video, kinds in enumerate(counted):
            occupied = [mask for each in kinds for mask in each.masks_NFYX]
            for each in kinds:
                surplus, masks = len(each.masks_NFYX) - each.wanted, each.masks_NFYX
                if not surplus or not masks or not (places := scene.text.places(scene.captions[video], *each.span)):
                    continue
                if surplus > 0:
                    mask, weight = smallest(masks, surplus), 1.0
                else:
                    mask, weight = squares(masks, occupied, -surplus, options.square), -options.add_weight
                if video not in rows:
                    rows.append(video)
                mask_THW = to_latent(mask, (size[0], size[1], size[2]), lead)
                tasks.append(Task(rows.index(video), places, mask_THW, weight))
        return tasks, rows

    def again(
        self,
        denoiser: Denoiser,
        path: Sequence[Tensor],
        cond: Cond,
        sigmas: Sequence[float],
        guidance: float,
        tasks: Sequence[Task],
        window: range,
    ) -> Tensor:
        """Sample from where corrections begin. path: the first pass, ``[B,C,T,H,W]`` at each sigma."""
        paths = cross_attentions(denoiser, self.options.at)
        x = path[window.start]
        for step in range(window.start, len(sigmas) - 1):
            if step in window:
                done = (step - window.start) / max(1, len(window) - 1)
                length = self.options.scale * (1 - (1 - LAST) * done) ** 0.5
                x = self.corrected(denoiser, x, path[step], cond, sigmas[step], tasks, paths, length)
            x = euler(denoiser, x, cond, sigmas[step : step + 2], guidance)
        return x

    def corrected(
        self,
        denoiser: Denoiser,
        x: Tensor,
        stored: Tensor,
        cond: Cond,
        sigma: float,
        tasks: Sequence[Task],
        paths: Sequence[int | str],
        length: float,
    ) -> Tensor:
        """Correct each kind of object apart, from one call without guidance: its maps are those of the captions."""
        with torch.enable_grad(), denoiser.attention(paths) as taken:
            x = x.detach().requires_grad_()
            denoiser(x, x.new_full((len(x),), sigma), cond)
            maps_BSL = word_maps(taken, cond["mask"])
            rounds = by_turn(tasks)
            losses = [[self.loss(maps_BSL[task.row], task, denoiser.patch) for task in some] for some in rounds]
            gradients = [torch.autograd.grad(torch.stack(some).sum(), x, retain_graph=True)[0] for some in losses]
        apart: list[list[Tensor]] = [[] for _ in x]
        for gradient, some in zip(gradients, rounds, strict=True):
            for task in some:
                mask = task.mask_THW.to(x.device)
                moved = x[task.row] - length * normalised(gradient[task.row], mask, task.weight)
                apart[task.row].append(torch.where(mask, moved, stored[task.row]))
        return torch.stack([torch.stack(of_row).mean(0) for of_row in apart]).detach()

    def loss(self, maps_SL: Tensor, task: Task, patch: tuple[int, int, int]) -> Tensor:
        """Return the loss of a word, whose map is the mean of its tokens'."""
        mask_thw = to_tokens(task.mask_THW, patch).to(maps_SL.device)
        map_S = maps_SL[:, task.places.start : task.places.stop].mean(1)
        map_thw = blurred(map_S.reshape(mask_thw.shape), self.options.blur)
        return attention_loss(map_thw.flatten(), mask_thw.flatten(), self.options.top, task.weight)


def by_turn(tasks: Sequence[Task]) -> list[list[Task]]:
    """Split tasks so that each list has one of a video at most: their gradients are found together."""
    rounds: list[list[Task]] = []
    for task in tasks:
        for some in rounds:
            if task.row not in (other.row for other in some):
                some.append(task)
                break
        else:
            rounds.append([task])
    return rounds


def _note(found: Sequence[Counted]) -> dict[str, float]:
    """Say of a video what is wanted and what is there, of all kinds together; nothing where its caption says none."""
    if not found:
        return {}
    wanted, seen = sum(each.wanted for each in found), sum(len(each.masks_NFYX) for each in found)
    right = _right(found)
    note = {"wanted": wanted, "before": seen, "after": seen, "right_before": right, "right_after": right}
    return note | {"nothing_seen": float(wanted > seen == 0), "extra_calls": 0.0, "extra_gradients": 0.0}


def _after(found: Sequence[Counted]) -> dict[str, float]:
    return {"after": sum(len(each.masks_NFYX) for each in found), "right_after": _right(found)}


def _right(found: Sequence[Counted]) -> float:
    return float(all(len(each.masks_NFYX) == each.wanted for each in found))

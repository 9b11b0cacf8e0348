"""Write the videos that VBench wants, run it where it is installed, and read what it measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_compress.core.progress import progress
from dit_compress.data.video import write_video
from dit_compress.step.context import Result
from dit_compress.step.sampling import Generator
from dit_compress_plugins.evaluate_vbench import DIMENSIONS
from dit_compress_plugins.evaluate_vbench.package import measure, need_package
from dit_compress_plugins.evaluate_vbench.prompts import wanted
from dit_compress_plugins.evaluate_vbench.totals import read_results, totals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context
    from dit_compress_plugins.evaluate_vbench import VBenchOptions
    from dit_compress_plugins.evaluate_vbench.prompts import Wanted


class VBenchEvaluation:
    """Step ``evaluate: {use: vbench}``."""

    def __init__(self, options: VBenchOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """Check that there is what draws, or that there are results to read."""
        if self.options.results is not None:
            read_results(Path(self.options.results))
            return spec
        spec.need_latent()
        spec.need_denoiser()
        spec.need_sampled(self.options.num_steps)
        wanted(self.options)
        if self.options.measure:
            need_package()
        return spec

    def run(self, context: Context) -> Result:
        """Write what is missing of the videos, each process its share; or give the scores."""
        if self.options.results is not None:
            context.world.disband()
            return Result(metrics=scored(Path(self.options.results)))
        videos, folder = wanted(self.options), context.folder / "vbench"
        self.draw(context, videos, folder)
        context.world.disband()
        metrics: dict[str, Any] = {"videos": len(videos), "prompts": len({video.prompt for video in videos})}
        if self.options.measure:
            results = context.folder / "vbench_results"
            measure(folder, results, self.options.dimensions or DIMENSIONS)
            metrics |= scored(results)
        else:
            context.say(f"let VBench measure {folder.name}/, and give its 'results' to another such step")
        return Result(metrics=metrics, files={"vbench": folder.name})

    def draw(self, context: Context, videos: Sequence[Wanted], folder: Path) -> None:
        """Write this process' videos that are not there yet, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        mine = videos[context.world.rank :: context.world.size]
        left = [video for video in mine if not (folder / video.file).exists()]
        generator = Generator(context.input, context.latent_shape(), context.sampler())
        with progress(context.name, len(left)) as advance:
            for first in range(0, len(left), self.options.batch):
                chunk = left[first : first + self.options.batch]
                made = generator(
                    [video.prompt for video in chunk],
                    seed=self.options.seed,
                    index=[video.index for video in chunk],
                    num_steps=self.options.num_steps,
                    guidance=self.options.guidance,
                )
                for video, pixels in zip(chunk, made, strict=True):
                    write_video(folder / video.file, pixels, self.options.fps)
                    advance()


def scored(place: Path) -> dict[str, Any]:
    """Give the totals, and the scores they are of."""
    scores = read_results(place)
    return {**totals(scores), "dimensions": scores, "missing": [name for name in DIMENSIONS if name not in scores]}

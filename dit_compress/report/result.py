"""The result: teacher and student, quality per arm, speed, in figures and in one sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dit_compress.report.data import Run, Step

GENERATED = "generated"
ERROR = "_error"
"""Behind the name of a metric: its standard error."""

Found = tuple[tuple[str, ...], "Mapping[str, Any]"]


@dataclass(frozen=True)
class Arm:
    """One evaluated variant: a bundle sampled in one way (or real clips, or a round trip through the VAE).

    of: the step whose bundle was evaluated. scores: attribute → share right, or the evaluation's other figures where it
    has no attributes (``shares`` is false). errors: standard errors of these, where known. overall: by the name of its
    metric. error: the standard error of that metric, over ``captions``. floors: what models that know less reach.
    """

    label: str
    step: str
    of: str | None
    scores: dict[str, float]
    shares: bool = True
    errors: dict[str, float] = field(default_factory=dict)
    overall: dict[str, float] = field(default_factory=dict)
    exact_match: float | None = None
    error: float | None = None
    captions: int | None = None
    floors: dict[str, float] = field(default_factory=dict)
    num_steps: int | None = None
    guidance: float | None = None

    def quality(self, metric: str | None) -> float | None:
        """Return the figure of one overall metric."""
        return self.overall.get(metric) if metric else None


@dataclass(frozen=True)
class Outcome:
    """The run in a few figures; None is what it does not know (yet).

    gained: the student's quality above that of the pruned model sampled alike, with its standard error (of two arms
    taken as independent: too large where captions and noise are equal).
    """

    teacher: str | None = None
    pruned: str | None = None
    student: str | None = None
    teacher_params: int | None = None
    student_params: int | None = None
    params_share: float | None = None
    teacher_flops: int | None = None
    student_flops: int | None = None
    flops_share: float | None = None
    times_faster: float | None = None
    quality_metric: str | None = None
    teacher_quality: float | None = None
    pruned_quality: float | None = None
    student_quality: float | None = None
    quality_share: float | None = None
    gained: float | None = None
    gained_error: float | None = None
    captions: int | None = None
    floors: dict[str, float] = field(default_factory=dict)
    teacher_steps: int | None = None
    pruned_steps: int | None = None
    student_steps: int | None = None
    exports_passed: bool | None = None


# ------------------------------------------------------------------ arms


def arms(run: Run) -> list[Arm]:
    """Return every evaluated variant, in the order of the steps."""
    return [arm for step in run.of_kind("evaluate") for arm in _arms_of(run, step)]


def _arms_of(run: Run, step: Step) -> Iterator[Arm]:
    """Yield the arms of an evaluation; one of other than generated videos (real clips, round trips) has none."""
    origin = step.options.get("source", GENERATED)
    settings = _sampled(run, step) if origin == GENERATED else {}
    quality = step.quality or ""
    columns = list(dict.fromkeys(video.column for video in step.videos))
    for path, metrics in _scored(step.metrics, quality):
        if path:
            label = words(path[-1]) if path[-1] != "accuracy" else step.name
        else:
            label = columns[0] if len(columns) == 1 else step.name if origin == GENERATED else words(origin)
        scores = metrics.get("accuracy")
        shares = isinstance(scores, dict)
        others = {} if shares else _others(metrics, quality)
        yield Arm(
            label=label,
            step=step.name,
            of=None if origin != GENERATED or path else step.source,
            scores=_floats(scores) if isinstance(scores, dict) else others,
            shares=shares,
            errors={name: metrics[error] for name in others if (error := f"{name}{ERROR}") in metrics},
            overall={quality: float(metrics[quality])} if quality in metrics else {},
            exact_match=metrics.get("exact_match"),
            error=metrics.get(f"{quality}{ERROR}"),
            captions=metrics.get("captions"),
            floors=_floats(metrics.get("floors", {})),
            **settings,
        )


def _sampled(run: Run, step: Step) -> dict[str, Any]:
    """Return sampling steps and guidance of an evaluation: its own, else its bundle's; none where it never samples."""
    if "num_steps" not in {**step.metrics, **step.options}:
        return {}
    source = run.step(step.source)
    flow = source.flow if source else {}
    chosen = [
        next((place[key] for place in (step.metrics, step.options) if place.get(key) is not None), flow.get(key))
        for key in ("num_steps", "guidance")
    ]
    return {"num_steps": chosen[0], "guidance": chosen[1]}


def _scored(metrics: Mapping[str, Any], quality: str, path: tuple[str, ...] = ()) -> Iterator[Found]:
    """Return the mappings among nested metrics that hold accuracies, each with the keys that lead to it."""
    accuracy = metrics.get("accuracy")
    if quality in metrics or (isinstance(accuracy, dict) and _floats(accuracy)):
        yield path, metrics
    for key, value in metrics.items():
        if isinstance(value, dict):
            yield from _by_name(value, quality) if key == "accuracy" else _scored(value, quality, (*path, key))


def _by_name(accuracy: Mapping[str, Any], quality: str) -> Iterator[Found]:
    """Return ``{"real": {"shape": 1.0}, "round_trip": {"shape": 0.98}}``: one arm each."""
    for name, scores in accuracy.items():
        if isinstance(scores, dict):
            yield (name,), scores if quality in scores else {"accuracy": scores}


def _floats(data: Any) -> dict[str, float]:
    """Return the numbers of a mapping; none of anything else."""
    given = data if isinstance(data, dict) else {}
    return {key: float(value) for key, value in given.items() if isinstance(value, int | float)}


def _others(metrics: Mapping[str, Any], quality: str) -> dict[str, float]:
    """Return the scalar metrics of an evaluation that groups none of them under ``accuracy``, without errors."""
    named = {quality, "exact_match", *(f"{key}{ERROR}" for key in metrics)}
    return {key: value for key, value in metrics.items() if isinstance(value, float) and key not in named}


def words(name: str) -> str:
    """Return a metric's name as text."""
    return name.replace("_", " ")


# ------------------------------------------------------------------ the outcome


def outcome(run: Run) -> Outcome:
    """Find teacher, pruned model and student in the graph, and their figures."""
    student = find_student(run)
    pruned = next((step for step in ancestry(run, student) if step.kind == "prune"), None)
    teacher = find_teacher(run, student, pruned)
    before, after = _params(teacher), _params(student)
    calls = [step.model.get("flops") if step else None for step in (teacher, student)]
    speed = find_speed(run, student)
    found = compare_quality(arms(run), teacher, None if pruned is student else pruned, student)
    return Outcome(
        teacher=teacher.name if teacher else None,
        pruned=pruned.name if pruned else None,
        student=student.name if student else None,
        teacher_params=before,
        student_params=after,
        params_share=after / before if before and after else None,
        teacher_flops=calls[0],
        student_flops=calls[1],
        flops_share=calls[1] / calls[0] if calls[0] and calls[1] else None,
        times_faster=speed.metrics["times_faster"] if speed else None,
        exports_passed=_exports_passed(run),
        **{"student_steps": speed.metrics.get("steps") if speed else None, **found},
    )


def compare_quality(
    found: list[Arm], teacher: Step | None, pruned: Step | None, student: Step | None
) -> dict[str, Any]:
    """Return the outcome's figures of quality: the teacher at its best, the others sampled alike."""
    metric = next((key for arm in found for key in arm.overall), None)
    if metric is None:
        return {}
    scored = [arm for arm in found if arm.quality(metric) is not None]
    ours = next((arm for arm in scored if student and arm.of == student.name), None)
    theirs = max((arm for arm in scored if teacher and arm.of == teacher.name), key=_steps, default=None)
    undistilled = (arm for arm in scored if pruned and arm.of == pruned.name)
    alike = next(iter(sorted(undistilled, key=lambda arm: _steps(arm) != _steps(ours))), None)
    figures: dict[str, Any] = {"quality_metric": metric}
    for who, arm in (("teacher", theirs), ("pruned", alike), ("student", ours)):
        if arm is not None:
            figures |= {f"{who}_quality": arm.quality(metric), f"{who}_steps": arm.num_steps}
    if figures.get("teacher_quality") and ours is not None:
        figures["quality_share"] = figures["student_quality"] / figures["teacher_quality"]
    if ours is not None:
        figures |= {"captions": ours.captions, "floors": ours.floors}
        if alike is not None and ours.error is not None and alike.error is not None:
            figures["gained"] = figures["student_quality"] - figures["pruned_quality"]
            figures["gained_error"] = math.hypot(ours.error, alike.error)
    return figures


def _steps(arm: Arm | None) -> int:
    return arm.num_steps or 0 if arm else 0


def find_student(run: Run) -> Step | None:
    """Find what the run made: the model it exports, or the last one that was pruned or trained."""
    for step in run.of_kind("export"):
        if (exported := run.step(step.source)) is not None:
            return exported
    made = [step for step in run.steps if step.kind not in ("base", "latent") and _params(step)]
    return made[-1] if made else None


def find_teacher(run: Run, student: Step | None, pruned: Step | None) -> Step | None:
    """Find what the student is compared with: what was pruned, unless untrained; its teacher; what was transformed."""
    whole = run.step(pruned.source) if pruned else None
    if whole is not None and whole.kind not in ("base", "latent"):
        return whole
    asked = run.step(student.inputs.get("teacher")) if student else None
    changed = (step for step in ancestry(run, student) if step.kind == "transform")
    return asked or whole or next((run.step(step.source) for step in changed), None)


def ancestry(run: Run, step: Step | None) -> Iterator[Step]:
    """Yield a step, the one whose bundle it reads, and so on."""
    while step is not None:
        yield step
        step = run.step(step.source)


def find_speed(run: Run, student: Step | None) -> Step | None:
    """Find the step that timed the student against another model."""
    timed = [step for step in run.of_kind("evaluate") if "times_faster" in step.metrics]
    return next((step for step in timed if student and step.source == student.name), None)


def sentence(result: Outcome) -> str:
    """Put the result in one sentence; empty where there is none yet."""
    if result.student is None:
        return ""
    who = f"The {result.student_steps}-step student" if result.student_steps else "The student"
    says = []
    if result.params_share is not None:
        says.append(f"has {result.params_share:.0%} of the teacher’s parameters")
        if f"{result.params_share:.0%}" == "100%" and result.flops_share is not None:
            says.append(f"takes {result.flops_share:.0%} of its FLOPs per call")
    if result.times_faster is not None:
        says.append(f"samples {result.times_faster:.3g} times faster")
    if result.quality_share is not None and result.quality_metric:
        says.append(f"keeps {result.quality_share:.0%} of its {words(result.quality_metric)}")
    if result.exports_passed is not None:
        says.append("passes its export verification" if result.exports_passed else "fails its export verification")
    if not says:
        return ""
    return f"{who} " + (says[0] if len(says) == 1 else f"{', '.join(says[:-1])} and {says[-1]}") + "."


def _exports_passed(run: Run) -> bool | None:
    from dit_compress.report.proofs import verdict

    verdicts = [found for step in run.of_kind("export") if (found := verdict(step)) is not None]
    return all(verdicts) if verdicts else None


def _params(step: Step | None) -> int | None:
    return step.model.get("params") if step else None

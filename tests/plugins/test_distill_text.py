"""A small text encoder learns another: losses by hand, a run, the bundle, its export."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional as F
from toy import CAPTIONS, batch, part, words
from transformers.models.t5.modeling_t5 import T5Attention

from dit_compress.core.errors import UserError
from dit_compress.model import flow
from dit_compress.model.denoiser import Cond
from dit_compress.model.flow import Flow
from dit_compress.model.text import Captions
from dit_compress.testing.distillers import DistillerContract
from dit_compress.testing.models import tiny_denoiser
from dit_compress.testing.steps import tiny_bundle, tiny_context
from dit_compress_plugins.distill_text.distiller import TextObjective, need_alike, need_alone, read_prompts
from dit_compress_plugins.text_small.encoder import position_bucket

if TYPE_CHECKING:
    from pathlib import Path

    from dit_compress.model.bundle import Bundle

SMALL = {"use": "small", "layers": 1, "width": 16, "heads": 2, "ffn": 32}


def step(**options: Any) -> Any:
    return part("distill", "text", **{"student": SMALL, "steps": 12, "batch": 4, "warmup": 0, "lr": 1e-2, **options})


def teacher() -> tuple[str, dict[str, Any]]:
    return "words", part("text", "words").config_of(words().encoder)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("before") / "bundle")


def objective(**options: Any) -> TextObjective:
    torch.manual_seed(0)
    made = step(**options).options
    student = Captions(made.student.build().follow(*teacher()))
    return TextObjective(made, student, words().requires_grad_(False), tiny_denoiser("video_dit"), Flow(3.0))


class TestText(DistillerContract):
    def objective(self) -> Any:
        return objective()

    def batch(self) -> Any:
        return batch(words())


def test_the_loss_is_that_of_its_page() -> None:
    """Sample by sample, from the embeddings and velocities themselves."""
    made, given = objective(mse=2.0, cosine=3.0, output=0.5, empty=0.5), batch(words(), size=6)
    found = made.loss(made.phases[0], given)
    dropped = given.streams.uniform("dropout") < 0.5
    assert 0 < dropped.sum() < 6
    noise, sigma = given.streams.normal("noise", given.x0.shape[1:]), given.streams.positions("logit_normal")
    sigma = Flow(3.0).warp(sigma)
    squares, turns, velocities = [], [], []
    for place, caption in enumerate(given.captions):
        text = "" if dropped[place] else caption
        with torch.no_grad():
            wanted = made.teacher.cond([text])
            given_one = made.student.encoder(made.student.encoder.tokenize([text]))
        real = wanted["mask"][0].bool()
        ours, theirs = given_one["embedding"][0][real], wanted["embedding"][0][real]
        squares.append(float((ours - theirs).square().sum() / theirs.square().sum()))
        turns.append(float((1 - F.cosine_similarity(ours, theirs, dim=-1)).mean()))
        x = flow.interpolate(given.x0[place : place + 1], noise[place : place + 1], sigma[place : place + 1])
        with torch.no_grad():
            v = [made.denoiser(x, sigma[place : place + 1], Cond(each, {})) for each in (given_one, dict(wanted))]
        velocities.append(float((v[0] - v[1]).square().sum() / v[1].square().sum()))
    means = {"mse": squares, "cosine": turns, "output": velocities}
    for name, values in means.items():
        assert float(found[name]) == pytest.approx(sum(values) / 6, rel=1e-4), name
    assert float(found["loss"]) == pytest.approx(
        (2 * sum(squares) + 3 * sum(turns) + 0.5 * sum(velocities)) / 6, rel=1e-4
    )


def test_a_student_equal_to_its_teacher_has_nothing_to_lose() -> None:
    made = objective()
    made.student = made.teacher
    assert float(made.loss(made.phases[0], batch(words()))["loss"]) == pytest.approx(0, abs=1e-6)


def test_without_the_output_no_denoiser_is_held() -> None:
    made = objective(output=0)
    assert set(made.roles) == {"encoder", "teacher"}
    assert set(made.loss(made.phases[0], batch(words()))) == {"loss", "mse", "cosine"}


def test_the_encoder_is_learnt_and_stands_in_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    """The loss falls to a third; the bundle has the small encoder, the denoiser's bytes, the same tokens and width."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join([*CAPTIONS, "", "a small red star on a black background"]), "utf-8")
    context, before = tiny_context(tmp_path / "run", input=bundle), bundle
    made = step(steps=60, prompts=str(prompts), empty=0.2)
    planned = made.plan(replace(context.spec(), data=True))
    assert planned.text.plugin == "small"
    assert "becomes 'small' of" in planned.notes[-1]
    after = made.run(context).bundle
    assert after.spec.text == planned.text
    assert after.digest("denoiser") == before.digest("denoiser")
    ours, theirs = Captions(after.text()), Captions(before.text())
    assert torch.equal(ours.encoder.tokenize(["a red star"])["words"], theirs.encoder.tokenize(["a red star"])["words"])
    with torch.no_grad():
        found, wanted = ours.cond(CAPTIONS), theirs.cond(CAPTIONS)
    assert torch.equal(found["mask"], wanted["mask"])
    assert not found["embedding"][found["mask"] == 0].any()
    away = (found["embedding"] - wanted["embedding"]).square().sum() / wanted["embedding"].square().sum()
    assert float(away) < 1 / 3, "an encoder that knows nothing is at 1"


def test_a_student_sees_padding_where_its_teacher_does() -> None:
    """CogVideoX attends to all rows: they are learnt, too, and nothing is zero."""
    torch.manual_seed(0)
    made = part("text", "small", layers=1, width=16, heads=2, ffn=32)
    for sees in (False, True):
        encoder = made.follow(*teacher(), sees_padding=sees)
        encoded = encoder(encoder.tokenize(["a red circle"]))
        assert bool(encoded["mask"].all()) == sees
        assert bool(encoded["embedding"][0, 5:].any()) == sees
        assert part("text", "small").config_of(type(made).from_config(made.config_of(encoder))) == made.config_of(encoder)


def test_what_no_student_can_learn_is_said(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'transformers' gives pooled beside its embeddings, which no student learns"):
        need_alone({"embedding", "mask", "pooled"}, "transformers")
    encoder = part("text", "small", layers=1, width=16, heads=2, ffn=32).follow(*teacher())
    with pytest.raises(UserError, match="gives 99 embeddings for 24 tokens, and a student one for each"):
        need_alike(encoder, {"embedding": torch.zeros(1, 99, 16)})
    with pytest.raises(UserError, match="the bundle has no text encoder to learn from. Name a 'text'"):
        step().plan(replace(bundle.spec, text=None))
    with pytest.raises(UserError, match="can't learn from another. Name one that can"):
        step(student={"use": "words"}).plan(bundle.spec)
    with pytest.raises(UserError, match="a student reads its teacher's tokens.*Leave out 'tokens'"):
        step(student={**SMALL, "tokens": {"use": "words"}}).plan(bundle.spec)
    with pytest.raises(UserError, match=r"none is named. Add tokens: \{use: transformers"):
        part("text", "small").create()
    (tmp_path / "none.txt").write_text("\n\n")
    with pytest.raises(UserError, match=r"none.txt: no prompt in this file. Write a prompt a line"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(UserError, match=r"the prompts can't be read"):
        read_prompts(tmp_path / "not-there.txt")
    with pytest.raises(UserError, match="'mse', 'cosine' and 'output' are all 0"):
        step(mse=0, cosine=0, output=0)


def test_alone_it_reads_the_tokens_that_are_named() -> None:
    encoder = part("text", "small", layers=1, width=16, heads=2, ffn=32, gives=24, tokens={"use": "words"}).create()
    encoded = encoder(encoder.tokenize(["a red circle", ""]))
    assert encoded["embedding"].shape == (2, 24, 24)
    assert encoded["mask"].sum(1).tolist() == [3, 1]


def test_buckets_of_positions_are_t5s() -> None:
    away = torch.arange(300)[None] - torch.arange(300)[:, None]
    given = {"bidirectional": True, "num_buckets": 32, "max_distance": 128}
    assert torch.equal(position_bucket(away, **given), T5Attention._relative_position_bucket(away, **given))

"""``transform: model``: the second expert of a pipeline beside the VAE and the text encoder of the first."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file
from toy import part

from dit_compress.core.errors import UserError
from dit_compress.model.twins import write_twin
from dit_compress.testing.steps import tiny_bundle, tiny_context

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_the_second_expert_comes_with_its_weights_and_its_sigmas(tmp_path: Path) -> None:
    twin = tmp_path / "wan"
    write_twin("Wan2.2-T2V-A14B", twin)
    before = tiny_bundle(tmp_path / "before")
    options = {"use": "diffusers", "path": str(twin), "part": "transformer_2"}
    step = part("transform", "swap", model=options)
    made = step.run(tiny_context(tmp_path / "step", input=before)).bundle
    planned = step.plan(before.spec)
    assert planned.flow == made.flow
    assert made.flow.between == (0.0, 0.875)
    assert json.loads(json.dumps(planned.denoiser.config)) == made.spec.denoiser.config
    assert planned.denoiser.log == made.spec.denoiser.log == ()
    assert made.spec.denoiser.config["convention"]["part"] == "transformer_2"
    state, wanted = made.denoiser().module.state_dict(), load_file(twin / "transformer_2" / WEIGHTS)
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], value) for name, value in wanted.items())
    assert not torch.equal(state["proj_out.weight"], load_file(twin / "transformer" / WEIGHTS)["proj_out.weight"])
    for name in ("latent", "text"):
        assert made.digest(name) == before.digest(name)
    assert made.spec.video == before.spec.video == (9, 32, 32)


def test_a_model_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="'model'"):
        part("transform", "swap")

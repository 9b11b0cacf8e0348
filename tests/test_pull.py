"""A model from the Hub: fetched by one command from a Hub on this machine, then found by its commit without the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_share import Hub, hub, share
from toy import tiny_bundle

from dit_compress.core.errors import UserError
from dit_compress.core.hub import pulled
from dit_compress.plugin.registry import installed
from dit_compress.recipe import dump, load
from dit_compress.run.keys import input_key, made_of, nodes

__all__ = ["hub"]
FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache, for commands by ``HF_HOME`` and for this process, which imported it before."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    return tmp_path / "home"


def recipe(folder: Path, source: str, **more: Any) -> Any:
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": {"from": source}, "steps": [{"export": "onnx"}]}))
    return load(folder / "recipe.yaml", installed())


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pull(kept: type[Hub], endpoint: str, home: Path, stored: dict[str, bytes], commit: str, *more: str) -> str:
    kept.stored, kept.commit = stored, commit
    ended = share(["pull", "team/phone", *more], endpoint, home)
    assert ended.returncode == 0, ended.stderr
    place = home / "hub" / "models--team--phone" / "snapshots" / commit
    assert ended.stdout == f"hub:team/phone@{commit}: {place}\n"
    return str(place)


def test_a_model_is_pulled_once_and_then_read_without_the_network(
    hub: tuple[type[Hub], str], home: Path, tmp_path: Path
) -> None:
    """A diffusers model with its card; weights that are pickles, and a pipeline's single files, stay where they are."""
    import diffusers

    kept, endpoint = hub
    torch.manual_seed(0)
    small = {"num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 4, "num_layers": 1, "sample_size": 4}
    made = diffusers.DiTTransformer2DModel(**small, norm_num_groups=4, num_embeds_ada_norm=8)
    made.save_pretrained(tmp_path / "made")
    stored = {**files_of(tmp_path / "made"), "README.md": b"---\nlicense: mit\n---\n", "weights.bin": b"pickle"}
    place = pull(kept, endpoint, home, stored, FIRST)
    assert set(files_of(Path(place))) == {"config.json", "diffusion_pytorch_model.safetensors", "README.md"}
    assert files_of(Path(place)) == {name: body for name, body in stored.items() if name != "weights.bin"}
    asked = len(kept.fetched)
    loaded = recipe(tmp_path, "hub:team/phone")
    assert loaded.model.options.path == place
    assert loaded.model.build().licence() == "mit"
    resolved = yaml.safe_load(dump(loaded))["model"]
    assert resolved == {**resolved, "use": "diffusers", "path": place}, "the resolved recipe names the commit"
    assert nodes(loaded)[0].describe()["model"]["options"]["path"].endswith(FIRST), "and so does the lineage"
    assert recipe(tmp_path, f"hub:team/phone@{FIRST}") == loaded
    before = made_of(nodes(loaded)[0], {}, loaded, "")
    pull(kept, endpoint, home, {**stored, "README.md": b"---\nlicense: cc0\n---\n"}, SECOND)
    after = recipe(tmp_path, "hub:team/phone")
    assert after.model.options.path.endswith(SECOND), "the branch has moved"
    changed = made_of(nodes(after)[0], {}, after, "")
    assert before != changed, "a resumed run sees another revision"
    assert recipe(tmp_path, f"hub:team/phone@{FIRST}") == loaded, "a commit stays what it was"
    assert len([path for path in kept.fetched[:asked] if "/resolve/" in path]) >= 3


def test_a_bundle_keeps_its_digest_and_a_pipeline_leaves_single_files(
    hub: tuple[type[Hub], str], home: Path, tmp_path: Path
) -> None:
    kept, endpoint = hub
    bundle = tiny_bundle(tmp_path / "made")
    place = pull(kept, endpoint, home, {**files_of(bundle.path), "notes/a.txt": b"a"}, FIRST, "--revision", "v1")
    loaded = recipe(tmp_path, "hub:team/phone@v1")
    assert loaded.source == place
    assert input_key(loaded.source, {}) == bundle.digest()
    index = {"model_index.json": b"{}", "big.safetensors": b"single", "transformer/a.safetensors": b"part"}
    place = pull(kept, endpoint, home, index, SECOND)
    assert set(files_of(Path(place))) == {"model_index.json", "transformer/a.safetensors"}
    with pytest.raises(UserError, match=r"recipe.yaml:2: 'hub:team/phone@v2' is not on this machine, and a recipe fetches nothing\. "
                       r"Run 'dit-compress pull team/phone --revision v2'"):  # fmt: skip
        recipe(tmp_path, "hub:team/phone@v2")


def test_what_is_not_there_is_refused_in_one_line(hub: tuple[type[Hub], str], home: Path) -> None:
    _, endpoint = hub
    for name, said in (("no/such/name", "names no repository. Give ORG/NAME"), ("no/one", "the Hub refused: ")):
        ended = share(["pull", name], endpoint, home)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert said in ended.stderr
        assert ended.stderr.count("\n") == 1, ended.stderr
    assert not (home / "hub" / "models--no--one" / "refs").exists()
    for wrong in ("hub:phone", "hub:../x", "hub:team/phone@../../x"):
        with pytest.raises(UserError, match="names no re"):
            pulled(wrong)

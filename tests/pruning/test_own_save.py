"""Classes that save themselves: our record is written whatever they do, and nothing is lost or left half-done."""

from __future__ import annotations

import argparse
import copy
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from fresh import run_fresh
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

import dit_compress
from dit_compress.core.errors import UserError
from dit_compress.structure.files.load_pruned import load as load_folder


# the models
class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = 4
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 64), nn.Linear(64, width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        b, s, d = x.shape
        q, k, v = self.qkv(F.layer_norm(x + t, (d,))).reshape(b, s, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, -1))
        return x + self.down(F.gelu(self.up(F.layer_norm(x, (d,)))))


class Body(nn.Module):
    def __init__(self, width: int = 24, depth: int = 3) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, width), nn.Linear(width, 4)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x, t[:, None, None])
        return self.leave(x)


class TinyConfig(PretrainedConfig):
    model_type = "tiny_dit"

    def __init__(self, width: int = 24, depth: int = 3, **rest: Any) -> None:
        super().__init__(**rest)
        self.width, self.depth = width, depth


class OfTransformers(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        self.body = Body(config.width, config.depth)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.weight.data.normal_()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.body(x, t)


class OfTheHub(Body, PyTorchModelHubMixin):
    def __init__(self, width: int = 24, depth: int = 3) -> None:
        super().__init__(width, depth)


class OfItsOwn(Body):
    def save_pretrained(self, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), Path(folder) / "weights.bin")


def whole(name: str) -> nn.Module:
    made = {"OfTransformers": lambda: OfTransformers(TinyConfig()), "OfTheHub": OfTheHub, "OfItsOwn": OfItsOwn}
    return made[name]().eval()


# the end of the models
NAMES = ["OfTransformers", "OfTheHub", "OfItsOwn"]


def recorded(module: nn.Module) -> Any:
    torch.manual_seed(1)
    with dit_compress.record(module) as call:
        module(torch.randn(2, 6, 4), torch.rand(2))
    return call


FRESH = """\
import sys
if sys.argv[1] == "blocked":
    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("dit_compress", "dit_compress_plugins"):
                raise ImportError(f"{name} is not here")
    sys.meta_path.insert(0, Block())
    sys.path.insert(0, sys.argv[2] + "/small")
    from load_pruned import load
else:
    from dit_compress import load
import torch
from models import whole
torch.manual_seed(99)
for name in sys.argv[2:]:
    module = load(name + "/small", module=whole(name))
    with torch.no_grad():
        torch.save(module(*torch.load("args.pt", weights_only=True)), name + "/output.pt")
    module.save_pretrained(name + "/again")
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """A folder with what was pruned of each, the modules and their calls."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("written")
    modules: dict[str, Any] = {name: whole(name) for name in NAMES}
    calls = {name: recorded(module) for name, module in modules.items()}
    for name, module in modules.items():
        small = folder / name / "small"
        small.parent.mkdir()
        dit_compress.prune(module, call=calls[name], remove={"block": 1, "head": 1}, keep={"ffn": 0.5}, out=small)
    return folder, modules, calls


@pytest.mark.parametrize("package", ["blocked", "installed"])
def test_the_record_is_written_and_loads_bit_equal_in_a_fresh_process(
    tmp_path: Path, package: str, written: tuple[Path, dict[str, Any], dict[str, Any]]
) -> None:
    made, modules, calls = written
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    for name in modules:
        kept = "model" if name == "OfItsOwn" else "pruned"
        files = sorted(item.name for item in (tmp_path / name / "small").iterdir())
        assert files == sorted(["load_pruned.py", f"{kept}.safetensors", "pruning.json"])
    source = Path(__file__).read_text("utf-8")
    head = source[: source.index("import dit_compress\n")].replace("from fresh import run_fresh\n", "")
    models = head + source[source.index("# the models") :]
    (tmp_path / "models.py").write_text(models[: models.index("# the end of the models")])
    torch.save(calls[NAMES[0]].args, tmp_path / "args.pt")
    done = run_fresh(FRESH, package, *NAMES, folder=tmp_path)
    assert done.status == 0, done.printed
    for name, module in modules.items():
        call, folder = calls[name], tmp_path / name
        assert torch.equal(torch.load(folder / "output.pt", weights_only=True), call.replay(module))
        again = dit_compress.load(folder / "again", module=whole(name))
        assert torch.equal(call.replay(again), call.replay(module))


@pytest.mark.parametrize("name", NAMES)
def test_it_saves_itself_and_is_pruned_again(tmp_path: Path, name: str) -> None:
    module: Any = whole(name)
    call = recorded(module)
    dit_compress.prune(module, call=call, remove={"head": 1})
    dit_compress.prune(module, call=call, keep={"ffn": 0.5})
    module.save_pretrained(tmp_path / "itself")
    dit_compress.save(module, tmp_path / "by_us")
    for folder in ("itself", "by_us"):
        record = json.loads((tmp_path / folder / "pruning.json").read_text())
        assert [entry["name"] for entry in record["log"]] == ["prune", "prune"]
        again = dit_compress.load(tmp_path / folder, module=whole(name))
        assert torch.equal(call.replay(again), call.replay(module))
    with pytest.raises(UserError, match="saved as safetensors, in a folder. Leave 'push_to_hub' out"):
        module.save_pretrained(tmp_path / "hub", push_to_hub=True)
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_without_its_record_is_refused(tmp_path: Path, name: str) -> None:
    module = whole(name)
    dit_compress.prune(module, call=recorded(module), remove={"head": 1}, out=tmp_path / "small")
    (tmp_path / "small" / "pruning.json").unlink()
    for load in (dit_compress.load, load_folder):
        with pytest.raises(UserError) as caught:
            load(tmp_path / "small", module=whole(name))
        assert str(caught.value).startswith(f"{tmp_path / 'small'}")
        assert "pruning.json" in str(caught.value)
        assert "from_pretrained" not in str(caught.value)
    if hasattr(module, "from_pretrained"):
        with pytest.raises(OSError, match="."):  # the class's own reader takes it for nothing, not for a whole model
            type(module).from_pretrained(str(tmp_path / "small"))


class Stated(diffusers.ModelMixin, diffusers.ConfigMixin):
    """Overrides ``save_pretrained``, and states its width in the config only where ``states`` is set."""

    config_name = "config.json"

    @register_to_config
    def __init__(self, width: int = 24, channels: int = 64, states: bool = True) -> None:
        super().__init__()
        self.body = Body(width, 2)
        for block in self.body.blocks:
            block.up, block.down = nn.Linear(width, channels), nn.Linear(channels, width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.body(x, t)

    def save_pretrained(self, save_directory: Any, **rest: Any) -> None:
        if self.config.states:
            self.register_to_config(channels=self.body.blocks[0].up.out_features)
        super().save_pretrained(save_directory, **rest)


@pytest.mark.parametrize("states", [True, False])
def test_a_class_that_may_state_its_shape(tmp_path: Path, states: bool) -> None:
    module: Any = Stated(states=states).eval()
    call = recorded(module)
    dit_compress.prune(module, call=call, keep={"ffn": 0.5}, out=tmp_path / "small")
    again = dit_compress.load(tmp_path / "small", cls=Stated)
    assert torch.equal(call.replay(again), call.replay(module))
    assert json.loads((tmp_path / "small" / "config.json").read_text())["channels"] == (32 if states else 64)
    module.save_pretrained(tmp_path / "itself")
    assert (tmp_path / "itself" / "pruning.json").exists() == (not states), "an ordinary model needs none"
    read = Stated.from_pretrained(tmp_path / "itself") if states else dit_compress.load(tmp_path / "itself", cls=Stated)
    assert torch.equal(call.replay(read), call.replay(module))


# ------------------------------------------------------------------ what fails, fails before the module is touched


class OfANamespace(diffusers.ModelMixin, diffusers.ConfigMixin):
    """A config that JSON can't hold."""

    config_name = "config.json"

    @register_to_config
    def __init__(self, args: Any = None) -> None:
        super().__init__()
        self.body = Body(args.width if args else 24)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.body(x, t)


def unchanged_by(module: nn.Module, out: Path, message: str) -> None:
    call, before = recorded(module), copy.deepcopy(module.state_dict())
    output, names = call.replay(module), set(vars(module))
    with pytest.raises(UserError, match=message):
        dit_compress.prune(module, call=call, remove={"block": 1, "head": 1}, out=out)
    after = module.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert torch.equal(call.replay(module), output)
    assert set(vars(module)) == names, "nor does it remember anything"


def test_a_config_that_json_can_not_hold(tmp_path: Path) -> None:
    module = OfANamespace(argparse.Namespace(width=24)).eval()
    message = "^OfANamespace: its save_pretrained fails: .*not JSON serializable. Let its config hold numbers"
    unchanged_by(module, tmp_path / "small", message)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    unchanged_by(
        Body().eval(), tmp_path / "file" / "small", "file/small: can't be written: Not a directory. Name another place"
    )
    unchanged_by(Body().eval(), tmp_path / ("x" * 300), "can't be written: File name too long")
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_is_full_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    unchanged_by(Body().eval(), tmp_path / "small", "small: no space left on the disk")
    assert list(tmp_path.iterdir()) == []

"""``dit-compress prune``: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from command import quiet
from safetensors.torch import load_file, save_file
from toy import tiny_bundle

import dit_compress
from dit_compress.cli import app as cli
from dit_compress.core.errors import UserError
from dit_compress.core.files import write_json
from dit_compress.model.figures import count_flops
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.structure.copies import meta_copy
from dit_compress.structure.files.digest import digest_of
from dit_compress.structure.files.lora import BASE
from dit_compress.structure.files.tensor_files import open_weights
from dit_compress.testing.models import tiny_denoiser

pytestmark = pytest.mark.slow(15)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The command in this process: status and what it printed."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["dit-compress", *arguments])
        try:
            cli.main()
        except SystemExit as left:
            return int(left.code or 0), quiet(capsys.readouterr().err)
        return 0, capsys.readouterr().out

    return command


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A folder of the tiny LTX in bfloat16."""
    module: Any = tiny_denoiser("ltx").module.to(torch.bfloat16)
    module.save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


INSPECTED = """
LTXVideoTransformer3DModel: 146,792 parameters; 0.003 GFLOPs a call, latent 2x2x2
transformer_blocks            block 3   37,968 77.6% 0.8724 90.8%
transformer_blocks.0–2.ff     ffn   192 97     38.1% 0.0015 30.7%
transformer_blocks.0–2.attn1  head  4   2,364  19.3% 0.0399 16.6%
transformer_blocks.0–2.attn2  head  4   2,364  19.3% 0.1044 43.5%
remainder                     –     –   32,888 22.4% 0.2657 9.2%
""".strip().splitlines()
"""By hand, of 8 tokens, 32 words, width 48. A channel: 8·2·(48 + 48). A head of 12 on the image: 8·2·48·12 four times
and 2·2·8·8·12; on the text: 8·2·48·12 and 32·2·48·12 twice each and 2·2·8·32·12."""


def test_blocks_of_the_stack_that_is_named_go_and_go_again(run: Any) -> None:
    """Flux: two double blocks, three single ones, which alone are meant by ``block``."""
    torch.manual_seed(0)
    whole: Any = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=3, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=16, pooled_projection_dim=8, axes_dims_rope=(4, 6, 6), guidance_embeds=True,
    )  # fmt: skip
    whole.save_pretrained("flux")
    status, printed = run("inspect", "flux")
    rows = [line.split() for line in printed.splitlines()]
    assert status == 0
    assert {row[0]: row[2] for row in rows if row[1:2] == ["block"]} == {
        "transformer_blocks": "2",
        "single_transformer_blocks": "3",
    }
    double, single = (
        sum(value.numel() for value in stack[0].parameters())
        for stack in (whole.transformer_blocks, whole.single_transformer_blocks)
    )
    size = sum(value.numel() for value in whole.parameters())
    named = ["--remove", "block.transformer_blocks=1"]
    expected = f"block: 2 → 1\n{size - double:,} parameters stay\n"
    assert run("prune", "flux", *named, "--dry-run") == (0, expected)
    assert run("prune", "flux", *named, "--out", "one") == (0, f"{expected}one\n")
    expected = f"block: 3 → 2\n{size - double - single:,} parameters stay\n"
    assert run("prune", "one", "--remove", "block=1", "--out", "two") == (0, f"{expected}two\n")
    small: Any = dit_compress.load("two")
    assert (len(small.transformer_blocks), len(small.single_transformer_blocks)) == (1, 2)
    status, printed = run("prune", "two", "--remove", "block.double=1", "--out", "three")
    assert (status, "'double' names no stack; there are" in printed) == (2, True)


@pytest.mark.usefixtures("whole")
def test_a_folder_by_counts(run: Any) -> None:
    expected = "block: 3 → 2\nhead: 4 → 3\nffn: 192 → 144\n90,056 parameters stay\n"
    counts = ["--remove", "block=1,head=1", "--keep", "ffn=0.75"]
    assert run("prune", "whole", *counts, "--dry-run") == (0, expected)
    assert [item.name for item in Path().iterdir()] == ["whole"]
    assert run("prune", "whole", *counts, "--out", "small") == (0, f"{expected}small\n")
    assert sum(value.numel() for value in dit_compress.load("small").parameters()) == 90_056
    status, printed = run("inspect", "small")
    assert status == 0
    assert "90,056 parameters" in printed


def test_a_pipelines_folder_is_inspected_without_its_weights(run: Any, whole: Path) -> None:
    expected = run("inspect", "whole")
    assert expected[0] == 0
    assert expected[1].splitlines()[0].strip() == INSPECTED[0]
    assert [line.split() for line in expected[1].splitlines()[2:]] == [line.split() for line in INSPECTED[1:]]
    Path("pipeline").mkdir()
    whole.rename("pipeline/transformer")
    for file in Path("pipeline/transformer").glob("*.safetensors"):
        file.write_bytes(b"no weights")
    assert run("inspect", "pipeline") == expected


@pytest.mark.usefixtures("whole")
def test_a_folder_by_size(run: Any) -> None:
    status, printed = run("prune", "whole", "--params", "1e5", "--search", "random", "--out", "small")
    assert status == 0, printed
    left = sum(value.numel() for value in dit_compress.load("small").parameters())
    assert 99_000 <= left <= 100_000
    assert f"{left:,} parameters stay" in printed


@pytest.mark.usefixtures("whole")
def test_a_folder_by_flops(run: Any) -> None:
    denoiser, size = tiny_denoiser("ltx"), (2, 4, 4)
    budget = 0.708 * count_flops(meta_copy(denoiser), size)
    asked = ["--flops", f"{budget:.0f}", "--size", "2", "4", "4", "--levels", "head,ffn"]
    status, dry = run("prune", "whole", *asked, "--dry-run")
    assert status == 0, dry
    status, printed = run("prune", "whole", *asked, "--out", "small")
    assert (status, printed) == (0, f"{dry}small\n")
    denoiser.module = dit_compress.load("small", torch_dtype=torch.float32)
    denoiser.forget_structure()
    assert 0.99 * budget <= count_flops(meta_copy(denoiser), size) <= budget
    assert denoiser.structure().main.length == 3


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("asked_for", ["2", "66.7%"])
def test_a_folder_by_seconds(run: Any, tmp_path: Path, asked_for: str) -> None:
    """A table of a second per block, a quarter of it its heads and a quarter its channels: 3 → 2 seconds."""
    structure = tiny_denoiser("ltx").structure()
    inner = [part.axis("head") for part in structure.attentions] + [
        part.axis("ffn") for part in structure.feed_forwards
    ]
    table = {
        "schema": 1, "machine": "a phone", "size": [2, 4, 4], "unit": "seconds", "fixed": 0.0,
        "axes": {"block:transformer_blocks": 3, **{axis.name: axis.units for axis in inner}},
        "blocks": {"block:transformer_blocks": [0.25] * 3}, "units": {axis.name: 0.25 / axis.units for axis in inner},
    }  # fmt: skip
    write_json(tmp_path / "phone.json", table)
    asked = ["--latency", asked_for, "--table", "phone.json", "--machine", "a phone", "--size", "2", "4", "4"]
    status, printed = run("prune", "whole", *asked, "--out", "small")
    assert status == 0, printed
    module: Any = dit_compress.load("small")
    blocks = module.transformer_blocks
    seconds = sum(
        0.25 + 0.25 * (block.attn1.heads + block.attn2.heads) / 4 + 0.25 * block.ff.net[2].in_features / 192
        for block in blocks
    )
    assert 1.98 <= seconds <= 2.001


def test_a_bundle(run: Any, tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "whole")
    status, printed = run("prune", "whole", "--remove", "head=1", "--out", "small")
    assert status == 0, printed
    assert "head: 4 → 3" in printed
    assert (tmp_path / "small" / "bundle.json").is_file()


@pytest.mark.usefixtures("whole")
def test_a_plan_is_repeated_on_a_checkpoint_and_on_a_lora(run: Any) -> None:
    assert run("prune", "whole", "--remove", "head=1", "--out", "small")[0] == 0
    assert run("prune", "whole", "--plan", "small", "--out", "again") == (0, "again\n")
    assert Path("again/pruning.json").read_text() == Path("small/pruning.json").read_text()
    lora = {"transformer.transformer_blocks.0.attn1.to_q.lora_B.weight": torch.randn(48, 2)}
    save_file(lora, "lora.safetensors")
    assert run("prune", "lora.safetensors", "--plan", "small/pruning.json", "--out", "l.safetensors")[0] == 0
    assert {tuple(value.shape) for value in load_file("l.safetensors").values()} == {(36, 2)}
    status, printed = run("prune", "small", "--plan", "small", "--out", "twice")
    assert status == 2
    assert "the plan is for another model" in printed


def test_a_lora_that_says_its_base_follows_the_plan_of_that_base_alone(run: Any, whole: Path) -> None:
    """Whatever files hold the base; a plan that was repeated on another checkpoint is for that one."""
    module: Any = diffusers.LTXVideoTransformer3DModel.from_pretrained(whole)
    module.to(torch.float32).save_pretrained("bundled")
    lora = {"transformer.transformer_blocks.0.attn1.to_q.lora_B.weight": torch.randn(48, 2)}
    save_file(lora, "lora.safetensors", metadata={BASE: digest_of(open_weights(Path("bundled")))})
    module.proj_out.bias.data += 1
    module.save_pretrained("tuned")
    for source, *asked in (("whole", "--remove", "head=1"), ("tuned", "--plan", "whole-small")):
        assert run("prune", source, *asked, "--out", f"{source}-small")[0] == 0
    assert run("prune", "whole-small", "--remove", "head=1", "--out", "smaller")[0] == 0
    assert run("prune", "lora.safetensors", "--plan", "whole-small", "--out", "l.safetensors")[0] == 0
    assert run("prune", "lora.safetensors", "--plan", "smaller", "--out", "s.safetensors")[0] == 0
    assert not open_weights(Path("l.safetensors")).metadata, "it is no LoRA of that base any more"
    status, printed = run("prune", "lora.safetensors", "--plan", "tuned-small", "--out", "t.safetensors")
    (base, tuned) = (digest_of(open_weights(Path(name)))[:12] for name in ("whole", "tuned"))
    assert (status, Path("t.safetensors").exists()) == (2, False)
    assert (
        f"lora.safetensors: this LoRA was trained on other weights ({base}…) than the plan is for ({tuned}…)."
        " Repeat the plan on the LoRA's base" in printed
    )


REFUSED = [
    (["whole"], "nothing says where to write. Give --out, or --dry-run"),
    (
        ["whole", "--out", "small"],
        "nothing says how much to prune. Give a budget (params, flops, latency), or counts per level",
    ),
    (
        ["whole", "--out", "whole", "--params", "1e5"],
        "whole: this exists already. Name a new folder, or remove this one",
    ),
    (["nowhere", "--out", "small"], "nowhere: there is no such path"),
    (["whole", "--dry-run", "--params", "many"], "--params takes a number of parameters, got 'many'. Write 1e9 or"),
    (["whole", "--dry-run", "--params", "nan"], "--params takes a number of parameters, got 'nan'"),
    (["whole", "--dry-run", "--flops", "lots"], "--flops takes a number of FLOPs, got 'lots'. Write 2.4e13, or 50%"),
    (["whole", "--dry-run", "--flops", "1e6"], "for one size of the latent, and no VAE tells it. Give 'size'"),
    (["whole", "--dry-run", "--latency", "0"], "--latency takes a number of seconds, got '0'. Write 0.05, or 50%"),
    (["whole", "--dry-run", "--table", "t.json"], "--table and --machine go with --latency"),
    (["whole", "--dry-run", "--latency", "1", "--table", "t.json", "--size", "2", "2", "4"], "t.json: no such file"),
    (["whole", "--dry-run", "--params", "1e5", "--levels", "hed"], "Did you mean 'head'?"),
    (["whole", "--dry-run", "--search", "taylor", "--params", "1e5"], "the search 'taylor' looks at data"),
    (["whole", "--dry-run", "--remove", "block"], "--remove takes LEVEL=N, got 'block'. Write block=8,head=12"),
    (["whole", "--dry-run", "--keep", "ffn=x"], "--keep takes LEVEL=X, got 'ffn=x'. Write ffn=0.75"),
    (["whole", "--dry-run", "--remove", "hed=1"], "Did you mean 'head'?"),
    (["whole", "--dry-run", "--params", "1e5", "--search", "magnitud"], "Did you mean 'magnitude'?"),
    (["whole", "--dry-run", "--params", "10"], "The nearest that can be met is"),
    (["whole", "--plan", "whole", "--params", "1e5", "--out", "x"], "a plan says already what stays"),
    (["whole", "--plan", "whole", "--out", "x"], "whole/pruning.json: no such file"),
    (["whole", "--dry-run", "--plugin", "x.txt", "--params", "1e5"], "not a Python file"),
]


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_can_not_be_is_refused(run: Any, arguments: list[str], message: str) -> None:
    status, printed = run("prune", *arguments)
    assert status == 2, printed
    assert message in printed
    assert [item.name for item in Path().iterdir()] == ["whole"]


# ------------------------------------------------------------------ folders that are not what they say


def _config(change: dict[str, Any]) -> Any:
    def harm(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**data, **change}))

    return harm


def _text(text: str) -> Any:
    return lambda folder: (folder / "config.json").write_text(text)


HARMED = [
    (_text("{"), "config.json: not valid JSON"),
    (_text("[]"), "config.json: no config of a diffusers model"),
    (_text('{"a": ' * 9000), "config.json: not valid JSON: nested too deeply"),
    (_config({"_class_name": 3}), "config.json: no config of a diffusers model"),
    (_config({"_class_name": "os"}), "has no class 'os'. Check '_class_name' in config.json"),
    (_config({"_class_name": "LTXPipeline"}), "has no class 'LTXPipeline'"),
    (
        _config({"auto_map": {"AutoModel": "x.Y"}}),
        "config.json: it asks for code of its own ('auto_map'), which is never",
    ),
    (_config({"num_layers": "3"}), "config.json: LTXVideoTransformer3DModel can't be made of this config: TypeError: "),
    (_config({"num_layers": 10**9}), "config.json: LTXVideoTransformer3DModel would have more than 3,000 modules"),
]


def test_a_model_without_end_is_not_made(run: Any, whole: Path) -> None:
    _config({"num_layers": 10**9})(whole)
    status, printed = run("inspect", "whole")
    assert status == 2
    assert "config.json: LTXVideoTransformer3DModel would have more than 30,000 modules" in printed


@pytest.mark.parametrize(("harm", "message"), HARMED, ids=[message for _, message in HARMED])
def test_every_command_says_the_same_of_a_bad_config(
    run: Any, whole: Path, harm: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dit_compress.structure.files.whole.MAX_MODULES", 3000)
    harm(whole)
    step = "prune: {use: trilevel, levels: {block: {remove: 1}}, search: magnitude}"
    Path("r.yaml").write_text(f"model: {{from: whole}}\nsteps:\n  - {step}\n")
    commands = [
        ("inspect", "whole"),
        ("plan", "r.yaml"),
        ("prune", "whole", "--remove", "block=1", "--dry-run"),
        ("prune", "whole", "--remove", "block=1", "--out", "small"),
        ("run", "r.yaml", "--out", "made"),
    ]
    said = [run(*words) for words in commands]
    assert [status for status, _ in said] == [2] * 5
    assert all(message in printed and printed.count("\n") == 1 for _, printed in said), said
    assert sorted(item.name for item in Path().iterdir()) == ["r.yaml", "whole"]


def test_a_key_that_diffusers_ignores_is_ignored(run: Any, whole: Path) -> None:
    expected = run("inspect", "whole")
    _config({"of_a_newer_version": 1})(whole)
    assert run("inspect", "whole") == expected
    assert run("prune", "whole", "--remove", "block=1", "--out", "small")[0] == 0


def _weights(folder: Path) -> Path:
    return folder / "diffusion_pytorch_model.safetensors"


def _lacking(folder: Path) -> None:
    state = load_file(_weights(folder))
    del state["proj_out.weight"]
    save_file(state, _weights(folder))


def _other(folder: Path) -> None:
    save_file({**load_file(_weights(folder)), "proj_out.bias": torch.zeros(3)}, _weights(folder))


def _more(folder: Path) -> None:
    save_file({**load_file(_weights(folder)), "of_another": torch.zeros(3)}, _weights(folder))


def _overlapping(folder: Path) -> None:
    data = _weights(folder).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    first, second = [entry for entry in header.values() if entry.get("shape") == [48, 48]][:2]
    second["data_offsets"] = first["data_offsets"]
    text = json.dumps(header).encode()
    _weights(folder).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def _pickled(folder: Path) -> None:
    _weights(folder).rename(folder / "diffusion_pytorch_model.bin")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_lacking, "whole: the weights lack 'proj_out.weight'. Download or copy the folder again"),
        (_other, "whole: 'proj_out.bias' is [3] in the weights, [8] by config.json"),
        (_more, "whole: the weights have 'of_another', which LTXVideoTransformer3DModel has not by config.json"),
        (_overlapping, "overlaps another. Download or copy it again"),
        (_pickled, "whole: no safetensors here. Give a folder with *.safetensors; pickles stay shut"),
    ],
)
def test_weights_that_do_not_fit_are_never_filled_in(run: Any, whole: Path, harm: Any, message: str) -> None:
    harm(whole)
    status, printed = run("prune", "whole", "--remove", "block=1", "--out", "small")
    assert status == 2
    assert message in printed
    assert not Path("small").exists()
    part = make_part("model", {"use": "diffusers", "path": "whole"}, installed())
    with pytest.raises(UserError) as caught:
        part.build().create()
    assert str(caught.value) == printed.rstrip()

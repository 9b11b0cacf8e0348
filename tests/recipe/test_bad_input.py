"""Every mistake in a recipe is one message with file and line, and the mend; all of them come at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dit_compress.core.errors import UserError
from dit_compress.recipe import load, make_part

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dit_compress.plugin.registry import Registry
    from dit_compress.recipe.model import Recipe

    Load = Callable[[str], Recipe]

CASES = {
    "unknown top-level key": ("step:\n", "r.yaml:1: unknown key 'step' in the recipe. Did you mean 'steps'?"),
    "unknown key, with suggestion": (
        "  - distill:\n      use: affine\n      sampling_step: 4\n",
        "r.yaml:4: unknown key 'sampling_step' in distill 'affine'. Did you mean 'sampling_steps'?",
    ),
    "unknown key, nested": (
        "  - latent: {use: vae, losses: {pixxel: 1}}\n",
        "r.yaml:2: unknown key 'pixxel' in 'losses' of latent 'vae'. Did you mean 'pixel'?",
    ),
    "unknown key, in a part of a part": (
        "  - prune: {use: trilevel, levels: {block: {}},\n"
        "      search: {use: learned, objective: {use: flow, lrr: 1}}}\n",
        "r.yaml:3: unknown key 'lrr' in distill 'flow'. Did you mean 'lr'?",
    ),
    "unknown key, nothing like it": (
        "  - evaluate: {use: psnr, zzz: 1}\n",
        "r.yaml:2: unknown key 'zzz' in evaluate 'psnr'. It has no keys",
    ),
    "unknown key of a step": (
        "  - evaluate: psnr\n    inptu: x\n",
        "r.yaml:3: unknown key 'inptu' in step evaluate 'psnr'. Did you mean 'input'?",
    ),
    "option beside the step": (
        "  - distill: flow\n    lr: 1\n",
        "r.yaml:3: unknown key 'lr' in step distill 'flow'. It is an option: indent it under 'distill:'",
    ),
    "slot among the options": (
        "  - distill: {use: affine, teacher: x}\n",
        "r.yaml:2: unknown key 'teacher' in distill 'affine'. "
        "It belongs to the step: write it beside 'distill:', not inside",
    ),
    "wrong type": (
        "  - distill:\n      use: flow\n      steps: abc\n",
        "r.yaml:4: expected a whole number for 'steps' of distill 'flow', got 'abc'. Write digits alone, such as 4",
    ),
    "wrong type, of a union": (
        "  - evaluate: psnr\nmodel: {use: dit, heads: many}\n",
        "r.yaml:3: expected a whole number or a list for 'heads' of model 'dit', got 'many'. Write digits alone, such as 4",
    ),
    "wrong type, within a list": (
        "  - evaluate: psnr\nmodel:\n  use: dit\n  heads:\n    - 4\n    - x\n",
        "r.yaml:7: expected a whole number for 'heads.1' of model 'dit', got 'x'. Write digits alone, such as 4",
    ),
    "wrong type, true for a number": (
        "  - distill: {use: flow, steps: true}\n",
        "r.yaml:2: expected a number for 'steps' of distill 'flow', got true. Write it in digits",
    ),
    "wrong type, a fraction": (
        "  - distill: {use: flow, steps: 1.5}\n",
        "r.yaml:2: expected a whole number for 'steps' of distill 'flow', got 1.5. Write digits alone, such as 4",
    ),
    "wrong type, not finite": (
        "  - distill: {use: flow, lr: .inf}\n",
        "r.yaml:2: expected a finite number for 'lr' of distill 'flow', got Infinity. Write a number, such as 0.5",
    ),
    "wrong type, of a mapping": (
        "  - latent: {use: vae, losses: 3}\n",
        "r.yaml:2: expected 'key: value' entries for 'losses' of latent 'vae', got 3. Write {KEY: VALUE}",
    ),
    "wrong choice": (
        "  - evaluate: psnr\nmodel: {use: dit, preset: 3b}\n",
        "r.yaml:3: expected 'tiny' or '2b' for 'preset' of model 'dit', got '3b'. Choose one of them",
    ),
    "out of range": (
        "  - distill: {use: flow, lr: 0}\n",
        "r.yaml:2: expected a number above 0 for 'lr' of distill 'flow', got 0. Raise it",
    ),
    "bad pattern": (
        "  - latent: {use: vae, ratio: 8x32}\n",
        r"r.yaml:2: expected text like ^\d+x\d+x\d+$ for 'ratio' of latent 'vae', got '8x32'. Write it like that",
    ),
    "missing key": (
        "  - evaluate: psnr\ndata: {use: clips, path: a, size: [8, 8]}\n",
        "r.yaml:3: data 'clips' needs 'frames'. Add 'frames: ...'",
    ),
    "misspelt required key": (
        "  - evaluate: psnr\ndata: {use: clips, path: a, size: [8, 8], frame: 9}\n",
        "r.yaml:3: unknown key 'frame' in data 'clips'. Did you mean 'frames'?",
    ),
    "short list": (
        "  - evaluate: psnr\ndata: {use: clips, path: a, size: [8], frames: 9}\n",
        "r.yaml:3: 'size' of data 'clips' has too few entries: [8]. Add one",
    ),
    "two kinds in one step": (
        "  - distill: flow\n    prune: {use: trilevel, budget: {params: 9}}\n",
        "r.yaml:3: two kinds in one step: 'distill' and 'prune'. Begin a new step with '- '",
    ),
    "no kind": (
        "  - name: x\n",
        "r.yaml:2: the step has no kind (found 'name'). "
        "Use one of: latent, prune, distill, transform, evaluate, export",
    ),
    "misspelt kind": (
        "  - name: x\n    distil: flow\n",
        "r.yaml:3: unknown kind of step 'distil'. Did you mean 'distill'?",
    ),
    "a step that is a word": (
        "  - evaluate\n",
        "r.yaml:2: expected a step, got 'evaluate'. "
        "Write '- KIND: ...' with one of: latent, prune, distill, transform, evaluate, export",
    ),
    "a step that names a later one": (
        "  - distill: flow\n    input: b\n  - distill: flow\n    name: b\n",
        "r.yaml:3: 'input' names the step 'b', which comes later (line 4). Move that step up, or name an earlier one",
    ),
    "a step that names itself": (
        "  - distill: flow\n    input: flow\n",
        "r.yaml:3: step 'flow' names itself as 'input'. Name an earlier step",
    ),
    "a step that names an unknown one": (
        "  - latent: vae\n    name: server\n  - distill: affine\n    teacher: sever\n",
        "r.yaml:5: 'teacher' names an unknown step 'sever'. Did you mean 'server'?",
    ),
    "a step that names one without a bundle": (
        "  - latent: vae\n  - evaluate: psnr\n  - distill: flow\n    input: psnr\n",
        "r.yaml:5: 'input' names 'psnr', an evaluate step, which gives no bundle. Name the step it reads",
    ),
    "a path that is not there": (
        "  - distill: flow\n    input: runs/none\n",
        "r.yaml:3: there is no folder 'runs/none' for 'input'. Give a bundle or a run folder",
    ),
    "two steps of one name": (
        "  - latent: vae\n    name: a\n  - distill: flow\n    name: a\n",
        "r.yaml:5: two steps are named 'a', the first on line 2. Choose another name",
    ),
    "a name that leaves the run's folder": (
        "  - latent: vae\n    name: ../../a\n",
        "r.yaml:3: '../../a' can't name a step. Use letters, digits, '_', '-' and '.'",
    ),
    "a name that another step's unfinished folder has": (
        "  - latent: vae\n    name: a.partial\n",
        "r.yaml:3: 'a.partial' can't name a step: folders of unfinished steps are named so. Choose another name",
    ),
    "levels beside budget": (
        "  - prune:\n      use: trilevel\n      levels: {block: {remove: 1}}\n      budget: {params: 9}\n",
        "r.yaml:5: prune 'trilevel': give either 'levels' or 'budget'",
    ),
    "unknown plugin": (
        "  - prune: {use: trilevel, levels: {blok: {}}}\n",
        "r.yaml:2: unknown granularity plugin 'blok'. "
        "Did you mean 'block'? Known: block, head (and broken: search_broken)",
    ),
    "broken plugin": (
        "  - prune: {use: trilevel, levels: {}, search: broken}\n",
        "r.yaml:2: the search plugin 'broken' (stranger) is broken: RuntimeError: needs a newer libfoo. "
        "Mend or uninstall 'stranger'",
    ),
    "missing extra": (
        "  - export: {use: phone}\n",
        "r.yaml:2: the plugin 'phone' needs no_such_module, not installed here. "
        'Run: pip install "dit-compress[coreml]"',
    ),
    "no plugin named": (
        "  - export: {precision: 16}\n",
        "r.yaml:2: this export names no plugin. Write 'use: NAME' with one of: files, phone",
    ),
    "a variable": (
        "  - distill: {use: flow, lr: '${LR}'}\n",
        "r.yaml:2: '${LR}' asks for a variable, and recipes have none. Write the value out",
    ),
    "duplicate key": (
        "  - distill:\n      use: flow\n      lr: 1\n      lr: 2\n",
        "r.yaml:5: duplicate key 'lr', first on line 4. Remove one",
    ),
    "a key that is no word": (
        "  - latent: {use: vae, 3: 1}\n",
        "r.yaml:2: a key must be a word, got '3'. Put it in quotes if it is one",
    ),
    "a tag": (
        "  - latent: !!python/object:os.system {use: vae}\n",
        "r.yaml:2: the tag '!!python/object:os.system' is not supported. Remove the tag",
    ),
    "a merge key": (
        "  - latent: &a {use: vae}\n  - latent: {<<: *a, use: vae}\n",
        "r.yaml:3: merge keys ('<<') are not supported. Write the values out",
    ),
    "a bad seed": (
        "  - latent: vae\nseed: x\n",
        "r.yaml:3: expected a whole number from 0 for 'seed', got 'x'. Write 0",
    ),
    "a seed no generator takes": (
        f"  - latent: vae\nseed: {2**128}\n",
        f"r.yaml:3: expected a number of at most {2**64 - 1} for 'seed', got {2**128}. Lower it",
    ),
    "a name that no disk takes": (
        f"  - latent: vae\n    name: {'x' * 300}\n",
        f"r.yaml:3: '{'x' * 56}... can't name a step. Shorten it to 200 letters",
    ),
    "a path that no disk takes": (
        f"  - latent: vae\nmodel: {{from: {'x' * 300}}}\n",
        f"r.yaml:3: there is no folder '{'x' * 56}.... Give a bundle, a run, a diffusers folder or 'hub:ORG/NAME'",
    ),
    "half a character": (
        '  - latent: vae\nlicence: "\\ud800"\n',
        "r.yaml:3: '\\ud800' holds half a character. Write the character itself",
    ),
    "a tag of YAML's own": (
        "  - distill: {use: flow, bf16: !!bool maybe}\n",
        "r.yaml:2: the tag '!!bool' is not supported. Remove the tag",
    ),
    "a tag that says what is": (
        "  - distill: {use: flow, lr: !!float 1}\n",
        "r.yaml:2: the tag '!!float' is not supported. Remove the tag",
    ),
    "a bad name": (
        "  - latent: vae\nname: a/b\n",
        "r.yaml:3: 'a/b' can't name a folder. Use letters, digits, '_', '-' and '.'",
    ),
    "a model that is not there": (
        "  - latent: vae\nmodel: {from: runs/none}\n",
        "r.yaml:3: there is no folder 'runs/none'. Give a bundle, a run, a diffusers folder or 'hub:ORG/NAME'",
    ),
}


@pytest.mark.parametrize(("text", "message"), CASES.values(), ids=CASES)
def test_one_mistake_is_one_message(text: str, message: str, load_text: Load) -> None:
    """The whole text that the user sees."""
    whole = text if text.startswith("step:") else f"steps:\n{text}"
    with pytest.raises(UserError) as caught:
        load_text(whole)
    shown = str(caught.value).splitlines()
    assert "\n".join(line for line in shown if "needs 'steps'" not in line) == message


def test_all_mistakes_come_at_once_in_the_order_of_lines(load_text: Load) -> None:
    """None hides another, none is told twice, and a reference to a broken step is no mistake of its own."""
    with pytest.raises(UserError) as caught:
        load_text(
            "nam: x\n"
            "model: {use: ditt}\n"
            "data: {use: clips, path: a, frames: 0, size: [1, b], rate: 3}\n"
            "steps:\n"
            "  - distil: {use: flow}\n"
            "  - prune:\n"
            "      use: trilevel\n"
            "      levels: {block: {remove: -1}, head: {remov: 2}}\n"
            "      search: {use: learned, groups: x, objective: {use: flow, lr: y}}\n"
            "    input: flow\n"
            "  - distill: {use: flow, lr: 1, lr: 2}\n"
            "  - export: {use: phone, nothing: 1}\n"
        )
    told = [(where, what.split(",")[0]) for where, what, _ in caught.value.problems]
    lines = [int(where.removeprefix("r.yaml:")) for where, _ in told]
    assert lines == sorted(lines)
    assert sorted(told) == sorted(
        [
            ("r.yaml:1", "unknown key 'nam' in the recipe"),
            ("r.yaml:2", "unknown model plugin 'ditt'"),
            ("r.yaml:3", "unknown key 'rate' in data 'clips'"),
            ("r.yaml:3", "expected a number of at least 1 for 'frames' of data 'clips'"),
            ("r.yaml:3", "expected a whole number for 'size.1' of data 'clips'"),
            ("r.yaml:5", "unknown kind of step 'distil'"),
            ("r.yaml:8", "expected a number of at least 0 for 'remove' of granularity 'block'"),
            ("r.yaml:8", "unknown key 'remov' in granularity 'head'"),
            ("r.yaml:9", "expected a number for 'lr' of distill 'flow'"),
            ("r.yaml:9", "expected a whole number for 'groups' of search 'learned'"),
            ("r.yaml:10", "'input' names the step 'flow'"),
            ("r.yaml:11", "duplicate key 'lr'"),
            ("r.yaml:12", "the plugin 'phone' needs no_such_module"),
            ("r.yaml:12", "unknown key 'nothing' in export 'phone'"),
        ]
    )


def _bomb() -> str:
    lines = ["a0: &a0 [1, 1]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.yaml: the file is empty. Write at least 'steps:'"),
        ("# nothing\n", "r.yaml: the file is empty. Write at least 'steps:'"),
        ("- a\n", "r.yaml:1: expected 'key: value' lines at the top. Begin with 'name:' and 'steps:'"),
        (
            "steps:\n\t- a\n",
            "r.yaml:2: not YAML: found character '\\t' that cannot start any token "
            "(while scanning for the next token). Indent with spaces",
        ),
        ("a: [1\nb: 2\n", "r.yaml:2: not YAML"),
        ("a: *b\n", "r.yaml:1: not YAML: found undefined alias 'b'"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2: not YAML: but found another document"),
        ("a: \x07\n", "r.yaml: not text"),
        (_bomb(), "r.yaml: aliases expand to more than 100000 values. Write the values out"),
        ("a: &a [*a]\n", "r.yaml:1: an alias contains itself. Write the values out"),
        ("a: " + "[" * 5000, "r.yaml: nested too deeply"),
        ("a: " + "9" * 5000, "r.yaml:1: can't read '9999"),
        ("a: " + "9" * 1_000_001, "r.yaml: larger than 1000000 bytes"),
    ],
)
def test_a_file_that_is_no_recipe(text: str, message: str, load_text: Load) -> None:
    """Said at once, without a traceback and without filling the memory."""
    with pytest.raises(UserError) as caught:
        load_text(text)
    assert str(caught.value).startswith(message)


def test_a_file_that_can_not_be_read(registry: Registry, tmp_path: Path) -> None:
    """Missing, a folder, not UTF-8."""
    with pytest.raises(UserError, match="there is no such file"):
        load(tmp_path / "none.yaml", registry)
    with pytest.raises(UserError, match="this is a folder"):
        load(tmp_path, registry)
    (tmp_path / "r.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(UserError, match=r"not UTF-8 text \(byte 6\)"):
        load(tmp_path / "r.yaml", registry)


def test_a_part_from_a_command_line(registry: Registry) -> None:
    """The message says where the words came from."""
    with pytest.raises(UserError, match=r"^--search: unknown search plugin 'magnitud'. Did you mean 'magnitude'"):
        make_part("search", "magnitud", registry, "--search")

"""What a good recipe becomes: parts, defaults, names, inputs; and that its resolved form loads as the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_compress.recipe import dump, load, make_part
from dit_compress.recipe.document import dump as dump_data
from dit_compress.recipe.document import parse
from dit_compress.recipe.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from dit_compress.plugin.registry import Registry
    from dit_compress.recipe.model import Recipe

WHOLE = """\
name: mobile
seed: 3
model: {use: dit, preset: 2b, heads: [4, 4]}
data: {use: clips, path: clips/, frames: 121, size: [576, 1024]}
text: words
sampler: {use: euler}
trackers: [jsonl]
steps:
  - latent: {use: vae, losses: {kl: 1e-4}}
  - distill: {use: flow, steps: 100_000, lr: 5e-5}
    name: server
  - prune:
      use: trilevel
      levels: {block: {remove: 8}, head: }
      search: {use: learned, objective: {use: affine, alpha: 1e-1}}
  - distill: {use: affine}
  - evaluate: psnr
  - distill: affine
  - export: files
  - evaluate: psnr
    input: server
"""


def test_every_default_is_filled_in(load_text: Callable[[str], Recipe]) -> None:
    """Names, inputs, teachers, and the options of parts within parts."""
    recipe = load_text(WHOLE)
    assert [(step.kind, step.name, dict(step.inputs), step.line) for step in recipe.steps] == [
        ("latent", "vae", {"input": "base"}, 9),
        ("distill", "server", {"input": "vae"}, 10),
        ("prune", "trilevel", {"input": "server"}, 12),
        ("distill", "affine", {"input": "trilevel", "teacher": "server"}, 16),
        ("evaluate", "psnr", {"input": "affine"}, 17),
        ("distill", "affine-2", {"input": "affine", "teacher": "server"}, 18),
        ("export", "files", {"input": "affine-2"}, 19),
        ("evaluate", "psnr-2", {"input": "server"}, 20),
    ]
    prune: Any = recipe.steps[2].part.options
    assert (prune.levels["block"].options.remove, prune.levels["head"].options.remove) == (8, None)
    assert prune.search.options.objective.options.alpha == pytest.approx(0.1)
    server: Any = recipe.steps[1].part.options
    assert (server.steps, server.lr) == (100_000, 5e-5)
    assert (recipe.name, recipe.seed, recipe.video, recipe.path) == ("mobile", 3, (121, 576, 1024), "r.yaml")
    assert set(recipe.shared) == {"model", "data", "text", "sampler"}
    assert [tracker.name for tracker in recipe.trackers] == ["jsonl"]


def test_a_teacher_that_would_do_nothing_is_no_default(load_text: Callable[[str], Recipe]) -> None:
    recipe = load_text(WHOLE.replace("  - distill: {use: affine}\n", "  - distill: {use: affine, alpha: 0}\n"))
    assert [dict(step.inputs) for step in recipe.steps if step.part.name == "affine"] == [
        {"input": "trilevel"},
        {"input": "affine", "teacher": "server"},
    ]


def test_a_slot_takes_its_part_from_the_fields_default(load_text: Callable[[str], Recipe]) -> None:
    """``search`` defaults to a plugin's name, which becomes a part."""
    recipe = load_text("model: dit\nsteps:\n  - prune: {use: trilevel, budget: {params: 1e6}}\n")
    options: Any = recipe.steps[0].part.options
    assert (options.search.name, options.budget.params) == ("magnitude", 1_000_000)


def test_the_resolved_recipe_is_the_same_recipe(load_text: Callable[[str], Recipe]) -> None:
    """Every default is written out, and nothing is lost."""
    recipe = load_text(WHOLE)
    assert load_text(dump(recipe)) == recipe
    assert recipe.as_data()["steps"][3]["distill"]["sampling_steps"] == 4


def test_from_a_bundle(load_text: Callable[[str], Recipe], tmp_path: Path) -> None:
    """``model: {from: PATH}`` is what the first step reads, and stays a path."""
    (tmp_path / "server").mkdir()
    recipe = load_text("model: {from: server}\nsteps:\n  - evaluate: psnr\n  - distill: flow\n")
    assert (recipe.model, recipe.source) == (None, "./server")
    assert [dict(step.inputs) for step in recipe.steps] == [{"input": "./server"}, {"input": "./server"}]
    assert load_text(dump(recipe)) == recipe


def test_from_a_diffusers_folder(load_text: Callable[[str], Recipe], tmp_path: Path) -> None:
    """A folder that is no bundle goes to the plugin for diffusers."""
    (tmp_path / "wan").mkdir()
    (tmp_path / "wan" / "model_index.json").write_text("{}")
    recipe = load_text("model: {from: wan}\nsteps: [{evaluate: psnr}]\n")
    assert recipe.model is not None
    assert recipe.model.as_data() == {"use": "diffusers", "path": "wan"}
    assert recipe.steps[0].inputs == {"input": "base"}


def test_an_input_may_be_a_path(load_text: Callable[[str], Recipe], tmp_path: Path) -> None:
    """With a separator, or an existing folder that no step is named after."""
    (tmp_path / "runs" / "a").mkdir(parents=True)
    recipe = load_text("steps:\n  - evaluate: psnr\n    input: runs\n  - evaluate: psnr\n    input: runs/a\n")
    assert [step.inputs["input"] for step in recipe.steps] == ["./runs", "runs/a"]


def test_a_recipe_is_named_after_its_file(load_text: Callable[[str], Recipe]) -> None:
    """Where it says no name."""
    assert load_text("steps: [{latent: vae}]").name == "r"


def test_scalars_are_read_as_people_mean_them() -> None:
    """Numbers of every notation; words that YAML 1.1 would turn into something else stay words."""
    text = "a: 1e-4\nb: 100_000\nc: no\nd: 010\ne: 2025-01-01\nf: 8:32:32\n"
    text += "g: ~\nh: '5'\ni: -.5\nj: True\nk: 5E+3\nl: x\n"
    assert parse(text, "x").data == {
        "a": 1e-4,
        "b": 100_000,
        "c": "no",
        "d": 10,
        "e": "2025-01-01",
        "f": "8:32:32",
        "g": None,
        "h": "5",
        "i": -0.5,
        "j": True,
        "k": 5000.0,
        "l": "x",
    }


KEY = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
LOOKALIKES = ["1e-4", "no", "010", "1_000", "null", "", " ", "a: b", "#", "- x", ".5", "1.", "~", "true", "<<"]
DATA = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(LOOKALIKES)
    | st.text(st.characters(exclude_categories=["C", "Z"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY, inner, max_size=3),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(KEY, DATA, min_size=1, max_size=4))
def test_what_is_dumped_is_read_back(data: dict[str, Any]) -> None:
    """Text that looks like a number stays text; numbers keep their value."""
    document = parse(dump_data(data), "x")
    assert document.data == data or "${" in str(data)
    assert not document.errors or "${" in str(data)


TRAIN = st.fixed_dictionaries(
    {"use": st.just("affine")},
    optional={
        "steps": st.integers(1, 10**9),
        "lr": st.floats(1e-12, 1e3),
        "bf16": st.booleans(),
        "alpha": st.floats(0, 1),
    },
)
PRUNE = st.fixed_dictionaries(
    {
        "use": st.just("trilevel"),
        "levels": st.dictionaries(
            st.sampled_from(["block", "head"]),
            st.none() | st.fixed_dictionaries({}, optional={"remove": st.none() | st.integers(0, 99)}),
        ),
    },
    optional={"search": st.just("magnitude") | st.fixed_dictionaries({"use": st.just("learned"), "objective": TRAIN})},
)
STEP = st.one_of(
    st.fixed_dictionaries({"distill": TRAIN}),
    st.fixed_dictionaries({"prune": PRUNE}),
    st.sampled_from([{"evaluate": "psnr"}, {"export": "files"}, {"latent": "vae"}]),
)


@settings(deadline=None)
@given(st.lists(STEP, min_size=1, max_size=6), st.sampled_from([{}, {"model": "dit"}]), st.integers(0, 2**64 - 1))
def test_resolving_twice_changes_nothing(
    registry: Registry, steps: list[Any], model: dict[str, Any], seed: int
) -> None:
    """The resolved form of any recipe loads as that recipe."""
    recipe = resolve(parse(dump_data({"seed": seed, **model, "steps": steps}), "x.yaml"), registry)
    again = resolve(parse(dump(recipe), "y.yaml"), registry)
    assert again == recipe
    assert again.as_data() == recipe.as_data()


def test_a_part_outside_a_recipe(registry: Registry) -> None:
    """As a command line or a lineage record would have it."""
    assert make_part("distill", {"use": "flow", "steps": 5}, registry).as_data()["steps"] == 5


RECIPES = Path(__file__).parents[2] / "recipes"
OURS = sorted(path for path in RECIPES.glob("**/*.yaml") if path.parent.name != "models")  # need their folders: test_try


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_our_own_recipes_load(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the installed plugins; and their resolved form loads as the same."""
    from dit_compress.plugin.registry import Registry

    monkeypatch.setattr(Registry, "require", staticmethod(lambda _plugin: None))
    registry = Registry.discover()
    recipe = load(path, registry)
    assert resolve(parse(dump(recipe), "y.yaml"), registry) == recipe


def test_checking_imports_no_torch() -> None:
    """``check`` answers at once because of it."""
    code = "import sys; from dit_compress.plugin.registry import use; import dit_compress.recipe.schema; use(); "
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

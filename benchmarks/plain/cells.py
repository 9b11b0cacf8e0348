"""What is tried with one module, and what came of it: exact, refused with a reason, silently wrong, crashed."""

from __future__ import annotations

import copy
import re
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from reference import Before
from safetensors.torch import load_file, save_file
from torch import nn

import dit_compress
from dit_compress.core.errors import UserError
from dit_compress.structure.record import Call, tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from catalogue import Entry
    from reference import Cuts

EXACT = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest difference, relative to the reference's largest value."""
CELLS = ("blocks", "heads", "ffn", "budget", "reload", "again", "lora", "onnx")
RANK = 2
NEAREST = re.compile(r"nearest that can be met is ([\d,]+)")
REASONLESS = re.compile(r"finds nothing to remove in this model\. |names no stack; there are none")
"""Refusals that do not say why."""


@dataclass
class Cell:
    """One result. kind: exact, refused (with a reason), silent (wrong without a word), crashed."""

    name: str
    kind: str
    text: str = ""


class WrongError(Exception):
    """Nothing was said, and it is not what it should be."""


def tried(name: str, what: Callable[[], None]) -> Cell:
    """Do it, and see what comes of it."""
    try:
        what()
    except WrongError as error:
        return Cell(name, "silent", str(error))
    except UserError as error:
        text = " ".join(str(error).split())
        return Cell(name, "crashed" if REASONLESS.search(text) else "refused", text)
    except Exception as error:  # noqa: BLE001 - a traceback of any kind is a result
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        return Cell(name, "crashed", f"{type(error).__name__}: {error} ({place})")
    return Cell(name, "exact")


class Trial:
    """One module of the catalogue."""

    def __init__(self, name: str, entry: Entry, place: Path) -> None:
        self.name, self.entry, self.place = name, entry, place
        self.call = Call(entry.arguments(), {}, recorded=True)

    def cells(self, wanted: Sequence[str]) -> Iterator[Cell]:
        """Every cell that is wanted, one after the other."""
        if "blocks" in wanted:
            for stack in self.entry.stacks:
                yield tried(f"blocks of {stack}", lambda: self._alone(remove={f"block.{stack}": 1}))  # noqa: B023
        if "heads" in wanted:
            yield tried("heads", lambda: self._alone(remove={"head": 1}))
        if "ffn" in wanted:
            yield tried("ffn", lambda: self._alone(keep={"ffn": 0.5}))
        if "budget" in wanted:
            yield tried("budget", self._budget)
        after: dict[str, Callable[[Pruned], None]] = {
            "reload": self._save, "again": self._again, "lora": self._lora, "onnx": self._onnx,
        }  # fmt: skip
        if not set(after) & set(wanted):
            return
        made: list[Pruned] = []
        first = tried("", lambda: made.append(self._most()))
        for name in [name for name in after if name in wanted]:
            yield tried(name, lambda: after[name](made[0])) if made else Cell(name, first.kind, first.text)  # noqa: B023

    # -------------------------------------------------------------- pruning

    def _pruned(self, module: nn.Module, **asked: Any) -> Pruned:
        """Prune in place and compare; a module that is refused must stay as it was."""
        before = Before(module, self.entry.stacks)
        try:
            dit_compress.prune(module, call=self.call, **asked)
        except UserError:
            if before.size == size(module) and error_of(self.call.replay(module), self.call.replay(before.whole)):
                raise WrongError("refused, and the module is another one") from None
            raise
        cuts = before.cuts(module)
        error = error_of(self.call.replay(module), before.output(cuts, self.entry))
        if not error <= EXACT[self.entry.dtype]:
            raise WrongError(f"{error:.0e} off")
        if size(module) >= before.size:
            raise WrongError("nothing became smaller")
        return Pruned(module, before, cuts)

    def _alone(self, **asked: Any) -> None:
        self._pruned(self.entry.module(), **asked)

    def _budget(self) -> None:
        """Four fifths; a refusal names the nearest budget that can be met, which is then met."""
        module = self.entry.module()
        budget = 0.8 * size(module)
        try:
            self._pruned(module, params=budget)
        except UserError as error:
            if (nearest := NEAREST.search(str(error))) is None:
                raise
            budget = int(nearest[1].replace(",", ""))
            self._pruned(module, params=budget)
        if size(module) > budget:
            raise WrongError(f"{size(module)} parameters at a budget of {budget:.0f}")

    def _most(self) -> Pruned:
        """All that can go at once: channels, heads, a block of the longest stack. UserError where nothing can."""
        module, refused = self.entry.module(), None
        before = Before(module, self.entry.stacks)
        for asked in ({"keep": {"ffn": 0.75}}, {"remove": {"head": 1}}, {"remove": {"block": 1}}):
            try:
                dit_compress.prune(module, call=self.call, **asked)
            except UserError as error:
                refused = error
        if size(module) == before.size:
            assert refused is not None
            raise refused
        return Pruned(module, before, before.cuts(module))

    # -------------------------------------------------------------- what is done with it then

    def _save(self, pruned: Pruned) -> None:
        """Written here; read by ``fresh.py``."""
        dit_compress.save(pruned.module, self.place / self.name)
        torch.save(tensors_in(self.call.replay(pruned.module))[0], self.place / f"{self.name}.pt")
        if not (self.place / self.name / "pruning.json").is_file():
            raise WrongError("no record was written")

    def _again(self, pruned: Pruned) -> None:
        """Prune what can go once more."""
        module, left = copy.deepcopy(pruned.module), None
        for asked in ({"keep": {"ffn": 0.75}}, {"remove": {"head": 1}}, {"remove": {"block": 1}}):
            try:
                left = self._pruned(module, **asked)
            except UserError as error:
                refused = error
        if left is None:
            raise refused

    def _lora(self, pruned: Pruned) -> None:
        """``whole + LoRA`` with the cuts equals ``pruned + the LoRA that followed``."""
        from dit_compress.structure.edits import edits_from_data
        from dit_compress.structure.files.lora import prune_lora
        from dit_compress.structure.files.pruned import base_of, log_of

        whole, scale = pruned.before.whole, 1.0
        lora = random_lora(whole)
        if not lora:
            raise UserError("no linear layer that a LoRA could be for", mend="None")
        file, small = self.place / f"{self.name}-lora.safetensors", self.place / f"{self.name}-small.safetensors"
        save_file(lora, file)
        edits = [edit for entry in log_of(pruned.module) for edit in edits_from_data(entry["data"]["edits"])]
        prune_lora(file, small, edits, base_of(pruned.module))
        wanted = pruned.before.output(pruned.cuts, self.entry, merged(whole, lora, scale))
        module = copy.deepcopy(pruned.module)
        with torch.no_grad():
            for name, value in merged(module, load_file(small), scale).items():
                module.get_parameter(name).add_(value)
        error = error_of(self.call.replay(module), wanted)
        if not error <= EXACT[self.entry.dtype]:
            raise WrongError(f"{error:.0e} off")

    def _onnx(self, pruned: Pruned) -> None:
        """In single precision; the file itself is proven by the export."""
        call = self.call.map(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)
        module = copy.deepcopy(pruned.module).float()
        dit_compress.export(module, call=call, target="onnx", out=self.place / f"{self.name}-onnx")


@dataclass
class Pruned:
    """A pruned module, and what it was."""

    module: nn.Module
    before: Before
    cuts: Cuts


def size(module: nn.Module) -> int:
    """Values of all parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def error_of(found: Any, wanted: Any) -> float:
    """Largest difference relative to the reference's largest value; infinite where they do not compare."""
    left, right = tensors_in(found), tensors_in(wanted)
    if len(left) != len(right) or not left or any(a.shape != b.shape for a, b in zip(left, right, strict=False)):
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(left, right, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs)


def random_lora(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a LoRA for every linear layer, as peft writes it."""
    torch.manual_seed(2)
    found = {}
    for path, part in module.named_modules():
        if type(part) is nn.Linear:
            for letter, shape in (("A", (RANK, part.in_features)), ("B", (part.out_features, RANK))):
                value = torch.randn(shape, dtype=torch.float64) / 5
                found[f"base_model.model.{path}.lora_{letter}.weight"] = value.to(part.weight.dtype)
    return found


def merged(module: nn.Module, lora: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """``scale·B·A`` by weight, by hand."""
    prefix, found = "base_model.model.", {}
    for name, down in lora.items():
        if ".lora_A." in name:
            path = name.removeprefix(prefix).partition(".lora_A.")[0]
            assert isinstance(module.get_submodule(path), nn.Linear)
            found[f"{path}.weight"] = scale * lora[name.replace("lora_A", "lora_B")] @ down
    return found

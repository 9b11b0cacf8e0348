"""Parts of a document, checked against the installed plugins. Collects every error before it raises one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dit_compress.core.errors import UserError
from dit_compress.plugin.options import Part, slots_of
from dit_compress.recipe.document import Document
from dit_compress.recipe.messages import findings, show

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dit_compress.plugin.options import Options, Plugin, Slot
    from dit_compress.plugin.registry import Registry
    from dit_compress.recipe.document import Place


class Checker:
    """Walks a document. A method returns None where it has noted an error, so that one mistake is reported once."""

    def __init__(self, document: Document, registry: Registry) -> None:
        self.document = document
        self.registry = registry
        self._errors = list(document.errors.values())

    def fault(self, place: Place, what: str, mend: str = "") -> None:
        """Note an error at a place of the document, unless its value was refused already."""
        if place in self.document.errors:
            return
        self._errors.append(UserError(what, where=self.document.where(place), mend=mend))

    def finish(self) -> None:
        """Raise everything noted, in the order of lines."""
        if self._errors:
            raise UserError.join(sorted(self._errors, key=_line_of))

    # -- parts

    def part(self, kind: str, value: Any, place: Place) -> Part | None:
        """Read a part: ``{use: NAME, ...options}``, or the name alone."""
        if not isinstance(value, str | dict):
            self.fault(place, f"expected a {kind} plugin, got {show(value)}", f"Write {self._example(kind)}")
            return None
        name = value if isinstance(value, str) else value.get("use")
        if not isinstance(name, str):
            self.fault(place, f"this {kind} names no plugin", f"Write {self._example(kind)}")
            return None
        named = (*place, "use") if isinstance(value, dict) else place
        given = {key: item for key, item in value.items() if key != "use"} if isinstance(value, dict) else {}
        return self._named(kind, name, given, place, named)

    def parts(self, kind: str, value: Any, place: Place) -> dict[str, Part] | None:
        """Return several parts of a kind, by plugin name: ``{block: {remove: 8}, head: {remove: 12}}``.

        What stands behind a dot says where the part is for (``block.double_blocks``); whoever asks for it knows.
        """
        if not isinstance(value, dict):
            names = ", ".join(entry.plugin.name for entry in self.registry.entries(kind))
            self.fault(
                place,
                f"expected {kind} plugins with their options, got {show(value)}",
                f"Write 'NAME: {{...}}' with any of: {names}",
            )
            return None
        found: dict[str, Part | None] = {}
        for name, given in value.items():
            if given is not None and not isinstance(given, dict):
                self.fault(
                    (*place, name),
                    f"expected the options of {kind} {name!r}, got {show(given)}",
                    f"Write '{name}: {{...}}'",
                )
                found[name] = None
            else:
                word = name.partition(".")[0] if isinstance(name, str) else name
                found[name] = self._named(kind, word, given or {}, (*place, name), (*place, name))
        made = {name: part for name, part in found.items() if part is not None}
        return made if len(made) == len(found) else None

    def plugin(self, kind: str, value: Any) -> Plugin | None:
        """Return the plugin that a part's value names, if there is one; note no error."""
        name = value.get("use") if isinstance(value, dict) else value
        try:
            return self.registry.get(kind, name) if isinstance(name, str) else None
        except UserError:
            return None

    def _example(self, kind: str) -> str:
        names = [entry.plugin.name for entry in self.registry.entries(kind)]
        return f"'use: NAME' with one of: {', '.join(names) or 'none installed'}"

    def _named(self, kind: str, name: str, given: dict[str, Any], place: Place, named: Place) -> Part | None:
        try:
            plugin = self.registry.get(kind, name)
        except UserError as error:
            self._note(error, named)
            return None
        try:
            self.registry.require(plugin)
        except UserError as error:
            self._note(error, named)
        options = self._options(kind, plugin, given, place)
        return None if options is None else Part(kind, plugin, options, self.document.where(place))

    def _options(self, kind: str, plugin: Plugin, given: dict[str, Any], place: Place) -> Options | None:
        whose = f"{kind} {plugin.name!r}"
        values, failed = self._with_parts(plugin.options, given, place)
        try:
            options = plugin.options.model_validate(values)
        except UserError as error:
            self._note(error, place)
            return None
        except ValidationError as error:
            for finding in findings(error, given, plugin.options, whose):
                if finding.place[:1] not in failed:
                    mend = self._mend_of_misplaced(kind, plugin, finding.place) or finding.mend
                    self.fault((*place, *finding.place), finding.what, mend)
            return None
        wrong = _booleans_as_numbers(given, options)
        for key in wrong:
            self.fault(
                (*place, key), f"expected a number for {key!r} of {whose}, got {show(given[key])}", "Write it in digits"
            )
        return None if failed or wrong else options

    def _with_parts(
        self, options: type[Options], given: Mapping[str, Any], place: Place
    ) -> tuple[dict[str, Any], set[Place]]:
        """Make parts where the options have slots; return the values with them, and the keys whose parts are in error.

        A part in error stays as it was written: pydantic then refuses the field, and validators of the whole
        model, which would complain of a consequence, do not run.
        """
        values = dict(given)
        failed: set[Place] = set()
        for name, slot in slots_of(options).items():
            field = options.model_fields[name]
            key = field.alias or name
            value = given.get(key, field.default)
            if value is not None and (key in given or (isinstance(value, str | dict) and value)):
                made = self._slot(slot, value, (*place, key))
                values[key] = value if made is None else made
                if made is None:
                    failed.add((key,))
        return values, failed

    def _slot(self, slot: Slot, value: Any, place: Place) -> Part | dict[str, Part] | None:
        return self.parts(slot.kind, value, place) if slot.many else self.part(slot.kind, value, place)

    def _mend_of_misplaced(self, kind: str, plugin: Plugin, place: Place) -> str | None:
        """Return the mend where a key of the step stands among the options of its plugin."""
        of_step = {"name", "input", *plugin.slots} - set(plugin.options.model_fields)
        if kind in self.registry.step_kinds and len(place) == 1 and place[0] in of_step:
            return f"It belongs to the step: write it beside '{kind}:', not inside"
        return None

    def _note(self, error: UserError, place: Place) -> None:
        for where, what, mend in error.problems:
            self.fault(place, f"{where}: {what}" if where else what, mend)


def make_part(kind: str, value: Any, registry: Registry, where: str = "") -> Part:
    """Make a part outside a recipe (from a command line, from lineage); messages give ``where`` as its origin."""
    checker = Checker(Document(where, {}, {}), registry)
    part = checker.part(kind, value, ())
    checker.finish()
    if part is None:
        raise AssertionError("a part in error was not noted")
    return part


def _line_of(error: UserError) -> int:
    line = error.problems[0][0].rpartition(":")[2]
    return int(line) if line.isdigit() else 0


def _booleans_as_numbers(given: Mapping[str, Any], options: Options) -> list[str]:
    """Return keys where pydantic took ``true`` for 1."""
    fields = {field.alias or name: name for name, field in type(options).model_fields.items()}
    values = dict(options)
    return [
        key
        for key, value in given.items()
        if isinstance(value, bool) and type(values.get(fields.get(key, key))) in (int, float)
    ]

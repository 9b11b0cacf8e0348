"""Finding plugins: the entry points of installed distributions, and local files. Imports no torch.

A plugin that can't be used is data (:class:`Broken`): it is listed with its reason and its mend, it is an
error only where a recipe names it; all others keep working.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from dit_compress.core.errors import UserError
from dit_compress.plugin.kinds import (
    NOTED,
    PART_KINDS,
    PROJECT,
    RESERVED,
    STEP_KINDS,
    KindHooks,
    PartHooks,
    StepHooks,
)
from dit_compress.plugin.options import Options, Plugin
from dit_compress.plugin.sources import LOCAL, Source, entry_points, importable, local_file, source_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import ModuleType


@dataclass(frozen=True)
class Broken:
    """A plugin that can't be used. name: of its entry point, or ``<kind>_<name>`` once that is known."""

    name: str
    distribution: str
    reason: str
    mend: str

    def __str__(self) -> str:
        """Return its name; of a file that the user gave also why."""
        return f"{self.name}: {self.reason}" if self.distribution == LOCAL else self.name


@dataclass(frozen=True)
class Entry:
    """A plugin, with where it comes from."""

    kind: str
    plugin: Plugin
    distribution: str
    version: str
    module: ModuleType = field(repr=False)

    def source_digest(self) -> str:
        """Return the sha256 over the .py files of the plugin's package (or its one file), names included."""
        return source_digest(self.module)


class Registry:
    """The plugins of a process, and the broken ones: a typed face of pluggy."""

    def __init__(self) -> None:
        self.broken: list[Broken] = []
        self.step_kinds: tuple[str, ...] = STEP_KINDS
        self.part_kinds: tuple[str, ...] = PART_KINDS
        self._entries: dict[tuple[str, str], Entry] = {}
        self._manager = pluggy.PluginManager(PROJECT)
        for hooks in (KindHooks, StepHooks, PartHooks):
            self._manager.add_hookspecs(hooks)

    @classmethod
    def discover(cls, extra_files: Iterable[str | Path] = ()) -> Registry:
        """Find the plugins of every installed distribution, and of some files."""
        registry = cls()
        registry.add([*entry_points(), *(local_file(Path(path)) for path in extra_files)])
        return registry

    def add(self, sources: Iterable[Source]) -> None:
        """Import, then let new kinds in, then ask each module for its plugins; each on its own."""
        loaded = [(source, module) for source in sources if (module := self._load(source)) is not None]
        for source, module in loaded:
            self._add_kinds(source, module)
        for source, module in loaded:
            self._add_plugins(source, module)

    # -- what there is

    def entries(self, kind: str | None = None) -> list[Entry]:
        """Return every plugin (of one kind), by kind and name."""
        return [self._entries[key] for key in sorted(self._entries) if kind in (None, key[0])]

    def entry(self, kind: str, name: str) -> Entry:
        """Return one plugin with its origin; raise a UserError where no plugin has that name, or it is broken."""
        if (kind, name) in self._entries:
            return self._entries[kind, name]
        for broken in self.broken:
            if broken.name == f"{kind}_{name}":
                raise UserError(
                    f"the {kind} plugin {name!r} ({broken.distribution}) is broken: {broken.reason}", mend=broken.mend
                )
        known = [entry.plugin.name for entry in self.entries(kind)]
        listing = f"Known: {', '.join(known)}" if known else "None is installed"
        if guess := closest(name, known):
            listing = f"Did you mean {guess!r}? {listing}"
        if self.broken:
            listing += f" (and broken: {', '.join(map(str, self.broken))})"
        raise UserError(f"unknown {kind} plugin {name!r}", mend=listing)

    def get(self, kind: str, name: str) -> Plugin:
        """Return one plugin; raise a UserError where no plugin has that name, or it is broken."""
        return self.entry(kind, name).plugin

    def source_digest(self, kind: str, name: str) -> str:
        """Return the sha256 of a plugin's sources, for lineage."""
        return self.entry(kind, name).source_digest()

    @staticmethod
    def require(plugin: Plugin) -> None:
        """Raise a UserError with the pip line where something the plugin needs is not installed."""
        missing = [name for name in plugin.requires if not importable(name)]
        if missing:
            wanted = f"dit-compress[{plugin.extra}]" if plugin.extra else " ".join(missing)
            raise UserError(
                f"the plugin {plugin.name!r} needs {', '.join(missing)}, not installed here",
                mend=f'Run: pip install "{wanted}"',
            )

    # -- taking plugins in

    def _load(self, source: Source) -> ModuleType | None:
        try:
            module = source.load()
            vars(module).update(vars(module).get(NOTED, {}))
            if self._manager.is_registered(module):
                raise ImportError(f"{module.__name__} is the module of another entry point")
            self._manager.register(module, name=f"{source.distribution}:{source.name}")
        except pluggy.PluginValidationError as error:
            self._manager.unregister(name=f"{source.distribution}:{source.name}")
            self._break(source, _line(error), "Give the hook no arguments")
        except ModuleNotFoundError as error:
            self._break(source, _line(error), f"Install {error.name!r}, or uninstall {source.distribution!r}")
        # A plugin's module may fail in any way, sys.exit included, and must not stop the others.
        except (Exception, SystemExit) as error:
            self._break(source, f"{type(error).__name__}: {_line(error)}", f"Mend or uninstall {source.distribution!r}")
        else:
            if self._manager.get_hookcallers(module):
                return module
            self._break(source, "it implements no hook", "Mark a function named after its kind with @hookimpl")
        return None

    def _add_kinds(self, source: Source, module: ModuleType) -> None:
        for hook in ("step_kinds", "part_kinds"):
            for function in _functions(self._manager, module, hook):
                try:
                    specs = function()
                    self._manager.add_hookspecs(specs)
                # As in _load: a plugin's code.
                except Exception as error:
                    self._break(source, f"its {hook} fail: {_line(error)}", "Return a class of new, marked hookspecs")
                else:
                    kinds = [name for name in vars(specs) if not name.startswith("_")]
                    setattr(self, hook, (*getattr(self, hook), *kinds))

    def _add_plugins(self, source: Source, module: ModuleType) -> None:
        kinds = {*self.step_kinds, *self.part_kinds}
        for caller in self._manager.get_hookcallers(module) or []:
            if caller.name in kinds:
                for function in _functions(self._manager, module, caller.name):
                    self._add_plugin(source, module, caller.name, function)
            elif caller.spec is None:
                guess = closest(caller.name, kinds)
                mend = f"Did you mean {guess!r}?" if guess else f"The kinds are {', '.join(sorted(kinds))}"
                self._break(source, f"there is no hook {caller.name!r}", mend)

    def _add_plugin(self, source: Source, module: ModuleType, kind: str, function: Callable[[], Any]) -> None:
        try:
            plugin = function()
        # As in _load: a plugin's code.
        except Exception as error:
            self._break(
                source,
                f"its hook {kind!r} fails with {type(error).__name__}: {_line(error)}",
                f"Mend or uninstall {source.distribution!r}",
            )
            return
        if fault := _fault(plugin):
            self._break(source, f"its hook {kind!r} {fault}", "See dit_compress.plugin.options.Plugin")
        elif plugin.name in RESERVED.get(kind, ()):
            self._break(source, f"no {kind} plugin may be named {plugin.name!r}: the engine uses it", "Rename it")
        elif (kind, plugin.name) in self._entries:
            other = self._entries[kind, plugin.name]
            self._break(
                source,
                f"{source.distribution!r} and {other.distribution!r} both bring a {kind} plugin "
                f"{plugin.name!r}; the one of {other.distribution!r} is used",
                "Uninstall or rename one",
            )
        else:
            self._entries[kind, plugin.name] = Entry(kind, plugin, source.distribution, source.version, module)

    def _break(self, source: Source, reason: str, mend: str) -> None:
        self.broken.append(Broken(source.name, source.distribution, reason, mend))


_CURRENT: list[Registry] = []


def use(extra_files: Iterable[str | Path] = ()) -> Registry:
    """Discover plugins, and make them those of this process (:func:`installed`)."""
    _CURRENT[:] = [Registry.discover(extra_files)]
    return _CURRENT[0]


def installed() -> Registry:
    """Return the registry of this process."""
    return _CURRENT[0] if _CURRENT else use()


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that was probably meant, if any."""
    found = get_close_matches(word.lower(), sorted(known), n=1, cutoff=0.6)
    return found[0] if found else None


def _functions(manager: pluggy.PluginManager, module: ModuleType, hook: str) -> list[Callable[[], Any]]:
    """Return the module's implementations of one hook."""
    caller = getattr(manager.hook, hook)
    return [found.function for found in caller.get_hookimpls() if found.plugin is module]


def _fault(plugin: Any) -> str | None:
    """Describe what is wrong with the value that a hook returned."""
    if not isinstance(plugin, Plugin):
        return f"returns {type(plugin).__name__}, not a Plugin"
    if not re.fullmatch(r"\w[\w-]*", plugin.name):
        return f"names its plugin {plugin.name!r}: use letters, digits and _"
    if not (isinstance(plugin.options, type) and issubclass(plugin.options, Options)):
        return "has options that are no subclass of Options"
    if "use" in plugin.options.model_fields:
        return "has an option 'use', the word by which recipes name plugins"
    if not re.fullmatch(r"[\w.]+:\w+", plugin.load):
        return f"has load={plugin.load!r}, not 'package.module:Class'"
    return None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__

"""Components as a device asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from dit_compress.core.errors import UserError
from dit_compress.export.rewrite import would_change
from dit_compress.export.tracing import asking, trace

if TYPE_CHECKING:
    from dit_compress.export.types import Component, Profile, Rewrites

_FITTED: WeakKeyDictionary[Component, dict[Rewrites, Component]] = WeakKeyDictionary()


def fitted(component: Component, profile: Profile) -> Component:
    """The component with the rewrites that the profile asks for, made once; itself where nothing would change.

    An untraceable component is given back: ``check`` says what is wrong with it.
    """
    asked = profile.rewrites
    if component.rewrites == asked:
        return component
    known = _FITTED.setdefault(component, {})
    if asked not in known:
        try:
            needed = would_change(trace(component), asked)
        except UserError:
            return component
        if not needed:
            return component
        known[asked] = asking(component, asked)
    return known[asked]

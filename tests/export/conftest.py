"""The networks that ``plan`` shows to exporters are made and traced once for all tests of a file.

And coremltools is imported as its plugin does it, before a test asks whether it is there: without three seconds of
libraries for converters that nobody uses.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from dit_compress_plugins.export_coreml.convert import without_unasked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dit_compress.export.component import Component
    from dit_compress.model.spec import Spec

with suppress(ImportError), without_unasked():
    import coremltools  # noqa: F401 - for all that import it after this


@pytest.fixture(scope="module", autouse=True)
def traced_once() -> Iterator[None]:
    """Equal specs get the same components; a text encoder and a VAE come with any denoiser."""
    from dit_compress.export import check_early
    from dit_compress.export.components import DIT_STEP

    made: dict[Any, Component] = {}
    components_early = check_early.components_early

    def remembered(spec: Spec, *, short: bool = False) -> list[Component]:
        found = components_early(spec, short=short)
        known = {each.name: (spec.text, spec.latent, each.name == DIT_STEP and spec.denoiser) for each in found}
        keys = [
            (name, spec.video, short and name == DIT_STEP, *((part.loader(), repr(part)) for part in parts if part))
            for name, parts in known.items()
        ]
        return [made.setdefault(key, each) for key, each in zip(keys, found, strict=True)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check_early, "components_early", remembered)
        yield

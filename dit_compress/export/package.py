"""Components in, a proven folder out.

- ``manifest.json``: what an app needs to know; its schema is versioned (docs/phone-package.md).
- ``<component>.<kind>``: as the exporter wrote it.
- ``golden/<component>.safetensors``: inputs and the source's outputs, as ``<set>/inputs/<name>``.
- ``golden/sample.safetensors``, ``tokenizer/``, ``CHECKLIST.md``: see ``phone.py``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from dit_compress.core.errors import UserError
from dit_compress.core.files import sealed, sha256_data, sha256_file, whole_folder, write_json
from dit_compress.core.version import SCHEMA, __version__
from dit_compress.export.folder import UNVERIFIED, need_schema, summarise
from dit_compress.export.headroom import headroom, shown
from dit_compress.export.inputs import input_sets, reference_outputs
from dit_compress.export.proof import Golden, prove, write_golden
from dit_compress.export.types import Diagnostic

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch

    from dit_compress.export.component import Component
    from dit_compress.export.contract import Exporter
    from dit_compress.export.proof import Row
    from dit_compress.export.types import Artifact, Profile, Runner


def export_components(
    exporter: Exporter,
    components: Sequence[Component],
    profile: Profile,
    folder: Path,
    about: Mapping[str, Any] | None = None,
    more: Callable[[Path], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Check, lower, reload, execute, compare, write. The folder appears whole or not at all.

    Args:
        exporter: the plugin's object.
        components: in load order.
        profile: the target.
        folder: where the package goes; an existing one is replaced.
        about: what the manifest says of the sampling: sigmas, latent statistics, ratio, fps, licence …
            (see :func:`describe_video`), and the exporter's name and options.
        more: writes further files into the folder and gives further entries of the manifest.

    Returns:
        Report: ``passed``, ``fidelity``, ``rows`` of the proof, ``warnings``, ``headroom`` and ``seconds`` by
        component, ``bytes``. The manifest holds the same without times.

    Raises:
        UserError: the check found errors, a file is refused, or the manifest would not follow its schema. Nothing is
            written then.
    """
    warnings = check_components(exporter, components, profile)
    components = [component.fitted(profile) for component in components]
    entries: list[dict[str, Any]] = []
    rows: list[Row] = []
    seconds: dict[str, float] = {}
    with whole_folder(folder) as partial:
        (partial / "golden").mkdir()
        for component in components:
            golden, room = golden_of(component, profile)
            write_golden(partial / "golden" / f"{component.name}.safetensors", golden)
            started = time.perf_counter()
            artifacts = exporter.lower(component, profile, partial)
            seconds[component.name] = round(time.perf_counter() - started, 3)
            for artifact in artifacts:
                runner = exporter.runner(artifact)
                proof = prove(artifact, runner, golden) if runner.fidelity != "none" else []
                entries.append({**_entry(artifact, runner, proof, golden, partial), "headroom": room})
                rows += proof
        manifest = _manifest(entries, profile, {**(about or {}), **(more(partial) if more else {})})
        manifest["files"] = _other_files(partial, entries)
        need_schema(manifest, "manifest.json", "Report it to the authors of the exporter or text encoder")
        write_json(partial / "manifest.json", sealed(manifest))
    return {
        "passed": manifest["passed"],
        "fidelity": manifest["fidelity"],
        "rows": [row.as_data() for row in rows],
        "warnings": [_sentence(warning) for warning in warnings],
        "headroom": {entry["component"]: entry["headroom"] for entry in entries},
        "seconds": seconds,
        "bytes": sum(entry["bytes"] for entry in entries),
    }


def check_components(exporter: Exporter, components: Sequence[Component], profile: Profile) -> list[Diagnostic]:
    """Return the exporter's warnings on the components as the profile asks for them; raise its errors together."""
    errors, warnings = [], []
    for component in (component.fitted(profile) for component in components):
        message = "it is left out: the module does not use it"
        warnings += [Diagnostic("", f"input {name}", "warning", message, "") for name in component.left_out]
        for found in exporter.check(component, profile):
            if found.severity == "warning":
                warnings.append(found)
                continue
            operator = f"{found.operator}: " if found.operator else ""
            where = f"component {component.name}, {found.path}"
            errors.append(UserError(f"{operator}{found.message}", where=where, mend=found.mend))
    if errors:
        raise UserError.join(errors)
    return warnings


def golden_of(component: Component, profile: Profile) -> tuple[dict[str, Golden], list[dict[str, Any]]]:
    """Run the source on every input set; return inputs, outputs, and the operators nearest to the end of float16."""
    chosen = input_sets(component, profile.input_sets)
    golden = {
        name: Golden(_arrays(inputs), _arrays(reference_outputs(component, inputs))) for name, inputs in chosen.items()
    }
    return golden, shown(headroom(component, chosen))


def describe_video(
    *,
    sigmas: Sequence[float],
    ratio: Sequence[int],
    video: Sequence[int],
    fps: float,
    frame_rule: tuple[int, int] | None = None,
    latent_mean: Sequence[float] | None = None,
    latent_std: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Describe what an app must know to sample, as the manifest holds it.

    Args:
        sigmas: of the steps, with the final 0.
        ratio: pixels per latent cell along time, height, width.
        video: frames, height, width in pixels.
        fps: frames per second.
        frame_rule: (lead, step) of the codec: a video has ``lead + step·k`` frames; (1, ratio[0]) where it states none.
        latent_mean: per channel, of the raw latent; the decoder takes normalised latents.
        latent_std: likewise.
    """
    lead, step = frame_rule or (1, ratio[0])
    return {
        "prediction": "velocity = noise - x0; x += (next - now) * velocity",
        "sigmas": [float(sigma) for sigma in sigmas],
        "guidance": 1.0,
        "ratio": list(ratio),
        "frame_rule": {"lead": lead, "step": step},
        "video": {"frames": video[0], "height": video[1], "width": video[2], "fps": fps, "range": [-1, 1],
                  "layout": "batch, colour, frame, row, column"},
        "latent": {"mean": latent_mean, "std": latent_std, "decoder_takes": "normalised"},
    }  # fmt: skip


def _manifest(entries: list[dict[str, Any]], profile: Profile, about: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "written_by": f"dit-compress {__version__}",
        **summarise(entries),
        "profile": profile.as_data(),
        "load_order": [entry["component"] for entry in entries],
        "artifacts": entries,
        **about,
    }


def _entry(
    artifact: Artifact, runner: Runner, rows: Sequence[Row], golden: Mapping[str, Golden], folder: Path
) -> dict[str, Any]:
    """Describe one artifact, as the manifest holds it."""
    files = artifact_files(artifact.path, folder)
    return {
        "component": artifact.component,
        "kind": artifact.kind,
        "precision": artifact.precision,
        "weight_bits": artifact.weight_bits,
        "path": artifact.path.relative_to(folder).as_posix(),
        "bytes": sum(file["bytes"] for file in files),
        "sha256": sha256_data(files),
        "files": files,
        "inputs": signature(next(iter(golden.values())).inputs),
        "outputs": signature(next(iter(golden.values())).outputs),
        "fidelity": runner.fidelity,
        **({} if rows else {"stamp": UNVERIFIED}),
        "proof": [row.as_data() for row in rows],
        "golden": f"golden/{artifact.component}.safetensors",
        "details": dict(artifact.details),
    }


def artifact_files(path: Path, folder: Path) -> list[dict[str, Any]]:
    """List path, size and sha256 of every file of an artifact (external data lies beside it, under its stem)."""
    return records(sorted(path.rglob("*")) if path.is_dir() else sorted(path.parent.glob(f"{path.name}*")), folder)


def records(paths: Sequence[Path], folder: Path) -> list[dict[str, Any]]:
    """List path, size and sha256 of files."""
    return [
        {"path": item.relative_to(folder).as_posix(), "bytes": item.stat().st_size, "sha256": sha256_file(item)}
        for item in paths
        if item.is_file()
    ]


def _other_files(folder: Path, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """List the files of the package that belong to no artifact: golden tensors, tokenizer, checklist."""
    known = {file["path"] for entry in entries for file in entry["files"]}
    return [file for file in records(sorted(folder.rglob("*")), folder) if file["path"] not in known]


def signature(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Describe inputs or outputs: names, shapes and dtypes."""
    return [{"name": name, "shape": list(each.shape), "dtype": str(each.dtype)} for name, each in arrays.items()]


def _arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(value.detach().cpu().numpy()) for name, value in tensors.items()}


def _sentence(found: Diagnostic) -> str:
    return ". ".join(part for part in (f"{found.path}: {found.operator} {found.message}".strip(), found.mend) if part)

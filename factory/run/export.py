"""What a run leaves under the output folder: datasets, vectors, and the assets of the agent SAM.

File formats: docs/format.md and docs/sam.md. This module reads finished styles from the store.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from factory.config import OutputSettings
from factory.errors import DatasetError, StoreError
from factory.files import read_written, write_atomically
from factory.pairs.dataset import dataset_path, extend_dataset
from factory.pairs.styles import Style
from factory.run.page import Page
from factory.run.progress import progress_of
from factory.vector.quality import Quality
from factory.vector.recommendation import Recommendation

INTERMEDIATE = "intermediate"  # folder under the output folder for the differences of single pairs

if TYPE_CHECKING:  # 'svf enqueue' imports this module's neighbours on machines without torch
    from factory.vector.vector import SteeringVector


def vector_path(output: Path, style: str) -> Path:
    """Where a style's ``.pt`` lies under the output folder."""
    return output / "steering_vectors" / f"{style}.pt"


def run_path(vector: Path) -> Path:
    """Where the facts of a vector's run lie that differ from run to run, and so are not in the vector."""
    return vector.with_name(f"{vector.stem}_run.json")


def _about_run(page: Page) -> Mapping[str, object]:
    progress = progress_of(page)
    return {
        "seconds_of_reading": round(sum(entry.seconds or 0.0 for entry in page.all_extracted()), 3),
        "run": page.ledger.run_id,
        "peak_memory_mib": progress.peak_memory_mib,
        "spent_usd": progress.spent_usd,
        "failed": progress.reasons,
    }


def sam_template(style: Style, vector: SteeringVector) -> Mapping[str, object]:
    """What SAM's prompt steerer reads about a style, with what is known of its vector."""
    known, best, quality = vector.metadata, Recommendation.read(vector.metadata), Quality.read(vector.metadata)
    return {
        "style_name": style.name,
        "description": style.description,
        "system_instruction": style.instruction(),
        "reasoning_pattern": style.reasoning_pattern,
        "strength_modulation": style.strength_modulation.model_dump(),
        "example_phrases": list(style.example_phrases),
        "cognitive_markers": list(style.cognitive_markers),
        "metadata": {
            "model_name": vector.model_name,
            "layers": vector.layer_indices,
            "pairs_used": known.get("pairs_used"),
            "split_half_cosine": quality.split_half_cosine if quality else None,
            "recommended_strength": best.strength if best else None,
            "recommended_layers": list(best.layers) if best and best.layers else None,
            "recommended_positions": best.positions if best else None,
            "recommended_key_strength": best.key_strength if best else None,
            "effectiveness_score": known.get("effect"),
            "effectiveness_interval": known.get("interval"),
            "verdict": known.get("verdict"),
            "factory_version": known.get("factory_version"),
        },
    }


def export_style(page: Page, output: Path, settings: OutputSettings) -> Path:
    """Write a finished style's dataset, vector files and SAM assets; returns the ``.pt``'s path.

    Raises:
        StoreError: the store no longer holds what the ledger says.
    """
    from factory.vector.vector import SteeringVector

    style = page.style
    content, dataset = page.store.read(page.vector_key), page.store.read(page.dataset_key)
    if content is None or dataset is None:
        raise StoreError(f"style {style.name!r} is done, but its vector or dataset is gone from the store; resume it")
    vector = SteeringVector.from_bytes(content, source=f"{style.name}.pt")
    path = vector_path(output, style.name)
    if page.style_run.from_teacher:
        replaces = page.style_run.replaces_dataset
        write_dataset_file(dataset_path(output, style.name), dataset.decode(), made_anew=replaces)
    write_companions(page, output)
    write_vector(vector, path)
    write_atomically(run_path(path), json.dumps(_about_run(page), indent=2) + "\n")
    if settings.copy_to_sam_assets:
        write_sam_assets(style, vector, output / settings.sam_assets_dir)
    if page.ledger.spec.keep_differences:
        write_differences(page, output / INTERMEDIATE / style.name)
    return path


def write_dataset_file(path: Path, made: str, *, made_anew: bool) -> None:
    """Write the dataset that a run extended, with every pair that the file had before.

    A run may use a part of a dataset (``--limit``), or an older state of it. ``made_anew``: the run was
    asked to write all pairs again; a copy of the old file then stays beside the new one.
    """
    known = read_written(path, "dataset", DatasetError) if path.is_file() else ""
    if known and made_anew and known != made:
        write_atomically(_free_backup(path), path.read_bytes())
        known = ""
    write_atomically(path, extend_dataset(known, made) if known else made)


def _free_backup(path: Path) -> Path:
    """A name beside a dataset that no earlier copy of it has: ``_before``, ``_before-2``, ..."""
    names = (f"{path.stem}_before{number}.jsonl" for number in chain([""], (f"-{n}" for n in count(2))))
    return next(file for file in map(path.with_name, names) if not file.exists())


def write_differences(page: Page, folder: Path) -> None:
    """Copy each batch's differences out of the store, as they were averaged: one safetensors file per batch.

    Raises:
        StoreError: a batch is gone from the store, or damaged.
    """
    for batch in page.batches:
        entry = page.extracted(batch.number)
        if entry is None or entry.key is None:
            continue  # the batch was given up: there is nothing of it
        content = page.store.read_sealed(entry.key)
        if content is None:
            lost = page.store.path(entry.key)
            raise StoreError(f"{lost} is gone: batch {batch.number} of style {page.name!r}; 'svf resume' makes it")
        write_atomically(folder / f"batch-{batch.number:05d}.safetensors", content)


def write_companions(page: Page, output: Path) -> None:
    """Write what the run knows of a dataset beside it: its manifest, and the pairs that were rejected."""
    dataset = dataset_path(output, page.name)
    manifest = page.store.read_json(page.manifest_key)
    if manifest is not None:
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        write_atomically(dataset.with_name(f"{page.name}_manifest.json"), text)
    rejected = page.store.read(page.rejected_key)
    if rejected is not None:
        write_atomically(dataset.with_name(f"{page.name}_rejected.jsonl"), rejected)


def write_vector(vector: SteeringVector, path: Path) -> None:
    """Write a vector's ``.pt`` and, beside it, its ``.safetensors``."""
    vector.save(path)
    vector.save(path.with_suffix(".safetensors"))


def renew_sam_assets(style: Style, before: SteeringVector, vector: SteeringVector, folder: Path) -> bool:
    """Write ``vector`` over the assets of ``before`` in ``folder``, if they are there; returns whether it did.

    Assets of another vector of the style are left alone.

    Raises:
        VectorError: what lies there is no vector.
    """
    from factory.vector.vector import SteeringVector

    files = [folder / f"{style.name}.pt", folder / f"{style.name}_template.json"]
    if not all(file.is_file() for file in files) or SteeringVector.load(files[0]) != before:
        return False
    write_sam_assets(style, vector, folder)
    return True


def write_sam_assets(style: Style, vector: SteeringVector, folder: Path) -> None:
    """Write a style's ``.pt`` and template into SAM's assets folder."""
    vector.save(folder / f"{style.name}.pt")
    template = json.dumps(sam_template(style, vector), indent=2, ensure_ascii=False)
    write_atomically(folder / f"{style.name}_template.json", template + "\n")

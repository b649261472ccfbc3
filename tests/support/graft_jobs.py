"""Recipes of graft jobs on small models, and what a job has left in its folder."""

from __future__ import annotations

from pathlib import Path

from models import contents


def recipe(folder: Path, models: Path, text: str = "", targets: str = "derivative") -> Path:
    """A recipe for the models, with more keys."""
    listed = ", ".join(str(models / name) for name in targets.split())
    path = folder / "recipe.yaml"
    keys = {"ranks": "[4]"}
    keys |= {key: value for key, _, value in (line.partition(": ") for line in text.splitlines())}
    lines = [f"{key}: {value}\n" for key, value in keys.items()]
    path.write_text(
        f"base: {models / 'base'}\nextended: {models / 'extended'}\ntargets: [{listed}]\n"
        + "".join(lines)
    )
    return path


def runs(out: Path) -> dict[str, int]:
    """When each stage was noted as finished."""
    return {p.stem: p.stat().st_mtime_ns for p in (out / ".regraft-graft").glob("*@*.json")}


def folders(out: Path) -> dict[str, bytes]:
    """Every file of a job, with its own folder's name taken out."""
    return {
        name: data.replace(str(out).encode(), b"OUT")
        for name, data in contents(out).items()
        if not name.endswith("/lock") and ".regraft-files" not in name
    }

"""What the shell offers after a Tab: names of models and run folders."""

from pathlib import Path


def complete_model(incomplete: str) -> list[str]:
    """Architectures that begin so; once one is whole, its tags."""
    from convnext_cli.models.catalog import list_tags, load_catalog

    names = list(load_catalog())
    architecture, dot, _ = incomplete.partition(".")
    if dot and architecture in names:
        names = [f"{architecture}.{tag.name}" for tag in list_tags(load_catalog()[architecture])]
    return [name for name in names if name.startswith(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """Runs that begin so, under runs/ and in the folder that is being typed; then folders to go on with."""
    from convnext_cli.runs.folder import RUNS, RunFolder

    typed = Path(incomplete)
    parent = typed if incomplete.endswith("/") else typed.parent
    try:
        found = {*(RUNS.iterdir() if RUNS.is_dir() else ()), *(parent.iterdir() if parent.is_dir() else ())}
        folders = sorted(path for path in found if path.is_dir() and not path.name.startswith("."))
        runs = [str(path) for path in folders if RunFolder(path).is_run]
    except OSError:
        return []
    return [name for name in (*runs, *(f"{path}/" for path in folders)) if name.startswith(incomplete)]

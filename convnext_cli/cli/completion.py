"""Shell completion of model names and run folders."""

from pathlib import Path


def complete_model(incomplete: str) -> list[str]:
    """Return the architectures that begin with a text; after a full name and a dot, its tags."""
    from convnext_cli.models.catalog import list_tags, load_catalog

    names = list(load_catalog())
    architecture, dot, _ = incomplete.partition(".")
    if dot and architecture in names:
        names = [f"{architecture}.{tag.name}" for tag in list_tags(load_catalog()[architecture])]
    return [name for name in names if name.startswith(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """Return the runs that begin with a text, under runs/ and in the folder typed so far; then its folders."""
    from convnext_cli.runs.folder import RUNS, RunFolder

    typed = Path(incomplete)
    parent = typed if incomplete.endswith("/") else typed.parent
    try:
        paths = {*(RUNS.iterdir() if RUNS.is_dir() else ()), *(parent.iterdir() if parent.is_dir() else ())}
        folders = sorted(path for path in paths if path.is_dir() and not path.name.startswith("."))
        runs = [str(path) for path in folders if RunFolder(path).is_run]
    except OSError:
        return []
    return [name for name in (*runs, *(f"{path}/" for path in folders)) if name.startswith(incomplete)]

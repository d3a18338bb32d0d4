"""`convnext`, `python -m convnext_cli` and `torchrun -m convnext_cli` enter here."""

import os
import sys

from convnext_cli import check_system


def main() -> None:
    """Run the command line; Ctrl-C ends it in one line while its modules are imported too, and while it exits."""
    try:
        check_system()
    except ImportError as error:
        sys.exit(f"error: {error}")
    try:
        _use_utf8()
        from convnext_cli.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted. Saved files are intact\n")
        sys.exit(130)


def _use_utf8() -> None:
    """Start Python again in UTF-8 mode if its locale has another encoding, in which names of files are other names."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"  # of child processes too
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  (this very command)


if __name__ == "__main__":
    main()

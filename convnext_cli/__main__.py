"""`convnext`, `python -m convnext_cli` and `torchrun -m convnext_cli` enter here."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C ends it in one line while its modules are imported too, and while it exits."""
    try:
        from convnext_cli.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted. Saved files are intact\n")
        sys.exit(130)


if __name__ == "__main__":
    main()

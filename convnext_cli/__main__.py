"""`python -m convnext_cli` and `torchrun -m convnext_cli` enter here."""

from convnext_cli.cli.app import main

if __name__ == "__main__":
    main()

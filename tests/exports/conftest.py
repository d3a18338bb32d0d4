from tests.cli.conftest import convnext

__all__ = ["convnext"]

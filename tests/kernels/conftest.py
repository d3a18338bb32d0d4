import pytest

from convnext_cli.kernels.library import NoKernelError, load_kernels


@pytest.fixture(scope="session")
def kernels() -> None:
    """Only where our kernels can be compiled."""
    try:
        load_kernels()
    except NoKernelError as error:
        pytest.skip(f"the kernels cannot be compiled here: {error}")

from collections.abc import Callable
from typing import NamedTuple

import pytest

from convnext_cli.cli.app import main


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Convnext = Callable[..., Outcome]


@pytest.fixture
def convnext(capsys: pytest.CaptureFixture[str]) -> Convnext:
    """Runs the command line in this process."""

    def call(*words: object) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Outcome(caught.value.code or 0, out, err)  # type: ignore[arg-type]

    return call

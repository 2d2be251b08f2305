"""A command that must stop with one line."""

from pathlib import Path

import pytest


def refused(capsys, command, *arguments: str | Path) -> str:
    """The one line that a command prints before it stops with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        command.main(list(map(str, arguments)))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    return error

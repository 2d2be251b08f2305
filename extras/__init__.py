"""Ctrl-C ends a command with one line also while PyTorch is still being imported."""

import sys


def one_line(kind, error, traceback) -> None:
    if kind is KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = one_line

"""Notes for the user: in Python warnings at the line that called the package, on the command line lines of its own."""

import os
import sys
import warnings

_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")


class Note(UserWarning):
    """A warning of the package. No filter makes an error of it on the command line."""


def warn(message: str) -> None:
    """Warns, at the line of the nearest caller outside of the package."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, Note, stacklevel=level)

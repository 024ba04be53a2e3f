"""What a user is told; in a module of its own, so that the front door need not import torch to say that a path is wrong."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave is wrong; the message names the file, line or field and what would be right.

    The command line prints it as one line and exits with 2. Everything else that escapes is a bug of ours.
    """


class StorageError(InputError):
    """A disk is full, or cannot be written; nothing has changed."""

"""The command `pynode`."""

from pynode.cli.main import main as main

__all__ = ["main"]

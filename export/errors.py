"""The errors of an export and of its verification."""

from paddle_recomp.errors import RecompError


class ExportError(RecompError, RuntimeError):
    """A graph that could not be converted, or a bundle that could not be written."""


class VerificationError(ExportError):
    """A bundle that does not compute what its checkpoint does."""

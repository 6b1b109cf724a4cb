"""The error that a sweep's user sees."""

from hydra.errors import CompactHydraException


class SweepError(CompactHydraException):
    """Say what is wrong with a sweep, before anything starts. Hydra prints it without a traceback."""

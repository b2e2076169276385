"""The errors of tuning."""


class TuneError(RuntimeError):
    """A plan cannot be made; says why, and what to do."""

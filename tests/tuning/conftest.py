"""Every test begins and ends without compiled code, state, settings, plug-ins or remembered warnings."""

from fresh import clean  # noqa: F401 - an autouse fixture

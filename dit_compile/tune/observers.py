"""Cached runs of the whole model under a fit, with one part for each of its modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..plans import Cut
from ..runtime.observer import ObservedCall
from ..runtime.weights import Owner
from .errors import TuneError
from .fitting import Fit, FittingRun
from .recording import Recording, check_cut


class FittingObserver:
    """Observes one draw: ``fits`` and ``references`` (recordings of the same prompt) are by the digest of a module's
    weights."""

    def __init__(self, cut: Cut, fits: Mapping[str, Fit], references: Sequence[Recording], prompt: int) -> None:
        self.cut = cut
        self._fits, self._prompt = fits, prompt
        self._references = {one.found.weights: one for one in references}
        self._runs: dict[Owner, FittingRun] = {}
        self._keys: dict[Owner, str] = {}

    def call(self, observed: ObservedCall) -> Any:
        check_cut(observed.code, self.cut)
        run = self._runs.get(observed.owner)
        if run is None:
            key = observed.weights()
            if key not in self._references:
                raise TuneError(
                    "the weights of the model have changed since its generations were recorded: tune it anew"
                )
            run = FittingRun(self._fits[key], self._prompt, self._references[key], observed.facts.config)
            self._runs[observed.owner], self._keys[observed.owner] = run, key
        return run.call(observed.facts, observed.forward)

    def differences(self) -> dict[str, dict[int, float]]:
        """What the guards have measured at forecast steps, by module."""
        return {self._keys[owner]: run.differences for owner, run in self._runs.items()}

"""The work of ``dit_compile.tune``, step by step."""

from __future__ import annotations

import datetime
import logging
import math
import time
from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Any

import torch

from ..api import graphs
from ..config import CacheConfig
from ..plans import Cut, Part, Plan, UpdateRule
from ..progress import Bars
from ..version import VERSION
from .contest import BEST_DB, Contest, at_equal_cost, verdict
from .drawing import Artist, Drawn, Prompt
from .errors import TuneError
from .fitting import Fit
from .pictures import data_range, psnr
from .planning import Module, candidates, modules_of
from .recording import Recorder, Recording
from .walk import Walked, walk

log = logging.getLogger("dit_compile")

FEWEST = 2  # prompts of a fit
MOST_TRIED = 5  # prompts that schedules compete on

Schedule = list[tuple[int, ...]]  # the computed steps of each module


class Tuner:
    """``fit_prompts`` are recorded and fitted, ``held_out`` judge. Graphs are cut at ``cut``; forecasts weigh up to
    ``snapshots`` snapshots. ``names`` are the classes of the modules."""

    def __init__(
        self,
        artist: Artist,
        fit_prompts: Sequence[Prompt],
        held_out: Sequence[Prompt],
        *,
        cut: Cut,
        snapshots: int,
        names: Sequence[str],
        config: CacheConfig,
        bars: Bars,
    ) -> None:
        self._artist, self._prompts, self._held_out = artist, list(fit_prompts), list(held_out)
        self._cut, self._snapshots, self._names, self._config = cut, snapshots, names, config
        self._bars = bars
        self._recordings: list[Recording] = []
        self._drawn: list[Drawn] = []  # with every step computed
        self._began = time.perf_counter()
        self.modules: list[Module] = []
        self._rules: list[UpdateRule | None] = []

    # --- recording

    def record(self) -> None:
        """Draws the prompts of the fit with every step computed. An interruption (Ctrl-C) ends it: the plan is made of
        what has been recorded, if two prompts have."""
        with self._bars.phase("draw, every step computed", len(self._prompts)) as advance:
            try:
                for prompt in self._prompts:
                    self._record(prompt)
                    if len(self._recordings) == 2 and _count(self._recordings[0]) < _count(self._recordings[1]):
                        # the first call was one without compilation, which nobody has seen
                        del self._recordings[0], self._drawn[0]
                        self._record(self._prompts[0])
                        self._recordings.reverse()
                        self._drawn.reverse()
                    advance()
            except KeyboardInterrupt:
                if len(self._recordings) < FEWEST:
                    raise
                log.warning(
                    "dit_cache: interrupted; the plan is made of the %d prompts that have been recorded. Press Ctrl-C "
                    "again to stop", len(self._recordings),
                )  # fmt: skip
                self._prompts = self._prompts[: len(self._recordings)]
        self.modules, self._rules = modules_of(self._recordings, self._cut, self._names)
        if not all(module.in_sequence for module in self.modules):
            log.warning(
                "dit_cache: the solver's updates cannot be read off the latents that the model gets (it adds noise, or "
                "guidance is not linear): weights are fitted to what the blocks add in uncached runs, which is less "
                "exact"
            )

    def _record(self, prompt: Prompt) -> None:
        recorder = Recorder(self._cut)
        drawn = self._artist.observed(prompt, recorder)
        if not recorder.recording.steps:
            refusal = next((report.refusal for report in reversed(graphs()) if report.refusal is not None), None)
            if refusal is not None:
                raise TuneError(f"the model is not cached, so there is nothing to plan: {refusal}")
            raise TuneError(
                "draw() has not called the model. Give tune the module that draw() calls, model=pipe.transformer, and "
                "call it under torch.no_grad(), as pipelines do"
            )
        self._recordings.append(recorder.recording)
        self._drawn.append(drawn)

    @property
    def steps(self) -> int:
        return sum(module.steps for module in self.modules)

    # --- planning

    def schedules(self, cost: float) -> list[Schedule]:
        """The best steps for at most ``cost`` full steps, in several senses.

        Raises:
            TuneError: nothing is as cheap.
        """
        found = candidates(self.modules, cost)
        if not found:
            least = self._least()
            raise TuneError(
                f"no plan costs {cost:.3g} of {self.steps} steps or less: the cheapest costs {least:.3g} (cost="
                f"{math.ceil(100 * least / self.steps) / 100})"
            )
        return found

    def fit(self, schedules: Sequence[Schedule], prompts: Sequence[int] | None = None) -> list[Part]:
        """The plan for the best of ``schedules`` (that whose cached runs end nearest to the uncached ones, on a few
        prompts), fitted on ``prompts`` (numbers; None: all)."""
        recordings = [self._recordings[i] for i in (range(len(self._prompts)) if prompts is None else prompts)]
        few = recordings[:: max(math.ceil(len(recordings) / MOST_TRIED), 1)]
        in_sequence = all(module.in_sequence for module in self.modules)
        if len(schedules) > 1 and in_sequence:
            with self._bars.phase("choose steps", len(schedules) * self.steps * len(few)) as advance:
                tried = [self._walk(schedule, few, advance)[1].score for schedule in schedules]
            schedules = [schedules[tried.index(max(tried))]]
        if not in_sequence:
            return [module.part(fit, {}) for module, fit in self._fits(schedules[0]).items()]
        with self._bars.phase("fit weights", self.steps * len(recordings)) as advance:
            fits, walked = self._walk(schedules[0], recordings, advance)
        return [module.part(fit, walked.differences[module.key]) for module, fit in fits.items()]

    def _fits(self, schedule: Schedule) -> dict[Module, Fit]:
        pairs = zip(self.modules, schedule, strict=True)
        return {module: module.fit(computed, self._snapshots) for module, computed in pairs}

    def _walk(
        self, schedule: Schedule, recordings: Sequence[Recording], advance: Callable[[], None]
    ) -> tuple[dict[Module, Fit], Walked]:
        fits = self._fits(schedule)
        by_key = {module.key: fit for module, fit in fits.items()}
        try:
            return fits, walk(recordings, by_key, self._rules, self._config, advance)
        except torch.OutOfMemoryError as error:
            raise TuneError(
                f"the snapshots of {len(recordings)} prompts do not fit into the memory of the device; give fewer "
                f"prompts, snapshots={max(self._snapshots - 1, 2)}, or snapshot_dtype='bfloat16'"
            ) from error

    # --- budgets

    def for_cost(self, share: float) -> list[Part]:
        """``share`` of the blocks."""
        return self.fit(self.schedules(share * self.steps))

    def for_seconds(self, seconds: float) -> list[Part]:
        """At most ``seconds`` for a draw, by the measured times of a draw with every step computed and of a cached one.

        Raises:
            TuneError: no plan is as fast.
        """
        with self._bars.phase("measure seconds", 6) as advance:
            full = self._seconds(advance, enabled=False)
            half = self.schedules(max(0.5 * self.steps, self._least()))[0]
            trial = Plan(tuple(module.part(fit, {}) for module, fit in self._fits(half).items()))
            cached = self._seconds(advance, plan=trial)
        per_step = (full - cached) / (self.steps - trial.cost)
        if seconds >= full:
            raise TuneError(f"a draw takes {full:.3g} s with every step computed: there is nothing to save")
        cost = self.steps - (full - seconds) / per_step if per_step > 0 else 0.0
        if cost < self._least():
            fastest = full - (self.steps - self._least()) * max(per_step, 0.0)
            raise TuneError(
                f"no plan draws in {seconds:g} s: with every step computed a draw takes {full:.3g} s, with the "
                f"cheapest plan about {fastest:.3g} s"
            )
        return self.fit(self.schedules(cost))

    def _seconds(self, advance: Any, **settings: Any) -> float:
        times = []
        for _ in range(3):  # the first may compile something
            times.append(self._artist.draw(self._prompts[0], **settings).seconds)
            advance()
        return median(times[1:])

    def for_psnr(self, wanted: float) -> list[Part]:
        """The cheapest plan whose pictures have ``wanted`` dB on average; see ``for_quality``."""
        full = data_range([drawn.pixels for drawn in self._drawn])

        def metric(reference: Drawn, drawn: Drawn) -> float:
            return min(psnr(reference.pixels, drawn.pixels, full), BEST_DB)

        return self._for(wanted, metric, f"{wanted:g} dB; lower psnr=")

    def for_quality(self, wanted: float, metric: Callable[[Any, Any], float]) -> list[Part]:
        """The cheapest plan for which ``metric(reference, picture)`` is ``wanted`` or more on average, found by
        bisection with cached runs: fitted on half of the prompts, judged by the others.

        Raises:
            TuneError: no plan that saves anything is as good.
        """

        def of_results(reference: Drawn, drawn: Drawn) -> float:
            return float(metric(reference.result, drawn.result))

        return self._for(wanted, of_results, f"a quality of {wanted:g}; lower quality=")

    def _for(self, wanted: float, metric: Callable[[Drawn, Drawn], float], what: str) -> list[Part]:
        count = len(self._prompts)
        fitted, judges = range(0, count, 2), range(1, count, 2)
        costs = self._costs()
        low, high = -1, len(costs)  # the answer is costs[high], or none
        while high - low > 1:
            middle = (low + high) // 2
            plan = Plan(tuple(self.fit(self.schedules(costs[middle])[:1], fitted)))
            found = []
            with self._bars.phase(f"judge {costs[middle]:.3g} steps", len(judges)) as advance:
                for number in judges:
                    drawn = self._artist.draw(self._prompts[number], plan=plan)
                    found.append(metric(self._drawn[number], drawn))
                    advance()
            if fmean(found) >= wanted:
                high = middle
            else:
                low = middle
        if high == len(costs):
            raise TuneError(f"no plan that saves anything reaches {what}, or compute every step")
        return self.fit(self.schedules(costs[high]))

    def _least(self) -> float:
        return self._costs()[0]

    def _costs(self) -> list[float]:
        """What plans may cost, in full steps, in rising order; the last one saves one step."""
        saved = max(1 - module.reused_cost for module in self.modules)
        counts = [min(module.schedules[0].steps) for module in self.modules]
        pairs = zip(self.modules, counts, strict=True)
        least = sum(count + (module.steps - count) * module.reused_cost for module, count in pairs)
        count = round((self.steps - least) / saved)
        return [least + i * saved for i in range(count)]

    # --- verification

    def verify(self, parts: Sequence[Part]) -> dict[str, Any]:
        """The figures of the plan on prompts held out, beside presets, fewer steps and reuse at its cost."""
        contest = Contest(self._artist, self._held_out, parts)
        plan = Plan(tuple(parts))
        with self._bars.phase("judge", contest.most_draws) as advance, self._artist.counted(advance):
            reference = contest.reference()
            mine = contest.plan(plan)
            reused = contest.reused(plan)
            others = [reused]
            presets = at_equal_cost(contest.presets(parts, plan.cost), plan.cost, "presets")
            if presets is not None:
                others.insert(0, presets)
            if self._artist.takes_steps and len(self.modules) == 1:
                others.append(contest.fewer_steps(max(round(plan.cost), 1)))
        recommended, note = verdict(mine, others)
        if presets is None:
            note += "; no preset is as cheap"
        return {
            "held_out": [[str(prompt.text), prompt.seed] for prompt in self._held_out],
            "uncached_seconds": reference.seconds,
            "plan": mine.as_dict(),
            "others": [one.as_dict() for one in others],
            "recommended": recommended,
            "note": note,
        }

    def made(self) -> dict[str, Any]:
        """When and with what the plan was made."""
        return {
            "dit_compile": VERSION,
            "torch": torch.__version__,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "prompts": [[str(prompt.text), prompt.seed] for prompt in self._prompts],
            "in_sequence": [module.in_sequence for module in self.modules],
            "seconds": round(time.perf_counter() - self._began, 3),
        }


def _count(recording: Recording) -> int:
    return sum(len(step.calls) or 1 for step in recording.steps)

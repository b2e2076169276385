"""What speed.py computes from its measurements, and how it bears a contestant that fails."""

import json
from pathlib import Path

import pytest
from _speed_course import Course
from _speed_page import save_plot, table_of
from _speed_sums import finished, nearest_threshold, start_row, step_mask, steps_row, with_ratios
from _speed_worker import Worker, WorkerFailed

TWO_STEPS = {"computed": [True, False], "peak_bytes": 100}
FAST = {**TWO_STEPS, "steps": [(2.0, 1.0), (0.5, 0.25)], "whole": (2.6, 1.3)}
SLOW = {**TWO_STEPS, "steps": [(4.0, 1.0), (1.5, 0.25)], "whole": (5.6, 1.3), "peak_bytes": 300}


def start(seconds: float) -> dict[str, float]:
    return {f"{part}_{clock}": seconds for part in ("first_call", "first_generation") for clock in ("wall", "cpu")}


def test_mask_is_that_of_four_computed_steps_and_two_reused_in_a_row():
    assert step_mask(12) == "111100100100"


def test_threshold_with_the_nearest_number_of_reused_steps():
    counts = {0.1: 2, 0.3: 4, 0.7: 9}  # at this threshold or above, so many

    def reused(threshold: float) -> int:
        return max((count for least, count in counts.items() if threshold >= least), default=0)

    assert reused(nearest_threshold(reused, 4)) == 4
    assert reused(nearest_threshold(reused, 5)) == 4  # cannot be had; 9 and 2 are further away
    assert reused(nearest_threshold(reused, 100)) == 9


def test_medians_and_ratios():
    row = steps_row([FAST, SLOW, SLOW])
    assert row["computed"]["wall"]["median"] == 4.0
    assert row["cached"]["cpu"] == {"count": 3, "median": 0.25, "quartiles": [0.25] * 3}
    assert (row["reused"], row["peak_bytes"]) == (1, 300)
    assert start_row([start(1.0), start(5.0), start(2.0)])["first_call_wall"] == 2.0

    rows = {
        "reference": {"cold": start(10.0), **steps_row([{**FAST, "computed": [True, True]}])},
        "other": {"cold": start(5.0), **row},
        "broken": {"error": "it failed"},
    }
    ratios = {name: one["ratios"] for name, one in with_ratios(rows, "reference").items()}
    assert ratios["other"]["cold"] == {"wall": 0.5, "cpu": 0.5}
    assert ratios["other"]["cached"]["wall"] == pytest.approx(1.5 / 1.25)  # to the reference's computed step
    assert ratios["other"]["peak_bytes"] == 3
    assert ratios["broken"] == {}
    assert [name for name, one in rows.items() if finished(one)] == ["reference", "other"]


def test_process_that_ends_is_reported_with_its_last_line(tmp_path: Path):
    worker = Worker({"no": "such argument"}, {}, tmp_path / "log", limit=60)
    with pytest.raises(WorkerFailed, match=r"ended with code 1: TypeError: .*serve"):
        worker.answer()
    worker.close()


class Answers:
    """Stands for a worker process: an answer at the start, then generations; the contestant "broken" fails."""

    def __init__(self, name: str, begins: list[tuple[str, bool]]) -> None:
        self.name, self.begins = name, begins

    def answer(self) -> dict[str, object]:
        return {"start": start(1.0), "version": None}

    def generate(self) -> dict[str, object]:
        if self.name == "broken":
            raise WorkerFailed("it failed")
        return FAST

    def close(self) -> None:
        pass


def test_contestant_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begins: list[tuple[str, bool]] = []

    def worker(course: Course, job: dict[str, object], *_: object) -> Answers:
        begins.append((str(job["name"]), bool(job["warm"])))
        return Answers(str(job["name"]), begins)

    monkeypatch.setattr(Course, "_worker", worker)
    rows, told, done = {}, [], []
    course = Course(
        "tiny", rows, tmp_path, told.append, done.append, lambda: None, device="cpu", starts=2, repeats=3, threads=1,
        limit=60,
    )  # fmt: skip
    course.run(["broken", "fine"], together=2)
    assert begins == [(name, warm) for name in ("broken", "fine") for warm in (False, False, True, True)]
    assert sum(done) == 2 * course.pieces()
    assert rows["broken"]["error"] == "it failed" and "it failed" in told[0]
    assert rows["fine"]["computed"]["wall"]["count"] == 3

    facts = {"title": "tiny", "steps": 2, "mask": "10", "threads": 1, "device": "cpu", "load_before": 0.1}
    found = {**facts, "contestants": with_ratios(json.loads(json.dumps(rows)), "fine")}
    assert table_of("tiny", found).row_count == 2
    save_plot({"tiny": found}, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 1000

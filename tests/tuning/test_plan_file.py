"""A plan file is read as it was written, or not at all."""

import json
from dataclasses import replace

import pytest

from dit_compile import Plan, PlanError
from dit_compile.plans import Conditions, Cut, Forecast, Part, Term, UpdateRule


def part(**changes):
    rule = UpdateRule((Term(0, None), Term(0, 0)), (1.0, -0.1), 1e-7)
    conditions = Conditions(
        structure="s", weights="w", dtype="float32", torch="2.13", shapes=((5, 16),),
        times=(1000.0, 750.0, 500.0, 250.0), branches=(2, 2, 2, 2), numbers=(0.5,), scalars=(2.0,), rules=(rule, None),
    )  # fmt: skip
    forecast = Forecast((0, 1), tuple((((-0.1, 1.1), (1 / 3, 2 / 3)),) for _ in range(2)))
    correction = Forecast((0, 1, 3), tuple((((0.1, -0.1, 1.0), (0.0, 0.0, 1.0)),) for _ in range(2)))
    whole = Part("Model", Cut(0, 0, "chain"), conditions, {2: forecast}, {3: correction}, {2: 0.25}, (6,), 6)
    return replace(whole, **changes)


def plan():
    return Plan((part(),), {"cost": 0.75}, {"recommended": True}, {"date": "2026-01-01"})


def test_what_is_read_is_what_was_written(tmp_path):
    path = plan().save(tmp_path / "some.plan.json")
    read = Plan.load(path)
    assert (read.parts, read.request, read.figures, read.made) == (
        plan().parts, plan().request, plan().figures, plan().made
    )  # fmt: skip
    assert read.digest() == plan().digest() == json.loads(path.read_text())["digest"]
    assert (read.source, str(read), read.problem) == (str(path), str(path), None)
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


def test_what_a_plan_says_of_itself():
    one = part()
    assert (one.computed, one.snapshots, one.cost) == ((0, 1, 3), 3, 3.0)
    assert (plan().cost, plan().steps) == (3.0, 4)


CHANGES = {
    "a weight": lambda data: data["parts"][0]["forecasts"]["2"]["weights"][0][0][0].__setitem__(0, -0.2),
    "a figure": lambda data: data["figures"].__setitem__("recommended", False),
    "the digest": lambda data: data.__setitem__("digest", "0" * 64),
    "no digest": lambda data: data.pop("digest"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_refused(tmp_path, change):
    path = plan().save(tmp_path / "plan.json")
    data = json.loads(path.read_text())
    CHANGES[change](data)
    path.write_text(json.dumps(data))
    with pytest.raises(PlanError, match="was changed after it was written"):
        Plan.load(path)
    unusable = Plan.read(path)
    assert unusable.parts == () and "was changed after it was written" in unusable.problem


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is not a plan file"), ("{}", "format 1"), ("[1]", "format 1"), ('{"format": 99}', "its format is 99")],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(PlanError, match=message):
        Plan.load(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(OSError):
        Plan.load(tmp_path / "none")
    assert "No such file" in Plan.read(tmp_path / "none").problem


CONTRADICTIONS = {
    "sources that are forecast": {
        2: Forecast((0, 1), part().forecasts[2].weights),
        1: Forecast((0,), ((((1.0,),),),) * 2),
    },
    "a source that is skipped": {2: Forecast((0,), ((((1.0,), (1.0,)),),) * 2)},
    "too few branches": {2: Forecast((0, 1), part().forecasts[2].weights[:1])},
    "too few weights": {2: Forecast((0, 1), ((((1.0,), (1.0,)),),) * 2)},
    "a weight that is not finite": {2: Forecast((0, 1), ((((float("nan"), 1.0), (0.0, 1.0)),),) * 2)},
    "a step that is not there": {4: part().forecasts[2]},
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions(name, tmp_path):
    with pytest.raises(ValueError):
        Plan((part(forecasts=CONTRADICTIONS[name]),)).save(tmp_path / "plan.json")

"""The runtime stays cheap and simple to follow: bounds on what one call of a model with one region may do."""

from host_calls import entries_and_calls

MOST_CALLS = 392  # functions, Python's and C's, those of the model and of Dynamo included
MOST_FILES = 3  # of runtime/ that are entered more than once in one call


def test_calls_and_files_of_one_step():
    found = entries_and_calls()
    assert set(found["calls"]) == {"eager", "compute", "reuse"}
    assert max(found["calls"].values()) < MOST_CALLS, found["calls"]
    for action, entered in found["entries"].items():
        often = [file for file, times in entered.items() if times > 1]
        assert len(often) <= MOST_FILES, f"{action}: {often}"
        assert "cached_graph.py" in entered

"""One call of a compiled model at run time: clock, side table, decisions, statistics."""

"""Graph dumps: what a person finds in the folder."""

import pytest
import torch
from toys import NoBlocks, Prompted, Toy, build, compile_toy, latents

T = torch.full((2,), 900.0)
FILES = {"0_before.py", "1_blocks.txt", "2_plan.txt", "3_after.txt", "pieces"}


@torch.no_grad()
def run(model, *extra, tokens=5):
    return model(latents(tokens=tokens), T, *extra)


@pytest.fixture(params=["option", "environment"])
def folder(request, tmp_path, monkeypatch):
    """A folder named in either way, and the options that go with it."""
    path = tmp_path / "deep" / "dump"
    if request.param == "environment":
        monkeypatch.setenv("DIT_CACHE_DUMP", str(path))
        return path, {}
    return path, {"dump": str(path)}


def test_files(folder):
    path, options = folder
    run(compile_toy(build(Prompted), **options), latents(tokens=3))
    [graph] = path.iterdir()
    assert graph.name.startswith("graph_")
    assert {file.name for file in graph.iterdir()} == FILES
    for file in [graph / "0_before.py", *graph.glob("pieces/*.py")]:  # 3_after.txt is meant for people
        compile(file.read_text(), str(file), "exec")
    before = (graph / "0_before.py").read_text()
    assert "class GraphModule" in before
    assert before.count("layer_norm") >= 6


def test_the_table_of_blocks(tmp_path):
    run(compile_toy(build(Toy), dump=str(tmp_path)))
    lines = next(tmp_path.rglob("1_blocks.txt")).read_text().splitlines()
    assert lines[0] == "chain of 6 blocks"
    assert [line.split()[0] for line in lines[1:]] == [f"blocks.{i}" for i in range(6)]
    assert all(line.split()[-1] == "Block" for line in lines[1:])
    assert len({line.split()[1] for line in lines[1:]}) == 1  # equal blocks have equally many nodes


def test_the_plan(tmp_path):
    run(compile_toy(build(Prompted), fn=2, bn=1, dump=str(tmp_path)), latents(tokens=3))
    plan = next(tmp_path.rglob("2_plan.txt")).read_text()
    assert "blocks.2 to blocks.4, F2 B1, skips 3 blocks" in plan
    probe, leaves = (next(line for line in plan.splitlines() if word in line) for word in ("probe", "leaves"))
    assert probe.count("(2, 5, 16) float32") == 2  # a difference of two values
    assert "+ residual" in leaves
    for role, name in [("moving", "l_x_"), ("timestep", "l_t_"), ("conditioning", "l_prompt_")]:
        assert any(line.split() == [role, name] for line in plan.splitlines()), plan


def test_the_top_level_graph_reads_as_the_algorithm(tmp_path):
    run(compile_toy(build(Toy), dump=str(tmp_path)))
    text = next(tmp_path.rglob("3_after.txt")).read_text()
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0].startswith("def forward(step, ")
    order = [next(i for i, line in enumerate(lines) if word in line) for word in (
        "guard(step, 0, entry=", "compute_or_forecast(decision_0, region_0", "= tail(", "return ",
    )]  # fmt: skip
    assert order == sorted(order)
    assert any("front(" in line for line in lines[: order[0]])
    assert "*weights[" in text


def test_pieces_are_written_once_for_all_blocks_alike(tmp_path):
    run(compile_toy(build(Toy), dump=str(tmp_path)))
    [graph] = tmp_path.iterdir()
    uses = [line for line in (graph / "3_after.txt").read_text().splitlines() if "compiled once" in line]
    names = {line.split(":")[0].removeprefix("# ") for line in uses}
    assert {file.stem for file in (graph / "pieces").iterdir()} == names
    assert max(line.count("blocks.") for line in uses) >= 5


def test_a_region_that_runs_less_than_all_blocks_is_shown_so(tmp_path):
    run(compile_toy(build(Toy), fn=99, dump=str(tmp_path)))
    plan = next(tmp_path.rglob("2_plan.txt")).read_text()
    assert "note: " in plan


def test_a_refusal_says_why(folder, caplog):
    path, options = folder
    run(compile_toy(build(NoBlocks), **options))
    [graph] = path.iterdir()
    assert {file.name for file in graph.iterdir()} == {"0_before.py", "refused.txt"}
    reason = (graph / "refused.txt").read_text().strip()
    assert reason
    assert reason in caplog.text


def test_each_graph_has_a_folder(tmp_path):
    model = compile_toy(build(Toy), dump=str(tmp_path))
    run(model)
    run(model, tokens=7)
    folders = list(tmp_path.iterdir())
    assert len(folders) == 2
    assert all({file.name for file in folder.iterdir()} == FILES for folder in folders)


def test_a_dump_changes_nothing(tmp_path):
    torch.testing.assert_close(run(compile_toy(build(Toy), dump=str(tmp_path))), run(build(Toy)), rtol=0, atol=0)


def test_without_the_setting_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(compile_toy(build(Toy)))
    assert list(tmp_path.iterdir()) == []

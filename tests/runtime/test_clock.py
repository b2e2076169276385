"""The clock places calls by what pipelines happen to do with latents, timesteps and prompts; nothing is required."""

import itertools
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_compile.runtime.clock import Clock
from dit_compile.runtime.inputs import Call


def latents(tokens=4):
    return torch.zeros(2, tokens, 3)


def stamp(value):
    return torch.full((2,), float(value))


class Pipeline:
    """Calls one clock and notes (generation, step, branch) for each call; keeps all tensors alive, as many loops do."""

    def __init__(self, cfg="auto", num_steps=None, on_device=False):
        self.clock, self.cfg, self.num_steps, self.on_device = Clock(), cfg, num_steps, on_device
        self.generation, self.places, self.positions, self.kept = -1, [], [], []

    def call(self, x, t, *prompts, graph=0):
        self.kept += [x, t, *prompts]
        time = None if self.on_device or t is None else float(t.max())
        position = self.clock.tick(Call(graph, [x], t, list(prompts), time), cfg=self.cfg, num_steps=self.num_steps)
        self.generation += position.new_generation
        self.places.append((self.generation, position.step, position.branch))
        self.positions.append(position)
        return position


def one_generation(branches, steps, generation=0):
    return [(generation, step, branch) for step in range(steps) for branch in range(branches)]


FALLING = [1000.0, 700.0, 400.0, 100.0]


def test_one_call_per_step():
    pipe, prompt = Pipeline(), torch.zeros(1)
    for time in FALLING:
        pipe.call(latents(), stamp(time), prompt)
    assert pipe.places == one_generation(1, 4)
    assert [p.certain for p in pipe.positions] == [True] * 4


def test_a_model_without_conditioning():
    pipe = Pipeline()
    for time in FALLING:
        pipe.call(latents(), stamp(time))
    assert pipe.places == one_generation(1, 4)


def test_rising_timesteps():
    pipe, prompt = Pipeline(), torch.zeros(1)
    for _, time in itertools.product(range(2), reversed(FALLING)):
        pipe.call(latents(), stamp(time), prompt)
    assert pipe.places == one_generation(1, 4) + one_generation(1, 4, 1)


@pytest.mark.parametrize("branches", [2, 3])
@pytest.mark.parametrize("same_latents", [True, False], ids=["same latents", "fresh latents"])
@pytest.mark.parametrize("same_timestep", [True, False], ids=["same timestep", "fresh timestep"])
def test_branches_of_guidance(branches, same_latents, same_timestep):
    """Whatever the pipeline makes anew for each call: the value of the timestep is the same within a step."""
    pipe, prompts = Pipeline(), [torch.zeros(1) for _ in range(branches)]
    for time in FALLING:
        x, t = latents(), stamp(time)
        for prompt in prompts:
            pipe.call(x if same_latents else latents(), t if same_timestep else stamp(time), prompt)
    assert pipe.places == one_generation(branches, 4)


@pytest.mark.parametrize("same_latents", [True, False], ids=["same latents", "fresh latents"])
@pytest.mark.parametrize("same_timestep", [True, False], ids=["same timestep", "fresh timestep"])
def test_branches_of_guidance_whose_prompts_are_made_anew(same_latents, same_timestep):
    """Then the order of the calls numbers the branches."""
    pipe = Pipeline()
    for time in FALLING:
        x, t = latents(), stamp(time)
        for _ in range(2):
            pipe.call(x if same_latents else latents(), t if same_timestep else stamp(time), torch.zeros(1))
    assert pipe.places == one_generation(2, 4)


@pytest.mark.parametrize("changing", [0, 1])
def test_a_branch_may_get_new_tensors_at_every_step_while_another_keeps_its_own(changing):
    """Wan Animate blanks the faces of its second branch anew at every step. That is no other prompt."""
    pipe, prompts, other = Pipeline(), [torch.zeros(1), torch.ones(1)], torch.ones(2)
    for time in FALLING * 2:
        x, t = latents(), stamp(time)
        for branch, prompt in enumerate(prompts):
            pipe.call(x, t, prompt, torch.zeros(2) if branch == changing else other)
    assert pipe.places == one_generation(2, 4) + one_generation(2, 4, generation=1)
    assert not any(position.new_prompt for position in pipe.positions)


@pytest.mark.parametrize("same_latents", [True, False], ids=["same latents", "fresh latents"])
def test_branches_of_guidance_with_a_timestep_on_a_device(same_latents):
    """The value is unknown; a prompt that this step has not had yet, or the same latents, show the branch."""
    pipe, prompts = Pipeline(on_device=True), [torch.zeros(1), torch.zeros(1)]
    for time in FALLING:
        x, t = latents(), stamp(time)
        for prompt in prompts:
            pipe.call(x if same_latents else latents(), t, prompt)
    assert pipe.places == one_generation(2, 4)


@pytest.mark.parametrize(("dropped", "stays"), [(1, 0), (0, 1)])
@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
def test_guidance_that_stops_part_way_leaves_the_other_branch_its_number(dropped, stays, on_device):
    pipe, prompts = Pipeline(on_device=on_device), [torch.zeros(1), torch.zeros(1)]
    for step, time in enumerate(FALLING):
        x, t = latents(), stamp(time)
        for number, prompt in enumerate(prompts):
            if step < 2 or number != dropped:
                pipe.call(x, t, prompt)
    assert pipe.places == [*one_generation(2, 2), (0, 2, stays), (0, 3, stays)]


def test_guidance_that_starts_late():
    pipe, prompts = Pipeline(), [torch.zeros(1), torch.zeros(1)]
    for step, time in enumerate(FALLING):
        x = latents()
        for prompt in prompts[: 1 if step < 2 else 2]:
            pipe.call(x, stamp(time), prompt)
    assert pipe.places == [(0, 0, 0), (0, 1, 0), (0, 2, 0), (0, 2, 1), (0, 3, 0), (0, 3, 1)]


def test_cfg_none_makes_every_call_a_step():
    """Two evaluations with the same latents are two steps for those who say so."""
    pipe, prompt = Pipeline(cfg="none"), torch.zeros(1)
    x = latents()
    for time in FALLING:
        pipe.call(x, stamp(time), prompt)
    assert pipe.places == one_generation(1, 4)


def test_a_branch_count_settles_what_nothing_else_would_tell():
    """All tensors fresh, timesteps on a device: only the count can know."""
    pipe = Pipeline(cfg=2, on_device=True)
    for time in FALLING:
        for _ in range(2):
            pipe.call(latents(), stamp(time), torch.zeros(1))
    assert pipe.places == one_generation(2, 4)


@pytest.mark.parametrize("new_prompt", [True, False])
@pytest.mark.parametrize("branches", [1, 2])
def test_a_timestep_that_jumps_back_begins_a_generation(new_prompt, branches):
    pipe, prompts = Pipeline(), [torch.zeros(1) for _ in range(branches)]
    for generation in range(3):
        if new_prompt and generation:
            prompts = [torch.zeros(1) for _ in range(branches)]
        for time in FALLING:
            x = latents()
            for prompt in prompts:
                pipe.call(x, stamp(time), prompt)
    assert pipe.places == [place for g in range(3) for place in one_generation(branches, 4, g)]


def test_a_jump_back_needs_not_reach_the_start():
    """Image to image: the next generation starts mid-schedule, and later ones elsewhere."""
    pipe, prompt = Pipeline(), torch.zeros(1)
    for time in [1000, 700, 400, 100, 600, 350, 100, 900, 500, 100]:
        pipe.call(latents(), stamp(time), prompt)
    assert pipe.places == one_generation(1, 4) + one_generation(1, 3, 1) + one_generation(1, 3, 2)


def test_one_step_models():
    """The first timestep again, with the same prompt: another generation."""
    pipe, prompt = Pipeline(), torch.zeros(1)
    for _ in range(3):
        pipe.call(latents(), stamp(1000), prompt)
    assert pipe.places == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]


def test_one_step_models_do_not_pile_up_branches():
    """With a new prompt each time, such calls look like branches of one step; there must be an end to that."""
    pipe = Pipeline()
    for _ in range(40):
        pipe.call(latents(), stamp(1000), torch.zeros(1))
    assert max(branch for *_, branch in pipe.places) < 8


def test_one_step_models_with_guidance():
    pipe, prompts = Pipeline(), [torch.zeros(1), torch.zeros(1)]
    for _ in range(3):
        x = latents()
        for prompt in prompts:
            pipe.call(x, stamp(1000), prompt)
    assert pipe.places == [(g, 0, b) for g in range(3) for b in range(2)]


@pytest.mark.parametrize("branches", [1, 2])
def test_heun_evaluates_twice_at_one_timestep(branches):
    """diffusers' Heun schedule repeats all timesteps but the first; each evaluation has latents of its own."""
    pipe, prompts = Pipeline(), [torch.zeros(1) for _ in range(branches)]
    for _, time in itertools.product(range(2), [1000, 700, 700, 400, 400]):
        x = latents()
        for prompt in prompts:
            pipe.call(x, stamp(time), prompt)
    assert pipe.places == one_generation(branches, 5) + one_generation(branches, 5, 1)


def test_two_moves_against_the_direction_of_the_first_generation():
    """One move proves no direction: two runs of one step each (500, then 900) may have looked like rising timesteps."""
    pipe, prompt = Pipeline(), torch.zeros(1)
    for time in [500, 900, 500, 250, 100, 500, 250, 100]:
        pipe.call(latents(), stamp(time), prompt)
    assert pipe.places[2:] == one_generation(1, 3, 1) + one_generation(1, 3, 2)


@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
def test_num_steps_overrides(on_device):
    """Timesteps that say nothing: the count alone tells generations apart."""
    pipe, prompt = Pipeline(num_steps=3, on_device=on_device), torch.zeros(1)
    for time in range(1000, 400, -100):
        pipe.call(latents(), stamp(time), prompt)
    assert pipe.places == one_generation(1, 3) + one_generation(1, 3, 1)
    assert all(p.certain for p in pipe.positions if p.new_generation)


@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
def test_a_changed_shape_goes_on_where_the_time_does(on_device):
    pipe, prompt = Pipeline(on_device=on_device), torch.zeros(1)
    for tokens, time in [(4, 1000), (4, 700), (6, 600), (6, 500)]:
        pipe.call(latents(tokens), stamp(time), prompt)
    assert pipe.places == one_generation(1, 4)


def test_a_loop_that_repeats_one_latents_object():
    """Benchmarks do that: the value of the timestep makes each call a step."""
    pipe, prompt, x = Pipeline(), torch.zeros(1), latents()
    for time in FALLING:
        pipe.call(x, stamp(time), prompt)
    assert pipe.places == one_generation(1, 4)


def test_a_loop_that_repeats_all_objects():
    """One timestep tensor, filled anew for each step."""
    pipe, prompt, x, t = Pipeline(), torch.zeros(1), latents(), stamp(0)
    for time in FALLING:
        pipe.call(x, t.fill_(time), prompt)
    assert pipe.places == one_generation(1, 4)


@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
def test_latents_updated_in_place(on_device):
    """The object stays, its version does not."""
    pipe, x = Pipeline(on_device=on_device), latents()
    prompts = [torch.zeros(1), torch.zeros(1)]
    for time in FALLING:
        t = stamp(time)
        for prompt in prompts:
            pipe.call(x, t, prompt)
        x.add_(1.0)
    assert pipe.places == one_generation(2, 4)


def test_latents_updated_in_place_under_inference_mode():
    """There tensors count no versions: the timestep's value must do."""
    with torch.inference_mode():
        pipe, x = Pipeline(), latents()
        prompts = [torch.zeros(1), torch.zeros(1)]
        for time in FALLING:
            for prompt in prompts:
                pipe.call(x, stamp(time), prompt)
            x.add_(1.0)
    assert pipe.places == one_generation(2, 4)


def test_stages_of_a_pyramid_that_meet_at_one_time_are_two_steps():
    """Helios rounds its times. Its prompts say nothing: among them is the history, a new tensor in every call."""
    clock, places = Clock(), []
    for graph, size, times in ((0, 4, (900, 600)), (1, 8, (600, 300))):
        for time in times:
            x, t = latents(size), stamp(time)
            for name in ("cond", "uncond"):
                call = Call(0, [x], t, [torch.zeros(1, 5)], time, name, graph)
                position = clock.tick(call, cfg="auto", num_steps=None)
                places.append((0, position.step, position.branch))
    assert places == one_generation(2, 4)


def test_graphs_of_one_module_share_a_step():
    """After a graph break each call of the model is two calls here."""
    pipe, prompts = Pipeline(), [torch.zeros(1), torch.zeros(1)]
    for time in FALLING[:2]:
        x, t = latents(), stamp(time)
        for prompt, graph in itertools.product(prompts, range(2)):
            pipe.call(x, t, prompt, graph=graph)
    assert [(step, branch) for _, step, branch in pipe.places] == [
        (step, branch) for step in range(2) for branch in range(2) for _ in range(2)
    ]


def test_no_timestep_at_all():
    """A new prompt begins a generation once the old one has been seen at two steps."""
    pipe = Pipeline()
    for prompt in [torch.zeros(1), torch.zeros(1)]:
        for _ in range(3):
            pipe.call(latents(), None, prompt)
    assert pipe.places == one_generation(1, 3) + one_generation(1, 3, 1)


def test_nothing_of_the_caller_is_kept_alive():
    clock, x, prompt = Clock(), latents(), torch.zeros(1)
    clock.tick(Call(0, [x], None, [prompt], None), cfg="auto", num_steps=None)
    refs = [weakref.ref(x), weakref.ref(prompt)]
    del x, prompt
    assert [ref() for ref in refs] == [None, None]


# --- timesteps that are read late


def test_a_late_timestep_rebases_the_clock():
    """Step 3 turns out to have been step 0 of the next generation while step 4 is under way."""
    pipe, prompt = Pipeline(on_device=True), torch.zeros(1)
    late = []
    for time in [1000, 500, 100, 1000]:
        late.append((pipe.call(latents(), stamp(time), prompt).step, time))
    pipe.call(latents(), stamp(500), prompt)
    assert pipe.clock.step == 4
    assert [pipe.clock.late_time(step, False, time) for step, time in late] == [False, False, False, True]
    assert pipe.clock.step == 1
    assert not pipe.clock.late_time(1, False, 500)
    assert pipe.call(latents(), stamp(100), prompt).step == 2


def test_a_late_timestep_of_a_branch_changes_nothing():
    pipe, prompts = Pipeline(on_device=True), [torch.zeros(1), torch.zeros(1)]
    for time in [1000, 500]:
        x = latents()
        for branch, prompt in enumerate(prompts):
            position = pipe.call(x, stamp(time), prompt)
            assert not pipe.clock.late_time(position.step, branch > 0, time)
    assert pipe.places == one_generation(2, 2)


def test_late_timesteps_unmask_a_loop_that_repeats_one_latents_object():
    """Fresh prompts and the same latents look like branches, until their timesteps turn out to differ."""
    pipe, x = Pipeline(on_device=True), latents()
    assert pipe.call(x, stamp(1000), torch.zeros(1)).step == 0
    pipe.clock.late_time(0, False, 1000)
    assert pipe.call(x, stamp(900), torch.zeros(1)).branch == 1
    pipe.clock.late_time(0, True, 900)
    assert [pipe.call(x, stamp(time), torch.zeros(1)).step for time in (800, 700)] == [1, 2]


def test_only_an_unread_timestep_with_an_unknown_prompt_is_uncertain():
    """Of those who say when a generation ends; of others every unread timestep is."""
    for told in (True, False):
        pipe, prompt = Pipeline(on_device=True), torch.zeros(1)
        pipe.clock.told = lambda told=told: told or None
        certain = [pipe.call(latents(), stamp(time), prompt).certain for time in FALLING]
        assert certain == [True, *[told] * 3]
        assert not pipe.call(latents(), stamp(1000), torch.zeros(1)).certain


# --- random pipelines


@st.composite
def schedules(draw):
    """Generations with their timesteps and, for each step, the branches that run."""
    sign = draw(st.sampled_from([-1, 1]))
    starts_vary = draw(st.booleans())
    heun = draw(st.booleans())
    branches = draw(st.integers(1, 3))
    result = []
    for _ in range(draw(st.integers(1, 4))):
        # where generations may start anywhere, only a jump back shows: the start lies before the end of the one before
        length = draw(st.integers(4 if starts_vary else 1, 6))
        start = draw(st.integers(0, 2)) if starts_vary else 0
        times = [sign * 10.0 * i for i in range(start, start + length)]
        if heun:
            times = [times[0], *(time for time in times[1:] for _ in range(2))]
        running = set(range(branches))
        plan = []
        for time in times:
            if len(running) > 1 and plan and draw(st.integers(0, 3)) == 0:
                running = running - {draw(st.sampled_from(sorted(running)))}
            plan.append((time, sorted(running)))
        result.append(plan)
    return result


@settings(max_examples=300, deadline=None)
@given(
    schedule=schedules(),
    same_latents=st.booleans(),
    same_timestep=st.booleans(),
    new_prompts=st.booleans(),
)
def test_random_generations_are_segmented_exactly(schedule, same_latents, same_timestep, new_prompts):
    pipe = Pipeline()
    # prompts of a 1-step generation could be branches of the one before
    new_prompts = new_prompts and all(len(plan) > 1 for plan in schedule)
    prompts = [torch.zeros(1) for _ in range(3)]
    expected = []
    for generation, plan in enumerate(schedule):
        if new_prompts:
            prompts = [torch.zeros(1) for _ in range(3)]
        for step, (time, running) in enumerate(plan):
            x, t = latents(), stamp(time)
            for branch in running:
                pipe.call(x if same_latents else latents(), t if same_timestep else stamp(time), prompts[branch])
                expected.append((generation, step, branch))
    assert pipe.places == expected


@settings(max_examples=200, deadline=None)
@given(schedule=schedules(), new_prompts=st.booleans(), lag=st.integers(0, 2))
def test_random_generations_with_late_timesteps_end_up_segmented_exactly(schedule, new_prompts, lag):
    """Timesteps arrive up to two calls late; once they have, each call stands where it should."""
    pipe = Pipeline(on_device=True)
    new_prompts = new_prompts and all(len(plan) > 1 for plan in schedule)
    prompts = [torch.zeros(1) for _ in range(3)]
    placed, pending, expected = [], [], []  # placed: [generation, step, branch], corrected as timesteps arrive

    def harvest(keep):
        while len(pending) > keep:
            number, branch_call, time = pending.pop(0)
            if pipe.clock.late_time(placed[number][1], branch_call, time):
                start = placed[number][1]
                for place in placed[number:]:
                    place[0], place[1] = place[0] + 1, place[1] - start

    for generation, plan in enumerate(schedule):
        if new_prompts:
            prompts = [torch.zeros(1) for _ in range(3)]
        for step, (time, running) in enumerate(plan):
            x, t = latents(), stamp(time)
            for branch in running:
                harvest(lag)
                before = pipe.clock.step
                position = pipe.call(x, t, prompts[branch])
                current = placed[-1][0] if placed else -1
                placed.append([current + position.new_generation, position.step, position.branch])
                pending.append((len(placed) - 1, position.step == before and not position.new_generation, time))
                expected.append([generation, step, branch])
    harvest(0)
    assert placed == expected


def test_steps_of_one_time_are_one_point_for_forecasts():
    """Heun evaluates at the end of a step and again at the beginning of the next; on the host, and read late."""
    times = [1000, 800, 800, 600, 600, 400]
    host, prompt = Pipeline(), torch.zeros(1)
    for time in times:
        host.call(latents(), stamp(time), prompt)
    assert host.clock.times.points == [0, 1, 1, 2, 2, 3] and host.clock.times.repeats
    late, kept = Clock(), []
    for step, time in enumerate(times):
        kept.append((x := latents(), t := stamp(time)))
        late.tick(Call(0, [x], t, [prompt], None), cfg="auto", num_steps=None)
        assert not late.late_time(step, False, float(time))
    assert late.times.points == host.clock.times.points


def test_each_time_is_a_point():
    pipe, prompt = Pipeline(), torch.zeros(1)
    for time in FALLING:
        pipe.call(latents(), stamp(time), prompt)
    assert pipe.clock.times.points == list(range(len(FALLING))) and not pipe.clock.times.repeats

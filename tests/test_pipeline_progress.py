"""Time left and the share that is done, with a clock that the tests turn."""

import io

import pytest
from animate124.events import Progress
from animate124.pipeline.presets import Cost
from animate124.pipeline.progress import Estimate, ProgressLine, Work, duration


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


PLAN = [Work("a", Cost(10)), Work("b", Cost(5, 0.5), 100), Work("c", Cost(20, 1), 80)]


@pytest.fixture
def clock():
    return Clock()


def run(estimate, clock, slowness, seen):
    """The plan as guessed, each second `slowness` long; `seen` gets (left, share)."""
    for work in PLAN:
        estimate.start(work.name)
        clock.now += slowness * work.cost.start_s
        seen.append((estimate.left(), estimate.share()))
        for done in range(1, (work.steps or 0) + 1):
            clock.now += slowness * work.cost.step_s
            estimate.report(Progress(done, work.steps))
            seen.append((estimate.left(), estimate.share()))
        estimate.finish()


def test_good_guesses_give_the_time_that_is_left(clock):
    began = clock.now
    estimate, seen = Estimate(PLAN, clock), []
    assert estimate.left() == sum(work.guess for work in PLAN)
    run(estimate, clock, 1.0, seen)
    assert estimate.left() == 0
    assert clock.now - began == pytest.approx(estimate.spent)
    # after the first step's training has shown its speed, left + passed is the whole
    assert [share for _, share in seen] == sorted(share for _, share in seen)
    assert seen[-1][1] == 1


def test_a_slow_machine_scales_what_is_to_come(clock):
    estimate = Estimate(PLAN, clock)
    estimate.start("a")
    clock.now += 30  # guessed: 10
    estimate.finish()
    assert estimate.left() == pytest.approx(3 * (55 + 100))


def test_the_running_steps_own_speed_replaces_the_guess(clock):
    estimate = Estimate(PLAN[1:2], clock)
    estimate.start("b")
    clock.now += 5
    estimate.report(Progress(0, 100))
    for done in range(1, 41):
        clock.now += 2.0
        estimate.report(Progress(done, 100))
    assert estimate.left() == pytest.approx(60 * 2.0)
    clock.now += 6  # no news: time goes on all the same
    assert estimate.left() == pytest.approx(60 * 2.0 - 6)


def test_a_resumed_step_is_not_taken_for_a_fast_one(clock):
    estimate = Estimate(PLAN[1:2], clock)
    estimate.start("b")
    clock.now += 5
    estimate.report(Progress(60, 100))
    for done in range(61, 71):
        clock.now += 2.0
        estimate.report(Progress(done, 100))
    assert estimate.left() == pytest.approx(30 * 2.0)


def test_the_same_told_again_is_no_news(clock):
    estimate = Estimate(PLAN[1:2], clock)
    estimate.start("b")
    estimate.report(Progress(0, 100))
    clock.now += 20
    estimate.report(Progress(10, 100))
    left = estimate.left()
    clock.now += 5
    estimate.report(Progress(10, 100))
    assert estimate.left() == left - 5


def test_a_test_and_steps_that_are_skipped_dont_count(clock):
    estimate = Estimate(PLAN, clock)
    estimate.start("c")  # a and b were done before
    estimate.report(Progress(60, 60, "test"))
    assert estimate.step_text() == "c 0/80, test 60/60"
    assert estimate.left() == PLAN[2].guess


def test_a_step_that_does_not_train_is_counted_by_what_it_does(clock):
    estimate = Estimate([Work("result", Cost(100))], clock)
    estimate.start("result")
    estimate.report(Progress(0, 50, "rendering"))
    clock.now += 20
    estimate.report(Progress(10, 50, "rendering"))
    assert estimate.step_text() == "result 10/50"
    assert estimate.left() == pytest.approx(40 * 2.0)


def test_durations_are_read_easily():
    assert [duration(s) for s in (0.4, 59, 60, 200, 3600, 7500)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "3 min 20 s",
        "1 h 0 min",
        "2 h 5 min",
    ]


def test_off_a_terminal_lines_are_few_and_never_go_back(clock):
    file = io.StringIO()
    estimate = Estimate(PLAN, clock)
    line = ProgressLine(estimate, file, every=10)
    estimate.start("a")
    for _ in range(50):
        clock.now += 1
        line.refresh()
    lines = file.getvalue().splitlines()
    assert len(lines) == 5
    shares = [float(text[1:4]) for text in lines]
    assert shares == sorted(shares)
    assert "\r" not in file.getvalue()


def test_on_a_terminal_there_is_one_line(clock):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    file = Terminal()
    estimate = Estimate(PLAN, clock)
    line = ProgressLine(estimate, file)
    estimate.start("b")
    estimate.report(Progress(10, 100))
    line.refresh()
    line.say("hello")
    line.close()
    assert "b 10/100, about" in file.getvalue()
    assert file.getvalue().count("\n") == 1  # hello's

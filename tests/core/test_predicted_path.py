"""The line that stands in for steps that are left out, and the correction after them."""

import math

import pytest
import torch
from vcut.vcut_core.predicted_path import PredictedPath

SHAPE = (2, 4, 3, 3)


def _full(value: float) -> torch.Tensor:
    return torch.full(SHAPE, value, dtype=torch.float32)


def _on_line(sigma: float, first: tuple[float, float], second: tuple[float, float]) -> float:
    """Return D at ``sigma`` on the line through two (sigma, D) over ln(sigma + 2)."""
    (a, da), (b, db) = first, second
    ta, tb, t = (math.log(s + 2) for s in (a, b, sigma))
    return db + (db - da) * (t - tb) / (tb - ta)


def _value(answer: torch.Tensor) -> float:
    assert torch.equal(answer, answer.flatten()[0].expand(SHAPE))
    return answer.flatten()[0].item()


def _euler(x: float, answers: list[tuple[float, float, float]]) -> float:
    """Return x after steps (sigma, next sigma, D) of k-diffusion's euler."""
    for sigma, next_sigma, denoised in answers:
        x = x + (x - denoised) / sigma * (next_sigma - sigma)
    return x


def test_line_goes_through_the_last_two():
    path = PredictedPath()
    path.add(50.0, _full(3.0))
    path.add(16.0, _full(1.0))
    expected = _on_line(12.0, (50.0, 3.0), (16.0, 1.0))
    assert _value(path.predict(12.0, 10.0)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("num_skipped", [1, 3])
def test_sampler_is_where_the_line_between_computed_steps_would_have_taken_it(num_skipped):
    sigmas = [50.0, 16.0, 14.0, 12.0, 11.0, 8.0, 4.0]
    computed = {50.0: 3.0, 16.0: 1.0, sigmas[2 + num_skipped]: -2.0}
    path = PredictedPath()
    given, wanted = [], []
    for sigma, next_sigma in zip(sigmas[: 3 + num_skipped], sigmas[1:], strict=False):
        if sigma in computed:
            output = _full(computed[sigma])
            answer = path.correct(sigma, next_sigma, output) if len(given) >= 2 else output
            path.add(sigma, output)
            wanted.append((sigma, next_sigma, computed[sigma]))
        else:
            answer = path.predict(sigma, next_sigma)
            between = _on_line(sigma, (16.0, 1.0), (sigmas[2 + num_skipped], -2.0))
            wanted.append((sigma, next_sigma, between))
        given.append((sigma, next_sigma, _value(answer)))
    assert given != wanted
    assert _euler(100.0, given) == pytest.approx(_euler(100.0, wanted), rel=1e-5)


def test_correction_after_a_single_kept_answer_counts_what_was_held():
    path = PredictedPath()
    path.add(16.0, _full(1.0))
    held = _value(path.predict(14.0, 12.0))
    answer = _value(path.correct(12.0, 8.0, _full(-2.0)))
    between = _on_line(14.0, (16.0, 1.0), (12.0, -2.0))
    given = _euler(100.0, [(16.0, 14.0, 1.0), (14.0, 12.0, held), (12.0, 8.0, answer)])
    wanted = _euler(100.0, [(16.0, 14.0, 1.0), (14.0, 12.0, between), (12.0, 8.0, -2.0)])
    assert held == 1.0 and given == pytest.approx(wanted, rel=1e-5)


def test_answers_on_the_line_need_no_correction():
    path = PredictedPath()
    first, second = (50.0, 3.0), (16.0, 1.0)
    path.add(first[0], _full(first[1]))
    path.add(second[0], _full(second[1]))
    path.predict(14.0, 12.0)
    output = _full(_on_line(12.0, first, second))
    assert torch.allclose(path.correct(12.0, 8.0, output), output, rtol=1e-5)


def test_output_is_handed_on_itself_where_there_is_nothing_to_correct():
    path = PredictedPath()
    path.add(16.0, _full(1.0))
    output = _full(2.0)
    assert path.correct(12.0, 8.0, output) is output
    path.predict(11.0, 10.0)
    assert path.correct(10.0, 0.0, output) is output  # the last step is D itself


def test_gap_is_forgotten_once_it_is_made_up_for():
    path = PredictedPath()
    path.add(16.0, _full(1.0))
    path.predict(14.0, 12.0)
    path.add(12.0, _full(0.5))
    output = _full(2.0)
    assert path.correct(8.0, 4.0, output) is output


def test_nothing_is_shared_with_the_sampler():
    path = PredictedPath()
    output = _full(1.0)
    path.add(16.0, output)
    output.mul_(0)
    path.predict(14.0, 12.0).mul_(0)
    assert _value(path.predict(13.0, 12.0)) == 1.0
    other = _full(4.0)
    path.correct(12.0, 8.0, other).mul_(0)
    assert _value(other) == 4.0 and _value(path.predict(11.0, 10.0)) == 1.0


def test_half_precision_answers_are_kept_and_joined_in_single():
    path = PredictedPath()
    path.add(50.0, _full(3.0).half())
    path.add(16.0, _full(1.0).half())
    assert path.nbytes == 2 * 72 * 4
    assert path.predict(12.0, 10.0).dtype == torch.float16
    assert path.correct(10.0, 8.0, _full(1.0).half()).dtype == torch.float16

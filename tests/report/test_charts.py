"""The charts of the page: colours, histograms, steps without errors."""

import re

import fake_runs
import pytest

from rft_jax.records import episodes
from rft_jax.report import report


@pytest.mark.full
def test_charts_take_their_colours_from_the_page(finished):
  page = finished[1]
  assert page.count('<svg') == 20 and 'var(--after)' in page
  svgs = ' '.join(re.findall(r'<svg.*?</svg>', page))
  assert not re.search(r'#[0-9a-f]{6};|DejaVu', svgs)
  assert 'Bayes optimal' in svgs and 'Reader' in svgs and '>grpo<' in svgs


def test_histograms_fall_back_on_the_first_and_last_training_steps(tmp_path):
  for step in range(1, 7):
    episodes.write(
      tmp_path, step, [fake_runs.training_episode(step, number, step / 6) for number in range(100)]
    )
  page = report.write(tmp_path, title='t').read_text()
  assert 'Training samples: 300 of steps 1 to 3 as before, 300 of steps 4 to 6 as after.' in page
  assert 'Grades. mean 0.333 before, 0.833 after' in page


def test_errors_that_a_step_does_not_log_count_as_zero(finished):
  label = re.search(r'aria-label="Truncated and unparsable\. ([^"]*)"', finished[1])[1]
  assert 'training: unparsable: 0.079 at step 42' not in label
  assert 'training: unparsable: 0.080 at step 41' in label

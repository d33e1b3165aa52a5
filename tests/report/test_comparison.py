"""Tables of the report: the direction of each change."""

from fake_runs import interval, policy

from rft_jax.report import comparison


def test_less_is_better_for_truncated_and_unparsable():
  first = policy(
    0,
    0.4,
    0.05,
    truncated=interval(0.3, 0.02),
    mean_tokens=interval(0.9, 0.01),
    unparsable=interval(0.1, 0.1),
  )
  last = policy(
    9,
    0.2,
    0.05,
    truncated=interval(0.1, 0.02),
    mean_tokens=interval(0.2, 0.01),
    unparsable=interval(0.05, 0.1),
  )
  rows = comparison.metrics_table([first, last])['rows']
  assert {row['name']: row['direction'] for row in rows} == {
    'grade': 'worse',
    'truncated': 'better',
    'mean_tokens': '',
    'unparsable': 'unclear',
  }

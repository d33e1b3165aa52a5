"""Validation of the config of the rare-disease task."""

import pytest

from rft_jax.tasks import rare_disease


def test_all_problems_are_in_one_error():
  config = rare_disease.Config(genes=99, noted_absent=0.5, shared_frequency=(0.5, 0.1))
  with pytest.raises(ValueError) as error:
    rare_disease.make(config)
  assert all(
    field in str(error.value)
    for field in ('genes=99', 'noted_absent=0.5', 'shared_frequency=(0.5, 0.1)')
  )

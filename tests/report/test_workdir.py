"""What the report calls the stages of a run."""

import pytest

from rft_jax.records import manifest
from rft_jax.report import workdir


@pytest.mark.parametrize(
  'algorithms, expected',
  [
    (['sft', 'grpo'], ['warm-up', 'reinforcement']),
    (['sft', 'sft'], ['fine-tuning', 'fine-tuning']),
    (['sft', 'sft', 'ppo', 'sft'], ['warm-up', 'warm-up', 'reinforcement', 'fine-tuning']),
    (['sft', 'dpo', 'kto'], ['warm-up', 'preference learning', 'preference learning']),
    (['rejection', 'distillation'], ['rejection sampling', 'distillation']),
    (['reward_model'], ['reward modelling']),
    (['sft', 'no_algorithm_of_this_name'], ['warm-up', 'reinforcement']),
    (['sft', None], ['warm-up', 'reinforcement']),
  ],
)
def test_a_stage_has_the_label_of_its_algorithm_and_a_supervised_one_before_others_is_a_warm_up(
  tmp_path, algorithms, expected
):
  stages = [{'steps': 3} | ({'algorithm': name} if name else {}) for name in algorithms]
  manifest.write(tmp_path, {'config': {'stages': stages}})
  run = workdir.read(tmp_path)
  assert [stage.word for stage in run.stages] == expected
  assert [(stage.first, stage.end) for stage in run.stages] == [
    (3 * number, 3 * number + 3) for number in range(len(stages))
  ]
  assert run.planned == 3 * len(stages)

"""Graded groups of byte-level text with reasoning steps, for tests of credit assignment."""

import functools
import pathlib
import tempfile

import tiny_tokenizers

from rft_jax import graders
from rft_jax.data import chat as chats
from rft_jax.data.chat import ChatConfig
from rft_jax.rollout import step_rewards
from rft_jax.rollout.credit import CreditConfig
from rft_jax.rollout.rollout import RolloutConfig
from rft_jax.sampling import engine
from rft_jax.types import Episode, Grade, Item, Sample

# Grades a step: whether item.good contains it.
GOOD = {
  'type': 'string_check',
  'name': 'good',
  'operation': 'like',
  'input': '{{ item.good }}',
  'reference': '{{ sample.output_text }}',
}
# Grades an answer.
EXACT = {
  'type': 'string_check',
  'name': 'exact',
  'operation': 'eq',
  'input': '{{ sample.output_text }}',
  'reference': '{{ item.answer }}',
}
ROLLOUT = RolloutConfig(prompts_per_step=1, samples_per_prompt=2, max_new_tokens=40)
LINES = CreditConfig(level='reasoning_step', step_boundary='line', source='process', grader=GOOD)


@functools.cache
def byte_chat(reasoning=None):
  with tempfile.TemporaryDirectory() as directory:
    return chats.make(
      tiny_tokenizers.save(pathlib.Path(directory) / 'bytes'), ChatConfig(reasoning=reasoning)
    )


def credit_group(*answers, occurrence=0, row=None, chat=None):
  """Returns the episodes of one prompt, from (text, reward) pairs."""
  chat = chat or byte_chat()
  row = {'good': 'one two three', 'answer': '7'} if row is None else row
  group = []
  for index, (text, reward) in enumerate(answers):
    ids = chat.encode([text])[0] + [chat.eos_id]
    sample = Sample(ids, [0.0] * len(ids), None, 'stop')
    grade = Grade(reward, {}, {})
    group.append(
      Episode(Item(row, 'x:1'), occurrence, index, [1, 2], sample, text, text, 0, grade, 0)
    )
  return group


def rewards_of_steps(groups, config, chat=None, rollout=ROLLOUT):
  """Returns the StepRewards of groups at step 3, with EXACT as the grader of the run."""
  assert not config.validate()
  step_grader = graders.make(config.grader) if config.grader else None
  return step_rewards.make(
    chat or byte_chat(),
    config,
    rollout,
    grader=graders.make(EXACT),
    step_grader=step_grader,
    seed=0,
    mesh=None,
  )(None, groups, 3)


def replace_engine(monkeypatch, texts, chat):
  """Makes the engine return texts; returns a dict of the arguments of its last call.

  Args:
    texts: for each prompt in turn, a text for each of its samples.
  """
  arguments = {}

  def sample(policy, prompts, config, *, samples_per_prompt, limits, on_finished, **others):
    arguments.update(others, prompts=prompts, limits=limits)
    for number, prompt_texts in enumerate(texts):
      for k, text in enumerate(prompt_texts):
        ids = chat.encode([text])[0]
        on_finished(number, k, Sample([*ids, chat.eos_id], [0.0] * (len(ids) + 1), None, 'stop'))
    for number in range(len(texts), len(prompts)):
      on_finished(number, 0, Sample([chat.eos_id], [0.0], None, 'stop'))

  monkeypatch.setattr(engine, 'sample', sample)
  return arguments

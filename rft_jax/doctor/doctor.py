"""The examination before training: are data, grader and policy fit for it? Go or no-go, and why.

Some rows are sampled several times from the policy that training starts from. The questions: do the
grades of a row's samples differ (else there is no gradient), is anything graded at all, can the
grader be satisfied without reading the case, are held-out rows trained on, what will the run cost.
"""

import contextlib
import dataclasses
import pathlib
import time

import numpy as np

from rft_jax import graders, hf
from rft_jax.config import Config
from rft_jax.data import validate_dataset
from rft_jax.doctor import constant_answers, cost, findings, samples
from rft_jax.doctor.findings import Examination, Finding
from rft_jax.errors import InputError, as_input_error
from rft_jax.records import atomic
from rft_jax.records.progress import duration
from rft_jax.rollout import rollout
from rft_jax.run import build, results
from rft_jax.types import Example

FILE = 'doctor.json'
STREAM = 0xD0C  # folded into the seed: the examination has random numbers of its own
# Grades anything at once: for a rollout that only compiles.
INSTANT = {'type': 'string_check', 'name': 'free', 'operation': 'eq', 'input': '', 'reference': ''}


def diagnose(config: Config, workdir='', *, model='', which='') -> Examination:
  """Examines data, grader and policy before training; writes WORKDIR/doctor.json.

  Args:
    workdir: '' writes nothing.
    model: an HF directory or hub id to examine; '' and no `which`: the base model.
    which: 'best', 'last' or a step: a checkpoint of the workdir.

  Raises:
    InputError: there is no such model or checkpoint; every other problem is a finding.
  """
  with contextlib.ExitStack() as stack:
    try:
      components = stack.enter_context(
        build.components(config, source=model, workdir=workdir or None)
      )
    except InputError as error:
      examination = findings.from_input_error(str(error))
    else:
      policy = _policy(config, workdir, model, which, components.mesh)
      examination = examine(config, components, policy)
  if workdir:
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    atomic.write_json(pathlib.Path(workdir) / FILE, examination.json())
  return examination


def _policy(config, workdir, model, which, mesh):
  if which:
    return results.restore_policy(config, workdir, which)[0]
  return as_input_error(
    hf.load,
    model or config.model.source,
    dtype=config.model.dtype,
    attention=config.model.attention,
    mesh=mesh,
  )[0]


def examine(config: Config, components, policy) -> Examination:
  """Examines the components of a run with the policy that training starts from."""
  train = _train_examples(config, components)
  warnings = [Finding('warning', text) for text in components.warnings]
  if components.grader is None:
    leakage, values = _leakage(components, train)
    ungraded = Finding('fine', 'no grader: nothing is sampled')
    return Examination([*warnings, *leakage, ungraded], values)
  examples = _subset(train, config.doctor.rows, config.seed)
  sampled, seconds = _sample(config, components, policy, examples)
  episodes = sampled.episodes()
  cases = constant_answers.cases(config, components, examples, sampled.groups)
  every_finding, values = warnings, {'policy': {}}
  for part_findings, part_values in (
    samples.grades(sampled.groups, config.doctor, config.evaluate.pass_threshold),
    samples.faults(episodes, config.rollout),
    samples.tokens(episodes, config.rollout),
    _leakage(components, train),
    constant_answers.examine(components, cases, episodes, config.rollout),
    _cost(config, components, policy, sampled, seconds),
  ):
    every_finding += part_findings
    values |= part_values
  values['policy'] = sampled.metrics
  return Examination(every_finding, values)


def _train_examples(config, components) -> list[Example]:
  """Returns the rows of the first stage that samples, or of the first stage."""
  kinds = config.learns_from()
  return components.train[kinds.index('prompts') if 'prompts' in kinds else 0]


def _subset(examples, count, seed):
  rng = np.random.default_rng([seed, STREAM])
  numbers = np.sort(rng.permutation(len(examples))[:count])
  return [examples[number] for number in numbers]


def _sample(config, components, policy, examples):
  """Returns (Rollout, the seconds it took, compilation not counted)."""
  settings = dataclasses.replace(
    config.rollout, samples_per_prompt=config.doctor.samples_per_prompt, max_grader_faults=1.0
  )
  run = lambda grader: rollout.make(
    components.chat,
    grader,
    settings,
    seed=config.seed ^ STREAM,
    mesh=components.mesh,
    response_format=components.response_format,
  )(policy, examples, list(range(len(examples))), 0)
  run(graders.make(INSTANT))  # compiles, without asking judges and servers twice
  began = time.monotonic()
  return run(components.grader), time.monotonic() - began


def _leakage(components, train):
  """Returns (findings, values): held-out prompts that are also trained on."""
  train_prompts = {validate_dataset.prompt_key(example.item) for example in train}
  held_out = components.validation
  shared = sum(validate_dataset.prompt_key(example.item) in train_prompts for example in held_out)
  values = {
    'train_rows': len(train),
    'validation_rows': len(held_out),
    'prompts_in_both': shared,
    'distinct_prompts': len(train_prompts),
  }
  text = (
    f'{shared} of {len(held_out)} held-out prompts are trained on; {len(train)} training rows '
    f'have {len(train_prompts)} different prompts'
  )
  share = shared / max(len(held_out), 1)
  return [Finding('no-go' if share > 0.1 else 'warning' if shared else 'fine', text)], values


def _cost(config, components, policy, sampled, seconds):
  """Returns (findings, values): the hours that the run will take here."""
  estimate = cost.estimate(
    config,
    components.chat,
    policy,
    sampled,
    seconds,
    rows=len(components.validation),
    mesh=components.mesh,
  )
  text = (
    f'about {duration(3600 * estimate["hours"])} on this machine for {config.total_steps()} steps '
    f'and {estimate["evaluations"]} evaluations, compilation not counted'
  )
  return [Finding('fine', text)], {'cost': estimate}

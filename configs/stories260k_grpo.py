"""A story stays with its cast: GRPO on a real trained model of 260,000 parameters.

NOTEBOOK
"""
import dataclasses
import itertools
import pathlib

import numpy as np

from rft_jax import config as configs
from rft_jax.algorithms.grpo import GrpoConfig
from rft_jax.data.chat import ChatConfig
from rft_jax.data.rows import DataConfig
from rft_jax.optim import OptimConfig
from rft_jax.rollout import RolloutConfig
from rft_jax.tasks import files
from rft_jax.update import UpdateConfig

DATA = pathlib.Path('runs/stories260k/data')
WHERE_FROM = (
    'need the directory of stories260K as a Hugging Face checkpoint (config.json, '
    'model.safetensors, tokenizer.json): public as karpathy/tinyllamas, folder stories260K, on the '
    'Hugging Face hub, to be converted to LlamaForCausalLM; then '
    '--config=configs/stories260k_grpo.py:DIR or --config.model.source=DIR')

# ------------------------------------------------------------------ the grader

GRADER_SOURCE = r'''
import re

STRETCH = 20  # words; a reader who hears a name this often does not lose track
NOBODY = set("I He She It They We You That This There What Who One Everyone Someone Then Mom Mommy "
             "Mum Mama Dad Daddy Papa Grandma Grandpa".split())
INSIDE = r"(?<=[a-z,;] )[A-Z][a-z]+"  # a capital where no sentence or speech begins
ACTING = (r"\b[A-Z][a-z]+(?= (?:was|is|had|saw|said|asked|replied|went|ran|felt|wanted|liked|loved|"
          r"looked|smiled|found|thought|started|decided|did|could|took|came|told|knew)\b)")


def grade(sample, item):
  """Share of the story in which its two friends are there, and no stranger has taken over.

  The story is cut into stretches of 20 words. A stretch counts half for each of the two that it
  names, once or often, and nothing if it names anybody else. The mean over the stretches is
  multiplied by the share of distinct trigrams of words, so that repeating oneself does not pay.
  Less than two stretches are counted as two, so that stopping early does not pay either.
  """
  text, cast = re.sub(r"'[a-z]+", "", sample["output_text"]), set(item["cast"])
  words = re.findall(r"[A-Za-z]+", text)
  stretches = [set(words[i:i + STRETCH]) for i in range(0, len(words) - STRETCH // 2, STRETCH)]
  strangers = set(re.findall(INSIDE, text) + re.findall(ACTING, text)) - NOBODY - cast
  kept = sum(len(cast & stretch) / 2 for stretch in stretches if not strangers & stretch)
  trigrams = list(zip(words, words[1:], words[2:]))
  return kept / max(2, len(stretches)) * len(set(trigrams)) / max(1, len(trigrams))
'''
GRADER = {'type': 'python', 'name': 'cast_kept', 'source': GRADER_SOURCE}

# ------------------------------------------------------------------ the openings

# No name, animal or place of a held-out opening occurs in one to train on.
TRAIN = {
    'girls': ('Lily', 'Anna', 'Lucy', 'Sara', 'Amy', 'Jane', 'Daisy', 'Sally', 'Kate', 'Ruby'),
    'boys': ('Tim', 'Tom', 'Sam', 'Bob', 'Billy', 'Dan', 'Finn', 'John', 'Jim', 'Nick'),
    'pets': ('Spot', 'Buddy', 'Fluffy', 'Kitty', 'Bunny', 'Toby', 'Benny', 'Coco', 'Lucky', 'Tiny'),
    'animals': ('cat', 'bird', 'rabbit', 'bear', 'mouse', 'fish', 'duck', 'pig'),
    'places': ('park', 'forest', 'garden', 'beach', 'farm', 'river', 'school', 'shop'),
}
HELD_OUT = {
    'girls': ('Mia', 'Sue', 'Molly', 'Emma'),
    'boys': ('Ben', 'Jack', 'Leo', 'Joe'),
    'pets': ('Max', 'Pip', 'Bella', 'Teddy'),
    'animals': ('dog', 'frog', 'cow', 'monkey', 'turtle'),
    'places': ('lake', 'zoo', 'hill', 'playground', 'market'),
}


def openings(words: dict[str, tuple[str, ...]], count: int, seed: int) -> list[dict]:
  """Returns count different rows: two friends, a place, and the names that a grader looks for."""
  rng = np.random.default_rng(seed)
  heroes = [(name, 'girl', 'She', 'her') for name in words['girls']]
  heroes += [(name, 'boy', 'He', 'his') for name in words['boys']]
  choices = list(itertools.product(heroes, words['pets'], words['animals'], words['places']))
  rows = []
  for n in rng.permutation(len(choices))[:count]:
    (hero, child, they, their), pet, animal, place = choices[n]
    text = [
        f'Once upon a time, there was a little {child} named {hero}. {they} had a {animal} named '
        f'{pet}. One day, {hero} and {pet} went to the {place}.',
        f'{hero} was a little {child}. {they} had a friend, a {animal} named {pet}. One day, they '
        f'played at the {place}.',
        f'Once there was a {animal} named {pet}. {pet} lived near the {place} with {their} friend, '
        f'a {child} named {hero}.',
    ][n % 3]
    rows.append({'messages': [{'role': 'user', 'content': text}], 'cast': [hero, pet]})
  return rows


# ------------------------------------------------------------------ the run


@dataclasses.dataclass(slots=True, kw_only=True)
class Stories(configs.ModelConfig):
  """The base checkpoint, which nobody else's message could tell you how to get."""

  def validate(self) -> list[str]:
    if not (pathlib.Path(self.source) / 'config.json').is_file():
      return [f'source={self.source!r}, {WHERE_FROM}']
    return configs.ModelConfig.validate(self)


def get_config(source: str = '') -> configs.Config:
  """Writes the openings and returns the run.

  Args:
    source: directory of stories260K; '' if --config.model.source names it.
  """
  files.write(files.Files(openings(TRAIN, 512, seed=1), openings(HELD_OUT, 64, seed=2), GRADER,
                          {'task': 'stories260k'}), DATA)
  return configs.Config(
      model=Stories(source=source),
      data=DataConfig(train=f'{DATA}/train.jsonl', validation=f'{DATA}/validation.jsonl'),
      chat=ChatConfig(reasoning=None, template='default'),
      grader=GRADER,
      stages=(configs.Stage(algorithm='grpo', steps=32, optim=OptimConfig(
          learning_rate=3e-4, schedule='cosine', warmup_steps=2, final_fraction=0.1)),),
      rollout=RolloutConfig(prompts_per_step=16, samples_per_prompt=8, max_new_tokens=96,
                            temperature=0.7, grade_truncated=True),
      grpo=GrpoConfig(kl_coef=0.05, kl_estimator='k3'),
      evaluate=configs.EvaluateConfig(every=8, samples_per_prompt=4, temperature=0.7,
                                      pass_threshold=0.5),
      checkpoints=configs.CheckpointConfig(every=8))

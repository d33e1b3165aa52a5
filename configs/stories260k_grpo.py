"""Stories that keep their characters: GRPO on a pretrained model of 260,032 parameters.

  python -m rft_jax.main --config=configs/stories260k_grpo.py:DIR --workdir=runs/stories260k/run

DIR is stories260K, a Llama trained on TinyStories (karpathy/tinyllamas), as a Hugging Face
directory. It writes English, but changes the characters: after "a boy named Jack had a dog named
Max" it goes on with Lily, Nemo and Tom. The grader `cast_kept` below rewards stories that name the
two characters of the opening and no others. It cuts the story into segments of equal length and
takes their mean, so that a longer story scores no higher; repetition and early stopping lower it.

Hardware and time: one core of an AMD EPYC, 2 min 05 s of CPU time including the first compilation;
3.5 to 5 min of wall-clock time, as the core was shared with other work.

Held-out: 64 openings with names, animals and places that do not occur in training; 4 samples each
at temperature 0.7 and one greedy, 96 tokens; 95 % intervals.

  step                          0       8      16      24      32
  grade, sampled              0.225   0.321   0.344   0.356   0.340  [0.306, 0.372]
  grade, greedy               0.279   0.387   0.389   0.413   0.417  [0.374, 0.462]
  tokens                       96.0    96.0    96.0    96.0    96.0
  words                        38.7    40.0    38.9    39.0    39.2

Paired over the openings, step 32 - step 0: +0.115 [0.077, 0.153] sampled, +0.14 [0.08, 0.20]
greedy. Length does not explain it: the number of tokens is the same, and one more word is worth
+0.01 by the slope of grade on words within an evaluation (0.007 before, 0.012 after). Stories with
another character: 61 % before, 42 % after; with both characters: 15 % before, 23 % after.

The settings were chosen on these 64 openings. On 192 others from the same held-out words, drawn
afterwards with another seed: 0.230 before, 0.317 after, paired +0.087 [0.064, 0.109]; greedy 0.254
before, 0.364 after, +0.109 [0.074, 0.143].

The KL term (k3, to the base model). Readable: mean log-prob per token of the sampled stories under
the base model, -0.89 before.

  kl_coef   sampled   paired gain              greedy   words   readable
  0.0        0.328    +0.103 [0.062, 0.142]    0.339    40.8     -1.00
  0.02       0.344    +0.119 [0.078, 0.160]    0.337    40.8     -1.01
  0.05       0.340    +0.115 [0.077, 0.153]    0.417    39.2     -1.00   <- kept

With all three the text reads as before. An earlier grader, which found names inside sentences
only, showed why the term is needed. Without KL its grade rose from 0.25 to 0.49 in the same 32
steps, at -1.23 readable: "Sue started to cry. Sue wanted to", and other characters appeared at the
beginning of sentences instead (41 % of the stories before, 58 % after; 42 % with kl_coef 0.05).
The grader now checks that position too. At temperature 1 and a learning rate of 5e-4 the spelling
broke down (-1.3 to -1.7).

Before, 0.0: (Molly had a frog named Teddy. One day, they went to the hill.) Teddy saw a big ball
  and wanted to see what happened. She asked her friend, a dog named Max, "What are you doing?"
  Max said, "I have a frog and I am too excited to play with you." ...
After, 0.73, the same random numbers: Teddy saw a big ball and wanted to see what happened. She
  put it on her toys and jumped on the ball. Suddenly, Molly ran back to the ball. Molly saw a big
  tree. She got an idea.

Export (best step, 24) in transformers 5.23: logits of 64 stories differ by 3.9e-5 at most, the
largest logit is 23; tests/oracles/test_live_stories260k.py tests the same after two steps.
"""

import dataclasses
import itertools
import pathlib

import numpy as np

from rft_jax import config as configs
from rft_jax.data.chat import ChatConfig
from rft_jax.data.rows import DataConfig
from rft_jax.objectives.policy_objective import ObjectiveConfig
from rft_jax.rollout.rollout import RolloutConfig
from rft_jax.tasks import files
from rft_jax.training.optim import OptimConfig

DATA = pathlib.Path('runs/stories260k/data')
HOW_TO_GET = (
  'need the directory of stories260K as a Hugging Face checkpoint (config.json, '
  'model.safetensors, tokenizer.json): public as karpathy/tinyllamas, folder stories260K, on the '
  'Hugging Face hub, to be converted to LlamaForCausalLM; then '
  '--config=configs/stories260k_grpo.py:DIR or --config.model.source=DIR'
)

# ------------------------------------------------------------------ the grader

GRADER_SOURCE = r'''
import re

SEGMENT = 20  # words
NOT_NAMES = set("I He She It They We You That This There What Who One Everyone Someone Then Mom "
                "Mommy Mum Mama Dad Daddy Papa Grandma Grandpa".split())
INSIDE = r"(?<=[a-z,;] )[A-Z][a-z]+"  # a capital where no sentence or speech begins
ACTING = (r"\b[A-Z][a-z]+(?= (?:was|is|had|saw|said|asked|replied|went|ran|felt|wanted|liked|loved|"
          r"looked|smiled|found|thought|started|decided|did|could|took|came|told|knew)\b)")


def grade(sample, item):
  """Fraction of the story that names its two characters and no others.

  The story is cut into segments of 20 words. A segment scores 0.5 for each of the two characters
  that it names, and 0 if it names anybody else. The mean over the segments is multiplied by the
  fraction of distinct word trigrams, so that repetition does not pay. The mean is over at least two
  segments, so that stopping early does not pay either.
  """
  text, cast = re.sub(r"'[a-z]+", "", sample["output_text"]), set(item["cast"])
  words = re.findall(r"[A-Za-z]+", text)
  segments = [set(words[i:i + SEGMENT]) for i in range(0, len(words) - SEGMENT // 2, SEGMENT)]
  others = set(re.findall(INSIDE, text) + re.findall(ACTING, text)) - NOT_NAMES - cast
  total = sum(len(cast & segment) / 2 for segment in segments if not others & segment)
  trigrams = list(zip(words, words[1:], words[2:]))
  return total / max(2, len(segments)) * len(set(trigrams)) / max(1, len(trigrams))
'''
GRADER = {'type': 'python', 'name': 'cast_kept', 'source': GRADER_SOURCE}

# ------------------------------------------------------------------ the openings

# No name, animal or place of a held-out opening occurs in a training opening.
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
  """Returns `count` different rows: an opening, and the names of its two characters in `cast`."""
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
  """The base checkpoint; if it is missing, the error says how to get it."""

  def validate(self) -> list[str]:
    if not (pathlib.Path(self.source) / 'config.json').is_file():
      return [f'source={self.source!r}, {HOW_TO_GET}']
    return configs.ModelConfig.validate(self)


def get_config(source: str = '') -> configs.Config:
  """Writes the openings and returns the run.

  Args:
    source: directory of stories260K; '' if it is set by --config.model.source.
  """
  files.write(
    files.Files(
      openings(TRAIN, 512, seed=1), openings(HELD_OUT, 64, seed=2), GRADER, {'task': 'stories260k'}
    ),
    DATA,
  )
  return configs.Config(
    model=Stories(source=source),
    data=DataConfig(train=f'{DATA}/train.jsonl', validation=f'{DATA}/validation.jsonl'),
    chat=ChatConfig(reasoning=None, template='default'),
    grader=GRADER,
    stages=(
      configs.Stage(
        algorithm='grpo',
        steps=32,
        optim=OptimConfig(
          learning_rate=3e-4, schedule='cosine', warmup_steps=2, final_fraction=0.1
        ),
      ),
    ),
    rollout=RolloutConfig(
      prompts_per_step=16,
      samples_per_prompt=8,
      max_new_tokens=96,
      temperature=0.7,
      grade_truncated=True,
    ),
    objective=ObjectiveConfig(kl_coef=0.05, kl_estimator='k3'),
    evaluate=configs.EvaluateConfig(
      every=8, samples_per_prompt=4, temperature=0.7, pass_threshold=0.5
    ),
    checkpoints=configs.CheckpointConfig(every=8),
  )

"""Checks an export in transformers: the same greedy answers on the held-out rows of a run.

    python scripts/check_export.py WORKDIR [--rows=50]

Reads the greedy answers that the run recorded at the step of WORKDIR/export, generates with
transformers from the same prompt ids, and counts equal token sequences. Needs torch:
`make test-oracles` creates .venv-oracles, which has it.
"""

import argparse
import json
import pathlib
import re
import sys

import numpy as np

from rft_jax.records import episodes


def recorded_answers(workdir: pathlib.Path, step: int, rows: int):
  """Returns (prompt ids, greedy tokens) of the first held-out rows at an evaluation."""
  answers = {}  # the first sample of a row is the greedy one
  for record in episodes.read(workdir / 'evaluations', step):
    answers.setdefault(record['occurrence'], (record['prompt_ids'], record['tokens']))
  return [answers[occurrence] for occurrence in sorted(answers)][:rows]


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('workdir', type=pathlib.Path)
  parser.add_argument('--rows', type=int, default=50)
  args = parser.parse_args()
  import torch
  import transformers

  export = args.workdir / 'export'
  step = int(re.search(r'Step of these weights: (\d+)', (export / 'README.md').read_text())[1])
  model = transformers.AutoModelForCausalLM.from_pretrained(export).eval()
  pairs = recorded_answers(args.workdir, step, args.rows)
  equal = 0
  for prompt, tokens in pairs:
    with torch.no_grad():
      out = model.generate(
        torch.tensor([prompt]),
        do_sample=False,
        max_new_tokens=len(tokens),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
      )
    generated = out[0, len(prompt) :].tolist()
    equal += generated == tokens
    if generated != tokens:
      print(json.dumps({'prompt': prompt, 'rft_jax': tokens, 'transformers': generated}))
  lengths = np.mean([len(tokens) for _, tokens in pairs])
  print(
    f'{export}, step {step}: {equal} of {len(pairs)} greedy answers equal, '
    f'{lengths:.1f} tokens on average'
  )
  return 0 if equal == len(pairs) else 1


if __name__ == '__main__':
  sys.exit(main())

"""Does an export answer in transformers as it did here? Greedy, on the held-out rows of a run.

    python scripts/check_export.py WORKDIR [--rows=50]

Reads the greedy answers that the run recorded at the step of WORKDIR/export, lets transformers
generate for the same prompt ids, and counts equal token sequences. Needs torch:
`make test-oracles` makes .venv-oracles, which has it.
"""

import argparse
import json
import pathlib
import re
import sys

import numpy as np

from rft_jax.records import episodes


def recorded(workdir: pathlib.Path, step: int, rows: int):
  """Returns (prompt ids, greedy tokens) of the first held-out rows at an evaluation."""
  seen = {}
  for record in episodes.read(workdir / 'evaluations', step):
    seen.setdefault(record['occurrence'], (record['prompt_ids'], record['tokens']))
  return [seen[number] for number in sorted(seen)][:rows]


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('workdir', type=pathlib.Path)
  parser.add_argument('--rows', type=int, default=50)
  given = parser.parse_args()
  import torch
  import transformers

  export = given.workdir / 'export'
  step = int(re.search(r'Step of these weights: (\d+)', (export / 'README.md').read_text())[1])
  model = transformers.AutoModelForCausalLM.from_pretrained(export).eval()
  pairs = recorded(given.workdir, step, given.rows)
  equal = 0
  for prompt, tokens in pairs:
    with torch.no_grad():
      out = model.generate(
        torch.tensor([prompt]),
        do_sample=False,
        max_new_tokens=len(tokens),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
      )
    found = out[0, len(prompt) :].tolist()
    equal += found == tokens
    if found != tokens:
      print(json.dumps({'prompt': prompt, 'rft_jax': tokens, 'transformers': found}))
  lengths = np.mean([len(tokens) for _, tokens in pairs])
  print(
    f'{export}, step {step}: {equal} of {len(pairs)} greedy answers equal, '
    f'{lengths:.1f} tokens on average'
  )
  return 0 if equal == len(pairs) else 1


if __name__ == '__main__':
  sys.exit(main())

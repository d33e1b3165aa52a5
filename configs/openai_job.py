"""An unchanged reinforcement job of OpenAI's fine-tuning API, run on an open base model.

  python -m rft_jax.main --config=configs/openai_job.py:job.json --workdir=runs/job \\
      --config.model.source=Qwen/Qwen3-0.6B

job.json is the body of POST /v1/fine_tuning/jobs, with paths for training_file and validation_file
(relative to the current directory, or to that of job.json):

  {"training_file": "train.jsonl", "validation_file": "validation.jsonl",
   "method": {"type": "reinforcement", "reinforcement": {
     "grader": {...}, "response_format": {...}, "hyperparameters": {"n_epochs": 2}}}}

The value that replaces each "auto" is printed at the start. For a base model that writes reasoning
before its answer, set its markers: --config.chat.reasoning='("<think>","</think>")'.

The values that replace "auto" were not tuned: batch_size 16, 8 samples per prompt, learning rate
1e-6, about 100 steps, an evaluation every tenth of them with 4 samples per row.
"""

from rft_jax.run import openai_job


def get_config(path: str = ''):
  """Returns the Config of the job in the file `path`."""
  if not path:
    raise ValueError('the path of the job is missing: --config=configs/openai_job.py:job.json')
  return openai_job.read(path)

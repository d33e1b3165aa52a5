"""Benchmark: time that a slow grader adds to a GRPO step when grading overlaps with the rollout.

  python scripts/bench_grading.py                      # 32 x 8 samples, 50 ms a grade, 16 workers

Alternates GRPO steps (rollout, reference, update) without and with grading. The grader sleeps, like
one that waits for a judge or a server, in one process per worker.
"""

import statistics

import benchmarks

from rft_jax import graders
from rft_jax.rollout import grading_queue
from rft_jax.sampling import engine


def main():
  parser = benchmarks.make_parser(__doc__)
  parser.add_argument('--seconds', type=float, default=0.05, help='time of one grade')
  parser.add_argument('--workers', type=int, default=16, help='grader processes')
  parser.set_defaults(prompts=32, lengths='ragged')
  args = parser.parse_args()
  trainer = benchmarks.Trainer(args)
  source = f'import time\ndef grade(sample, item):\n  time.sleep({args.seconds})\n  return 1.0\n'
  grader = graders.make(
    {'type': 'python', 'name': 'slow', 'source': source},
    sandbox=graders.SandboxConfig(workers=args.workers),
  )
  step_numbers = iter(range(1000))

  def step(graded):
    number = next(step_numbers)
    with grading_queue.GradingQueue(grader) as queue:

      def finished(p, g, sample):
        if graded:
          queue.submit((p, g), {'messages': []}, {'output_text': str(sample.tokens)})

      samples = engine.generate(
        trainer.state.policy,
        benchmarks.prompts(args, number),
        samples_per_prompt=args.samples,
        max_new_tokens=args.new,
        stop_ids=(),
        seed=number,
        limits=benchmarks.limits(args, number),
        slots_per_shard=args.slots,
        on_finished=finished,
      )
    assert len(queue.grades) == graded * args.prompts * args.samples
    trainer.learn(trainer.score(benchmarks.make_batch(args, samples, number)))

  without, with_grades = [], []
  for turn in range(args.warmup + args.steps):
    for graded, seconds in ((False, without), (True, with_grades)):
      times, _ = benchmarks.timed(lambda: step(graded), 1, warmup=0)
      if turn >= args.warmup:
        seconds += times
  plain, graded = statistics.median(without), statistics.median(with_grades)
  count = args.prompts * args.samples
  benchmarks.report(
    'grading',
    args,
    {
      'seconds without, median': plain,
      'seconds with, median': graded,
      'added, share': graded / plain - 1,
      'grades': count,
      'seconds of grading alone': count * args.seconds / args.workers,
    },
    without=without,
    with_grades=with_grades,
  )
  grader.close()


if __name__ == '__main__':
  main()

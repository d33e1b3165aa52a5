"""What grading adds to a step: a grader that takes its time, beside the rollout that feeds it.

  python scripts/bench_grading.py                      # 32 x 8 samples, 50 ms a grade, 16 workers

A whole GRPO step (rollout, reference, update) without and with grades, in turn. The grader sleeps,
as one does that waits for a judge or a server, in as many processes as there are workers.
"""

import statistics

import benchmarks

from rft_jax import graders
from rft_jax.rollout import grading_queue
from rft_jax.sampling import engine


def main():
  parser = benchmarks.parser(__doc__)
  parser.add_argument('--seconds', type=float, default=0.05, help='of one grade')
  parser.add_argument('--workers', type=int, default=16, help='processes of the grader')
  parser.set_defaults(prompts=32, lengths='ragged')
  args = parser.parse_args()
  trainer = benchmarks.Trainer(args)
  grader = graders.make(
    {
      'type': 'python',
      'name': 'slow',
      'source': f'import time\ndef grade(sample, item):\n  time.sleep({args.seconds})\n  return 1.0\n',
    },
    sandbox=graders.SandboxConfig(workers=args.workers),
  )
  numbers = iter(range(1000))

  def step(graded):
    number = next(numbers)
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
        finished=finished,
      )
    assert len(queue.grades) == graded * args.prompts * args.samples
    trainer.learn(trainer.score(benchmarks.batch_of(args, samples, number)))

  without, with_grades = [], []
  for turn in range(args.warmup + args.steps):
    for graded, seconds in ((False, without), (True, with_grades)):
      one, _ = benchmarks.clocked(lambda: step(graded), 1, warmup=0)
      if turn >= args.warmup:
        seconds += one
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

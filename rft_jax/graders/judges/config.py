"""The `judge` config group: which model answers for score_model and label_model graders."""

import dataclasses
import urllib.parse


@dataclasses.dataclass(slots=True, kw_only=True)
class JudgeConfig:
  """Which model judges for score_model and label_model graders, and how requests are sent."""

  # An endpoint with OpenAI's chat completions API (OpenAI, vLLM, SGLang, llama.cpp, Ollama).
  # '': the environment variable OPENAI_BASE_URL, else OpenAI itself.
  base_url: str = ''
  api_key_env: str = 'OPENAI_API_KEY'  # the environment variable that holds the API key
  model: str = ''  # overrides the model that the grader's JSON names; '': no override
  # A Hugging Face directory or hub id: this model judges in the process of the run. No endpoint.
  local: str = ''
  concurrency: int = 16  # concurrent requests; no effect with local
  retries: int = 3  # of a request after 429, 5xx, a time-out, or an answer that cannot be parsed
  timeout_seconds: float = 120.0  # of one request, without data from the endpoint
  # Of one answer, where the grader's sampling_params set no limit. Reasoning counts.
  max_tokens: int = 4096
  # A folder for verdicts, shared by any number of runs: the same judge gets the same request
  # once. '': in the workdir of a run, elsewhere in memory.
  cache: str = ''

  def validate(self) -> list[str]:
    """Returns every problem as 'field=value, need ...'; [] if there is none."""
    url = urllib.parse.urlsplit(self.base_url)
    checks = (
      (
        not self.base_url or url.scheme in ('http', 'https') and url.hostname,
        f'base_url={self.base_url!r}, need a URL such as http://localhost:8000/v1',
      ),
      (
        not (self.base_url and self.local),
        f'local={self.local!r} with base_url={self.base_url!r}, need only one of the two',
      ),
      (self.api_key_env, "api_key_env='', need the name of an environment variable"),
      (self.concurrency >= 1, f'concurrency={self.concurrency}, need >= 1'),
      (self.retries >= 0, f'retries={self.retries}, need >= 0'),
      (self.timeout_seconds > 0, f'timeout_seconds={self.timeout_seconds}, need > 0'),
      (self.max_tokens >= 1, f'max_tokens={self.max_tokens}, need >= 1'),
    )
    return [problem for is_valid, problem in checks if not is_valid]

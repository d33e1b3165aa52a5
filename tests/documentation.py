"""The Markdown pages of the repository: their code blocks, commands, links and inline code."""

import json
import os
import re
import shlex
import subprocess
import sys

from paths import ROOT

PAGES = (
  'README.md',
  'CONTRIBUTING.md',
  'CHANGELOG.md',
  *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'docs').glob('*.md')),
)
COMMANDS = ('python', 'make', 'pip')
FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def read(page: str) -> str:
  return (ROOT / page).read_text(encoding='utf-8')


def fenced(page: str, language: str) -> list[str]:
  """Returns the contents of the fenced blocks of a language."""
  return [text for name, text in FENCE.findall(read(page)) if name == language]


def indented(page: str) -> list[str]:
  """Returns the indented blocks, without their indentation."""
  blocks, block = [], []
  for line in FENCE.sub('', read(page)).splitlines() + ['end']:
    if line.startswith('    '):
      block.append(line[4:])
    elif line.strip() and block:
      # Two blocks with an empty line between them are two.
      blocks += re.split(r'\n\n+', '\n'.join(block).strip())
      block = []
    elif block:
      block.append('')
  return [text for text in blocks if text]


def blocks(page: str) -> list[str]:
  """Returns all code blocks, fenced and indented."""
  return [text for _, text in FENCE.findall(read(page))] + indented(page)


def inline_code(page: str) -> list[str]:
  """Returns the texts between single backticks, on one line, outside fenced blocks."""
  return re.findall(r'`([^`\n]+)`', FENCE.sub('', read(page)))


def commands(page: str) -> list[str]:
  """Returns the commands in code blocks, and those in inline code, without comments."""
  lines = [
    line for block in blocks(page) for line in re.sub(r'\\\n\s*', '', block).splitlines()
  ] + inline_code(page)
  return [
    shlex.join(shlex.split(line, comments=True))
    for line in lines
    if re.match(rf'({"|".join(COMMANDS)}) ', line)
  ]


def graders(page: str) -> list[dict]:
  """Returns the JSON objects with a "type" among the code blocks."""
  values = []
  for block in blocks(page):
    try:
      value = json.loads(block)
    except ValueError:
      continue
    if isinstance(value, dict) and 'type' in value:
      values.append(value)
  return values


def run(command: str, *arguments, cwd, replace=()) -> subprocess.CompletedProcess:
  """Runs a command of a page as a user does, with `arguments` appended.

  Args:
    replace: (old, new) texts; a command that does not contain the old text is an error.
  """
  for old, new in replace:
    assert old in command, f'{old} is not in: {command}'
    command = command.replace(old, str(new))
  program, *rest = shlex.split(command)
  assert program == 'python', command
  # One device, as a user has; the tests themselves have eight.
  flags = re.sub(r'--xla_force_host_platform_device_count=\d+', '', os.environ.get('XLA_FLAGS', ''))
  return subprocess.run(
    [sys.executable, *rest, *map(str, arguments)],
    cwd=cwd,
    env=os.environ | {'XLA_FLAGS': flags},
    capture_output=True,
    text=True,
    timeout=600,
  )

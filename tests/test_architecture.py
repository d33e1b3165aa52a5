"""Imports run one way, by folder, and some packages know nothing of others."""

import ast

from paths import ROOT

PACKAGE = ROOT / 'rft_jax'

# A file may import from tiers before its own, and from its own folder. First match wins: a file
# that is lower than its folder is named before it.
TIERS = (
  ('types', 'errors', 'json_files', 'bootstrap', 'bucketing', 'command_line', 'platform'),
  (
    'objectives',
    'models',
    'sharding',
    'data.chat',
    'data.chat_templates',
    'data.reasoning',
    'data.stop_ids',
    'data.tokenizers',
    'data.batching',
    'data.packing',
  ),
  ('hf', 'sampling', 'graders', 'records', 'training.optim'),
  ('data', 'training', 'tasks'),
  ('rollout', 'local_models'),
  ('algorithms',),
  ('report',),
  ('config_checks',),
  ('config',),
  ('run',),
  ('doctor',),
  ('main',),
)
MODULES = {
  '.'.join(path.relative_to(PACKAGE).with_suffix('').parts).removesuffix('.__init__'): path
  for path in sorted(PACKAGE.rglob('*.py'))
  if path != PACKAGE / '__init__.py'
}


def tier(module):
  """Returns (number, entry) of the tier that a module stands in; (None, None) if it has none."""
  for number, entries in enumerate(TIERS):
    for entry in entries:
      if module == entry or module.startswith(f'{entry}.'):
        return number, entry
  return None, None


def imports(path):
  """Yields every module and name that a file imports, wherever in the file: 'jax.numpy', ..."""
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def own_imports(path):
  """Yields the modules of this package that a file imports, without the names inside them."""
  for name in imports(path):
    inner = name.removeprefix('rft_jax.') if name.startswith('rft_jax.') else ''
    while inner and inner not in MODULES:
      inner = inner.rpartition('.')[0]
    if inner:
      yield inner


def test_imports_run_one_way():
  offenders = [
    f'rft_jax/{module} stands in no tier' for module in MODULES if tier(module)[0] is None
  ]
  for module, path in MODULES.items():
    number, entry = tier(module)
    for other in own_imports(path):
      other_number, other_entry = tier(other)
      if other_number is None or number is None:
        continue
      if not (
        other_number < number or entry == other_entry or other.split('.')[0] == module.split('.')[0]
      ):
        offenders.append(f'{module} imports {other}')
  assert not offenders


def test_no_import_is_part_of_a_cycle():
  graph = {module: set(own_imports(path)) - {module} for module, path in MODULES.items()}
  reached = {module: set(others) for module, others in graph.items()}
  size = -1
  while size != (size := sum(map(len, reached.values()))):
    for module, others in graph.items():
      reached[module].update(*(reached[other] for other in others))
  assert sorted(module for module in graph if module in reached[module]) == []


# What a folder must not import: the folder -> names of packages.
FORBIDDEN = {
  'graders': ('jax', 'rft_jax.models', 'rft_jax.data'),
  'sampling': ('transformers', 'tokenizers', 'rft_jax.data'),
  'objectives': ('rft_jax.models', 'rft_jax.hf'),
  'models': ('rft_jax.hf', 'safetensors', 'transformers'),
}


def test_some_packages_know_nothing_of_others():
  offenders = []
  for module, path in MODULES.items():
    forbidden = ['torch', *FORBIDDEN.get(module.split('.')[0], ())]
    if not module.startswith('models'):
      forbidden.append('flax')
    if (tier(module)[0] or 0) < tier('config')[0]:
      forbidden.append('rft_jax.config')
    offenders += [
      f'{module} imports {name}'
      for name in imports(path)
      for package in forbidden
      if name == package or name.startswith(f'{package}.')
    ]
  assert not offenders


def test_the_decoder_names_no_family():
  families = [
    path.stem
    for path in (PACKAGE / 'models' / 'families').glob('*.py')
    if path.stem not in ('__init__', 'base')
  ]
  code = (PACKAGE / 'models' / 'decoder.py').read_text(encoding='utf-8').lower()
  assert len(families) >= 3 and not [name for name in families if name in code]


def test_top_level_holds_what_it_should():
  product = {'rft_jax', 'configs', 'scripts', 'tests', 'docs', 'examples', 'setup.cfg'}
  pages = {'README.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'LICENSE', 'constraints.txt'}
  tools = {'pyproject.toml', 'Makefile', '.ci', '.github', '.gitignore', '.pre-commit-config.yaml'}
  made = {
    *('.git', '.venv', '.venv-oracles', '.cache', 'runs', 'build', 'rft_jax.egg-info'),
    *('.pytest_cache', '.hypothesis', '__pycache__', '.ruff_cache', '.mypy_cache'),
  }
  assert {path.name for path in ROOT.iterdir()} - made - tools - pages - product == set()


# --- sizes ----------------------------------------------------------------------------------------

MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 60
# Files and functions that are longer, each with the reason.
LONGER = {'run/train.py: train': 'the whole loop on one page, a quarter of it docstring'}


def test_files_and_functions_are_short():
  longer = []
  for path in sorted(PACKAGE.rglob('*.py')):
    source, name = path.read_text(encoding='utf-8'), path.relative_to(PACKAGE).as_posix()
    if source.count('\n') > MAX_FILE_LINES:
      longer.append(name)
    for node in ast.walk(ast.parse(source)):
      if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        lines = node.end_lineno - node.lineno + 1
        if lines > MAX_FUNCTION_LINES:
          longer.append(f'{name}: {node.name}')
  assert longer == sorted(LONGER)


# --- names ----------------------------------------------------------------------------------------

# Names of version 0.1, and participles where a noun is needed: none of them comes back.
OLD_NAMES = {
  *('Room', 'Rooms', 'Desk', 'Side', 'Demands', 'DEMANDS', 'Refused', 'refusing', 'hand_in'),
  *('put_on_record', 'MEANT_FOR', 'refusals', 'Arm', 'policy_weights', 'knobs', 'Knobs'),
  *('KeysValues', 'Members', 'left_out', 'refill_rounds', 'max_still_rows', 'RobustConfig'),
  *('room', 'rooms', 'desk', 'gaming', 'ledger', 'found', 'given', 'kept', 'seen', 'made', 'told'),
}


def test_identifiers_are_standard_names():
  offenders = []
  for folder in ('rft_jax', 'configs', 'scripts', 'examples'):
    for path in sorted((ROOT / folder).rglob('*.py')):
      if path.stem in OLD_NAMES:
        offenders.append(str(path))
      for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        names = [getattr(node, key, None) for key in ('id', 'arg', 'attr', 'name')]
        offenders += [f'{path}:{node.lineno} {name}' for name in names if name in OLD_NAMES]
  assert not offenders

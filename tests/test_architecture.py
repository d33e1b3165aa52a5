"""Imports run one way, and some rooms know nothing of others."""
import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'rft_jax'

# A module may import from tiers before its own, and from its own room. First match wins.
TIERS = (
    ('types', 'shapes', 'command_line'),
    ('objectives', 'models', 'sharding', 'data.chat', 'data.templates', 'data.tokenizers',
     'data.packing', 'data.microbatches'),
    ('hf', 'sampling', 'graders', 'optim', 'records'),
    ('data', 'update', 'envs', 'tasks', 'grading', 'gaming', 'local_judge'),
    ('rollout', 'reward_models'),
    ('resampling',),
    ('credit',),
    ('algorithms',),
    ('config',),
    ('build', 'openai_job'),
    ('opening',),
    ('evaluate', 'cost'),
    ('doctor',),
    ('results',),
    ('train',),
    ('main',),
)
MODULES = {'.'.join(path.relative_to(PACKAGE).with_suffix('').parts): path
           for path in sorted(PACKAGE.rglob('*.py'))}


def _tier(module):
  for tier, names in enumerate(TIERS):
    for name in names:
      if module == name or module.startswith(name + '.'):
        return tier, name
  raise AssertionError(f'rft_jax/{module} stands in no tier; give it one')


def _imports(path):
  """Every module that a file names in an import, wherever in the file: 'jax.numpy', ..."""
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def _ours(path):
  """The modules of this package that a file imports, without the names inside them."""
  for name in _imports(path):
    if name.startswith('rft_jax.'):
      inner = name.removeprefix('rft_jax.')
      while inner and inner not in MODULES and f'{inner}.__init__' not in MODULES:
        inner = inner.rpartition('.')[0]
      if inner:
        yield inner


@pytest.mark.parametrize('module', [name for name in MODULES if name != '__init__'])
def test_imports_run_one_way(module):
  tier, room = _tier(module.removesuffix('.__init__'))
  for other in _ours(MODULES[module]):
    other_tier, other_room = _tier(other)
    same_room = room == other_room or other.split('.')[0] == module.split('.')[0]
    assert other_tier < tier or same_room, f'{module} imports {other}'


def _outside(room):
  return {module: set(_imports(path)) for module, path in MODULES.items()
          if module.split('.')[0] == room}


def _names(imports, *packages):
  return {name for name in imports for package in packages
          if name == package or name.startswith(package + '.')}


def test_flax_is_imported_in_models_alone():
  for module, path in MODULES.items():
    if not module.startswith('models.'):
      assert not _names(_imports(path), 'flax'), module


def test_torch_is_imported_nowhere():
  for module, path in MODULES.items():
    assert not _names(_imports(path), 'torch'), module


def test_graders_import_no_jax_and_no_other_room():
  for module, imports in _outside('graders').items():
    assert not _names(imports, 'jax', 'rft_jax.models', 'rft_jax.data'), module


def test_sampling_knows_no_text():
  for module, imports in _outside('sampling').items():
    assert not _names(imports, 'transformers', 'tokenizers', 'rft_jax.data'), module


def test_objectives_know_no_models():
  for module, imports in _outside('objectives').items():
    assert not _names(imports, 'rft_jax.models', 'rft_jax.hf'), module


def test_models_know_no_files():
  for module, imports in _outside('models').items():
    assert not _names(imports, 'rft_jax.hf', 'safetensors', 'transformers'), module


def test_config_is_seen_only_above_it():
  below = [module for module in MODULES
           if module != '__init__' and _tier(module.removesuffix('.__init__'))[0] < 8]
  for module in below:
    assert 'config' not in set(_ours(MODULES[module])), module


def test_the_decoder_names_no_family():
  families = [path.stem for path in (PACKAGE / 'models' / 'families').glob('*.py')
              if path.stem != '__init__']
  code = (PACKAGE / 'models' / 'decoder.py').read_text(encoding='utf-8').lower()
  assert len(families) >= 3 and not [name for name in families if name in code]


def test_top_level_holds_what_it_should():
  wanted = {'rft_jax', 'configs', 'scripts', 'tests', 'docs', 'setup.cfg', 'README.md'}
  tools = {'pyproject.toml', 'Makefile', 'LICENSE', '.ci', '.gitignore', '.git'}
  made = {'.venv', '.venv-oracles', '.cache', 'runs', 'rft_jax.egg-info', '.pytest_cache',
          '.hypothesis', '__pycache__', 'build'}
  assert {path.name for path in ROOT.iterdir()} - made - tools - wanted == set()


def test_the_readme_maps_every_file():
  readme = (ROOT / 'README.md').read_text(encoding='utf-8')
  lines = {line.split()[0] for line in readme.splitlines() if line.startswith('      ') and
           line.split()}
  shown = [path.name for folder in ('rft_jax', 'configs', 'scripts')
           for path in (ROOT / folder).rglob('*.py')
           if path.name != '__init__.py' and path.parent.name != 'families']
  shown += [f'families/{path.name}' for path in (PACKAGE / 'models' / 'families').glob('[!_]*.py')]
  assert sorted(name for name in shown if name not in lines) == []

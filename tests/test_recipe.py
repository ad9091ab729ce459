"""Recipes: what is read, what is refused, and what goes into artefacts."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from gshw.config import load_config
from gshw.errors import GshwError
from gshw.quantise import RangeMethod
from pruning.methods.registry import METHODS, Admm, Gradual, GroupLasso, Mest, OneShot, RigL
from pruning.patterns.gs import Gs
from pruning.patterns.pattern import RowGrouping
from pruning.patterns.registry import PATTERNS
from pruning.recipe import Recipe, load_recipe
from pruning.scores import Score
from pruning.settings import LayerRule, Recovery
from pruning.targets import Scope

DOCS = Path(__file__).resolve().parents[1] / "docs" / "pruning.md"

LEAST = """
engine = "tiny"
[pattern]
kind = "gs"
[target]
sparsity = 0.9
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_defaults(write):
    recipe = load_recipe(write(LEAST))
    assert recipe.config == load_config("tiny")
    assert recipe.pattern == Gs(config=recipe.config.engine)
    assert recipe.target.sparsity == 0.9 and recipe.target.scope is Scope.LAYER
    assert recipe.method == OneShot() and recipe.score.kind is Score.MAGNITUDE
    assert recipe.layers == () and recipe.seed == 0 and not recipe.channels.deal
    assert recipe.compensation.kind is Recovery.NONE and recipe.compensation.batch_norm
    assert recipe.quantisation.aware_from == 1.0
    assert recipe.weight_width == recipe.config.engine.weight_width


def test_the_documented_recipe(write):
    """docs/pruning.md shows a recipe, whole: every section, and nothing that is not one."""
    text = re.search(r"```toml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL).group(1)
    recipe = load_recipe(write(text))
    assert set(tomllib.loads(text)) == set(recipe.as_dict())
    assert recipe.method == Gradual(start=0.0, stop=0.5, updates=10)
    assert recipe.layers == (
        LayerRule(match="conv1", skip=True),
        LayerRule(match="layer4.*", sparsity=0.95),
    )
    assert recipe.quantisation.activations is RangeMethod.PERCENTILE
    assert recipe.pattern.grouping is RowGrouping.SCATTER


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_by_its_name(write, kind):
    recipe = load_recipe(write(LEAST + f'[method]\nkind = "{kind}"\nstart = 0.1'))
    assert type(recipe.method) is METHODS[kind] and recipe.method.start == 0.1


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ('kind = "gradual"\ninitial = 0.5\nupdates = 3', Gradual(initial=0.5, updates=3)),
        ('kind = "admm"\nrho = 1', Admm(rho=1)),
        (
            'kind = "group-lasso"\nstrength = 0.5\nepsilon = 2e-3\ngroup_rows = 2\n'
            "group_columns = 4",
            GroupLasso(strength=0.5, epsilon=2e-3, group_rows=2, group_columns=4),
        ),
        ('kind = "rigl"\nfraction = 0.1\nstop = 1', RigL(fraction=0.1, stop=1)),
        (
            'kind = "mest"\nsoft = true\ngradient_weight = 0.5',
            Mest(soft=True, gradient_weight=0.5),
        ),
    ],
)
def test_parameters_of_methods(write, text, method):
    assert load_recipe(write(f"{LEAST}[method]\n{text}")).method == method


@pytest.mark.parametrize("kind", PATTERNS)
def test_the_canonical_form_reads_back(kind):
    """Through JSON, as artefacts keep it; the pattern's parameters and the engine included."""
    document = {
        "seed": 3,
        "pattern": {"kind": kind},
        "target": {"sparsity": 0.75, "scope": "network"},
        "layer": [{"match": "a*", "sparsity": 0.5}, {"match": "b", "skip": True}],
        "score": {"kind": "function", "function": "numpy:abs"},
        "method": {"kind": "mest", "soft": True},
        "channels": {"deal": True},
        "compensation": {"kind": "least-squares", "steps": 3, "batch_norm": False},
        "quantisation": {"weight_width": 4, "activations": "mse", "aware_from": 0.5},
    }
    recipe = Recipe.from_dict(document, load_config("hybrid16"))
    again = Recipe.from_dict(json.loads(json.dumps(recipe.as_dict())))
    assert again.as_dict() == recipe.as_dict() and again.hash == recipe.hash
    assert again.pattern == recipe.pattern and again.layers == recipe.layers


def test_the_hash_tells_recipes_apart():
    def made(engine: str = "tiny", **changes) -> Recipe:
        document = {"pattern": {"kind": "gs"}, "target": {"sparsity": 0.9}} | changes
        return Recipe.from_dict(document, load_config(engine))

    variants = [
        made(),
        made("h16"),
        made(seed=1),
        made(target={"sparsity": 0.8}),
        made(pattern={"kind": "gs", "grouping": "consecutive"}),
        made(layer=[{"match": "*", "skip": True}]),
        made(method={"kind": "gradual"}),
        made(quantisation={"aware_from": 0.5}),
    ]
    assert len({recipe.hash for recipe in variants}) == len(variants)
    assert made().hash == made(method={"kind": "one-shot", "start": 0.0}).hash
    # What the engine implies may be written out.
    assert made().hash == made(quantisation={"weight_width": 8}).hash


def test_engines(write, tmp_path):
    """A preset, a file beside the recipe, a table, or what the caller says."""
    (tmp_path / "mine.toml").write_text(load_config("h16").to_toml(), encoding="utf-8")
    beside = load_recipe(write(LEAST.replace('"tiny"', '"mine.toml"')))
    assert beside.config.engine == load_config("h16").engine and beside.config.name == "mine"
    table = LEAST.replace('engine = "tiny"', "engine = {lanes = 4, rows = 2, bank_width = 8}")
    assert load_recipe(write(table)).config.engine.rows == 2
    given = load_recipe(write(LEAST), load_config("v16x4"))
    assert given.config.name == "v16x4" and given.pattern.config.lanes == 16


# --- bad input -----------------------------------------------------------------------------------

METHOD_NAMES = "one-shot, gradual, admm, group-lasso, rigl, mest"
SECTIONS = (
    "engine, seed, pattern, target, layer, score, method, channels, compensation, quantisation"
)

MISTAKES = {
    "not TOML": ("engine = ", "not valid TOML: Invalid value (at end of document)"),
    "key": (LEAST + "x = 1", "[target] has no key 'x'; its keys are sparsity, scope"),
    "section": (LEAST + "[x]", f"unknown key or section 'x'; there are {SECTIONS}"),
    "top key": ("x = 1\n" + LEAST, f"unknown key or section 'x'; there are {SECTIONS}"),
    "no engine": (
        LEAST.replace('engine = "tiny"', ""),
        "needs the key 'engine': a preset, or a file relative to the recipe",
    ),
    "engine": (
        LEAST.replace('"tiny"', "3"),
        "engine must be a preset's name, a path or a table, not 3",
    ),
    "engine table": (
        LEAST.replace('"tiny"', "{lanes = 4}"),
        "[engine] needs the key 'bank_width'",
    ),
    "no pattern": ('engine = "tiny"\n[target]\nsparsity = 0.5', "needs a section [pattern]"),
    "no target": ('engine = "tiny"\n[pattern]\nkind = "gs"', "needs a section [target]"),
    "pattern kind": (
        LEAST.replace('"gs"', '"x"'),
        f"pattern kind must be one of {', '.join(PATTERNS)}, not 'x'",
    ),
    "no pattern kind": (
        LEAST.replace('kind = "gs"', ""),
        "[pattern] needs the key 'kind'",
    ),
    "pattern parameter": (
        LEAST.replace('"gs"', '"gs"\nx = 1'),
        "pattern 'gs' has no parameter 'x'; its parameters are grouping, budget",
    ),
    "kind of another type": (
        LEAST.replace('"gs"', "[1]"),
        "[pattern] kind must be a string, not [1]",
    ),
    "pattern no table": (
        'engine = "tiny"\npattern = "gs"\n[target]\nsparsity = 0.5',
        "pattern must be a section, not 'gs'",
    ),
    "no sparsity": (LEAST.replace("sparsity = 0.9", ""), "[target] needs the key 'sparsity'"),
    "sparsity": (
        LEAST.replace("0.9", "1.0"),
        "[target] sparsity must be at least 0 and below 1, not 1",
    ),
    "sparsity below": (
        LEAST.replace("0.9", "-0.1"),
        "[target] sparsity must be at least 0 and below 1, not -0.1",
    ),
    "sparsity not a number": (
        LEAST.replace("0.9", '"90 %"'),
        "[target] sparsity must be a number, not '90 %'",
    ),
    "sparsity nan": (
        LEAST.replace("0.9", "nan"),
        "[target] sparsity must be at least 0 and below 1, not nan",
    ),
    "scope": (
        LEAST + 'scope = "all"',
        "[target] scope must be one of layer, network, not 'all'",
    ),
    "layer table": (
        LEAST + '[layer]\nmatch = "a"',
        "layer must be written [[layer]], once per rule",
    ),
    "layer entry": (
        "layer = [3]\n" + LEAST,
        "layer must be a section, not 3",
    ),
    "layer key": (
        LEAST + '[[layer]]\nmatch = "a"\nx = 1',
        "[layer] has no key 'x'; its keys are match, sparsity, skip",
    ),
    "layer match": (LEAST + "[[layer]]\nskip = true", "[layer] needs the key 'match'"),
    "layer empty match": (
        LEAST + '[[layer]]\nmatch = ""\nskip = true',
        "[layer] match must be a glob, not ''",
    ),
    "layer nothing": (
        LEAST + '[[layer]]\nmatch = "a"',
        "[layer] the rule for 'a' must set sparsity or skip",
    ),
    "layer sparsity": (
        LEAST + '[[layer]]\nmatch = "a"\nsparsity = 2',
        "[layer] sparsity must be at least 0 and below 1, not 2",
    ),
    "layer skip": (
        LEAST + '[[layer]]\nmatch = "a"\nskip = 1',
        "[layer] skip must be true or false, not 1",
    ),
    "score": (
        LEAST + '[score]\nkind = "x"',
        "[score] kind must be one of magnitude, wanda, hessian, gradient, function, not 'x'",
    ),
    "score function missing": (
        LEAST + '[score]\nkind = "function"',
        "[score] function must be given exactly when kind is 'function'",
    ),
    "score function too many": (
        LEAST + '[score]\nfunction = "a:b"',
        "[score] function must be given exactly when kind is 'function'",
    ),
    "score function type": (
        LEAST + '[score]\nkind = "function"\nfunction = 1',
        "[score] function must be a string, not 1",
    ),
    "method": (
        LEAST + '[method]\nkind = "x"',
        f"[method] kind must be one of {METHOD_NAMES}, not 'x'",
    ),
    "no method kind": (LEAST + "[method]\nstart = 0", "[method] needs the key 'kind'"),
    "method key": (
        LEAST + '[method]\nkind = "one-shot"\nstop = 1',
        "[method] has no key 'stop'; its keys are start",
    ),
    "start": (
        LEAST + '[method]\nkind = "one-shot"\nstart = 1',
        "[method] start must be at least 0 and below 1, not 1",
    ),
    "span start": (
        LEAST + '[method]\nkind = "gradual"\nstart = -1',
        "[method] start must be at least 0 and below 1, not -1",
    ),
    "stop": (
        LEAST + '[method]\nkind = "gradual"\nstart = 0.5\nstop = 0.5',
        "[method] stop must be above start = 0.5 and at most 1, not 0.5",
    ),
    "updates": (
        LEAST + '[method]\nkind = "gradual"\nupdates = 0',
        "[method] updates must be an integer of at least 1, not 0",
    ),
    "initial": (
        LEAST + '[method]\nkind = "gradual"\ninitial = 1',
        "[method] initial must be at least 0 and below 1, not 1",
    ),
    "rho": (LEAST + '[method]\nkind = "admm"\nrho = 0', "[method] rho must be above 0, not 0"),
    "strength": (
        LEAST + '[method]\nkind = "group-lasso"\nstrength = -1',
        "[method] strength must be above 0, not -1",
    ),
    "epsilon": (
        LEAST + '[method]\nkind = "group-lasso"\nepsilon = 0',
        "[method] epsilon must be above 0, not 0",
    ),
    "group": (
        LEAST + '[method]\nkind = "group-lasso"\ngroup_rows = 1.5',
        "[method] group_rows must be an integer of at least 0, not 1.5",
    ),
    "half a group": (
        LEAST + '[method]\nkind = "group-lasso"\ngroup_rows = 2',
        "[method] group_columns must be 0 exactly where group_rows is, not 0",
    ),
    "fraction": (
        LEAST + '[method]\nkind = "rigl"\nfraction = 1',
        "[method] fraction must be above 0 and below 1, not 1",
    ),
    "mest fraction": (
        LEAST + '[method]\nkind = "mest"\nfraction = 0',
        "[method] fraction must be above 0 and below 1, not 0",
    ),
    "soft": (
        LEAST + '[method]\nkind = "mest"\nsoft = 1',
        "[method] soft must be true or false, not 1",
    ),
    "gradient weight": (
        LEAST + '[method]\nkind = "mest"\ngradient_weight = -1',
        "[method] gradient_weight must be at least 0, not -1",
    ),
    "deal": (LEAST + "[channels]\ndeal = 1", "[channels] deal must be true or false, not 1"),
    "compensation": (
        LEAST + '[compensation]\nkind = "x"',
        "[compensation] kind must be one of none, least-squares, not 'x'",
    ),
    "compensation steps": (
        LEAST + "[compensation]\nsteps = 0",
        "[compensation] steps must be an integer of at least 1, not 0",
    ),
    "batch norm": (
        LEAST + "[compensation]\nbatch_norm = 0",
        "[compensation] batch_norm must be true or false, not 0",
    ),
    "width type": (
        LEAST + "[quantisation]\nweight_width = 1",
        "[quantisation] weight_width must be an integer of at least 2, not 1",
    ),
    "width": (
        LEAST + "[quantisation]\nweight_width = 9",
        "[quantisation] weight_width must be at most the engine's 8, not 9",
    ),
    "activations": (
        LEAST + '[quantisation]\nactivations = "x"',
        "[quantisation] activations must be one of max, percentile, mse, not 'x'",
    ),
    "percentile": (
        LEAST + "[quantisation]\npercentile = 101",
        "[quantisation] percentile must be above 0 and at most 100, not 101",
    ),
    "percentile type": (
        LEAST + "[quantisation]\npercentile = true",
        "[quantisation] percentile must be a number, not True",
    ),
    "aware": (
        LEAST + "[quantisation]\naware_from = 1.5",
        "[quantisation] aware_from must be from 0 to 1, not 1.5",
    ),
    "aware in a penalty": (
        LEAST + '[method]\nkind = "admm"\n[quantisation]\naware_from = 0.2',
        "[quantisation] aware_from must be at least 0.5, where method 'admm' has settled, not 0.2",
    ),
    "seed": ("seed = -1\n" + LEAST, "seed must be an integer of at least 0, not -1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_file(write, mistake):
    text, message = MISTAKES[mistake]
    path = write(text)
    with pytest.raises(GshwError) as caught:
        load_recipe(path)
    assert str(caught.value) == f"{path}: {message}"


def test_files_that_cannot_be_read(tmp_path, write):
    with pytest.raises(GshwError, match=r"missing\.toml: no such recipe$"):
        load_recipe(tmp_path / "missing.toml")
    with pytest.raises(GshwError, match=r": cannot be read: .*Is a directory"):
        load_recipe(tmp_path)
    path = write("")
    path.write_bytes(b"\xff")
    with pytest.raises(GshwError, match=r"recipe\.toml: cannot be read: 'utf-8' codec"):
        load_recipe(path)
    with pytest.raises(GshwError, match=r"recipe\.toml: .*x\.toml: no such config file"):
        load_recipe(write(LEAST.replace('"tiny"', '"x.toml"')))

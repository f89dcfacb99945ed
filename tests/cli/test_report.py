from __future__ import annotations

import json
import zlib

import numpy as np
import pytest

from dcompress.cli.tables import describe_recipe
from dcompress.constants import SECTION_RECEIPT
from dcompress.container.writer import Section, write_head
from dcompress.encode import encode_tensor
from dcompress.numpy import data_from_array
from dcompress.recipe import PruneRule, RateRule, Recipe, ShareRule, TensorRecipe
from dcompress.report import describe_plan


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (TensorRecipe(), "lossless"),
        (TensorRecipe(PruneRule(sparsity=0.9)), "prune 90 %"),
        (TensorRecipe(PruneRule(sparsity=0.5, scope="global")), "prune 50 % of global"),
        (TensorRecipe(PruneRule(threshold=0.01)), "prune below 0.01"),
        (TensorRecipe(PruneRule(quality=1.7), ShareRule()), "prune below 1.7 sigma, kmeans 256"),
        (TensorRecipe(share=ShareRule("uniform", 16, groups=4)), "uniform 16 in 4 groups"),
        (TensorRecipe(share=ShareRule("given", codebook=(0.5, 1.0))), "codebook of 2"),
        (TensorRecipe(share=ShareRule("fixed_point", integer_bits=1)), "fixed point 1.7"),
        (TensorRecipe(share=RateRule(0.0123)), "rate step 0.0123"),
        (TensorRecipe(share=RateRule(0.0123, 0.2, 4)), "rate step 0.0123 slope 0.2 states 4"),
        (TensorRecipe(PruneRule(0.5), RateRule(0.5, fine=True)), "prune 50 %, rate step <= 0.5"),
    ],
)
def test_plans_in_words(recipe, words):
    assert describe_plan(recipe) == words


def test_recipes_in_one_line():
    recipe = Recipe.from_options("paper", ["a\n*:bits=3"], ["b*", "c*"], sparsity=0.5)
    assert describe_recipe(recipe.to_dict()) == r"paper; sparsity 0.5; set a\n*:bits=3; exclude b* c*"
    assert describe_recipe(Recipe(step=0.0123, states=8).to_dict()) == "balanced; step 0.0123; states 8"


def test_recipes_of_strangers_do_no_harm():
    assert describe_recipe({"rule": "x"}) == "balanced"
    assert describe_recipe({"rule": [3, {"bits": 1}]}) == "balanced; set None:bits=1"
    assert describe_recipe({"preset": ["\x1b"], "exclude": 5}) == r"['\x1b']; exclude 5"


@pytest.mark.parametrize(
    ("recipe", "errors", "code"),
    [
        ("{}", "{}", 0),
        ('{"bits": 1e999, "rule": [{"x": NaN}]}', "{}", 0),
        ("{" + '"a":{' * 400 + "}" * 400 + "}", "{}", 0),
        ("{}", '{"0": [1, -1]}', 0),
        ("{}", '{"0": [NaN, 1]}', 0),
        ("{}", '{"0": [1e999, 1e999]}', 0),
        ("{}", '{"0": [1e-300, 1e300]}', 0),
        ("{}", '{"0": [0, 1]}', 0),
        ("{}", '{"0": [1, 1' + "0" * 400 + "]}", 3),
        ("{}", '{"0": 3}', 3),
        ("{}", '{"7": [1, 1]}', 3),
        ("5", "{}", 3),
    ],
)
def test_receipts_of_strangers_do_no_harm(dcz, recipe, errors, code):
    text = f'{{"version":1,"recipe":{recipe},"errors":{errors}}}'
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    section = Section(SECTION_RECEIPT, packer.compress(text.encode()) + packer.flush())
    coded = encode_tensor(data_from_array("x", np.arange(5.0)))
    frame = write_head({"x": coded}, {}, [section]) + b"".join(coded.chunks) + section.data
    dcz("info", "-", stdin=frame, code=code)
    stdout = dcz("info", "-", "--json", stdin=frame, code=code).stdout
    assert code or json.loads(stdout)["tensors"][0]["name"] == "x"
    dcz("verify", "-", stdin=frame, code=code)

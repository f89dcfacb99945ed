from __future__ import annotations

import json
import re
import warnings
import zlib
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

import dcompress  # noqa: E402
import dcompress.torch as dtorch  # noqa: E402
from dcompress.constants import DTYPES, SECTION_TORCH  # noqa: E402
from dcompress.container.writer import Section  # noqa: E402
from dcompress.errors import DcompressWarning, DecodeError, EncodeError, RecipeError  # noqa: E402
from dcompress.recipe import Recipe, Rule  # noqa: E402
from tests.checks import frame_of  # noqa: E402
from tests.strategies import random_words, seeds  # noqa: E402

TORCH_DTYPES = [getattr(torch, dtype.name) for dtype in DTYPES if hasattr(torch, dtype.name)]
PRESETS = ["lossless", "balanced", "paper"]


def bits(tensor):
    """Return the bytes of a tensor in C order; NaNs and all."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def assert_same(got, want):
    assert list(got) == list(want)
    for name, tensor in want.items():
        if not isinstance(tensor, torch.Tensor):
            assert got[name] == tensor
            continue
        assert got[name].dtype == tensor.dtype
        assert got[name].shape == tensor.shape
        assert bits(got[name]) == bits(tensor)


def tensor_of(dtype, shape, seed):
    with warnings.catch_warnings():  # complex32 is called experimental
        warnings.simplefilter("ignore", UserWarning)
        empty = torch.empty(shape, dtype=dtype)
        if not empty.numel():
            return empty
        words = random_words(np.random.default_rng(seed), empty.numel() * empty.element_size(), 1)
        words = words & 1 if dtype == torch.bool else words
        return torch.from_numpy(words).view(dtype).reshape(shape)


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 12, 5),
        torch.nn.BatchNorm2d(12),
        torch.nn.Flatten(),
        torch.nn.Linear(48, 60),
        torch.nn.Linear(60, 40, bias=False),
    )


# What is loaded is what `compress` returns.


@pytest.mark.parametrize("preset", PRESETS)
def test_a_module_comes_back_as_compress_makes_it(tmp_path, preset):
    state = model().state_dict()
    path = tmp_path / "model.dcz"
    dtorch.save_file(state, path, recipe=preset)
    want = dtorch.compress(state, preset)
    assert_same(dtorch.load_file(path), want)
    assert_same(dtorch.load(dtorch.save(state, recipe=preset)), want)
    if preset == "lossless":
        assert_same(want, state)
    with dtorch.safe_open(path) as file:
        assert_same({name: file.get_tensor(name) for name in file}, want)


@settings(max_examples=25)
@given(
    st.sampled_from(PRESETS),
    st.dictionaries(
        st.sampled_from("abcdef"),
        st.tuples(st.sampled_from(TORCH_DTYPES), st.lists(st.integers(0, 9), max_size=4), seeds),
        max_size=4,
    ),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    seeds,
)
def test_any_state_dict_comes_back_as_compress_makes_it(preset, specs, dtype, shape, seed):
    state = {name: tensor_of(*spec) for name, spec in specs.items()}
    generator = torch.Generator().manual_seed(seed)
    state["weight"] = torch.randn(shape, generator=generator).to(dtype)
    with warnings.catch_warnings():  # of tensors that hold NaN
        warnings.simplefilter("ignore", DcompressWarning)
        want = dtorch.compress(state, preset)
        assert_same(dtorch.load(dtorch.save(state, recipe=preset)), want)
    if preset == "lossless":
        assert_same(want, state)


def test_recipes_are_given_by_name_object_or_file(tmp_path):
    state = {"w": torch.randn(64, 64, generator=torch.Generator().manual_seed(0))}
    recipe = Recipe(rules=(Rule("w", {"bits": 2, "sparsity": 0.5}),))
    toml = tmp_path / "recipe.toml"
    toml.write_text('[[rule]]\npattern = "w"\nbits = 2\nsparsity = 0.5\n')
    frames = {dtorch.save(state, recipe=one) for one in (recipe, str(toml))}
    assert len(frames) == 1
    loaded = dtorch.load(frames.pop())["w"]
    assert loaded.unique().numel() <= 5
    assert (loaded == 0).float().mean() == 0.5
    with pytest.raises(RecipeError):
        dtorch.save(state, recipe="nobody")


def test_frames_do_not_depend_on_threads():
    state = model().state_dict()
    assert len({dtorch.save(state, recipe="paper", threads=threads) for threads in (1, 2, 5)}) == 1


# State dicts are more than tensors.


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_every_dtype_is_kept(dtype):
    state = {
        "w": tensor_of(dtype, (3, 5), 1),
        "scalar": tensor_of(dtype, (), 2),
        "none": tensor_of(dtype, (0, 2), 3),
    }
    assert_same(dtorch.load(dtorch.save(state, recipe="lossless")), state)


def test_order_metadata_and_plain_values_are_kept():
    state = model().state_dict()
    state["step"] = 7
    state.move_to_end("0.bias")
    state["history"] = [1.5, None, "x", {"a": True}]
    loaded = dtorch.load(dtorch.save(state, recipe="lossless", metadata={"license": "MIT"}))
    assert isinstance(loaded, OrderedDict)
    assert_same(loaded, state)
    assert loaded._metadata == state._metadata
    model().load_state_dict({k: v for k, v in loaded.items() if k not in ("step", "history")})


def test_tied_tensors_are_tied_again():
    w = torch.randn(40, 40)
    state = {"a": w, "b": w, "view": w.view(40, 40), "copy": w.clone(), "turned": w.t()}
    for preset in PRESETS:
        frame = dtorch.save(state, recipe=preset)
        loaded = dtorch.load(frame)
        assert loaded["a"].data_ptr() == loaded["b"].data_ptr() == loaded["view"].data_ptr()
        assert len({loaded[name].data_ptr() for name in ("a", "copy", "turned")}) == 3
        assert_same(loaded, dtorch.compress(state, preset))
    loaded["a"][0, 0] = 99
    assert loaded["b"][0, 0] == 99


def test_strided_and_conjugated_tensors_are_kept_by_value():
    z = torch.randn(6, 4, dtype=torch.complex64)
    state = {
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "part": torch.arange(100.0)[10:50:3],
        "expanded": torch.ones(1).expand(30),
        "conjugate": z.conj(),
        "negative": z.conj().imag,
    }
    loaded = dtorch.load(dtorch.save(state, recipe="lossless"))
    for name, tensor in state.items():
        assert torch.equal(loaded[name], tensor.resolve_conj().resolve_neg())


def test_parameters_are_stored_as_tensors():
    state = dict(model().named_parameters())
    assert_same(dtorch.load(dtorch.save(state, recipe="lossless")), {k: v.detach() for k, v in state.items()})


@pytest.mark.parametrize(
    "value",
    [object(), {1: 2}, (1, 2), float("nan"), torch.zeros(2).to_sparse(), torch.zeros(2, device="meta")],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_stored_is_refused_by_name(value):
    with pytest.raises(EncodeError, match="'odd'"):
        dtorch.save({"odd": value})


def test_load_model(tmp_path):
    source, target = model(), model()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    path = tmp_path / "model.dcz"
    dtorch.save_file(source.state_dict(), path, recipe="lossless")
    assert dtorch.load_model(target, path) == ([], [])
    assert_same(target.state_dict(), source.state_dict())
    dtorch.save_file({"0.bias": source[0].bias, "more": torch.zeros(1)}, path, recipe="lossless")
    missing, unexpected = dtorch.load_model(target, path, strict=False)
    assert "0.weight" in missing
    assert unexpected == ["more"]
    with pytest.raises(RuntimeError):
        dtorch.load_model(target, path)


# Parts of files.


@pytest.mark.parametrize("preset", PRESETS)
def test_slices_are_those_of_the_whole_tensor(tmp_path, preset):
    state = {
        "w": torch.randn(90, 7, 5),
        "v": torch.randn(5000).to(torch.bfloat16),
        "i": torch.arange(12).view(4, 3),
    }
    path = tmp_path / "model.dcz"
    dtorch.save_file(state, path, recipe=preset)
    loaded = dtorch.load_file(path)
    with dtorch.safe_open(path) as file:
        for name, tensor in loaded.items():
            part = file.get_slice(name)
            assert part.get_shape() == list(tensor.shape)
            for key in (slice(1, 3), slice(None), 2, -1, slice(3, 3), slice(-2, None), ...):
                assert bits(part[key]) == bits(tensor[key])
        assert bits(file.get_slice("w")[4:80, 2, ::2]) == bits(loaded["w"][4:80, 2, ::2])


def test_tensors_can_be_decoded_into_given_memory():
    state = {"w": torch.randn(90, 7), "b": torch.randn(33).to(torch.bfloat16)}
    with dtorch.safe_open(dtorch.save(state, recipe="lossless")) as file:
        for name, tensor in state.items():
            out = torch.empty_like(tensor)
            assert file.get_tensor(name, out=out) is out
            assert bits(out) == bits(tensor)
        for out in (torch.empty(7, 90), torch.empty(7, 90).t(), torch.empty(90, 7, dtype=torch.float64)):
            with pytest.raises(ValueError, match="out"):
                file.get_tensor("w", out=out)


# The package itself.


def test_the_package_has_the_torch_functions():
    for name in dtorch.__all__:
        assert getattr(dcompress, name) is getattr(dtorch, name)
    assert set(dcompress.__all__) == set(dir(dcompress))
    for name in dcompress.__all__:
        assert getattr(dcompress, name) is not None
    with pytest.raises(AttributeError):
        dcompress.nothing  # noqa: B018


# Torch sections that nobody encoded.


def with_extra(content):
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packer.compress(json.dumps(content).encode()) + packer.flush()
    return frame_of({}, {}, [Section(SECTION_TORCH, data)])


@pytest.mark.parametrize("content", [{}, {"later": 5}, {"values": {"a": 1}, "value_positions": [0]}])
def test_good_extras_are_loaded(content):
    assert dict(dtorch.load(with_extra(content))) == content.get("values", {})


@pytest.mark.parametrize(
    "content",
    [
        {"values": 5, "value_positions": [0]},
        {"values": {"a": 1}},
        {"values": {"a": 1}, "value_positions": []},
        {"values": {"a": 1}, "value_positions": ["x"]},
        {"values": {"a": 1}, "value_positions": 3},
        {"_metadata": 7},
        {"_metadata": "text"},
    ],
)
def test_extras_that_make_no_sense_are_decode_errors(content):
    with pytest.raises(DecodeError):
        dtorch.load(with_extra(content))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (torch.nn.Linear(2, 2), "model.state_dict()"),
        ("m.dcz", "a state dict is wanted"),
        ({"w": np.zeros(3)}, "dcompress.numpy"),
        ({"state_dict": {"w": torch.zeros(3)}}, "['state_dict']"),
    ],
)
def test_common_slips_are_explained(wrong, says):
    with pytest.raises(EncodeError, match=re.escape(says)):
        dtorch.save(wrong)


def test_recipes_may_be_dicts_and_nothing_odd():
    state = {"w": torch.randn(64, 64)}
    assert dtorch.save(state, recipe={"preset": "lossless"}) == dtorch.save(state, recipe="lossless")
    with pytest.raises(RecipeError, match="wanted"):
        dtorch.save(state, recipe=5)


def test_modules_are_saved_and_loaded(tmp_path):
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    dtorch.save_model(model, tmp_path / "m.dcz", recipe="lossless")
    dtorch.load_model(other, tmp_path / "m.dcz")
    assert torch.equal(model.weight, other.weight)

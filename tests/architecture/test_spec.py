"""The spec and the code say the same: rules, registries, limits, pseudo-code, the worked example."""

import ast
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcompress import constants, limits
from dcompress.checksum import checksum, fold, partial_sum
from dcompress.choice import table_bytes
from dcompress.coding import (
    Codebook,
    Context,
    FixedWidth,
    Labels,
    Planes,
    Raw,
    SharedCoder,
    SplitRun,
    ZeroRun,
)
from dcompress.coding.classes import CLASSES_PER_BYTE, lanes_of
from dcompress.coding.context import MAX_ROW_WORDS
from dcompress.coding.huffman import HuffmanCode
from dcompress.coding.symbols import BUCKET_BASES, N_SYMBOLS, SYMBOL_RAW_BITS
from dcompress.coding.tables import ascending_order, even_values
from dcompress.coding.zero_run import RunStatistics
from dcompress.constants import DTYPES, RUN_CODERS
from dcompress.container.writer import CodedTensor, Section, write_head
from dcompress.decode import open_frame
from dcompress.errors import DecodeError
from dcompress.kernels.trellis import STATES, transitions
from dcompress.limits import DecodeLimits
from dcompress.stages import SharedTensor, word_dtype
from tests.contexts import contexts, random_context
from tests.vectors import INVALID, VALID, check_spec, pseudo_code

ROOT = Path(__file__).parents[2]
SPEC = check_spec.spec_text()
Breach = check_spec.Breach
RULE = re.compile(r"[A-Z]{3}-[0-9]{2}")


@pytest.fixture(scope="module")
def pseudo():
    """The names that the pseudo-code of the spec defines."""
    return pseudo_code()


def table(heading):
    """Return the rows of the first table after a heading, header left out, cells stripped."""
    lines = SPEC.split(f"\n{heading}", 1)[1].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def number(cell):
    return int(cell.replace(",", ""))


def test_rules_match_the_code():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "dcompress").rglob("*.py"))
    in_code = set(re.findall(r'"([A-Z]{3}-[0-9]{2})"', sources))
    rows = table("### 14.6 Rules")
    in_table = {row[0] for row in rows}
    assert len(rows) == len(in_table)
    # The package reads every frame, so it never reports what is for smaller decoders alone.
    for_others = {row[0] for row in rows if "(decoders of the baseline profile alone)" in row[1]}
    assert for_others == {"LIM-08"}
    assert in_table - for_others == in_code
    assert set(RULE.findall(SPEC)) - {"CRC-32"} == in_table


def test_pseudo_code_fails_with_every_rule_it_can():
    blocks = "".join(check_spec.spec_blocks(examples=False))
    # SEC-02 is about JSON, which the pseudo-code leaves alone.
    assert set(re.findall(r'fail\("(.*?)"\)', blocks)) == {row[0] for row in table("### 14.6 Rules")} - {
        "SEC-02"
    }


def test_error_classes_match_the_code():
    classes = {row[0]: row[2] for row in table("### 14.6 Rules")}
    for path in (ROOT / "dcompress").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                for keyword in node.keywords:
                    rule = getattr(keyword.value, "value", None)
                    if keyword.arg == "rule" and rule in classes:
                        assert node.func.id == classes[rule], f"{path.name}: {rule}"


def test_dtype_registry_matches(pseudo):
    rows = table("### 14.1 Element types")
    assert rows[0][:2] == ["0", "alias"]
    found = [(number(r[0]), r[1], r[2], number(r[3]), number(r[4])) for r in rows[1:]]
    wanted = [(d.code, d.name, d.kind.value, d.word_bytes, d.words_per_element) for d in DTYPES]
    assert found == wanted
    assert {d.code: (d.kind.value, d.word_bytes, d.words_per_element) for d in DTYPES} == pseudo.DTYPES


def test_other_registries_match(pseudo):
    coders = table("### 14.2 Coders")
    assert {number(row[0]): row[1] for row in coders} == constants.CODER_NAMES
    assert tuple(number(row[0]) for row in coders if row[2] == "yes") == constants.SHARED_CODERS
    for code, name in constants.CODER_NAMES.items():
        assert getattr(pseudo, name.upper()) == code
    modes = {row[1]: number(row[0]) for row in table("### 14.3 Plane modes")}
    wanted = (constants.PLANE_CONSTANT, constants.PLANE_RAW, constants.PLANE_HUFFMAN)
    assert (modes.pop("constant"), modes.pop("raw"), modes.pop("huffman")) == wanted
    assert not modes
    assert {number(row[0]): row[1] for row in table("### 14.4 Section kinds")} == constants.SECTION_NAMES
    assert constants.KNOWN_FEATURES == 0
    assert pseudo.SIGNATURE == constants.SIGNATURE
    assert constants.SIGNATURE.hex(" ").upper() in SPEC


def test_limits_match():
    rows = {row[4]: row for row in table("## 13. Limits")}
    defaults = DecodeLimits()
    for rule, name in (
        ("LIM-01", "max_directory_bytes"),
        ("LIM-02", "max_tensors"),
        ("LIM-03", "max_rank"),
        ("LIM-04", "max_name_bytes"),
        ("LIM-06", "max_section_bytes"),
        ("LIM-07", "max_names_bytes"),
    ):
        assert number(rows[rule][2]) == getattr(defaults, name)
    assert f"{limits._SMALL_OUTPUT:,}" in rows["LIM-05"][2]
    assert f"{limits._USUAL_RATIO:,} times" in rows["LIM-05"][2]
    assert number(rows["DIR-08"][3]) == constants.MAX_LABELS
    assert number(rows["HUF-01"][3]) == constants.MAX_ALPHABET
    assert number(rows["HUF-03"][3]) == constants.MAX_CODE_LENGTH
    assert number(rows["DIR-14"][3]) == constants.MAX_TABLE_SET_BYTES
    assert number(rows["CTX-01"][3]) == MAX_ROW_WORDS
    assert f"{CLASSES_PER_BYTE} times" in rows["CTX-08"][1]


def test_baseline_caps_match_the_pseudo_code(pseudo):
    """Each cap of LIM-08 stands in the code of the section, and no number in it stands for nothing."""
    rows = [row for row in table("## 13. Limits") if row[5] == "LIM-08"]
    caps = {number(row[1].split(", and")[0]) for row in rows}
    (block,) = (b for b in check_spec.spec_blocks() if "def check_baseline" in b)
    assert {int(cap) for cap in re.findall(r"> (\d+)", block)} == caps
    limits_of = check_spec.baseline_limits()
    assert limits_of.max_rank == 8
    assert limits_of.max_names_bytes == 1048576
    default = check_spec.Limits()
    assert {name: getattr(DecodeLimits(), name) for name in vars(default)} == vars(default)


def test_vectors_of_rules_are_there():
    rules = {entry["file"]: entry["rule"] for entry in INVALID}
    rules |= {entry["file"]: entry["baseline_rule"] for entry in VALID if not entry["baseline"]}
    for row in table("### 14.6 Rules"):
        assert rules[row[3].strip("`")] == row[0]


def test_the_index_of_vectors_is_whole():
    ends = [[number(end) for end in row[0].split(" to ")] for row in table("## B. Vector index")]
    assert [place for first, last in ends for place in range(first, last + 1)] == [
        int(entry["file"].split("-")[0]) for entry in VALID
    ]


def test_adaptation_table_matches(pseudo):
    for bit, row in enumerate(table("How the chance of a 0 moves")):
        side = pseudo.Side(b"\xff" * 8 if bit else b"")
        seen = []
        for _ in row[1:]:
            assert side.bit(0) == bit
            seen.append(side.chance[0])
        assert seen == [number(cell) for cell in row[1:]]


def test_worked_example_is_up_to_date():
    run = [sys.executable, str(ROOT / "tools" / "annotate.py"), "--check"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_worked_example_decodes(pseudo):
    frame = (ROOT / "fixtures" / "examples" / "worked.dcz").read_bytes()
    names = [tensor[0] for tensor in compare(pseudo, frame)]
    assert names == [b"fc.weight", b"fc.bias", b"head.weight"]


def code_tensor(coder, shared, shift):
    """Return a shared tensor, coded by one coder in chunks of ``2 ** shift`` words or rows."""
    data = shared.gather()
    step = 1 << shift if shift else data.words.size
    if shift and isinstance(coder, Context):
        step *= coder.geometry.row_words
    source = shared.labels if isinstance(coder, SharedCoder) else data.words
    chunks = [coder.encode_chunk(source[at : at + step], at) for at in range(0, source.size, step)]
    chunks[0] = table_bytes(coder) + chunks[0]
    n_labels = shared.n_labels if isinstance(coder, SharedCoder) else 0
    n_kept = int(np.count_nonzero(data.words)) if coder.number in RUN_CODERS else 0
    digest = fold(partial_sum(data.words))
    return CodedTensor(
        shared.dtype, shared.shape, coder.number, n_labels, n_kept, shift, tuple(chunks), digest
    )


def coders_for(shared, step):
    """Return a coder of every kind that can hold the tensor."""
    book, words = Codebook.of(shared), shared.gather().words
    huffman = [
        HuffmanCode.from_counts(np.bincount(plane, minlength=256)) for plane in planes_of(shared.dtype, words)
    ]
    constant = tuple(code.lone_symbol for code in huffman)
    codes = tuple(None if code.lone_symbol is not None else code for code in huffman)
    coders = [
        Raw(),
        Planes.fit(shared.dtype, words)[0],
        Planes(shared.dtype, constant, codes),
        FixedWidth(book),
    ]
    coders += [coder for coder, _ in Labels.fit(book, shared.labels, step)]
    if shared.has_zero and shared.labels.any():
        statistics = RunStatistics(shared.labels, shared.n_labels, step)
        for n_buckets, raw_bits in ((1, 1), (2, 0), (3, 2)):
            for kind in (ZeroRun, SplitRun):
                coder, _ = kind.fit(book, statistics, n_buckets, raw_bits)
                coders += [coder] if coder.usable else []
    return coders


def planes_of(dtype, words):
    """Return the byte planes of words, independently of the package."""
    top = 8 * dtype.word_bytes - 1
    values = [int(word) for word in words]
    if dtype.kind is constants.WordKind.FLOAT:
        values = [(value << 1 | value >> top) & ((2 << top) - 1) for value in values]
    return [np.array([value >> 8 * place & 255 for value in values]) for place in range(dtype.word_bytes)]


def random_shared(rng, dtype, n_groups, n_values, stretch, has_zero):
    """Return a shared tensor with random words, signs and NaNs among them, mostly label 0."""
    rows = []
    for _ in range(n_groups):
        words = set()
        while len(words) < n_values:
            word = int.from_bytes(rng.bytes(dtype.word_bytes), "little")
            words |= {word} - ({0} if has_zero else set())
        row = np.array(sorted(words), word_dtype(dtype.word_bytes))
        rows.append(row[ascending_order(dtype, row)])
    n_words = n_groups * stretch * dtype.words_per_element
    kept = rng.random(n_words) < 0.2
    labels = np.where(kept, rng.integers(0, n_values + has_zero, n_words), 0).astype(np.uint16)
    return SharedTensor(dtype, (n_groups, stretch), np.array(rows), labels, has_zero)


def frame_of(*tensors, table_sets=()):
    named = {f"layer.{number}.weight": tensor for number, tensor in enumerate(tensors)}
    section = Section(77, b"unknown")
    head = write_head(named, {"key": "value"}, [section], table_sets)
    return b"".join([head, *table_sets, *(c for tensor in tensors for c in tensor.chunks), section.data])


def compare(pseudo, frame):
    """Decode a frame with the pseudo-code and with the package; they must agree."""
    decoded = pseudo.decode_frame(frame, DecodeLimits())
    with open_frame(frame) as reader:
        wanted = reader.read_all()
    assert [name.decode() for name, *_ in decoded] == list(wanted)
    for (_, dtype, shape, words), data in zip(decoded, wanted.values(), strict=True):
        assert (dtype, tuple(shape), words) == (data.dtype.code, data.shape, data.words.tolist())
    return decoded


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_pseudo_code_decodes_what_the_coders_write(pseudo, dtype):
    rng = np.random.default_rng(dtype.code)
    for n_groups, n_values, stretch, has_zero in ((1, 3, 40, True), (3, 5, 12, True), (2, 2, 20, False)):
        shared = random_shared(rng, dtype, n_groups, n_values, stretch, has_zero)
        for shift in (0, 3):
            step = 1 << shift if shift else shared.labels.size
            coded = [code_tensor(coder, shared, shift) for coder in coders_for(shared, step)]
            compare(pseudo, frame_of(*coded))


@settings(max_examples=60)
@given(contexts(shape=st.lists(st.integers(1, 6), max_size=4).map(tuple), shifts=(0, 2)), st.integers(0, 2))
def test_pseudo_code_decodes_contexts(pseudo, one, n_others):
    shared, coder, shift = one
    coder = replace(coder, set_number=n_others)
    compare(
        pseudo,
        frame_of(
            code_tensor(coder, shared, shift), table_sets=[b"unused"] * n_others + [coder.tables.to_bytes()]
        ),
    )


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize("shape", [(5, 820), (9, 3, 152), (33, 500)])
def test_pseudo_code_decodes_lanes_of_contexts(pseudo, shape, states):
    rng = np.random.default_rng(states)
    shared, coder = random_context(rng, constants.DTYPE_BY_NAME["float16"], shape, 60, True, states)
    assert pseudo.lanes_of(shape[0], shared.labels.size) == lanes_of(shape[0], shared.labels.size) > 1
    compare(pseudo, frame_of(code_tensor(coder, shared, 0), table_sets=[coder.tables.to_bytes()]))


def test_pseudo_code_counts_lanes_as_the_package_does(pseudo):
    for n_rows in (1, 2, 3, 5, 7, 8, 100):
        for n_words in (1, 2047, 2048, 4095, 4096, 16383, 16384, 65535, 65536, 10**9):
            assert pseudo.lanes_of(n_rows, n_words) == lanes_of(n_rows, n_words)


def test_trellises_match(pseudo):
    rows = table("**Trellis.**")
    assert [number(row[1].split(":")[0]) for row in rows] == [max(1, states) for states in STATES]
    assert tuple((number(row[2]), number(row[3])) for row in rows) == pseudo.TRELLISES
    for place, states in enumerate(STATES):
        for state in range(max(1, states)):
            found = [pseudo.next_state(place, state, parity) for parity in range(2)]
            assert found == transitions(states)[state].tolist()


def test_symbols_match(pseudo):
    for symbol in range(N_SYMBOLS):
        n_bits, smallest = pseudo.bucket_of(symbol)
        assert (n_bits, smallest) == (SYMBOL_RAW_BITS[symbol], BUCKET_BASES[(symbol + 1) // 2])


@given(st.integers(1, 0x7F7FFFFF), st.integers(-4095, 4095).filter(bool))
def test_pseudo_code_rounds_as_ieee_does(pseudo, bits, multiple):
    step = np.uint32(bits).view(np.float32)
    for name, code in (("float16", 10), ("bfloat16", 11), ("float32", 12)):
        n_negative, n_values = (-multiple, -multiple) if multiple < 0 else (0, multiple)
        words = even_values(constants.DTYPE_BY_NAME[name], step, n_negative, n_values)
        assert pseudo.even_value(bits, multiple, code) == words[0 if multiple < 0 else -1]


@pytest.mark.parametrize("states", [0, 8])
def test_pseudo_code_refuses_contexts_that_the_package_refuses(pseudo, states):
    """Tables, streams and table sets are damaged behind their checksums."""
    rng = np.random.default_rng(states)
    refused = set()
    for turn in range(200):
        dtype = constants.DTYPE_BY_NAME[("float16", "int8", "float64")[turn % 3]]
        has_zero = turn % 2 == 0
        n_labels = (3, 9, 40)[turn % 3]
        shared, coder = random_context(rng, dtype, (6, 5, 2), n_labels, has_zero, states, 2, most_tables=3)
        coded = code_tensor(coder, shared, 2)
        parts = [*coded.chunks, coder.tables.to_bytes()]
        victim = rng.choice(3, p=(0.6, 0.2, 0.2))
        part = bytearray(parts[victim])
        if part and rng.random() < 0.8:
            part[rng.integers(min(len(part), 20))] ^= 1 << rng.integers(8)
        if part and rng.random() < 0.2:
            del part[rng.integers(len(part))]
        if rng.random() < 0.2:
            part += rng.bytes(2)
        parts[victim] = bytes(part)
        frame = frame_of(CodedTensor(**{**vars(coded), "chunks": tuple(parts[:2])}), table_sets=parts[2:])
        try:
            compare(pseudo, frame)
        except Breach as breach:
            refused.add(str(breach))
            with pytest.raises(DecodeError), open_frame(frame) as reader:
                reader.read_all()
    assert len(refused) > 8, refused
    assert "CHK-01" not in refused


def test_pseudo_code_decodes_lanes(pseudo):
    shared = random_shared(np.random.default_rng(0), constants.DTYPE_BY_NAME["float32"], 1, 6, 7000, True)
    compare(pseudo, frame_of(*(code_tensor(coder, shared, 0) for coder in coders_for(shared, 7000))))


def test_pseudo_code_refuses_what_the_package_refuses(pseudo):
    """Chunks are damaged behind their checksums; both must refuse, or read the same."""
    rng = np.random.default_rng(7)
    shared = random_shared(rng, constants.DTYPE_BY_NAME["float16"], 2, 3, 24, True)
    refused = set()
    for coder in coders_for(shared, 48):
        coded = code_tensor(coder, shared, 0)
        for _ in range(60):
            chunk = bytearray(coded.chunks[0])
            chunk[rng.integers(len(chunk))] ^= 1 << rng.integers(8)
            if rng.random() < 0.2:
                del chunk[rng.integers(len(chunk))]
            args = {**vars(coded), "chunks": (bytes(chunk),)}
            frame = frame_of(CodedTensor(**args))
            try:
                compare(pseudo, frame)
            except Breach as breach:
                refused.add(str(breach))
                with pytest.raises(DecodeError), open_frame(frame) as reader:
                    reader.read_all()
    assert len(refused) > 12
    assert "CHK-01" not in refused


def test_annotation_names_every_bit_once(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    annotate = runpy.run_path(str(ROOT / "tools" / "annotate.py"))["annotate"]
    dtype = constants.DTYPE_BY_NAME["bfloat16"]
    shared = random_shared(np.random.default_rng(2), dtype, 1, 3, 1100, True)
    frames = [frame_of(code_tensor(coder, shared, 0)) for coder in coders_for(shared, 1100)]
    for shift, has_zero in ((0, True), (2, False)):
        shared, coder = random_context(np.random.default_rng(3), dtype, (9, 5, 2), 30, has_zero, 4, shift)
        frames.append(frame_of(code_tensor(coder, shared, shift), table_sets=[coder.tables.to_bytes()]))
    for frame in frames:
        at = 0
        for byte, bit, size, unit in re.findall(
            r"^\| (\d+)\+(\d) \| (\d+) ([Bb]) ", annotate(frame), re.MULTILINE
        ):
            assert 8 * int(byte) + int(bit) == at
            at += int(size) * (8 if unit == "B" else 1)
        assert at == 8 * len(frame)


def test_pseudo_checksum_matches(pseudo):
    rng = np.random.default_rng(3)
    for size in (0, 1, 3, 4, 5, 63, 1000):
        data = rng.bytes(size)
        assert pseudo.checksum(data) == checksum(data)


def test_every_flipped_bit_changes_the_checksum():
    rng = np.random.default_rng(5)
    for fill in (b"\x00" * 61, b"\xff" * 61, rng.bytes(61)):
        for bit in range(8 * len(fill)):
            flipped = bytearray(fill)
            flipped[bit // 8] ^= 1 << bit % 8
            assert checksum(bytes(flipped)) != checksum(fill)

"""Known error texts are explained with their numbers, others are said to be unknown."""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import awqbench.cli.explain  # noqa: F401  (registers the command)
from awqbench import errors, magic
from awqbench.cli.app import app
from awqbench.inspect.explain import Explanation, explain
from awqbench.inspect.known import PAINS, arithmetic
from awqbench.inspect.known.matching import MOST_CHARACTERS, clean_lines, find_known, one_line
from awqbench.inspect.known.own import _CHECKS

DATA = Path(__file__).parents[1] / "data" / "explain"


def read_lines(name):
    """Return the samples of a JSON Lines file."""
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


KNOWN = read_lines("known.jsonl")
UNRELATED = [sample["text"] for sample in read_lines("unrelated.jsonl")]
MARLIN = (
    "ValueError: Weight input_size_per_partition = 7392 is not divisible by min_thread_k = 128. "
    "Consider reducing tensor_parallel_size or running with --quantization gptq."
)
HEADS = (
    "ValueError: Total number of attention heads (64) must be divisible by "
    "tensor parallel size (3)."
)


@pytest.mark.parametrize("sample", KNOWN, ids=lambda sample: sample["title"][:50])
def test_every_sample_is_explained_by_its_entry_alone(sample):
    found = explain(sample["text"])
    assert found.known
    assert found.title == sample["title"]
    assert found.also == ()
    assert {name: found.numbers.get(name) for name in sample["numbers"]} == sample["numbers"]
    assert found.cause and found.fix and found.matched and found.source


@pytest.mark.parametrize("sample", KNOWN, ids=lambda sample: sample["title"][:50])
def test_templates_are_filled(sample):
    found = explain(sample["text"])
    for text in (found.cause, found.fix, found.check):
        assert not re.search(r"\{[a-z]+\}", text)
    assert found.check.startswith(("awqbench ", "import awqbench as ab; "))
    if found.check.startswith("import"):
        compile(found.check, "check", "exec")


@pytest.mark.parametrize("text", UNRELATED)
def test_unrelated_errors_are_not_known(text):
    found = explain(text)
    assert not found.known
    assert found.title == "Not known"
    assert found.matched == "" and found.also == ()


def test_every_entry_and_every_reported_pain_has_a_sample():
    assert {sample["title"] for sample in KNOWN} == {pain.title for pain in PAINS}
    assert len({pain.title for pain in PAINS}) == len(PAINS)
    assert {sample["pain"] for sample in KNOWN} >= set(range(1, 37))
    assert len(UNRELATED) >= 20


@pytest.mark.parametrize("pain", PAINS, ids=lambda pain: pain.title[:50])
def test_every_pattern_has_a_sample(pain):
    texts = [one_line(clean_lines(s["text"])) for s in KNOWN if s["title"] == pain.title]
    for pattern, flags in [(p, 0) for p in pain.patterns] + [(p, re.I) for p in pain.words]:
        spaced = re.compile(pattern.replace(" ?", " ").replace(" ", " ?"), flags)
        assert any(spaced.search(text) for text in texts), pattern


@pytest.mark.parametrize("pain", PAINS, ids=lambda pain: pain.title[:50])
def test_names_in_patterns_are_bounded(pain):
    for pattern in pain.patterns + pain.words:
        plain = re.sub(r"\[[^\]]*\]", "CLASS", pattern)
        assert not re.search(r"(?<!\\)\.[*+]|\\w[*+]|CLASS[*+]|[*+}]\)[*+]", plain), pattern


@pytest.mark.parametrize("wrap", [40, 60, 80])
def test_wrapped_lines(wrap):
    hard = "\n".join(MARLIN[i : i + wrap] for i in range(0, len(MARLIN), wrap))
    for text in (textwrap.fill(MARLIN, wrap), hard):
        assert explain(text).numbers["remainder"] == 96


def test_colours_frames_windows_line_ends_and_utf16():
    coloured = MARLIN.replace("Weight", "\x1b[1;31mWeight\x1b[0m").replace(
        " = ", "\x1b[2m = \x1b[m"
    )
    boxed = "\r\n".join(f"│ {line:<60} │" for line in textwrap.wrap(MARLIN, 60))
    utf16 = MARLIN.encode("utf-16").decode("utf-8", errors="replace")
    for text in (coloured, boxed, MARLIN.replace(" ", "\r\n"), utf16):
        assert explain(text).numbers["size"] == 7392


def test_the_last_error_of_a_chain_counts_and_others_are_told():
    middle = "\n\nDuring handling of the above exception, another exception occurred:\n\n"
    found = explain(MARLIN + middle + HEADS)
    assert found.numbers["heads"] == 64
    assert [other.numbers["size"] for other in found.also] == [7392]
    assert "tile" in str(found).splitlines()[-1]
    assert explain(HEADS + middle + MARLIN).numbers["size"] == 7392


def test_facts_of_the_log_go_into_the_check():
    text = f"vllm serve Qwen/Qwen2-72B-Instruct-AWQ --tensor-parallel-size 4\n{MARLIN}"
    found = explain(text)
    assert found.check == "awqbench doctor Qwen/Qwen2-72B-Instruct-AWQ"
    assert "--tp 4 --group-size 128" in found.fix
    assert "7392 x 4 ranks = 29568" in found.cause and "29696" in found.cause


def test_a_long_log_is_read_from_its_end():
    noise = "INFO loading shard 7 of 12\n" * 45_000
    assert len(noise) > MOST_CHARACTERS
    assert explain(noise + MARLIN).numbers["size"] == 7392
    assert not explain(MARLIN + noise).known


def test_an_exception_brings_its_frames_and_its_chain():
    def pseudo_quantize_tensor():
        raise AssertionError

    try:
        try:
            pseudo_quantize_tensor()
        except AssertionError as error:
            raise RuntimeError("job failed") from error
    except RuntimeError as error:
        found = explain(error)
    assert found.title == "NaN in a weight or its scales while AutoAWQ rounds it"
    assert not explain(AssertionError()).known


def test_own_errors_repeat_their_own_fix():
    message = (
        "in_features is 3696, not a multiple of 128 (remainder 112); pad by 16 to 3712 or choose "
        "a group_size that divides it."
    )
    for given_ in (
        errors.AlignmentError(message),
        f"AlignmentError: {message}",
        f"\x1b[31mTraceback (most recent call last):\nawqbench.errors.AlignmentError: {message}",
    ):
        found = explain(given_)
        assert found.title == "AlignmentError, an error of awqbench itself"
        assert found.cause == "in_features is 3696, not a multiple of 128 (remainder 112)"
        assert found.fix == "Pad by 16 to 3712 or choose a group_size that divides it."
        assert found.check == "awqbench doctor MODEL"


def test_own_error_of_two_sentences_and_of_one():
    two = errors.AlreadyQuantizedError("x is already quantized. Start from the original.")
    assert explain(two).fix == "Start from the original."
    one = explain(errors.FormatError("x has no tensor y."))
    assert one.cause == "x has no tensor y." and "change what it names" in one.fix


def test_every_class_of_the_family_has_a_check():
    family = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.AwqbenchError)
    }
    assert set(_CHECKS) == family - {"AwqbenchError"}


def test_what_is_neither_text_nor_exception():
    with pytest.raises(errors.ParameterError, match="not list; give str"):
        explain([MARLIN])


def test_shown_as_text_and_as_html():
    found = explain(MARLIN)
    lines = str(found).splitlines()
    assert lines[0] == found.title
    assert max(map(len, lines)) <= 100
    assert "  check   awqbench doctor MODEL" in lines
    nasty = explain(f"vllm serve ./<b>x --foo\n{MARLIN}")
    assert "<b>x" not in nasty._repr_html_()
    assert "makes no guess" in str(explain("nothing"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.one_of(
            st.text(max_size=40),
            st.sampled_from([sample["text"] for sample in KNOWN]),
            st.sampled_from(
                ["0", "9" * 30, "\x1b[", "\r", "{model}", "{", "pseudo_quantize_tensor"]
            ),
        ),
        max_size=5,
    )
)
def test_any_text_is_answered(parts):
    found = explain(" ".join(parts))
    assert isinstance(found, Explanation)
    assert str(found) and found._repr_html_()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KNOWN), st.integers(0, 10**9))
def test_any_number_is_answered(sample, number):
    explain(re.sub(r"\d+", str(number), sample["text"]))


@pytest.mark.parametrize(
    "part", ["x", "a.", "!", "9", "\x1b[", "\x1b]", " \n", "pseudo_quantize_tensor ", "experts.1."]
)
def test_a_hundred_thousand_of_anything_is_read(part):
    assert not explain(part * (100_000 // len(part))).known or part == "!"


def test_known_sizes_fit_after_padding():
    for width in arithmetic.MODELS_BY_WIDTH:
        assert int(arithmetic.next_fit(width)["fits"]) % 1024 == 0
    assert arithmetic.misfit({"size": "256", "step": "128"}) is None
    assert arithmetic.misfit({"size": "256", "step": "0"}) is None


def test_overlapping_texts_keep_the_more_specific():
    titles = [hit.pain.title for hit in find_known(HEADS)]
    assert titles == ["Attention heads do not divide over the ranks"]


def run_cli(*args, **kwargs):
    """Run the command line in this process."""
    return CliRunner().invoke(app, ["explain", *args], **kwargs)


def test_command_takes_a_text_a_file_and_standard_input(tmp_path):
    log = tmp_path / "err.log"
    log.write_bytes(MARLIN.encode() + b"\xff\xfe")
    for done in (
        run_cli(MARLIN),
        run_cli(str(log)),
        run_cli(input=MARLIN),
        run_cli("-", input=MARLIN),
    ):
        assert done.exit_code == 0
        assert "leaves 96 over a multiple of" in done.output


def test_command_says_not_known_and_writes_json():
    done = run_cli("KeyError: 'colour'")
    assert done.exit_code == 1
    assert done.output.startswith("Not known")
    facts = json.loads(run_cli("--json", MARLIN).output)
    assert facts["known"] and facts["numbers"]["remainder"] == 96
    empty = run_cli(input=" \n")
    assert isinstance(empty.exception, errors.ParameterError)


class Shell:
    """Takes magics as IPython's shell does."""

    def __init__(self):
        self.magics = {}

    def register_magic_function(self, function, kind, name):
        """Keep a magic."""
        self.magics[name] = (function, kind)


def test_magic_explains_the_last_exception(monkeypatch, capsys):
    shell = Shell()
    magic.load_ipython_extension(shell)
    run, kind = shell.magics["awqbench"]
    assert kind == "line_cell"
    monkeypatch.delattr(sys, "last_exc", raising=False)
    monkeypatch.delattr(sys, "last_value", raising=False)
    assert run("explain") is None
    assert "No exception" in capsys.readouterr().out
    monkeypatch.setattr(sys, "last_value", ValueError(MARLIN), raising=False)
    assert run("explain").numbers["size"] == 7392
    assert run(f"explain {HEADS}").numbers["heads"] == 64
    assert run("explain", f"{HEADS}\n").numbers["heads"] == 64
    assert run("explian") is None
    assert "%awqbench explain" in capsys.readouterr().out


def test_magic_in_a_real_shell():
    pytest.importorskip("IPython")
    code = f"""
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell()
shell.run_line_magic("load_ext", "awqbench")
shell.run_cell("raise ValueError({MARLIN!r})")
print("FOUND", shell.run_line_magic("awqbench", "explain").numbers["remainder"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "FOUND 96" in done.stdout, done.stderr


def test_explaining_needs_nothing_heavy():
    code = (
        "import sys; from awqbench.inspect.explain import explain; import awqbench.magic; "
        f"explain({MARLIN!r}); "
        "print([m for m in ('torch', 'pandas', 'numpy', 'IPython') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_last_line_alone_as_the_readme_has_it():
    found = explain("Torch not compiled with CUDA enabled")
    assert found.title == "This torch is built without CUDA"

"""Calibration and evaluation text: splits, windows, and texts that cannot serve."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from awqbench import text
from awqbench.errors import CalibrationTextError
from awqbench.text import (
    HELD_OUT_ONE_IN,
    is_held_out,
    load_tokenizer,
    stdlib_modules,
    text_tokens,
    tokens_digest,
)

N_WORDS = 20_000
END = N_WORDS


def make_model(folder):
    """Make a model folder whose tokenizer reads the number n as token n."""
    folder.mkdir()
    vocab = {str(n): n for n in range(N_WORDS)} | {"<end>": END, "<unk>": END + 1}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"})
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file({"w": torch.ones(1)}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("text") / "model")


@pytest.fixture
def numbers(tmp_path):
    """Return a text file of the numbers 0 to 9999, whose tokens are those numbers."""
    path = tmp_path / "numbers.txt"
    path.write_text("\n".join(map(str, range(10_000))))
    return path


@pytest.fixture
def small_stdlib(tmp_path, monkeypatch):
    """Stand 60 modules of 200 tokens in for the standard library; token says which module."""
    root = tmp_path / "lib"
    modules = [f"module{i}.py" for i in range(60)] + ["test/test_a.py", "pkg/tests/test_b.py"]
    foreign = ["site-packages/foreign.py", "encodings/cp1.py", "lib2/idle_test/c.py"]
    for number, module in enumerate(modules + foreign):
        path = root / module
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number} " * 200)
    monkeypatch.setattr(text.sysconfig, "get_paths", lambda: {"stdlib": str(root)})
    return modules + foreign


def test_the_split_depends_on_the_path_alone():
    # These values are the same on every machine and Python; a change moves the split.
    names = [f"module{i}.py" for i in range(2000)]
    held_out = [name for name in names[:60] if is_held_out(name)]
    assert held_out == ["module8.py", "module11.py", "module41.py", "module48.py", "module50.py"]
    share = sum(map(is_held_out, names)) / len(names)
    assert abs(share - 1 / HELD_OUT_ONE_IN) < 0.015


def test_held_out_modules_are_for_evaluation_alone():
    splits = {s: set(stdlib_modules(s)) for s in ("training", "calibration", "evaluation")}
    assert not splits["evaluation"] & splits["training"]
    assert splits["calibration"] < splits["training"]
    assert all(map(is_held_out, splits["evaluation"]))
    assert not any(map(is_held_out, splits["calibration"]))
    assert len(splits["evaluation"]) >= 10 and len(splits["calibration"]) >= 200
    tests = splits["training"] - splits["calibration"]
    assert all({"test", "tests", "idle_test"} & set(name.split("/")) for name in tests)
    for name in splits["training"] | splits["evaluation"]:
        assert not name.startswith(("encodings", "pydoc_data"))
        assert "site-packages" not in name


def test_modules_are_sorted_and_exist():
    modules = stdlib_modules("evaluation")
    assert list(modules) == sorted(modules)
    assert all(path.is_file() for path in modules.values())


def test_windows_of_the_standard_library_keep_the_splits_apart(model, small_stdlib):
    held_out = {i for i, name in enumerate(small_stdlib[:60]) if is_held_out(name)}
    for seed in range(5):
        tokens = text_tokens(model, n_samples=8, seq_len=50, seed=seed)
        assert tokens.shape == (8, 50) and tokens.dtype == np.int64
        assert not set(tokens.ravel()) & (held_out | {60, 61, 62, 63, 64})
        evaluation = text_tokens(model, split="evaluation", n_samples=8, seq_len=50, seed=seed)
        assert set(evaluation.ravel()) <= held_out | {END}
    training = text_tokens(model, split="training", n_samples=200, seq_len=50)
    assert not set(training.ravel()) & (held_out | {62, 63})
    assert {60, 61, 64} <= set(training.ravel())


def test_documents_end_with_the_end_token(model, small_stdlib):
    tokens = text_tokens(model, split="evaluation", n_samples=2, seq_len=201)
    assert (tokens[:, -1] == END).all() and (tokens[:, :-1] < 60).all()


def test_seed_decides_calibration_and_leaves_evaluation(model, small_stdlib):
    def draw(split, seed):
        return text_tokens(model, split=split, n_samples=8, seq_len=50, seed=seed)

    assert (draw("calibration", 0) == draw("calibration", 0)).all()
    assert (draw("calibration", 0) != draw("calibration", 1)).any()
    assert (draw("evaluation", 0) == draw("evaluation", 1)).all()


def test_a_file_is_cut_in_nine_tenths_and_one(model, numbers):
    calibration = text_tokens(model, numbers, n_samples=40, seq_len=20)
    evaluation = text_tokens(model, numbers, "evaluation", n_samples=40, seq_len=20)
    assert calibration.max() < evaluation.min()
    assert 8900 < evaluation.min() < 9200
    for window in np.concatenate([calibration, evaluation]):
        # The cut may fall inside a number; everything else is consecutive text.
        assert (np.diff(window)[1:] == 1).all() or window[-1] == END
    assert len(np.unique(calibration[:, 1])) == 40  # no window twice
    other = text_tokens(model, numbers, n_samples=40, seq_len=20, seed=1)
    assert (other != calibration).any()
    assert (text_tokens(model, numbers, n_samples=40, seq_len=20) == calibration).all()


def test_evaluation_windows_are_evenly_spaced(model, numbers):
    tokens = text_tokens(model, numbers, "evaluation", n_samples=5, seq_len=20)
    gaps = np.diff(tokens[:, 1])
    assert gaps.max() - gaps.min() <= 20 and gaps.sum() > 800


def test_json_lines(model, tmp_path):
    path = tmp_path / "texts.jsonl"
    lines = [
        json.dumps({"text": " ".join(map(str, range(i, i + 50))), "id": i}) for i in range(100)
    ]
    path.write_text("\n\n".join(lines) + "\n")
    tokens = text_tokens(model, path, n_samples=4, seq_len=50)
    assert tokens.max() < 150


def test_json_lines_may_hold_unicode_line_separators(model, tmp_path):
    path = tmp_path / "texts.jsonl"
    record = {"text": "1\u2028 2\x85 3 " * 50}
    path.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    assert text_tokens(model, path, n_samples=1, seq_len=50).shape == (1, 50)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        '{"txt": "a"}',
        '"text"',
        '{"text": 3}',
        '{"text": null}',
        '{"text": ["a"]}',
        "null",
        "[" * 100_000,
    ],
    ids=lambda line: line[:12],
)
def test_a_bad_line_is_named(model, tmp_path, line):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "1 2 3"}\n\n' + line + "\n")
    with pytest.raises(CalibrationTextError, match=r"texts.jsonl line 3 is not a JSON object"):
        text_tokens(model, path, n_samples=1, seq_len=2)


@pytest.mark.parametrize("content", ["", " \n\t\n "])
def test_empty_text(model, tmp_path, content):
    path = tmp_path / "empty.txt"
    path.write_text(content)
    with pytest.raises(CalibrationTextError, match=r"empty.txt is empty"):
        text_tokens(model, path, n_samples=1, seq_len=2)


def test_too_short_for_one_window(model, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("1 2 3 4 5 6 7 8 9 10")
    words = r"calibration text of .*short.txt has 10 tokens, fewer than one window of 64.*seq_len"
    with pytest.raises(CalibrationTextError, match=words):
        text_tokens(model, path, n_samples=1, seq_len=64)


def test_too_short_for_all_windows_says_how_many_fit(model, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("7 " * 1000)
    with pytest.raises(CalibrationTextError) as caught:
        text_tokens(model, path, n_samples=128, seq_len=64)
    for part in ("901 tokens", "14 windows of 64, not 128", "n_samples=14"):
        assert part in str(caught.value)
    assert text_tokens(model, path, n_samples=14, seq_len=64).shape == (14, 64)


@pytest.mark.parametrize(("n_samples", "seq_len"), [(0, 512), (-1, 512), (128, 1), (128, 0)])
def test_windows_that_are_none(model, n_samples, seq_len):
    with pytest.raises(
        CalibrationTextError, match=f"n_samples is {n_samples} and seq_len {seq_len}"
    ):
        text_tokens(model, n_samples=n_samples, seq_len=seq_len)


@pytest.mark.parametrize("split", ["test", "", "Calibration", None])
def test_unknown_split(model, numbers, split):
    for source in ("stdlib", numbers):
        with pytest.raises(CalibrationTextError, match=f"split {split!r}.*'calibration'"):
            text_tokens(model, source, split, n_samples=1, seq_len=2)


def test_training_split_is_the_standard_library_s_alone(model, numbers):
    with pytest.raises(CalibrationTextError, match="'training' exists for source='stdlib' only"):
        text_tokens(model, numbers, "training", n_samples=1, seq_len=2)


def test_missing_file_and_folder(model, tmp_path):
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(CalibrationTextError, match=f"{path} cannot be read: "):
            text_tokens(model, path, n_samples=1, seq_len=2)


def test_bytes_that_are_no_text_are_replaced(model, tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"\xe9\xff 5 " * 100)
    assert set(text_tokens(model, path, n_samples=1, seq_len=20).ravel()) == {END + 1, 5}


def test_standard_library_without_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(text.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(CalibrationTextError, match="no .py files; give a text file"):
        stdlib_modules("calibration")


def test_folder_without_a_tokenizer(tmp_path):
    folder = make_model(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(
        CalibrationTextError, match="model has no tokenizer that transformers can read"
    ):
        load_tokenizer(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"type": "Nonsense"}}'])
def test_damaged_tokenizer(tmp_path, content):
    folder = make_model(tmp_path / "model")
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(
        CalibrationTextError, match="model has no tokenizer that transformers can read"
    ):
        load_tokenizer(folder)


def test_code_of_a_tokenizer_is_not_run_nor_asked_about(tmp_path, monkeypatch):
    folder, ran = make_model(tmp_path / "model"), tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil:\n    pass\n")
    config = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    try:
        load_tokenizer(folder)
    except CalibrationTextError:
        pass
    assert not ran.exists()


def test_digest_is_of_ids_and_shape():
    tokens = np.arange(12).reshape(3, 4)
    digest = tokens_digest(tokens)
    assert (
        digest == tokens_digest(tokens.astype(np.int32)) == tokens_digest(np.asfortranarray(tokens))
    )
    assert digest != tokens_digest(tokens.reshape(4, 3)) and digest != tokens_digest(tokens + 1)

import json

import pytest

from nemo_simplerl.data.tokenizer import build_tokenizer, check_vocab, load_tokenizer, stop_ids

TEXTS = ["Ann has 12 apples. Ann finds 7 more.", "The answer is \\boxed{19}.<|im_end|>"] * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(TEXTS, 300, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


@pytest.mark.parametrize("text", ["Ann has 12 apples.", "é ∑ 猫 \u2028\t\n\n  x", "unseen Words, 3.14", " a  b "])
def test_any_text_survives_the_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_tokens_of_their_own(tokenizer):
    assert len(tokenizer.encode("120457")) == 6
    assert tokenizer.tokenize("a12") == ["a", "1", "2"]


def test_merges_are_learned_up_to_the_vocabulary(tokenizer):
    assert len(tokenizer) <= 300
    assert len(tokenizer.encode(" answer")) < len(" answer")


def test_special_tokens_are_single_and_spend_no_merges(tokenizer):
    assert len(tokenizer.encode("<|im_start|>a<|im_end|><|endoftext|>")) == 4
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert not {"<|", "|>", "im"} & set(tokenizer.get_vocab())


def test_no_bos_is_added(tokenizer):
    assert tokenizer("a", add_special_tokens=True)["input_ids"] == tokenizer("a", add_special_tokens=False)["input_ids"]


def test_the_same_texts_give_the_same_files(folder, tmp_path):
    build_tokenizer(TEXTS, 300, tmp_path)
    names = {file.name for file in folder.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json"} <= names == {file.name for file in tmp_path.iterdir()}
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_a_vocabulary_without_room_for_every_byte_is_refused(tmp_path):
    with pytest.raises(ValueError, match="got a vocabulary of 258; set model.create.vocab_size to 259"):
        build_tokenizer(TEXTS, 258, tmp_path)
    assert len(build_tokenizer(TEXTS, 259, tmp_path)) == 259


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no tokenizer in .*model.tokenizer"):
        load_tokenizer(tmp_path)


def test_a_broken_tokenizer_is_refused_with_its_folder(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"the tokenizer in {tmp_path} cannot be loaded"):
        load_tokenizer(tmp_path)


def resave_without(folder, target, *keys):
    """A copy of the tokenizer whose configuration lacks the keys."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (target / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (target / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in keys}))
    return target


def test_eos_pads_where_no_padding_token_is_named(folder, tmp_path):
    loaded = load_tokenizer(resave_without(folder, tmp_path, "pad_token"))
    assert loaded.pad_token_id == loaded.eos_token_id is not None


def test_a_tokenizer_without_eos_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="no EOS token"):
        load_tokenizer(resave_without(folder, tmp_path, "eos_token"))


def test_a_tokenizer_larger_than_the_model_is_refused_with_both_numbers(tokenizer):
    size = len(tokenizer)
    check_vocab(tokenizer, size)
    with pytest.raises(ValueError, match=f"the tokenizer has {size} tokens and the model's vocabulary {size - 1}"):
        check_vocab(tokenizer, size - 1)


def test_eos_and_single_token_stop_strings_stop(tokenizer):
    eos, turn_end = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert stop_ids(tokenizer, ["</s>", "<|im_end|>", "<|endoftext|>"], None) == (eos, turn_end)
    assert stop_ids(tokenizer, [], None) == (eos,)
    assert stop_ids(tokenizer, [], None, [7, eos]) == (eos, 7)


def test_given_stop_ids_stand(tokenizer):
    assert stop_ids(tokenizer, ["<|im_end|>"], [5, 9], [7]) == (5, 9)

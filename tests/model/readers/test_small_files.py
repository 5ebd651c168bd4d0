"""The files beside the weights: none is lost on the way from one form to another."""

import json
from pathlib import Path

import pytest

from nemo_simplerl.config.forms.folder import FORMS
from nemo_simplerl.model.conversion.convert import check_same_tokens, small_files_of
from nemo_simplerl.model.readers.small_files import end_ids, small_files, top_files, write_files
from nemo_simplerl.model.source import open_source
from support.forms import companions, converted, save_model, with_companions


def test_every_file_that_users_need_goes_through_every_form_and_comes_back_byte_for_byte(tmp_path):
    original = with_companions(save_model(tmp_path / "hf"))
    expected = companions(original)
    assert {"generation_config.json", "additional_chat_templates/rag.jinja", "merges.txt"} <= expected.keys()
    archive = converted(original, tmp_path / "m.nemo", "nemo")
    step = converted(archive, tmp_path / "step_000000", "checkpoint")
    again = converted(step, tmp_path / "again.nemo", "nemo")
    assert companions(step / "actor/hf") == expected
    others = [(f"of_{form}", converted(step, tmp_path / form, form)) for form in FORMS]
    for name, source in (("one", original), ("two", archive), ("three", step), ("four", again), *others):
        assert companions(converted(source, tmp_path / name)) == expected, name


def test_code_and_links_out_of_the_folder_of_templates_do_not_go_along(tmp_path):
    folder = with_companions(save_model(tmp_path / "hf"))
    (folder / "additional_chat_templates/notes.txt").write_text("x")
    (folder / "modeling_odd.py").write_text("x")
    (folder / "additional_chat_templates/folder.jinja").mkdir()
    files = top_files(folder)
    kept = small_files(files | {"additional_chat_templates/../x.jinja": files["config.json"]})
    assert kept.keys() - {"config.json"} == companions(folder).keys()
    write_files(tmp_path / "copy", kept)
    assert companions(tmp_path / "copy") == companions(folder)


def write(folder: Path, name: str, **values) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(values))
    return folder


def test_the_ids_that_end_a_response_are_generation_configs_and_else_configs(tmp_path):
    folder = write(tmp_path, "config.json", vocab_size=10, eos_token_id=3)
    assert end_ids(folder) == (3,)
    write(folder, "generation_config.json", eos_token_id=[0, 2])
    assert end_ids(folder) == (0, 2)
    write(folder, "generation_config.json", temperature=0.7)
    assert end_ids(folder) == ()
    write(folder, "generation_config.json", eos_token_id=[2, 10])
    with pytest.raises(ValueError, match=r"generation_config.json: eos_token_id names 10, .* vocabulary of 10"):
        end_ids(folder)
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"generation_config.json is not JSON"):
        end_ids(folder)


@pytest.mark.parametrize("has_list", [False, True])
def test_a_tokenizer_that_is_given_brings_its_ids_into_both_configs(tmp_path, has_list):
    original, other = save_model(tmp_path / "hf"), save_model(tmp_path / "other")
    write(original, "generation_config.json", eos_token_id=[5, 6], temperature=0.5)
    write(other, "config.json", **json.loads((other / "config.json").read_text()) | {"eos_token_id": 7})
    (other / "generation_config.json").unlink()
    if has_list:
        write(other, "generation_config.json", eos_token_id=[7, 8], top_p=0.9)
    files = small_files_of(open_source(original), tokenizer=other)
    assert json.loads(files["config.json"])["eos_token_id"] == 7
    generation = json.loads(files["generation_config.json"])
    assert generation["eos_token_id"] == ([7, 8] if has_list else 7)
    assert (generation["temperature"], "top_p" in generation) == (0.5, False)  # how to sample is the model's own


def test_models_whose_tokens_have_other_ids_are_told_apart():
    def tokenizer(vocab, added) -> dict[str, bytes]:
        tokens = [{"content": token, "id": index} for token, index in added.items()]
        return {"tokenizer.json": json.dumps({"model": {"vocab": vocab}, "added_tokens": tokens}).encode()}

    one = tokenizer({"a": 0, "b": 1}, {"<e>": 2})
    check_same_tokens(one, tokenizer({"a": 0, "b": 1, "c": 3}, {"<e>": 5}))  # special tokens may be renamed
    check_same_tokens(one, {})
    with pytest.raises(ValueError, match=r"2 tokens have other ids \('[ab]': "):
        check_same_tokens(one, tokenizer({"b": 0, "a": 1}, {}))
    check_same_tokens(one, tokenizer([["a", -1.0], ["b", -2.0]], {}))

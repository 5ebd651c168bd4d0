"""What is refused before models are built: a critic that reads other tokens, and ids that no model has."""

import json
from dataclasses import replace

import pytest

from nemo_simplerl.config.load import compose
from nemo_simplerl.trainer.setup.engine import sampling_of
from nemo_simplerl.trainer.setup.inputs import tokenizer_of
from nemo_simplerl.trainer.setup.prepare import model_folder, write_model_files
from support.forms import save_model


@pytest.fixture
def config(tmp_path):
    model = save_model(tmp_path / "actor")
    return compose(["experiment=quickstart", f"model.path={model}", f"trainer.run_dir={tmp_path / 'run'}"])


def with_critic(config, folder):
    return replace(config, critic=replace(config.critic, path=str(folder)))


def test_a_critic_of_its_own_gets_a_folder_of_its_own_with_the_runs_tokenizer(config, tmp_path):
    critic = with_critic(config, save_model(tmp_path / "critic", "llama3_rope", vocab_size=400))
    write_model_files(critic)
    ours = model_folder(critic, "critic")
    assert ours != model_folder(critic) == model_folder(config, "critic")
    assert json.loads((ours / "config.json").read_text())["rope_scaling"]["rope_type"] == "llama3"
    assert (ours / "tokenizer.json").read_bytes() == (tmp_path / "actor/tokenizer.json").read_bytes()


def test_a_critic_of_another_tokenizer_or_of_too_few_tokens_is_refused_with_both_named(config, tmp_path):
    with pytest.raises(ValueError, match=r"critic.path=\S+critic does not go with model.path=\S+actor: .*ids up to"):
        write_model_files(with_critic(config, save_model(tmp_path / "critic", vocab_size=280)))
    file = save_model(tmp_path / "other") / "tokenizer.json"
    content = json.loads(file.read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"does not go with .* 2 tokens have other ids"):
        write_model_files(with_critic(config, tmp_path / "other"))


def test_a_run_stops_at_every_id_of_generation_config_unless_it_says_otherwise(config, tmp_path):
    file = tmp_path / "actor/generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [1, 2]}))
    write_model_files(config)
    tokenizer = tokenizer_of(model_folder(config))
    assert sampling_of(config.rollout, tokenizer, model_folder(config)).stop_token_ids[:3] == (0, 1, 2)
    own = replace(config.rollout, stop_token_ids=[9])
    assert sampling_of(own, tokenizer, model_folder(config)).stop_token_ids == (9,)
    file.write_text(json.dumps({"eos_token_id": 331}))
    with pytest.raises(ValueError, match="eos_token_id names 331, which is no id of a vocabulary of 331"):
        write_model_files(config)
    write_model_files(replace(config, rollout=own))
    assert (model_folder(config) / "generation_config.json").is_file()
    file.unlink()
    write_model_files(config)
    assert not (model_folder(config) / "generation_config.json").exists()  # it belonged to an earlier start

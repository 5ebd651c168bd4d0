"""Files that must exist before models are built: the generated task, the created base model, the model folder."""

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from nemo_simplerl.config.schema import Config, CreateConfig
from nemo_simplerl.data.generated.tasks import write_task
from nemo_simplerl.data.problems import load_problems
from nemo_simplerl.data.rows import read_rows
from nemo_simplerl.data.templates import render
from nemo_simplerl.data.tokenizer import build_tokenizer, load_tokenizer
from nemo_simplerl.files import atomic_write
from nemo_simplerl.model.conversion.convert import check_same_tokens, small_files_of
from nemo_simplerl.model.formats.archive import Extent
from nemo_simplerl.model.readers.small_files import end_ids, small_files, top_files
from nemo_simplerl.model.source import kind_of, open_source


def prepare(config: Config) -> None:
    """Write what is missing: the task of data.generate, the model of model.create, the model folder. On one rank."""
    data = config.data
    if data.generate is not None and not Path(data.train_path).exists():
        write_task(data.generate, data.train_path, data.eval_path, data.sft_path, seed=config.trainer.seed)
    if config.model.create is not None and not Path(config.model.path).exists():
        create_model(config.model.path, config.model.create, _texts(config), seed=config.trainer.seed)
    write_model_files(config)


def model_folder(config: Config, role: str = "actor") -> Path:
    """Folder with a model's config.json, tokenizer and so on in Hugging Face form, whatever form its weights have.

    role: "critic" has one of its own under critic.path, since that may be another model.
    """
    is_apart = role == "critic" and config.critic.path is not None
    return Path(config.trainer.run_dir) / ("critic_model" if is_apart else "model")


def write_model_files(config: Config) -> None:
    """Write the files of every role's `model_folder`.

    Raises ValueError for a model that cannot be used or has no tokenizer, and for a critic of another tokenizer.
    """
    source = open_source(config.model.path)
    tokenizer = None if config.model.tokenizer is None else Path(config.model.tokenizer)
    files = small_files_of(source, tokenizer=tokenizer, dtype=None)
    if not any("token" in name for name in files):
        raise ValueError(f"{source.path} holds no tokenizer; set model.tokenizer to a folder that does.")
    _write(model_folder(config), files)
    if config.rollout.stop_token_ids is None:
        end_ids(model_folder(config))  # what it refuses is better said before the models are built
    if config.critic.path is not None:
        critic = open_source(config.critic.path, critic=kind_of(config.critic.path) == "checkpoint")
        try:
            check_same_tokens(critic.small_files, files)
            of_critic = small_files_of(critic, tokenizer=model_folder(config))
        except ValueError as error:
            raise ValueError(
                f"critic.path={config.critic.path} does not go with model.path={config.model.path}: {error}"
            ) from error
        _write(model_folder(config, "critic"), files | {"config.json": of_critic["config.json"]})


def _write(folder: Path, files: Mapping[str, bytes | Extent]) -> None:
    """Write the files, and remove those of another model or tokenizer that an earlier start left beside them."""
    for name, content in files.items():
        atomic_write(folder / name, content.read() if isinstance(content, Extent) else content)
    for name in small_files(top_files(folder)).keys() - files.keys():
        (folder / name).unlink()


def create_model(path: str | Path, create: CreateConfig, texts: list[str], *, seed: int) -> None:
    """Save a Qwen2 model with random weights and a byte-level tokenizer trained on `texts`, in Hugging Face form."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _save_new_model(partial, create, texts, seed)
        os.replace(partial, path)
    except Exception as error:
        if "os error 28" in str(error):  # as safetensors tells of a full disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _save_new_model(folder: Path, create: CreateConfig, texts: list[str], seed: int) -> None:
    from transformers import AutoModelForCausalLM, Qwen2Config

    build_tokenizer(texts, create.vocab_size, folder)
    tokenizer = load_tokenizer(folder)
    config = Qwen2Config(
        vocab_size=create.vocab_size,
        hidden_size=create.hidden_size,
        intermediate_size=create.ffn_hidden_size,
        num_hidden_layers=create.num_layers,
        num_attention_heads=create.num_attention_heads,
        num_key_value_heads=create.num_query_groups,
        max_position_embeddings=create.max_position_embeddings,
        tie_word_embeddings=create.share_embeddings_and_output_weights,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def _texts(config: Config) -> list[str]:
    """The texts that the tokenizer is trained on: prompts with their gold answers, and the warm start's responses."""
    data = config.data
    problems, _ = load_problems(
        data.train_path,
        data.question_field,
        data.answer_field,
        without_gold=data.rows_without_gold,
        is_graded=config.reward.function is None,
    )
    texts = [
        render(data.template, problem.question, trailing_newline=data.prompt_trailing_newline) + problem.answer
        for problem in problems
    ]
    if data.sft_path is not None and Path(data.sft_path).is_file():
        texts += [str(row.get("response", "")) for row in read_rows(data.sft_path)]
    return texts

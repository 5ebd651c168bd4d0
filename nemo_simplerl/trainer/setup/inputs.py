"""The tokenizer of a run, and its files of problems as prompts."""

from pathlib import Path

from nemo_simplerl.config.schema import DataConfig
from nemo_simplerl.data.problems import Prompt, load_problems, render_prompts
from nemo_simplerl.data.tokenizer import check_vocab, load_tokenizer
from nemo_simplerl.model.network.provider import read_hf_config


def tokenizer_of(folder: Path):
    """The tokenizer in a model's folder. Raises ValueError where it has ids beyond the model's vocabulary."""
    tokenizer = load_tokenizer(folder)
    check_vocab(tokenizer, read_hf_config(folder)["vocab_size"])
    return tokenizer


def build_prompts(
    data: DataConfig, tokenizer, path: str | None, *, max_tokens: int, limit: int | None = None
) -> tuple[list[Prompt], list[str]]:
    """Prompts of at most `max_tokens` tokens from a file of problems.

    Returns the first `limit` prompts, none without a path, and notices of what was kept, dropped and cut.
    """
    if path is None:
        return [], []
    problems, num_without_gold = load_problems(
        path, data.question_field, data.answer_field, without_gold=data.rows_without_gold
    )
    prompts, report = render_prompts(
        problems,
        tokenizer,
        data.template,
        trailing_newline=data.prompt_trailing_newline,
        max_prompt_tokens=max_tokens,
        overlong=data.overlong_prompts,
    )
    parts = [f"{report.num_kept} prompts, the longest of {report.longest} tokens (limit {max_tokens})"]
    if num_without_gold:
        parts.append(f"{num_without_gold} rows left out that have no gold answer")
    if report.num_dropped:
        parts.append(f"{report.num_dropped} dropped as too long")
    if report.num_truncated:
        parts.append(f"{report.num_truncated} cut to the limit")
    return prompts[:limit], [f"{path}: " + ", ".join(parts)]

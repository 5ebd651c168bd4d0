"""Tokenizers: a small byte-level BPE trained here, and the checks of a loaded one."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from nemo_simplerl.data.tokenizer_folder import open_tokenizer
from nemo_simplerl.user_files import refuse_pointer

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
NUM_BYTES = 256
_TEXT_SUFFIXES = (".json", ".jinja", ".model", ".txt")

# Qwen2's split: every digit is a token of its own, so numbers are read the way they are written.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build_tokenizer(texts: Iterable[str], vocab_size: int, folder: str | Path) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE and save it in Hugging Face form. The same texts give the same files.

    <|endoftext|> is EOS and padding. The vocabulary has at most `vocab_size` entries, fewer where the texts
    offer no more merges. Raises ValueError for a vocabulary too small for the special tokens and every byte.
    """
    smallest = NUM_BYTES + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(
            f"a byte-level tokenizer needs {NUM_BYTES} bytes and {len(SPECIAL_TOKENS)} special tokens, "
            f"got a vocabulary of {vocab_size}; set model.create.vocab_size to {smallest} or more"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_plain(texts), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START, TURN_END],
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(str(folder))
    return fast


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder; where it has no padding token, EOS pads.

    Never reads the network. Raises ValueError where the folder holds no tokenizer, or one without an EOS
    token.
    """
    path = Path(path)
    if not (path / "tokenizer_config.json").is_file() and not (path / "tokenizer.json").is_file():
        raise ValueError(
            f"there is no tokenizer in {path}: expected tokenizer.json or tokenizer_config.json there; "
            "set model.tokenizer to a folder that has them, or copy them beside the weights"
        )
    for file in sorted(path.iterdir()):
        if file.is_file() and file.suffix in _TEXT_SUFFIXES:
            with open(file, "rb") as stream:
                refuse_pointer(stream.read(64), file)
    try:
        tokenizer = open_tokenizer(path)
    except Exception as error:  # the tokenizers package raises its own as bare exceptions
        raise ValueError(f"the tokenizer in {path} cannot be loaded: {error}") from error
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer in {path} has no EOS token, so no response could end; name one as eos_token in "
            "its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_vocab(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Raise ValueError when the tokenizer can produce an id that the model has no embedding for."""
    needed = num_ids(tokenizer)
    if needed > vocab_size:
        raise ValueError(
            f"the tokenizer has {needed} tokens and the model's vocabulary {vocab_size}; use the tokenizer "
            f"the model was trained with (model.tokenizer), or a model with vocab_size of at least {needed}"
        )


def num_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the highest id that stands for a token, added ones among them."""
    return max(tokenizer.get_vocab().values()) + 1


def stop_ids(
    tokenizer: PreTrainedTokenizerBase,
    stop: Sequence[str],
    stop_token_ids: Sequence[int] | None,
    of_model: Sequence[int] = (),
) -> tuple[int, ...]:
    """The ids that end a response: the given ones, or EOS, those `of_model` and every stop string of exactly one token.

    of_model: what the model's own files name as such, which may be more than the tokenizer's EOS.
    """
    if stop_token_ids is not None:
        return tuple(stop_token_ids)
    ids = [tokenizer.eos_token_id, *of_model]
    for text in stop:
        encoded = tokenizer.encode(text, add_special_tokens=False)
        # The decoded text differs where an unknown-word token stands for the string.
        if len(encoded) == 1 and tokenizer.decode(encoded) == text:
            ids += encoded
    return tuple(dict.fromkeys(ids))


def _plain(texts: Iterable[str]) -> Iterable[str]:
    """The texts between special tokens, whose letters would otherwise use up merges."""
    special = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
    return (part for text in texts for part in special.split(text) if part)

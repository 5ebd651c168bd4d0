"""Prompt templates, which turn a question into the text that the model continues, and the ids of that text."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from nemo_simplerl.data.chats import Chat, Turn, question_of

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
_QUESTION = "{question}"

TEMPLATES = {
    "qwen25-math-cot": (
        f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n<|im_start|>user\n{_QUESTION}<|im_end|>\n<|im_start|>assistant"
    ),
    "qwen-boxed": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{_QUESTION}\n{INSTRUCTION}<|im_end|>\n"
        "<|im_start|>assistant"
    ),
    "abel": f"Question:\n{_QUESTION}\nAnswer:\nLet's think step by step.\n",
    "none": _QUESTION,
}


CHAT = "chat"  # the tokenizer's own
NAMES = (*TEMPLATES, CHAT)


class ChatTokenizer(Protocol):
    """The part of a transformers tokenizer that is used."""

    chat_template: str | None

    def apply_chat_template(self, conversation, *, tokenize: bool, add_generation_prompt: bool) -> str: ...


def renderer(template: str, tokenizer: ChatTokenizer, *, trailing_newline: bool) -> Callable[[str | Chat], str]:
    """The function from a question, or a chat that ends in one, to its prompt.

    "chat" is the tokenizer's own template, made to open the assistant's turn: it writes a chat as it stands, and a
    question with the instruction after it. The others write the question of a chat, and have a system turn of their
    own. Raises ValueError for an unknown template, and for "chat" where the tokenizer has none; so does the function
    for a chat that the template cannot write.
    """
    if template != CHAT:
        render(template, "", trailing_newline=trailing_newline)  # an unknown one raises before work starts
        return lambda asked: render(
            template, asked if isinstance(asked, str) else question_of(asked), trailing_newline=trailing_newline
        )
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"the tokenizer has no chat template; choose one of {', '.join(TEMPLATES)}")

    def chat(asked: str | Chat) -> str:
        turns = (Turn("user", f"{asked}\n{INSTRUCTION}"),) if isinstance(asked, str) else asked
        conversation = [turn._asdict() for turn in turns]
        try:
            return tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # the template is a program of the model's author, and raises what it likes
            raise ValueError(
                f"the tokenizer's chat template does not write it ({type(error).__name__}: {error}); mend "
                f"chat_template, or choose one of {', '.join(TEMPLATES)}"
            ) from error

    return chat


def render(template: str, question: str, *, trailing_newline: bool) -> str:
    """The prompt of a question, special tokens written out.

    `trailing_newline` ends the templates that stop at "<|im_start|>assistant" with a line break; the others
    stay as they are. Raises ValueError for an unknown template.
    """
    if template not in TEMPLATES:
        known = f"unknown prompt template {template!r}; choose one of {', '.join(TEMPLATES)}"
        raise ValueError("a created model's tokenizer has no chat template" if template == CHAT else known)
    # Not str.format: \boxed{} and the question have braces of their own.
    text = TEMPLATES[template].replace(_QUESTION, question, 1)
    is_chat = TEMPLATES[template].endswith("<|im_start|>assistant")
    return text + "\n" if is_chat and trailing_newline else text


def encode_prompts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The ids of prompts: what the tokenizer itself puts before a text (a BOS, or nothing), then the text's own.

    A prompt whose text begins with a BOS, as some chat templates write it, gets no second one. What a tokenizer puts
    after a text, such as an EOS, is left out: a prompt goes on.
    """
    if not texts:
        return []
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    bare, whole = list(rows[0]), list(tokenizer(texts[0])["input_ids"])
    start = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
    before = whole[:start]
    return [list(row) if list(row[:start]) == before else [*before, *row] for row in rows]

"""Prompt templates, which turn a question into the text that the model continues."""

from collections.abc import Callable
from typing import Protocol

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


def renderer(template: str, tokenizer: ChatTokenizer, *, trailing_newline: bool) -> Callable[[str], str]:
    """The function from a question to its prompt.

    "chat" is the tokenizer's own template, made to open the assistant's turn, with the instruction after the question.
    Raises ValueError for an unknown template, and for "chat" where the tokenizer has none.
    """
    if template != CHAT:
        render(template, "", trailing_newline=trailing_newline)  # an unknown one raises before work starts
        return lambda question: render(template, question, trailing_newline=trailing_newline)
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"the tokenizer has no chat template; choose one of {', '.join(TEMPLATES)}")

    def chat(question: str) -> str:
        turn = {"role": "user", "content": f"{question}\n{INSTRUCTION}"}
        return tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)

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

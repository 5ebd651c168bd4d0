"""Prompt templates, which turn a question into the text that the model continues, and the ids of that text."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

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
    "question-answer": f"Question: {_QUESTION}\nAnswer:",  # what a base model knows from the web
    "none": _QUESTION,
}


CHAT = "chat"  # the tokenizer's own
NAMES = (*TEMPLATES, CHAT)
_USER, _ASSISTANT = "<|im_start|>user", "<|im_start|>assistant"


class WorkedExample(NamedTuple):
    """A question with a response as the model is to give them, and the gold answer that the response must have."""

    question: str
    response: str
    answer: str


class ChatTokenizer(Protocol):
    """The part of a transformers tokenizer that is used."""

    chat_template: str | None

    def apply_chat_template(self, conversation, *, tokenize: bool, add_generation_prompt: bool) -> str: ...


def renderer(
    template: str, tokenizer: ChatTokenizer, *, trailing_newline: bool, examples: Sequence[WorkedExample] = ()
) -> Callable[[str | Chat], str]:
    """The function from a question, or a chat that ends in one, to its prompt, which begins with the worked examples.

    "chat" is the tokenizer's own template, made to open the assistant's turn: it writes a chat as it stands, and a
    question with the instruction after it; examples are earlier turns. The others write the question of a chat, and
    have a system turn of their own. Raises ValueError for an unknown template, and for "chat" where the tokenizer has
    none; so does the function for a chat that the template cannot write.
    """
    if template != CHAT:
        whole = partial(render, template, trailing_newline=trailing_newline, examples=examples)
        whole("")  # an unknown one raises before work starts
        return lambda asked: whole(asked if isinstance(asked, str) else question_of(asked))
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"the tokenizer has no chat template; choose one of {', '.join(TEMPLATES)}")

    def chat(asked: str | Chat) -> str:
        turns = (_instructed(asked),) if isinstance(asked, str) else asked
        num_systems = next((at for at, turn in enumerate(turns) if turn.role != "system"), len(turns))
        worked = [
            turn
            for example in examples
            for turn in (
                _instructed(example.question) if isinstance(asked, str) else Turn("user", example.question),
                Turn("assistant", example.response),
            )
        ]
        conversation = [turn._asdict() for turn in (*turns[:num_systems], *worked, *turns[num_systems:])]
        try:
            return tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # the template is a program of the model's author, and raises what it likes
            raise ValueError(
                f"the tokenizer's chat template does not write it ({type(error).__name__}: {error}); mend "
                f"chat_template, or choose one of {', '.join(TEMPLATES)}"
            ) from error

    return chat


def render(template: str, question: str, *, trailing_newline: bool, examples: Sequence[WorkedExample] = ()) -> str:
    """The prompt of a question behind the worked examples, special tokens written out.

    `trailing_newline` ends the templates that stop at "<|im_start|>assistant" with a line break; the others
    stay as they are. Raises ValueError for an unknown template.
    """
    if template not in TEMPLATES:
        known = f"unknown prompt template {template!r}; choose one of {', '.join(TEMPLATES)}"
        raise ValueError("a created model's tokenizer has no chat template" if template == CHAT else known)
    before, ask = _parts(template)
    is_chat = ask.endswith(_ASSISTANT)
    lead_in = "\n" if is_chat else response_lead_in(template)
    # Not str.format: \boxed{} and the question have braces of their own.
    worked = "".join(
        f"{ask.replace(_QUESTION, example.question, 1)}{joined(lead_in, example.response)}{example_end(template)}"
        for example in examples
    )
    text = before + worked + ask.replace(_QUESTION, question, 1)
    return text + "\n" if is_chat and trailing_newline else text


def response_lead_in(template: str) -> str:
    """What stands between a prompt and a response that does not bring it: a space after "Answer:", else nothing."""
    return " " if TEMPLATES.get(template, "").endswith(":") else ""


def joined(lead_in: str, response: str) -> str:
    """The response behind the lead-in, unless it begins with white space of its own."""
    return response if response[:1].isspace() else lead_in + response


def example_end(template: str) -> str:
    """What stands between the response of a worked example and the next question; "" under "chat", whose tokenizer
    writes it."""
    if template == CHAT:
        return ""
    return "<|im_end|>\n" if _parts(template)[1].endswith(_ASSISTANT) else "\n\n"


def next_question(template: str) -> str:
    """What a model that goes on after a response in the form of the template writes before a question of its own."""
    return "" if template == CHAT else example_end(template) + _parts(template)[1].partition(_QUESTION)[0]


def _parts(template: str) -> tuple[str, str]:
    """What a template writes once, its system turn, and what it writes around every question."""
    before, user, ask = TEMPLATES[template].partition(_USER)
    return (before, user + ask) if user else ("", before)


def _instructed(question: str) -> Turn:
    return Turn("user", f"{question}\n{INSTRUCTION}")


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

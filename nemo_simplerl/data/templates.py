"""Prompt templates: a question in, the text that the model continues out."""

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


def render(template: str, question: str, *, trailing_newline: bool) -> str:
    """The prompt of a question, special tokens written out.

    `trailing_newline` ends the templates that stop at "<|im_start|>assistant" with a line break; the others
    stay as they are. Raises ValueError for an unknown template.
    """
    if template not in TEMPLATES:
        raise ValueError(f"unknown prompt template {template!r}; choose one of {', '.join(TEMPLATES)}")
    # Not str.format: \boxed{} and the question have braces of their own.
    text = TEMPLATES[template].replace(_QUESTION, question, 1)
    is_chat = TEMPLATES[template].endswith("<|im_start|>assistant")
    return text + "\n" if is_chat and trailing_newline else text

"""The quantizations of a GGUF file, by the package gguf, which undoes them."""

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from nemo_simplerl.config.forms.gguf import Header


def quantizations(header: Header) -> dict[int, GGMLQuantizationType]:
    """The quantizations of the file's tensors by the numbers in its header.

    Raises one ValueError that names each that the package has no way back from.
    """
    first = {entry.type_id: name for name, entry in reversed(header.tensors.items())}
    known = {int(kind): kind for kind in GGMLQuantizationType}
    wrong = [number for number in first if number not in known or not _is_undone(known[number])]
    if wrong:
        named = [f"{known[number].name if number in known else number} ({first[number]})" for number in wrong]
        raise ValueError(
            f"{header.path}: quantization {', '.join(named)} is none that the package gguf can undo; take a file in "
            "another, such as Q8_0, or the Hugging Face folder."
        )
    return {number: known[number] for number in first}


def _is_undone(kind: GGMLQuantizationType) -> bool:
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True

"""LaTeX in responses: what is found, and what the page gets in its place."""

from xml.etree.ElementTree import fromstring

import pytest

from nemo_simplerl.report.mathml import TAGS, allowed_tree, fragments, tree_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so $x+1$ and $$y$$", ["x+1", "y"]),
        (r"\(a\) then \[b\]", ["a", "b"]),
        (r"the answer is \boxed{\frac{1}{2}}.", [r"\boxed{\frac{1}{2}}"]),
        ("it costs $5 and then $6 more", []),  # a space before the second dollar
        ("between $5 and -$6", []),  # a digit after it
        ("no end $x", []),
        (r"\boxed{no end", []),
        ("$a$ $b$ $b$", ["b", "a"]),
    ],
)
def test_formulas_are_found_between_delimiters_most_frequent_first(text, expected):
    assert fragments([text]) == expected


@pytest.mark.parametrize("text", [r"\(" * 20_000, r"\boxed{" * 4_000, "$" * 40_000, r"\boxed{{{" * 4_000])
def test_delimiters_without_end_are_passed_over(text):
    assert fragments([text]) == []


def test_a_formula_becomes_a_tree_of_elements_and_text():
    pytest.importorskip("latex2mathml")
    assert tree_of(r"\frac{1}{2} < x") == [
        *("math", {}),
        ["mrow", {}, ["mfrac", {}, ["mrow", {}, ["mn", {}, "1"]], ["mrow", {}, ["mn", {}, "2"]]]]
        + [["mo", {}, "<"], ["mi", {}, "x"]],
    ]


def test_what_is_not_on_the_lists_does_not_pass_whatever_the_converter_makes():
    element = fromstring(
        '<mrow><script>alert(1)</script><mi onclick="x" mathvariant="bold" width="url(#a)">y</mi></mrow>'
    )
    assert allowed_tree(element) == ["mrow", {}, ["mrow", {}, "alert(1)"], ["mi", {"mathvariant": "bold"}, "y"]]


def walk(tree):
    tag, attributes, *children = tree
    yield tag, attributes
    for child in children:
        if not isinstance(child, str):
            yield from walk(child)


@pytest.mark.parametrize(
    "latex",
    [
        r"\text{<script>alert(1)</script>}",
        r"\href{javascript:alert(1)}{x}",
        r"\mathop{\style{background:url(http://a.test)}{x}}",
        r"\color{red}{x}",
        r"\begin{matrix}<img src=x onerror=alert(1)>\end{matrix}",
    ],
)
def test_only_elements_and_attributes_of_plain_mathematics_pass(latex):
    pytest.importorskip("latex2mathml")
    tree = tree_of(latex)
    assert tree is not None
    for tag, attributes in walk(tree):
        assert tag in TAGS
        assert not {"href", "src", "style", "onerror", "mathcolor", "class", "id"} & set(attributes)


@pytest.mark.parametrize("latex", [r"\frac", "x^", "{" * 250, r"\left(", "x" * 301, r"\begin{array}"])
def test_what_the_converter_cannot_read_is_left_as_it_is_written(latex):
    pytest.importorskip("latex2mathml")
    assert tree_of(latex) is None

from nemo_simplerl.eval.response_text import is_repetitive, num_reflections


def test_second_thoughts_are_whole_words():
    assert num_reflections("Wait, let me check. However, the waiter alternatively re-checks? Recheck!") == 5


def test_a_response_that_ends_in_a_loop_is_repetitive_and_a_long_one_is_not():
    assert is_repetitive("So it is. " + "The answer is therefore forty two, as we saw before. " * 20)
    assert not is_repetitive(" ".join(f"Step {i}: {i} squared is {i * i}." for i in range(200)))
    assert not is_repetitive("short")

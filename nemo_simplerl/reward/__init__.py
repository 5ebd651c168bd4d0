"""The rule-based reward: the boxed answer is found, compared with the gold answer and scored in killable processes."""

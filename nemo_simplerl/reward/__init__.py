"""The rule-based reward: find the boxed answer, judge it, score it, in processes that can be killed."""

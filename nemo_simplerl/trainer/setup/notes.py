"""Settings that nothing reads under the others of the run, told when it begins."""

from nemo_simplerl.config.placement import Places
from nemo_simplerl.config.schema import Config


def unread_notes(config: Config) -> list[str]:
    """A message for each choice that leaves settings without effect which conf/ or an experiment has values for.

    Those that only a user gives are refused instead: see config/rules.
    """
    algo, function = config.algo, config.reward.function
    notes = []
    if not algo.has_critic:
        unread = "the keys of critic, algo.gae_lambda and algo.value_clip are not read"
        notes.append(f"algo.advantage={algo.advantage} trains no critic: {unread}")
    if algo.gae_length_alpha is not None:
        notes.append(f"algo.gae_length_alpha={algo.gae_length_alpha:g} sets lambda: algo.gae_lambda is not read")
    if algo.policy_loss == "cispo":
        notes.append("algo.policy_loss=cispo has bounds of its own: algo.ratio_eps is not read")
    if function is not None:
        clip = "" if algo.reward_clip is None else f"; algo.reward_clip={algo.reward_clip:g} bounds its numbers"
        notes.append(
            f"reward.function={function}: reward.correct and reward.incorrect are not read, reward.no_answer is what a "
            f"response earns on which it fails{clip}"
        )
    return notes


def ahead_notes(config: Config, places: Places) -> list[str]:
    """A message where samples are one refit older and no work overlaps for it."""
    if not config.rollout.ahead or places.is_engine_apart:
        return []
    return [
        "rollout.ahead=1 while the engine shares the actor's ranks: they take turns, so that nothing is sampled while "
        "the actor trains, and samples are one refit older for no gain. Give the engine ranks of its own "
        "(placement.engine), or set rollout.ahead=0"
    ]

"""Values and gradients of verl's, TRL's and OpenRLHF's own functions, held against ours on the same tensors.

`oracles.json` holds some of their results (versions in its first lines); the environment variable SIMPLERL_ORACLES, or
`shared/oracles/estimators.json` beside the repository, a larger set of the same form. An entry has a counterpart in
COUNTERPARTS or a reason in WITHOUT_COUNTERPART. Where a package computes something else by intent, the difference is
derived here from ours; docs/algorithms.md explains it.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nemo_simplerl.algo.advantages import (
    group_advantages,
    leave_one_out_advantages,
    rewards_to_go,
    whiten,
)
from nemo_simplerl.algo.gae import gae, length_adaptive_lambda
from nemo_simplerl.algo.kl import kl_loss, kl_penalty
from nemo_simplerl.algo.loss import PolicyObjective, policy_loss, positive_nll, token_weights, value_loss
from nemo_simplerl.algo.rewards import token_rewards
from nemo_simplerl.reward.shaping import overlong_term

OWN = Path(__file__).with_name("oracles.json")
LARGER = Path(os.environ.get("SIMPLERL_ORACLES", OWN.parents[3] / "shared" / "oracles" / "estimators.json"))

Pairs = Iterator[tuple[str, Tensor, Tensor]]  # the output's name, ours, theirs


class Entry:
    """One result. Tensors are of the entry's dtype; those of the mask's shape are compared inside the mask."""

    def __init__(self, raw: dict, tensors: dict):
        self.raw, self.kind, self.package, self.params = raw, raw["kind"], raw["package"], raw["params"]
        self.dtype = torch.float64 if raw["dtype"] == "float64" else torch.float32
        self.inputs = {
            name: torch.tensor(tensors[value] if isinstance(value, str) else value, dtype=self.dtype)
            for name, value in raw["inputs"].items()
        }

    def __getitem__(self, name: str) -> Tensor:
        return self.inputs[name]

    def output(self, name: str) -> Tensor:
        return torch.tensor(self.raw["outputs"][name], dtype=self.dtype)

    @property
    def groups(self) -> tuple[Tensor, int]:
        groups_B = self["index"].long() if "index" in self.inputs else torch.arange(len(self["scores"])) // 2
        return groups_B, int(groups_B.max()) + 1


def _rewards_in_the_mask(entry: Entry, scores_B: Tensor, kl_BT: Tensor, clip: float | None = None) -> Tensor:
    """Our token rewards, which refuse a row without a response; theirs gives such a row no reward."""
    mask_BT = entry["mask"].clone()
    mask_BT[mask_BT.sum(dim=1) == 0, 0] = 1
    return token_rewards(scores_B, kl_BT, mask_BT, 0.05, clip) * entry["mask"]


def _sample_variance(whitened_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """verl divides by the deviation of the sample, N - 1, ours is the population's, N: theirs is smaller."""
    count = float(mask_BT.sum())
    return whitened_BT * math.sqrt((count - 1) / count)


def _gae(entry: Entry) -> Pairs:
    rewards_BT, values_BT, mask_BT = entry["token_level_rewards_with_kl"], entry["old_values"], entry["mask"]
    params = entry.params
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, gamma=params["gamma"], lam=params["lam"])
    yield "advantages_raw", advantages_BT, entry.output("advantages_raw")
    yield "returns", returns_BT, entry.output("returns")
    if entry.package == "verl":
        whitened_BT = _sample_variance(whiten(advantages_BT, mask_BT), mask_BT)
        yield "advantages_whitened", whitened_BT, entry.output("advantages_whitened")


def _gae_of_two_lambdas(entry: Entry) -> Pairs:
    rewards_BT, values_BT, mask_BT = entry["token_level_rewards_with_kl"], entry["old_values"], entry["mask"]
    lam_B1 = length_adaptive_lambda(mask_BT, entry.params["alpha"])
    yield "lam_actor_per_row", lam_B1[:, 0], torch.tensor(entry.params["lam_actor_per_row"])
    advantages_BT, _ = gae(rewards_BT, values_BT, mask_BT, gamma=entry.params["gamma"], lam=lam_B1)
    _, returns_BT = gae(rewards_BT, values_BT, mask_BT, gamma=entry.params["gamma"], lam=entry.params["lam_critic"])
    whitened_BT = _sample_variance(whiten(advantages_BT, mask_BT), mask_BT)
    yield "advantages_raw_actor", advantages_BT, entry.output("advantages_raw_actor")
    yield "advantages_whitened_actor", whitened_BT, entry.output("advantages_whitened_actor")
    yield "returns_critic", returns_BT, entry.output("returns_critic")


def _outcome(entry: Entry) -> Pairs:
    """Group estimators of verl: one advantage a row, on its tokens; the KL of a row is in its score."""
    name = "token_level_rewards_with_kl" if entry.kind == "rloo_kl_in_reward" else "token_level_rewards"
    scores_B, mask_BT = entry[name].sum(dim=1), entry["mask"]
    if entry.kind.startswith("rloo"):
        advantages_B = leave_one_out_advantages(scores_B, *entry.groups)
    else:
        advantages_B = group_advantages(scores_B, *entry.groups, divide_by_std=entry.kind == "grpo")
    advantages_BT = advantages_B[:, None] * mask_BT
    if entry.kind == "reinforce_pp_baseline":
        advantages_BT = _sample_variance(whiten(advantages_BT, mask_BT), mask_BT)
    yield "advantages", advantages_BT, entry.output("advantages")


def _reinforce_pp(entry: Entry) -> Pairs:
    mask_BT = entry["mask"]
    returns_BT = rewards_to_go(entry["token_level_rewards_with_kl"], mask_BT, entry.params["gamma"])
    yield "returns", returns_BT, entry.output("returns")
    yield "advantages", _sample_variance(whiten(returns_BT, mask_BT), mask_BT), entry.output("advantages")


def _whiten(entry: Entry) -> Pairs:
    yield (
        "whitened",
        _sample_variance(whiten(entry["advantages"], entry["mask"]), entry["mask"]),
        entry.output("whitened"),
    )


def _group_std(entry: Entry) -> Pairs:
    """TRL's deviation of a group, from our advantages without and with it. Ours adds 1e-6 to it, TRL 1e-4 later."""
    scores_GN = entry["scores_by_group"]
    groups_B = torch.arange(scores_GN.numel()) // scores_GN.shape[1]
    above_B, divided_B = (
        group_advantages(scores_GN.flatten(), groups_B, len(scores_GN), divide_by_std=divide)
        for divide in (False, True)
    )
    yield "std", (above_B / divided_B - 1e-6).view(scores_GN.shape)[:, 0], entry.output("std")


def _of_openrlhf(entry: Entry) -> Pairs:
    """OpenRLHF takes the KL off token by token after the group's baseline, and sums from each token on."""
    scores_B, mask_BT, estimator = entry["scores"], entry["mask"], entry.params["estimator"]
    groups = entry.groups
    if estimator == "rloo":
        scores_B = leave_one_out_advantages(scores_B, *groups)
    elif estimator == "group_norm":
        # It adds 1e-9 to the deviation where ours adds 1e-6.
        std_B = scores_B.view(-1, 2).std(dim=1).repeat_interleave(2)
        scores_B = group_advantages(scores_B, *groups, divide_by_std=True) * (std_B + 1e-6) / (std_B + 1e-9)
    elif estimator in ("reinforce_baseline", "dr_grpo"):
        scores_B = group_advantages(scores_B, *groups, divide_by_std=False)
    rewards_BT = _rewards_in_the_mask(entry, scores_B, entry["kl"], entry.params["reward_clip"])
    if estimator == "gae":
        gamma, lam = entry.params["gamma"], entry.params["lam"]
        advantages_BT, returns_BT = gae(rewards_BT, entry["old_values"], mask_BT, gamma=gamma, lam=lam)
    else:
        advantages_BT = returns_BT = rewards_to_go(rewards_BT, mask_BT, entry.params["gamma"])
    if estimator in ("gae", "reinforce", "reinforce_baseline"):
        advantages_BT = whiten(advantages_BT, mask_BT)
    yield "advantages", advantages_BT, entry.output("advantages")
    yield "returns", returns_BT, entry.output("returns")


def _kl(entry: Entry) -> Pairs:
    """verl bounds k3, OpenRLHF every estimate, at 10, which ends the gradient beyond; ours has no bound.

    `k1+`, `k3+` and `unbiased_gradient` put the derivative of k2 behind the value of another estimate; OpenRLHF's is
    weighted by the ratio, bounded at 10.
    """
    name = entry.params.get("kl_penalty") or entry.params["kl_estimator"]
    estimator, bounded = name.rstrip("+"), entry.package == "openrlhf" or name.startswith("k3")
    logprobs_BT, ref_BT = entry["logprobs"].requires_grad_(), entry["ref_logprobs"]
    kl_BT = kl_penalty(logprobs_BT, ref_BT, estimator)
    (gradient_BT,) = torch.autograd.grad(kl_BT.sum(), logprobs_BT)
    kl_BT = kl_BT.detach()
    if name.endswith("+"):
        gradient_BT = torch.autograd.grad(kl_penalty(logprobs_BT, ref_BT, "k2").sum(), logprobs_BT)[0]
    elif entry.params.get("unbiased_gradient"):
        # Ours of k3 with the importance weight: r * d.
        given = (logprobs_BT, ref_BT, entry["old_logprobs"], torch.ones_like(ref_BT))
        weighted = kl_loss(*given, estimator="k3", importance_weight=True)
        ratio_BT = (logprobs_BT.detach() - entry["old_logprobs"]).exp()
        gradient_BT = torch.autograd.grad(weighted, logprobs_BT)[0] * (ratio_BT.clamp(max=10) / ratio_BT)
    elif bounded:
        gradient_BT = torch.where(kl_BT.abs() <= 10, gradient_BT, 0.0)
    yield "kl", kl_BT.clamp(-10, 10) if bounded else kl_BT, entry.output("kl")
    yield "grad_logprobs_of_sum", gradient_BT, entry.output("grad_logprobs_of_sum")


def _kl_in_reward(entry: Entry) -> Pairs:
    if entry.package == "openrlhf":
        rewards_BT = _rewards_in_the_mask(entry, entry["scores"], entry["kl"], entry.params["reward_clip_range"][1])
        yield "rewards", rewards_BT, entry.output("rewards")
    else:  # which has no mask here: the score is where it is, and the KL on every token
        kl_BT = kl_penalty(entry["old_logprobs"], entry["ref_logprobs"], "k1")
        kl_rewards_BT = token_rewards(torch.zeros(len(kl_BT)), kl_BT, torch.ones_like(kl_BT), entry.params["kl_ratio"])
        yield "rewards", entry["token_level_rewards"] + kl_rewards_BT, entry.output("rewards")


# The divisors of verl's and TRL's modes: our aggregation, and what its counts are.
def _weights(entry: Entry) -> Tensor:
    """Our weights for the package's mode, times the ranks over which its engine averages what ours sums."""
    params, mask_BT = entry.params, entry["mask"]
    tokens, rows = int(mask_BT.sum()), int(mask_BT.any(dim=1).sum())
    tokens, rows = params.get("batch_num_tokens", tokens), params.get("global_batch_size", rows)
    if entry.package == "trl":
        rows = len(mask_BT)  # masked ones too
        mode = params.get("loss_type", "grpo")
        aggregation = {"grpo": "seq_mean", "dr_grpo": "token_sum_over_max"}.get(mode, "token_mean")
        longest = params.get("max_completion_length")
    elif entry.package == "openrlhf":
        by_token = params.get("token_level_loss", params.get("policy_loss_type") != "gspo")
        aggregation, longest = "token_mean" if by_token else "seq_mean", None
    else:
        mode = params["loss_agg_mode"]
        aggregation = {"token-mean": "token_mean", "token-sum": "token_mean", "seq-mean-token-mean": "seq_mean"}.get(
            mode, "token_sum_over_max"
        )
        tokens = 1 if mode == "token-sum" else tokens
        # Without a factor the width of the matrix, which is the padding's, is the constant.
        longest = 1 if mode == "seq-mean-token-sum" else params.get("loss_scale_factor", mask_BT.shape[1])
    weights_BT = token_weights(mask_BT, aggregation, num_tokens=tokens, num_sequences=rows, max_tokens=longest)
    return weights_BT * params.get("dp_size", 1)


def _objective(entry: Entry) -> PolicyObjective:
    params = entry.params
    if entry.package == "verl":
        low, high = params["clip_ratio_low"], params["clip_ratio_high"]
        dual_clip = params["clip_ratio_c"] if params.get("clip_ratio_c", 1e6) < 1e6 else None
        cispo = max(1 - low, 0.0), 1 + high
    elif entry.package == "trl":
        low, high, dual_clip = params.get("epsilon_low", 0.2), params["epsilon_high"], params.get("delta")
        cispo = 0.0, params["epsilon_high"]  # the bound itself
    else:
        low, high, dual_clip, cispo = (
            params["clip_eps_low"],
            params["clip_eps_high"],
            params.get("dual_clip"),
            (0.0, 1.0),
        )
    return PolicyObjective(
        ratio_eps=low,
        ratio_eps_high=high,
        dual_clip=dual_clip,
        ratio_level="sequence" if entry.kind == "policy_gspo" else "token",
        policy_loss="cispo" if entry.kind == "policy_cispo" else "clip",
        cispo_ratio_min=cispo[0],
        cispo_ratio_max=cispo[1],
    )


def _policy(entry: Entry) -> Pairs:
    params, weights_BT = entry.params, _weights(entry)
    logprobs_BT, old_logprobs_BT = entry["logprobs"].requires_grad_(), entry["old_logprobs"]
    advantages_BT = entry["advantages"] if entry["advantages"].ndim == 2 else entry["advantages"][:, None]
    advantages_BT = advantages_BT.expand_as(logprobs_BT)
    entropy_BT = torch.zeros_like(old_logprobs_BT)
    loss, metrics = policy_loss(logprobs_BT, old_logprobs_BT, advantages_BT, entropy_BT, weights_BT, _objective(entry))
    if "beta" in params:
        weighted = params["use_bias_correction_kl"]
        given = (logprobs_BT, entry["ref_logprobs"], old_logprobs_BT, weights_BT)
        loss = loss + params["beta"] * kl_loss(*given, estimator="k3", importance_weight=weighted)
    loss.backward()
    theirs = entry.raw["outputs"].get("metrics", {})
    if entry.kind != "policy_cispo" and params.get("loss_agg_mode") == "token-mean" and "dp_size" not in params:
        yield "clip_fraction", metrics["clip_fraction"], torch.tensor(theirs["actor/pg_clipfrac"])
        dual = metrics.get("dual_clip_fraction", torch.zeros(()))
        yield "dual_clip_fraction", dual, torch.tensor(theirs["actor/pg_clipfrac_lower"])
    yield "loss", loss.detach(), entry.output("loss")
    yield "grad_logprobs", logprobs_BT.grad, entry.output("grad_logprobs")


def _value_loss(entry: Entry) -> Pairs:
    values_BT, old_BT, clip = entry["values"].requires_grad_(), entry["old_values"], entry.params.get("cliprange_value")
    clip = entry.params.get("clip_eps") if entry.package == "openrlhf" else clip
    loss, _ = value_loss(values_BT, old_BT, entry["returns"], _weights(entry), value_clip=clip)
    loss.backward()
    yield "loss", loss.detach(), entry.output("loss")
    # On the edge of the clip the gradient is a convention.
    off_edge_BT = ((values_BT.detach() - old_BT).abs() - (clip or 0.0)).abs() > 1e-6
    yield "grad_values", values_BT.grad * off_edge_BT, entry.output("grad_values") * off_edge_BT


def _aggregation(entry: Entry) -> Pairs:
    weights_BT = _weights(entry)
    yield "weights", weights_BT, entry.output("weights")
    yield "loss", (weights_BT * entry["loss_matrix"]).sum(), entry.output("loss")


def _positive_nll(entry: Entry) -> Pairs:
    logprobs_BT, mask_BT = entry["logprobs"].requires_grad_(), entry["positive_mask"]
    weights_BT = token_weights(mask_BT, "token_mean", num_tokens=int(mask_BT.sum()), num_sequences=0)
    loss = positive_nll(logprobs_BT, weights_BT)
    loss.backward()
    yield "loss", loss.detach(), entry.output("loss")
    yield "grad_logprobs", logprobs_BT.grad, entry.output("grad_logprobs")


def _overlong(entry: Entry) -> Pairs:
    params = entry.params
    longest = params.get("max_new_tokens", params.get("max_completion_len"))
    buffer = params.get("overlong_buffer_len", params.get("soft_punish_cache"))
    penalty = params.get("overlong_penalty_factor", 1.0)
    found = [
        overlong_term(int(length), max_tokens=longest, buffer_tokens=buffer, penalty=penalty)
        for length in entry["lengths"]
    ]
    yield "penalty", torch.tensor(found), entry.output("penalty")


COUNTERPARTS: dict[str, Callable[[Entry], Pairs]] = {
    "gae": _gae,
    "gae_decoupled_length_adaptive": _gae_of_two_lambdas,
    **dict.fromkeys(("grpo", "grpo_no_std", "rloo", "rloo_kl_in_reward", "reinforce_pp_baseline"), _outcome),
    "reinforce_pp": _reinforce_pp,
    "whiten": _whiten,
    "group_std": _group_std,
    **dict.fromkeys(
        [f"advantages_{name}" for name in ("gae", "reinforce", "reinforce_baseline", "rloo", "group_norm", "dr_grpo")],
        _of_openrlhf,
    ),
    **dict.fromkeys(("kl", "kl_far"), _kl),
    "kl_in_reward": _kl_in_reward,
    **dict.fromkeys(("policy_clip", "policy_clip_higher", "policy_clip_rank_share", "policy_dual_clip"), _policy),
    **dict.fromkeys(("policy_two_sided_clip", "policy_clip_kl_loss", "policy_gspo", "policy_cispo"), _policy),
    "value_loss": _value_loss,
    "aggregation": _aggregation,
    "positive_nll": _positive_nll,
    "overlong": _overlong,
}
WITHOUT_COUNTERPART = {
    "gae_hole": "responses here are one run of tokens; verl carries values and advantages over a hole",
    "policy_geo_mean": "GMPO's clip of log-ratios before their mean is no value of ours",
    "policy_clip_whole_sequence": "the ratio of whole sequences without their length's root is no value of ours",
}


def _has_counterpart(entry: Entry) -> bool:
    """The mean is always taken off and the deviation always divided by here."""
    params = entry.params
    return entry.kind not in WITHOUT_COUNTERPART and params.get("shift_mean", True) and not params.get("no_std_norm")


def _entries(file: Path) -> list[Entry]:
    whole = json.loads(file.read_text())
    return [Entry(raw, whole.get("tensors", {})) for raw in whole["entries"]]


def _differences(entry: Entry) -> list[str]:
    """Where ours is not theirs to 1e-6, or to float32's digits in an entry of float32."""
    mask_BT = entry.inputs.get("mask")
    tolerance = 1e-6 if entry.dtype == torch.float64 else 3e-6
    found = []
    for name, ours, theirs in COUNTERPARTS[entry.kind](entry):
        ours, theirs = ours.double(), theirs.double()
        if mask_BT is not None and ours.shape == mask_BT.shape:
            ours, theirs = ours[mask_BT > 0], theirs[mask_BT > 0]
        if not torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance):
            found.append(f"{entry.raw['id']} {entry.params} {name}: {float((ours - theirs).abs().max()):.3g}")
    return found


@pytest.mark.parametrize(
    "file",
    [
        OWN,
        pytest.param(LARGER, marks=pytest.mark.skipif(not LARGER.is_file(), reason="SIMPLERL_ORACLES names no file")),
    ],
    ids=["own", "larger"],
)
def test_every_result_with_a_counterpart_is_ours_or_differs_as_derived(file):
    entries = _entries(file)
    assert {entry.kind for entry in entries} <= COUNTERPARTS.keys() | WITHOUT_COUNTERPART.keys()
    compared = [entry for entry in entries if _has_counterpart(entry)]
    assert [line for entry in compared for line in _differences(entry)] == []
    assert {entry.kind for entry in compared} == COUNTERPARTS.keys()

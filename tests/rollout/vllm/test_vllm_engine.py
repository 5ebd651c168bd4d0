"""The real vLLM on the CPU: refits, samples and errors, with the faults that vLLM itself does not notice."""

import time
from dataclasses import replace

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from nemo_simplerl.rollout.base import Completion, SamplingParams
from nemo_simplerl.rollout.digest import digest
from nemo_simplerl.rollout.hf.engine import HfEngine
from nemo_simplerl.rollout.refit import verified_refit
from nemo_simplerl.rollout.vllm.process import EngineProcess
from nemo_simplerl.rollout.vllm.values import llm_arguments, process_environment, request_arguments
from support.links import Linked, flipped, on
from support.vllm_engine import (
    EOS,
    GREEDY,
    MAX_MODEL_LEN,
    PROMPTS,
    VOCAB,
    buckets_of,
    make_engine,
    save_model,
    weights_of,
)

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

LIMIT = 290  # the tokenizer's ids; those beyond are the most probable of the model
SAMPLED = SamplingParams(n=4, max_tokens=16, temperature=0.7, top_p=1.0, top_k=0, stop=(), stop_token_ids=())
LONG = [[token % LIMIT for token in range(start, start + 100)] for start in (5, 90, 160)]  # three blocks and a part
SETTINGS = {"engine_args": {"block_size": 32}, "max_num_tokens": 256}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models of one shape with tied heads, whose padding rows would be sampled often."""
    found = {}
    for seed, name in enumerate(("base", "actor")):
        found[name] = save_model(tmp_path_factory.mktemp(name), seed=seed)
        model = AutoModelForCausalLM.from_pretrained(found[name])
        model.get_input_embeddings().weight.data[LIMIT:] *= 1.5
        model.save_pretrained(found[name])
    return found


@pytest.fixture(scope="module")
def engine(folders, vllm_python):
    engine = make_engine(folders["base"], vllm_python, vocab_limit=LIMIT, **SETTINGS)
    yield engine
    engine.close()


@pytest.fixture
def refit(engine, folders):
    """Refits the engine to one of the two models, in buckets that are much smaller than a layer."""
    versions = iter(range(int(time.monotonic() * 1000), 2**60))

    def refit(name: str, fault=None):
        linked = engine if fault is None else Linked(engine, fault)
        return verified_refit(linked, buckets_of(weights_of(folders[name])), next(versions), verify=True, group=None)

    return refit


@pytest.fixture(scope="module")
def loaded_by_vllm(engine, folders, vllm_python):
    """A fresh engine of the actor whose weights vLLM has read from its files; gives digests and answers."""
    settings = engine._settings
    process = EngineProcess(
        vllm_python, process_environment([], torch.get_num_threads()), "the engine that loads by itself"
    )
    folder = folders["actor"]
    arguments = llm_arguments(folder, torch.device("cpu"), torch.float32, MAX_MODEL_LEN, settings)
    process.call("start", arguments | {"load_format": "safetensors"}, LIMIT, timeout_s=400)
    [digests] = process.call("finish", 1, True, timeout_s=200)

    def answers(prompts, params):
        requests = [
            (i // params.n, request_arguments(params, seed)) for i, seed in enumerate(seeds_of(prompts, params))
        ]
        return process.call("generate", prompts, requests, 1, timeout_s=200)

    yield digests, answers
    process.close()


def seeds_of(prompts, params) -> list[int]:
    return [1000 + 7 * index for index in range(len(prompts) * params.n)]


def sample(engine, prompts, params) -> list[Completion]:
    return engine.generate(prompts, params, seeds_of(prompts, params))


def plain(completions: list[Completion]) -> list[tuple]:
    return [(list(c.token_ids), list(c.logprobs), c.finish_reason) for c in completions]


def errors_of_logprobs(folder, prompts, completions, params) -> float:
    """The largest difference from the log-probabilities of transformers, over the full vocabulary."""
    model, worst = AutoModelForCausalLM.from_pretrained(folder), 0.0
    for index, completion in enumerate(completions):
        prompt = prompts[index // params.n]
        with torch.no_grad():
            logits_TV = model(torch.tensor([[*prompt, *completion.token_ids]])).logits[0, len(prompt) - 1 : -1]
        logprobs_TV = (logits_TV / (params.temperature or 1.0)).log_softmax(-1)
        expected_T = logprobs_TV.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        worst = max(worst, float((expected_T - torch.tensor(completion.logprobs)).abs().max()))
    return worst


def test_every_refit_samples_as_an_engine_that_read_the_weights_from_files(engine, refit, loaded_by_vllm):
    _, answers = loaded_by_vllm
    asked = [(PROMPTS, GREEDY), (PROMPTS, SAMPLED), (LONG, GREEDY), (LONG, SAMPLED)]
    expected = [answers(*request) for request in asked]
    seen = []
    for name in ("base", "actor", "base", "actor"):
        refit(name)
        seen.append([plain(sample(engine, *request)) for request in asked])
    assert seen[1] == expected and seen[3] == expected
    assert seen[0] == seen[2]
    assert all(found != other for found, other in zip(seen[0], expected, strict=True))


def test_what_is_read_back_is_what_the_files_hold(loaded_by_vllm, folders):
    digests, _ = loaded_by_vllm
    assert digests == {name: digest(tensor) for name, tensor in weights_of(folders["actor"]).items()}


@pytest.mark.parametrize(
    "changes",
    [{}, {"temperature": 0.0}, {"temperature": 1.0}, {"top_p": 0.8}, {"top_k": 5}],
    ids=["T 0.7", "greedy", "T 1", "top_p", "top_k"],
)
def test_log_probabilities_are_those_of_the_full_vocabulary_and_padding_is_never_sampled(
    engine, refit, folders, changes
):
    params = replace(SAMPLED, **changes)
    refit("actor")
    completions = sample(engine, PROMPTS, params)
    assert errors_of_logprobs(folders["actor"], PROMPTS, completions, params) < 1e-4
    assert max(max(completion.token_ids) for completion in completions) < LIMIT


def test_greedy_is_that_of_the_hf_engine(engine, refit, folders):
    refit("base")
    other = HfEngine(folders["base"], tokenizer=None, max_batch_size=8, vocab_limit=LIMIT)
    other.refit(buckets_of(weights_of(folders["base"])), 1)
    found, expected = sample(engine, PROMPTS, GREEDY), sample(other, PROMPTS, GREEDY)
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]


def assert_close(found: list[Completion], expected: list[Completion]) -> None:
    """The same tokens; log-probabilities may differ in their last bits, because they were computed in other company."""
    assert [(c.token_ids, c.finish_reason) for c in found] == [(c.token_ids, c.finish_reason) for c in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_a_sample_depends_on_its_prompt_and_seed_alone(engine, refit):
    refit("actor")
    one = replace(SAMPLED, n=1, temperature=1.5)
    prompts, seeds = PROMPTS * 4, [-1, 2**64, 2**64 - 1, *range(13)]
    together = engine.generate(prompts, one, seeds)
    assert plain(engine.generate(prompts, one, seeds)) == plain(together)
    assert_close(engine.generate(prompts[::-1], one, seeds[::-1])[::-1], together)
    assert_close([engine.generate([p], one, [s])[0] for p, s in zip(prompts, seeds, strict=True)], together)
    assert len({completion.token_ids for completion in together[1::4]}) == 4, "other seeds, other samples"


def test_more_prompts_than_one_pass_reads_are_sampled_with_their_seeds(engine, refit):
    refit("actor")
    prompts = [[5 + index % 200, 9, *range(20, 20 + index % 40)] for index in range(300)]
    params = replace(SAMPLED, n=1, max_tokens=4)
    completions = sample(engine, prompts, params)
    assert {len(completion.token_ids) for completion in completions} == {4}
    assert_close(completions[:8], sample(engine, prompts[:8], params))


def test_stop_tokens_end_a_response_and_the_eos_of_config_json_does_not(engine, refit):
    refit("actor")
    prompts, params = [*PROMPTS, [0]], replace(SAMPLED, n=16)
    unstopped = sample(engine, prompts, params)
    assert {completion.finish_reason for completion in unstopped} == {"length"}
    assert any(EOS in completion.token_ids[:-1] for completion in unstopped)
    stopped = sample(engine, prompts, replace(params, stop_token_ids=(0, EOS)))  # 0 is falsy
    for free, found in zip(unstopped, stopped, strict=True):
        stops = [index for index, token in enumerate(free.token_ids) if token in (0, EOS)]
        length = stops[0] + 1 if stops else len(free.token_ids)
        assert found.token_ids == free.token_ids[:length]
        assert found.finish_reason == ("stop" if stops else "length")
    assert {0, EOS} <= {completion.token_ids[-1] for completion in stopped}


def test_what_would_end_vllm_is_refused_and_the_engine_still_works(engine, refit):
    refit("base")
    before = plain(sample(engine, PROMPTS, GREEDY))
    for prompts in ([[VOCAB]], [[]], [[5] * MAX_MODEL_LEN]):
        with pytest.raises(ValueError):
            sample(engine, prompts, GREEDY)
    assert plain(sample(engine, PROMPTS, GREEDY)) == before


def test_the_trainers_process_keeps_its_random_state_and_threads(engine):
    assert torch.set_num_threads.__module__ != "vllm.v1.worker.cpu_worker"
    children = [process.name() for process in psutil.Process(engine._process.pid).children()]
    assert not any("EngineCore" in name for name in children), "the engine is in the process that watches our pipe"


def test_a_flipped_bit_is_found_by_what_the_engine_holds_and_a_new_engine_heals_it(engine, refit, loaded_by_vllm):
    """Comes last: the engine's process is started anew, once for both faults."""
    refit("base")
    name = "model.layers.1.self_attn.k_proj.weight"
    pid = engine._process.pid
    with pytest.raises(RuntimeError, match=f"holds other values than were sent: {name}"):
        refit("actor", on(name, lambda name, tensor: [(name, flipped(tensor))]))
    with pytest.raises(RuntimeError, match="refuses to generate"):
        sample(engine, PROMPTS, GREEDY)
    psutil.Process(pid).kill()
    with pytest.raises(RuntimeError, match=rf"the vLLM engine \(process {pid}.* ended in `load` with signal SIGKILL"):
        refit("actor")
    refit("actor")
    assert plain(sample(engine, LONG, SAMPLED)) == loaded_by_vllm[1](LONG, SAMPLED)

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM

from nemo_simplerl.rollout.base import SamplingParams
from nemo_simplerl.rollout.hf.decode import common_start, decode
from nemo_simplerl.rollout.hf.engine import HfEngine
from nemo_simplerl.rollout.hf.fixed_cache import FixedShapeCache
from nemo_simplerl.rollout.hf.kv_cache import ATTENTION, SharedPromptCache, padding_mask
from nemo_simplerl.rollout.hf.sampling import uniforms
from nemo_simplerl.rollout.stopping import StopRule
from support.kernels import KernelCount, RecordedGraph
from support.tiny import save_hf_model

VOCAB = 131
SAMPLED = SamplingParams(n=3, max_tokens=12, temperature=1.0, top_p=1.0, top_k=0, stop=(), stop_token_ids=())
GREEDY = replace(SAMPLED, n=1, temperature=0.0)
PROMPTS = [[5, 9, 11], [7], [3, 1, 4, 1, 5, 9, 2, 6], [100, 101, 102, 103], [7]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_hf_model(tmp_path_factory.mktemp("hf") / "model")


@pytest.fixture(scope="module")
def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def letters() -> Tokenizer:
    """A tokenizer of letters, most with a digit, so that stop strings span tokens; 130 is the special <eos>."""
    vocabulary = {f"{chr(97 + i % 26)}{i // 26}": i for i in range(130)} | {"<eos>": 130}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="a0"))
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("0", "")])
    tokenizer.add_special_tokens(["<eos>"])
    return tokenizer


def make_engine(folder, weights, **changes) -> HfEngine:
    engine = HfEngine(folder, **({"tokenizer": letters(), "max_batch_size": 64} | changes))
    engine.refit([list(weights.items())], 3)
    return engine


@pytest.fixture(scope="module")
def engine(folder, weights):
    return make_engine(folder, weights)


def seeds_of(params, prompts=PROMPTS):
    return list(range(40, 40 + len(prompts) * params.n))


def full_logprobs(model, prompt, token_ids, temperature=1.0):
    """Log-probabilities of the response from one forward pass without a cache: float32 [T, V]."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *token_ids]])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1)


def test_greedy_completions_are_those_of_transformers(engine, model):
    completions = engine.generate(PROMPTS, GREEDY, seeds_of(GREEDY))
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        expected = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0
        )[0, len(prompt) :]
        assert list(completion.token_ids) == expected.tolist()
        assert (completion.finish_reason, completion.weight_version) == ("length", 3)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logprobs_are_those_of_a_full_forward(engine, model, temperature):
    params = replace(SAMPLED, temperature=temperature, top_k=20, top_p=0.9)
    completions = engine.generate(PROMPTS, params, seeds_of(params))
    for index, completion in enumerate(completions):
        expected = full_logprobs(model, PROMPTS[index // 3], completion.token_ids, temperature or 1.0)
        chosen = expected[range(12), list(completion.token_ids)]
        assert torch.tensor(completion.logprobs).sub(chosen).abs().max() < 1e-4


def test_a_completion_depends_on_its_prompt_and_seed_not_on_its_neighbours(folder, weights, engine):
    together = engine.generate(PROMPTS, SAMPLED, seeds_of(SAMPLED))
    assert len({completion.token_ids for completion in together}) == len(together), "different seeds differ"
    assert [completion.seed for completion in together] == seeds_of(SAMPLED)

    for max_batch_size in (1, 4, 7):
        waves = make_engine(folder, weights, max_batch_size=max_batch_size)
        assert tokens_of(waves.generate(PROMPTS, SAMPLED, seeds_of(SAMPLED))) == tokens_of(together)

    one_by_one = [prompt for prompt in PROMPTS for _ in range(3)]
    ungrouped = engine.generate(one_by_one, replace(SAMPLED, n=1), seeds_of(SAMPLED))
    assert tokens_of(ungrouped) == tokens_of(together)

    backwards = engine.generate(one_by_one[::-1], replace(SAMPLED, n=1), seeds_of(SAMPLED)[::-1])
    assert tokens_of(backwards[::-1]) == tokens_of(together)


def test_the_same_call_twice_is_identical_to_the_bit(engine):
    first = engine.generate(PROMPTS, SAMPLED, seeds_of(SAMPLED))
    assert engine.generate(PROMPTS, SAMPLED, seeds_of(SAMPLED)) == first


def test_rows_that_end_early_leave_the_others_as_they_were(engine):
    params = replace(SAMPLED, n=12)
    free = engine.generate(PROMPTS, params, seeds_of(params))
    stop_ids = tuple(range(0, 131, 9))
    stopped = engine.generate(PROMPTS, replace(params, stop_token_ids=stop_ids), seeds_of(params))
    lengths = set()
    for long, short in zip(free, stopped, strict=True):
        ends = [index for index, token in enumerate(long.token_ids) if token in stop_ids]
        length = ends[0] + 1 if ends else 12
        lengths.add(length)
        assert short.token_ids == long.token_ids[:length]
        assert short.logprobs == pytest.approx(long.logprobs[:length], abs=1e-4)
        assert short.finish_reason == ("stop" if ends else "length")
    assert len(lengths) > 4, "the rows were to end at different times"


@pytest.fixture
def decoding_model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=ATTENTION).eval()


def decoded(model, params=SAMPLED, prompts=PROMPTS, **bounds):
    prompt_of_R = np.repeat(np.arange(len(prompts)), params.n)
    stop_rule = StopRule((), params.stop_token_ids, None, VOCAB)
    draws = uniforms(seeds_of(params, prompts), params.max_tokens)
    return decode(model, prompts, prompt_of_R, draws, params, stop_rule, None, **bounds)


def test_a_prompt_is_computed_once_and_an_ended_response_no_more(decoding_model, monkeypatch):
    shapes = []
    forward = decoding_model.forward
    monkeypatch.setattr(
        decoding_model, "forward", lambda **kwargs: shapes.append(kwargs["input_ids"].shape) or forward(**kwargs)
    )
    lengths = decoded(decoding_model, replace(SAMPLED, n=12, stop_token_ids=tuple(range(0, 131, 9)))).lengths_R
    assert shapes[0] == (5, 8), "all prompts, padded to the longest"
    # The first token of a response comes from its prompt's pass.
    assert sum(rows for rows, columns in shapes[1:]) == (lengths - 1).sum()


EXAMPLES = [(7 * i) % 97 for i in range(20)]  # what worked examples are to a prompt


@pytest.mark.parametrize(
    "ends",
    [[[5, 9, 11], [7], [3, 1, 4, 1, 5, 9, 2, 6]], [[5], [], [5, 9]], [[8], [8]]],
    ids=["of several lengths", "one the beginning of another", "alike"],
)
@pytest.mark.parametrize("prefill_scores", [1 << 26, 1], ids=["at once", "one by one"])
def test_what_all_prompts_begin_with_is_computed_once(model, decoding_model, monkeypatch, ends, prefill_scores):
    prompts = [EXAMPLES + end for end in ends]
    shared = min(len(prompt) for prompt in prompts) - 1 if [] in ends or ends[0] == ends[1] else len(EXAMPLES)
    shapes, forward = [], decoding_model.forward
    monkeypatch.setattr(
        decoding_model, "forward", lambda **kwargs: shapes.append(tuple(kwargs["input_ids"].shape)) or forward(**kwargs)
    )
    found = decoded(decoding_model, prompts=prompts, prefill_scores=prefill_scores)
    rest = max(len(prompt) for prompt in prompts) - shared
    passes = [(len(prompts), rest)] if prefill_scores > 1 else [(1, rest)] * len(prompts)
    assert shapes[: len(passes) + 1] == [(1, shared), *passes]
    for row, (tokens, logprobs) in enumerate(zip(found.tokens_RT, found.logprobs_RT, strict=True)):
        expected = full_logprobs(model, prompts[row // SAMPLED.n], tokens.tolist())[range(12), tokens]
        assert torch.tensor(logprobs).sub(expected).abs().max() < 1e-4


def test_a_short_beginning_and_a_prompt_alone_have_no_pass_of_their_own():
    assert common_start([[*range(15), 1], [*range(15), 2]]) == 0
    assert common_start([[*range(16), 1], [*range(16), 2]]) == 16
    assert common_start([[*range(40)]]) == 0


def test_the_memory_of_ended_rows_and_of_their_prompts_is_given_back():
    torch.manual_seed(0)
    layers = [(torch.randn(4, 2, 3, 4), torch.randn(4, 2, 3, 4)) for _ in range(2)]
    mask = padding_mask(torch.tensor([0, 1, 0, 2]), 3, torch.float32)
    cache = SharedPromptCache(layers, mask, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), max_columns=16)
    floats_of_a_row, floats_of_a_prompt = 2 * 2 * 2 * 16 * 4, 2 * 2 * 2 * 3 * 4  # layers, keys and values, heads
    cache.open_column()
    for layer in range(2):
        cache.update(torch.randn(8, 2, 1, 4), torch.randn(8, 2, 1, 4), layer)
    query = torch.randn(8, 4, 1, 4)
    before = cache.attend(1, query, 0.5)
    assert cache.num_bytes == 4 * (8 * floats_of_a_row + 4 * floats_of_a_prompt)

    slots = torch.tensor([7, 1, 2, 3, 4])
    cache.keep(torch.tensor([7]), torch.tensor([0]), 5)
    torch.testing.assert_close(cache.attend(1, query[slots], 0.5), before[slots])
    assert cache.num_bytes == 4 * (8 * floats_of_a_row + 4 * floats_of_a_prompt)

    slots = torch.tensor([7, 1, 2])
    cache.keep(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64), 3)
    torch.testing.assert_close(cache.attend(1, query[slots], 0.5), before[slots])
    assert cache.num_bytes == 4 * (3 * floats_of_a_row + 3 * floats_of_a_prompt)


def test_a_response_longer_than_the_first_cache_is_decoded_right(decoding_model):
    expected, found = decoded(decoding_model), decoded(decoding_model, first_columns=2)
    assert (found.tokens_RT == expected.tokens_RT).all()
    assert (found.logprobs_RT == expected.logprobs_RT).all()


@pytest.mark.parametrize(
    ("stop_token_ids", "first_columns"),
    [(tuple(range(0, 131, 9)), 2), ((), 2), ((), 16)],
    ids=["rows end", "memory grows", "the window grows"],
)
def test_decoding_through_graphs_gives_the_same_responses(decoding_model, monkeypatch, stop_token_ids, first_columns):
    """Rows end at different times, the cache grows, and a graph knows nothing that the host counted."""
    monkeypatch.setattr(FixedShapeCache, "window", 3)
    params = replace(SAMPLED, n=12, top_p=0.9, stop_token_ids=stop_token_ids, max_tokens=12)
    expected = decoded(decoding_model, params)
    with RecordedGraph() as graph:
        found = decoded(decoding_model, params, capture=graph.capture, first_columns=first_columns)
    assert len(graph.captured) > 2, "fewer rows and more columns were to need graphs of their own"
    assert (found.lengths_R == expected.lengths_R).all() and (found.is_stopped_R == expected.is_stopped_R).all()
    for row, length in enumerate(expected.lengths_R):
        assert (found.tokens_RT[row, :length] == expected.tokens_RT[row, :length]).all()
        np.testing.assert_allclose(found.logprobs_RT[row, :length], expected.logprobs_RT[row, :length], atol=1e-5)


def test_a_step_as_a_graph_is_launched_at_once(decoding_model):
    of_one_more = []
    for capture in (False, True):
        totals = []
        for max_tokens in (9, 10):
            params = replace(SAMPLED, max_tokens=max_tokens)
            graph, count = RecordedGraph(), KernelCount()
            with graph if capture else count:
                decoded(decoding_model, params, capture=graph.capture if capture else None)
            totals.append(graph.launches if capture else count.kernels)
        of_one_more.append(totals[1] - totals[0])
        captured = graph.captured
    eager, as_graph = of_one_more
    assert as_graph == 2, "where the step stands, and the graph"
    assert captured == [pytest.approx(eager, abs=30)] and eager > 100


def test_prompts_computed_in_chunks_are_decoded_right(decoding_model, engine):
    found = decoded(decoding_model, prefill_scores=2 * 8**2)
    completions = engine.generate(PROMPTS, SAMPLED, seeds_of(SAMPLED))
    assert found.tokens_RT.tolist() == [list(tokens) for tokens in tokens_of(completions)]


def test_a_stop_string_across_tokens_ends_the_response_after_the_token_that_completes_it(engine):
    [free] = engine.generate([[7]], GREEDY, [0])
    upto = letters().decode(list(free.token_ids[:6]))
    assert free.text.startswith(upto)
    [cut] = engine.generate([[7]], replace(GREEDY, stop=("never", upto[-4:])), [0])
    assert cut.token_ids == free.token_ids[:6]
    assert (cut.text, cut.finish_reason) == (upto, "stop")


def test_a_stop_at_the_last_allowed_token_is_a_stop(engine):
    [free] = engine.generate([[7]], GREEDY, [0])
    at = max(index for index in range(12) if free.token_ids[index] not in free.token_ids[:index])
    assert at > 0
    params = replace(GREEDY, max_tokens=at + 1, stop_token_ids=(free.token_ids[at],))
    [cut] = engine.generate([[7]], params, [0])
    assert (len(cut.token_ids), cut.finish_reason) == (at + 1, "stop")


def test_special_tokens_are_kept_in_the_ids_and_out_of_the_text(folder, weights):
    always_eos = always(weights, 130)
    engine = make_engine(folder, always_eos)
    [ended] = engine.generate([[7]], replace(GREEDY, stop_token_ids=(130,)), [0])
    assert (ended.token_ids, ended.text, ended.finish_reason) == ((130,), "", "stop")
    [by_text] = engine.generate([[7]], replace(GREEDY, stop=("<eos>",)), [0])
    assert by_text.token_ids == (130,)
    [limited] = make_engine(folder, always_eos, vocab_limit=130).generate([[7]], GREEDY, [0])
    assert limited.token_ids == (0,) * 12, "the other logits are equal, and the first of equals is taken"


def always(weights, token):
    """Weights of a model that forgets its input and gives `token` the highest logit, all others 0."""
    changed = {"model.embed_tokens.weight": torch.ones(VOCAB, 64), "model.norm.weight": torch.ones(64)}
    for layer in range(4):
        changed[f"model.layers.{layer}.self_attn.o_proj.weight"] = torch.zeros(64, 64)
        changed[f"model.layers.{layer}.mlp.down_proj.weight"] = torch.zeros(64, 96)
    changed["lm_head.weight"] = torch.zeros(VOCAB, 64)
    changed["lm_head.weight"][token] = 1.0
    return weights | changed


def test_a_refit_changes_what_is_sampled_and_the_weight_version(folder, weights, model):
    engine = make_engine(folder, weights)
    before = engine.generate(PROMPTS, GREEDY, seeds_of(GREEDY))
    changed = {name: tensor * 1.5 for name, tensor in weights.items()}
    engine.refit([list(changed.items())], 4)
    after = engine.generate(PROMPTS, GREEDY, seeds_of(GREEDY))
    assert tokens_of(after) != tokens_of(before)
    assert {completion.weight_version for completion in after} == {4}
    engine.refit([list(weights.items())], 5)
    assert tokens_of(engine.generate(PROMPTS, GREEDY, seeds_of(GREEDY))) == tokens_of(before)


def test_an_engine_refuses_to_generate_until_a_complete_refit(folder, weights):
    engine = HfEngine(folder, tokenizer=None, max_batch_size=4)
    with pytest.raises(RuntimeError, match="call refit"):
        engine.generate([[7]], GREEDY, [0])

    consumed = []

    def bad_stream():
        for name, tensor in weights.items():
            if name == "model.norm.weight":
                continue
            yield [(name, tensor.T if name == "lm_head.weight" else tensor)]
            if len(consumed) == 0:
                yield [("model.surprise.weight", tensor)]
            consumed.append(name)

    with pytest.raises(ValueError) as error:
        engine.refit(bad_stream(), 1)
    for told in (
        "unknown model.surprise.weight",
        "missing",
        "model.norm.weight",
        "lm_head.weight is (64, 131)",
    ):
        assert told in str(error.value)
    assert len(consumed) == len(weights) - 1, "the stream is read to its end: other ranks may be sending it"
    with pytest.raises(RuntimeError, match="call refit"):
        engine.generate([[7]], GREEDY, [0])

    engine.refit([list(weights.items())], 2)
    assert engine.generate([[7]], GREEDY, [0])[0].weight_version == 2


def test_a_tied_head_may_be_missing_and_must_not_contradict(tmp_path):
    folder = save_hf_model(tmp_path / "tied", tied=True)
    weights = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in weights
    expected = make_engine(folder, weights).generate(PROMPTS, GREEDY, seeds_of(GREEDY))
    with_head = weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    assert make_engine(folder, with_head).generate(PROMPTS, GREEDY, seeds_of(GREEDY)) == expected
    with pytest.raises(ValueError, match="ties"):
        make_engine(folder, with_head | {"lm_head.weight": with_head["lm_head.weight"] + 1})
    del weights["model.embed_tokens.weight"]
    with pytest.raises(ValueError, match=r"missing model\.embed_tokens\.weight"):
        make_engine(folder, weights)


def test_calls_that_cannot_work_are_refused_before_any_work(folder, weights, engine):
    with pytest.raises(ValueError, match=r"5 prompts with n=3 need 15 seeds, got 4"):
        engine.generate(PROMPTS, SAMPLED, [0] * 4)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        engine.generate([[7], []], GREEDY, [0, 0])
    with pytest.raises(ValueError, match="vocabulary is 131"):
        engine.generate([[7, 131]], GREEDY, [0])
    with pytest.raises(ValueError, match="120 tokens and max_tokens is 12.*max_model_len=128"):
        engine.generate([[7] * 120], GREEDY, [0])
    with pytest.raises(ValueError, match="max_model_len=20"):
        make_engine(folder, weights, max_model_len=20).generate([[7] * 9], GREEDY, [0])
    assert engine.generate([], GREEDY, []) == []


def test_a_sleeping_or_closed_engine_says_what_to_do(folder, weights):
    engine = make_engine(folder, weights)
    expected = engine.generate(PROMPTS, GREEDY, seeds_of(GREEDY))
    engine.sleep()
    with pytest.raises(RuntimeError, match=r"wake\(\)"):
        engine.generate(PROMPTS, GREEDY, seeds_of(GREEDY))
    with pytest.raises(RuntimeError, match=r"wake\(\)"):
        engine.refit([list(weights.items())], 4)
    engine.wake()
    assert engine.generate(PROMPTS, GREEDY, seeds_of(GREEDY)) == expected
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.generate(PROMPTS, GREEDY, seeds_of(GREEDY))


def test_building_an_engine_leaves_the_random_state_alone(folder):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    HfEngine(folder, tokenizer=None, max_batch_size=4)
    assert torch.rand(1) == expected


def test_a_model_with_sliding_windows_is_refused(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config |= {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    config.pop("layer_types", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="sliding_attention.*use_sliding_window"):
        HfEngine(tmp_path, tokenizer=None, max_batch_size=4)


def test_a_llama_model_in_bfloat16_is_sampled_with_float32_logprobs(tmp_path):
    folder = save_hf_model(tmp_path / "llama", "llama")
    weights = load_file(folder / "model.safetensors")
    engine = make_engine(folder, weights, dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    for prompt, completion in zip(PROMPTS, engine.generate(PROMPTS, GREEDY, seeds_of(GREEDY)), strict=True):
        expected = full_logprobs(model.float(), prompt, completion.token_ids)
        chosen = expected[range(12), list(completion.token_ids)]
        assert torch.tensor(completion.logprobs).sub(chosen).abs().max() < 0.15


def tokens_of(completions):
    return [completion.token_ids for completion in completions]

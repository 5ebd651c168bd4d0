"""The parts of the TensorRT-LLM adapter that need no engine: arguments, answers, handles, the private environment."""

import asyncio
import base64
import inspect
import os
import pickle
import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing.reductions import rebuild_cuda_tensor

from fakes.releases import FAKES, build
from nemo_simplerl.config.load import compose
from nemo_simplerl.config.rules.engines.trtllm import discards_weights
from nemo_simplerl.rollout.base import SamplingParams
from nemo_simplerl.rollout.expected_weights import Arrivals, ExpectedWeights
from nemo_simplerl.rollout.own_process import handles
from nemo_simplerl.rollout.own_process.answers import cut_at_stops
from nemo_simplerl.rollout.own_process.launch_environment import environment_of_its_own
from nemo_simplerl.rollout.own_process.source_rules import Fields
from nemo_simplerl.rollout.stopping import StopRule
from nemo_simplerl.rollout.trtllm.contract import contract
from nemo_simplerl.rollout.trtllm.engine import TrtllmEngine, usable_release
from nemo_simplerl.rollout.trtllm.loop_thread import LoopThread, Overdue
from nemo_simplerl.rollout.trtllm.releases import RELEASES, TORCH, TRTLLM, installed_release
from nemo_simplerl.rollout.trtllm.values import (
    llm_arguments,
    logprobs_mode,
    padding_bias,
    request_arguments,
    sleep_tags,
    tokens_and_logprobs,
)
from support.tiny import save_hf_model

PARAMS = SamplingParams(n=1, max_tokens=9, temperature=0.7, top_p=1.0, top_k=0, stop=(), stop_token_ids=(3, 50))
SETTINGS = compose(["experiment=quickstart"]).rollout.trtllm


def fields_of(name, release):
    rules = [rule for rule in contract(release) if isinstance(rule, Fields) and rule.name == name]
    return {field for rule in rules for field in rule.fields}


def arguments_of(settings=SETTINGS, name="1.2"):
    return llm_arguments("model", torch.bfloat16, 2048, settings, RELEASES[name])


@pytest.mark.parametrize("release", RELEASES.values(), ids=RELEASES)
def test_every_argument_that_is_passed_is_a_row_of_the_releases_contract(release):
    arguments = arguments_of(name=release.name)
    assert set(arguments) - {"model"} <= fields_of("TorchLlmArgs", release)
    sections = {"kv_cache": "KvCache", "cuda_graph": "CudaGraph", "scheduler": "Scheduler", "sleep": "Sleep"}
    for key, name in sections.items():
        assert set(arguments.get(f"{key}_config", ())) <= fields_of(f"{name}Config", release)
    asked = request_arguments(PARAMS, 1, mode=logprobs_mode(PARAMS, TORCH, release))
    assert set(asked) <= fields_of("SamplingParams", release)


def test_engine_arguments_follow_the_settings_and_raw_ones_lie_over_them():
    settings = replace(
        SETTINGS,
        max_batch_size=17,
        cuda_graph=False,
        sleep=False,
        engine_args={"kv_cache_config": {"tokens_per_block": 64}, "max_num_tokens": 5, "batch_wait_timeout_iters": 0},
    )
    arguments = arguments_of(settings)
    assert arguments["dtype"] == "bfloat16"
    assert arguments["max_input_len"] == arguments["max_seq_len"] == 2048
    assert arguments["kv_cache_config"] == {
        "enable_block_reuse": True,
        "free_gpu_memory_fraction": settings.free_gpu_memory_fraction,
        "tokens_per_block": 64,
    }
    assert (arguments["max_num_tokens"], arguments["batch_wait_timeout_iters"]) == (5, 0)
    assert (arguments["cuda_graph_config"], arguments["enable_sleep"], arguments["max_batch_size"]) == (None, False, 17)


def test_requests_are_admitted_by_the_room_that_is_there_and_prompts_wait_for_a_full_batch():
    arguments = arguments_of()
    assert arguments["scheduler_config"] == {"capacity_scheduler_policy": "MAX_UTILIZATION"}
    assert (arguments["batch_wait_timeout_iters"], arguments["batch_wait_max_tokens_ratio"]) == (32, 0.5)


def test_each_release_is_asked_to_sleep_and_to_sample_in_its_own_words():
    asked = {name: arguments_of(name=name) for name in RELEASES}
    words = ("enable_sleep", "sleep_config", "sampler_type")
    assert {name: {word: given[word] for word in words if word in given} for name, given in asked.items()} == {
        "1.2": {"enable_sleep": True, "sampler_type": TRTLLM},
        "1.3": {"sleep_config": {"restore_modes": {"kv_cache": "NONE"}}, "sampler_type": TRTLLM},
        "1.4": {"sleep_config": {"restore_modes": {"kv_cache": "NONE"}}},
    }
    assert "sleep_config" not in arguments_of(replace(SETTINGS, sleep=False), "1.3")
    assert RELEASES["1.4"].sampler(TRTLLM) == TORCH in RELEASES["1.4"].follow_seeds


def test_a_mode_that_discards_the_weights_is_known_and_leaves_the_caches_mode_as_it_was():
    asked = {"sleep_config": {"restore_modes": {"model_weights": "NONE"}}}
    arguments = arguments_of(replace(SETTINGS, engine_args=asked), "1.3")
    assert arguments["sleep_config"]["restore_modes"] == {"kv_cache": "NONE", "model_weights": "NONE"}
    assert discards_weights(arguments)
    assert not discards_weights(arguments_of(name="1.3")) and not discards_weights(arguments_of())


def test_all_memory_of_the_packages_enumeration_is_given_back_asleep():
    tags = ["sampler", "_no_capture_init_kv_cache", "kv_cache", "model", "model_weights", "of_a_later_release"]
    assert sleep_tags(tags) == ["sampler", "model", "model_weights", "of_a_later_release"]


def test_log_probabilities_of_the_draw_are_asked_for_where_a_release_gives_others():
    greedy = replace(PARAMS, temperature=0.0)
    found = [
        logprobs_mode(params, sampler, release)
        for release in RELEASES.values()
        for sampler, params in ((TRTLLM, PARAMS), (TORCH, PARAMS), (TORCH, greedy))
    ]
    assert found == [None, None, None, None, "PROCESSED", None, None, "PROCESSED", None]
    assert "logprobs_mode" not in request_arguments(PARAMS, 1)


def test_a_request_keeps_its_stop_token_and_greedy_is_the_most_probable_of_one():
    asked = request_arguments(PARAMS, 2**64 + 5)
    assert (asked["end_id"], asked["stop_token_ids"], asked["include_stop_str_in_output"]) == (-1, [3, 50], True)
    assert (asked["temperature"], asked["top_k"], asked["seed"], asked["detokenize"]) == (0.7, 0, 5, False)
    greedy = request_arguments(replace(PARAMS, temperature=0.0), 1)
    assert (greedy["temperature"], greedy["top_k"], greedy["top_p"]) == (1.0, 1, 1.0)


def test_rows_of_the_embedding_that_stand_for_no_token_get_a_logit_of_probability_0():
    bias_V = padding_bias(6, 4)
    logits_V = torch.tensor([0.0, 1.0, -3.0, 2.0, 80.0, 90.0])
    assert (logits_V + bias_V).softmax(-1)[4:].tolist() == [0.0, 0.0]
    assert bias_V[:4].tolist() == [0.0] * 4
    assert request_arguments(PARAMS, 1, bias_V)["embedding_bias"] is bias_V
    assert padding_bias(6, 6) is padding_bias(6, None) is request_arguments(PARAMS, 1)["embedding_bias"] is None


def answer(token_ids, reason, logprobs=None):
    entries = [{9: SimpleNamespace(logprob=-0.1), t: SimpleNamespace(logprob=-float(t))} for t in token_ids]
    choice = SimpleNamespace(
        token_ids=token_ids, finish_reason=reason, logprobs=entries if logprobs is None else logprobs
    )
    return SimpleNamespace(outputs=[choice])


def test_logprobs_are_read_by_token_and_not_by_place():
    ids = [7, 3]
    tokens, logprobs = tokens_and_logprobs(answer(ids, "stop"), PARAMS)
    assert (tokens, logprobs) == ([7, 3], [-7.0, -3.0])
    ids.append(8)
    assert tokens == [7, 3], "the engine goes on writing into its own list"


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (answer([7], "timeout"), "ended a request with 'timeout'"),
        (answer([7], "stop"), "does not end in one of stop_token_ids"),
        (answer([], "stop"), "does not end in one of stop_token_ids"),
        (answer([7, 8], "length", logprobs=[{7: None}]), "1 log-probabilities of 2 tokens"),
        (answer([7], "length", logprobs=[{8: None}]), "no log-probability of token 7"),
    ],
)
def test_an_answer_that_the_trainer_cannot_use_is_an_error(output, told):
    with pytest.raises(RuntimeError, match=told):
        tokens_and_logprobs(output, PARAMS)


class Letters:
    def decode(self, token_ids, skip_special_tokens):
        return "".join(chr(97 + token) for token in token_ids)


def test_responses_are_cut_after_the_token_that_completes_a_stop_string():
    rule = StopRule(("cd", "zz"), (4,), Letters(), 26)
    responses = [[1, 2, 3, 1, 1], [2, 2, 2], [1, 4], [3, 2, 3], []]
    assert cut_at_stops(responses, rule) == ([3, 3, 2, 3, 0], [True, False, True, True, False])
    assert cut_at_stops([], rule) == ([], [])


@pytest.mark.parametrize(
    ("version", "told"),
    [
        (None, "which is not installed.*rollout.engine=hf"),
        ("1.1.0", "written for tensorrt-llm 1.2, 1.3, 1.4, and 1.1.0 is installed"),
        ("1.20.0", "1.20.0 is installed"),
        ("1.5.0rc1", "newer ones were not read"),
    ],
)
def test_another_version_is_refused_before_anything_starts(monkeypatch, tmp_path, version, told):
    if version is not None:
        folder = tmp_path / f"tensorrt_llm-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt-llm\nVersion: {version}\n")
        monkeypatch.syspath_prepend(tmp_path)
    elif _is_installed():
        pytest.skip("tensorrt-llm is installed here")
    with pytest.raises(ValueError, match=told):
        TrtllmEngine(
            "no/such/model",
            tokenizer=None,
            device=torch.device("cpu"),
            dtype=torch.float32,
            max_model_len=8,
            settings=SETTINGS,
            group=None,
        )


def _is_installed():
    try:
        installed_release()
    except ValueError as error:
        return "not installed" not in str(error)
    return True


@pytest.mark.parametrize("name", RELEASES)
def test_the_double_of_each_release_is_one_that_can_be_used(monkeypatch, tmp_path, name):
    build(name, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert usable_release() is RELEASES[name]


def test_a_ray_without_what_tensorrt_llm_imports_is_refused_before_anything_starts(monkeypatch, tmp_path):
    package = build("1.2", tmp_path)
    file = package / "executor/ray_executor.py"
    file.write_text(file.read_text().replace("    get_current_placement_group,\n", "    gone_from_ray,\n"))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"imports gone_from_ray from ray.util.placement_group.*install ray>=2.49,<2"):
        usable_release()


def test_the_extension_hides_nothing_of_the_worker_and_one_that_does_is_refused(tmp_path):
    code = (
        "import sys; from tensorrt_llm.executor.ray_gpu_worker import RayGPUWorker, RayWorkerWrapper\n"
        "inject = RayWorkerWrapper.__ray_metadata__.modified_class._inject_worker_extension\n"
        "print(sorted(set(dir(inject(RayGPUWorker, 'nemo_simplerl.rollout.trtllm.worker.Extension'))) "
        "- set(dir(RayGPUWorker))))\n"
        "inject(RayGPUWorker, 'clashing.Extension')\n"
    )
    (tmp_path / "clashing.py").write_text("class Extension:\n    def sleep(self): ...\n")
    paths = [str(FAKES), str(FAKES.parent.parent), str(tmp_path), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TLLM_DISABLE_MPI": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "simplerl_digests" in done.stdout and "update_weights" in done.stdout
    assert "Worker class RayGPUWorker already defines 'sleep', which conflicts with extension Extension." in done.stderr


def test_a_launchers_variables_are_gone_inside_and_back_afterwards(monkeypatch):
    launcher = {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "here",
        "MASTER_PORT": "1",
        "GROUP_RANK": "0",
        "ROLE_NAME": "default",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "PMI_RANK": "1",
        "PMI2_ID": "1",
        "PMIX_RANK": "1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "MPI_LOCALRANKID": "1",
        "SLURM_JOB_ID": "7",
        "SLURMD_NODENAME": "n1",
        "RAY_ADDRESS": "auto",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    }
    kept = {"PATH": os.environ["PATH"], "MASTERPIECE": "x", "RANKING": "y"}
    for name, text in {**launcher, **kept, "CHANGED": "before"}.items():
        monkeypatch.setenv(name, text)
    monkeypatch.delenv("ADDED", raising=False)
    before = dict(os.environ)
    with pytest.raises(KeyError), environment_of_its_own(CHANGED="inside", ADDED="too"):
        assert not launcher.keys() & os.environ.keys()
        assert kept.items() <= os.environ.items()
        assert (os.environ["CHANGED"], os.environ["ADDED"]) == ("inside", "too")
        os.environ["MASTER_PORT"] = "set by what was started"
        raise KeyError
    assert dict(os.environ) == before


def test_a_loop_thread_runs_what_is_awaited_and_raises_its_error():
    loop = LoopThread("test-loop")

    async def where(error=None):
        await asyncio.sleep(0)
        if error:
            raise error
        return threading.current_thread().name

    assert loop.run(where()) == loop.run(where()) == "test-loop"
    with pytest.raises(KeyError, match="wrong"):
        loop.run(where(KeyError("wrong")))
    with pytest.raises(Overdue):
        loop.run(asyncio.sleep(60), limit_s=0.01)
    loop.close()
    loop.close()
    assert "test-loop" not in {thread.name for thread in threading.enumerate()}


OPEN = """
import sys
from nemo_simplerl.rollout.own_process.handles import open_handles
for name, tensor in open_handles(sys.stdin.read(), 0):
    print(name, tensor.dtype, tuple(tensor.shape), tensor.double().sum().item())
"""


def test_another_process_reads_what_was_put_and_the_buffer_serves_bucket_after_bucket():
    staging = handles.Staging(torch.device("cpu"))
    buckets = [
        [("a", torch.arange(6.0).view(2, 3).T), ("b", torch.ones(3, dtype=torch.bfloat16))],
        [("c", torch.arange(3000, dtype=torch.float32))],
        [("d", torch.tensor(2.0))],
    ]
    read = []
    for bucket in buckets:
        staging.put(bucket)
        done = subprocess.run(
            [sys.executable, "-c", OPEN], input=staging.handles(), capture_output=True, text=True, check=True
        )
        read += done.stdout.splitlines()
    assert read == [
        "a torch.float32 (3, 2) 15.0",
        "b torch.bfloat16 (3,) 3.0",
        "c torch.float32 (3000,) 4498500.0",
        "d torch.float32 () 2.0",
    ]
    assert torch.multiprocessing.get_sharing_strategy() == "file_descriptor", "as it was before"


def by_parameter(*args):
    """The arguments of torch's rebuild_cuda_tensor by the names of its parameters."""
    return dict(zip(inspect.signature(rebuild_cuda_tensor).parameters, args, strict=True))


def test_a_cuda_handle_is_opened_on_the_readers_own_device():
    sent = tuple(inspect.signature(rebuild_cuda_tensor).parameters)  # each argument is its own name
    text = base64.b64encode(pickle.dumps([("w", (by_parameter, sent))])).decode()
    assert handles.open_handles(text, 3) == [("w", by_parameter(*sent) | {"storage_device": 3})]


def test_memory_for_handles_is_taken_outside_expandable_segments(monkeypatch):
    told = []
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    handles.Staging(torch.device("cpu"), told.append).put([("a", torch.ones(3))])
    assert told == []
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64,expandable_segments:True")
    handles.Staging(torch.device("cpu"), told.append).put([("a", torch.ones(3))])
    assert told == [f"max_split_size_mb:64,expandable_segments:{value}" for value in ("False", "True")]


@pytest.mark.parametrize(("visible", "expected"), [(None, 1), ("", 1), ("4,6", 6)])
def test_a_gpu_is_counted_as_the_machine_counts(monkeypatch, visible, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert handles.physical_index(torch.device("cuda", 1)) == expected
    assert handles.physical_index(torch.device("cpu")) is None


def test_a_gpu_named_by_uuid_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa,MIG-bb")
    with pytest.raises(ValueError, match="'MIG-bb'.*read numbers only"):
        handles.physical_index(torch.device("cuda", 1))


@pytest.mark.parametrize("tied", [False, True])
def test_expected_weights_are_those_of_the_saved_model(tmp_path, tied):
    folder = save_hf_model(tmp_path / "model", tied=tied)
    weights = load_file(folder / "model.safetensors")
    expected = ExpectedWeights(folder)
    assert expected.vocab_size == 131
    assert {name: expected.shapes[name] for name in weights} == {name: tuple(w.shape) for name, w in weights.items()}
    assert set(expected.shapes) - set(weights) == ({"lm_head.weight"} if tied else set())
    arrivals = Arrivals(expected)
    arrivals.take(list(weights.items()))
    arrivals.finish()
    if tied:
        arrivals.take([("lm_head.weight", weights["model.embed_tokens.weight"])])
        with pytest.raises(ValueError, match="duplicate lm_head.weight, which is tied to model.embed_tokens.weight"):
            arrivals.finish()
